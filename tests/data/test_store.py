import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ledom.core.errors import InputError, OutputError
from ledom.data.store import MANIFEST, SourceRuns, TokenStore, write_shard, write_store
from number_documents import ids_of


def store_of(tmp_path, words, *documents: list[int]) -> TokenStore:
    return write_store(tmp_path / "s", (" ".join(map(str, d)) for d in documents), words)


def test_a_store_is_the_documents_each_followed_by_eos(tmp_path, words):
    store = store_of(tmp_path, words, [5, 6, 7], [], [8])
    shard = store.shards[0]
    assert shard.tokens.tolist() == [5, 6, 7, 0, 0, 8, 0]
    assert shard.ends.tolist() == [4, 5, 7]
    assert ids_of(store) == [[5, 6, 7, 0], [0], [8, 0]]
    assert store.manifest.num_documents == 3
    assert store.manifest.num_tokens == 7
    raw = (tmp_path / "s" / "tokens.ds").read_bytes()
    assert raw == bytes([5, 0, 6, 0, 7, 0, 0, 0, 0, 0, 8, 0, 0, 0])  # little-endian, two bytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_store_maps_its_files_privately(tmp_path, words):
    shard = store_of(tmp_path, words, [5, 6, 7]).shards[0]
    held = shard.tokens, shard.ends
    text = Path("/proc/self/maps").read_text(errors="replace")  # names of other tests' files
    maps = [line.split() for line in text.splitlines()]
    found = [access for _, access, *_, name in maps if name.startswith(str(tmp_path))]
    assert found == ["r--p"] * len(held)  # some FUSE file systems refuse r--s


@pytest.mark.slow
def test_a_large_vocabulary_takes_four_bytes(tmp_path, word_tokenizer):
    store = store_of(tmp_path, word_tokenizer(66_000), [65_999, 3])
    assert store.shards[0].tokens.dtype == np.uint32
    assert store.shards[0].tokens.tolist() == [65_999, 3, 0]


def test_a_store_keeps_notes_and_many_documents(tmp_path, words):
    store = write_store(tmp_path / "s", (str(1 + i % 900) for i in range(2500)), words, source="x")
    assert store.manifest.source == "x"
    tokens = store.shards[0].tokens
    assert tokens[::2].tolist() == [1 + i % 900 for i in range(2500)]
    assert tokens[1::2].tolist() == [0] * 2500


def test_texts_keep_their_order_across_chunks(tmp_path, words, monkeypatch):
    monkeypatch.setattr("ledom.data.store._CHUNK_CHARACTERS", 7)
    store = store_of(tmp_path, words, [1], [22, 33], [444, 555, 666], [7], [8])
    assert store.shards[0].tokens.tolist() == [1, 0, 22, 33, 0, 444, 555, 666, 0, 7, 0, 8, 0]


@pytest.mark.parametrize("name", ["tokens.ds", "tokens.ds.index"])
def test_the_error_for_a_truncated_or_missing_file_names_it(tmp_path, words, name):
    store_of(tmp_path, words, [5, 6, 7], [8])
    file = tmp_path / "s" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name}: the manifest says .* bytes, found"):
        TokenStore(tmp_path / "s")
    file.unlink()
    with pytest.raises(InputError, match=f"{name}: the manifest says .* bytes, found nothing"):
        TokenStore(tmp_path / "s")


@pytest.mark.parametrize("name", ["tokens.ds", "tokens.ds.index"])
def test_the_error_for_a_flipped_bit_names_the_file(tmp_path, words, name):
    store = store_of(tmp_path, words, [5, 6, 7], [8])
    store.verify()
    file = tmp_path / "s" / name
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: its checksum .* is not the manifest's"):
        TokenStore(tmp_path / "s").verify()


def test_ids_outside_the_vocabulary_are_refused(tmp_path, words):
    store_of(tmp_path, words, [5, 6, 999], [8])
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vocab_size": 1000', '"vocab_size": 999'))
    with pytest.raises(InputError, match=r"tokens\.ds: it has the token id 999, the vocabulary"):
        TokenStore(tmp_path / "s")


def test_ranks_share_the_verification(tmp_path, words):
    store = store_of(tmp_path, words, [5])
    (tmp_path / "s" / "tokens.ds").write_bytes(b"\1\0\1\0")
    store.verify(rank=1, world_size=2)  # the only shard belongs to rank 0
    with pytest.raises(InputError, match="checksum"):
        store.verify(rank=0, world_size=2)


def test_the_manifest_is_written_last(tmp_path, words):
    store_of(tmp_path, words, [5])

    def texts():
        yield from ["5 6", "7"]
        assert not (tmp_path / "s" / MANIFEST).is_file()  # and the old one is gone
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "s", texts(), words)
    assert not (tmp_path / "s" / MANIFEST).is_file()
    with pytest.raises(InputError, match=r"no manifest\.json: not a finished token store"):
        TokenStore(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": None}, "key shards: Input should be a valid"),
        ({"shards": [{"file": "x"}]}, "key shards.0.num_documents: Field required"),
        ({"vocab_size": "many"}, "key vocab_size: Input should be a valid integer, found 'many'"),
        ({"dtype": "float64"}, "key dtype: Input should be 'uint16' or 'uint32', found 'float64'"),
        ({"sources": [1]}, "key sources.0: Input should be a valid"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, words, change, message):
    manifest = store_of(tmp_path, words, [5]).folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(InputError, match=f"manifest.json: {message}"):
        TokenStore(tmp_path / "s")


def test_a_manifest_that_is_not_json_is_refused(tmp_path, words):
    (store_of(tmp_path, words, [5]).folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: not JSON"):
        TokenStore(tmp_path / "s")


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, words):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/store: cannot be written"):
        write_store(tmp_path / "file" / "store", ["5"], words)


@pytest.mark.parametrize("name", ["a.ds", "a.ds.index"])
def test_a_full_disk_is_an_error_for_short_files_too(tmp_path, words, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a.ds", ["one two", "three"], words)


def test_an_empty_set_of_documents_is_refused(tmp_path, words):
    with pytest.raises(InputError, match="s: there are no documents to tokenize"):
        write_store(tmp_path / "s", [], words)


def test_the_manifest_identifies_the_tokenizer(tmp_path, words):
    manifest = json.loads((store_of(tmp_path, words, [5]).folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == words.fingerprint
    assert manifest["eos_id"] == 0
    assert manifest["vocab_size"] == 1000


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("web", "web"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "no source"),  # a text, such as one to translate
        ({"name": "web"}, "no source"),
        (3, "no source"),
        (None, "no source"),
        ("", "no source"),
    ],
)
def test_a_source_is_a_name(source, name):
    runs = SourceRuns()
    runs.add("book")
    runs.add(source, count=2)
    assert runs.named("store") == [("book", 1), (name, 2)]
