import json

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from ledom.data.shards import Batches, TokenStore, write_store
from ledom.errors import InputError, OutputError
from ledom.model.tokenizer import EOS_TOKEN, Tokenizer


def word_tokenizer(size: int) -> Tokenizer:
    """Words `1` to `size - 1` are the ids 1 to size - 1; EOS is 0."""
    vocabulary = {EOS_TOKEN: 0} | {str(i): i for i in range(1, size)}
    backend = RustTokenizer(models.WordLevel(vocabulary, unk_token="1"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return word_tokenizer(1000)


def store_of(tmp_path, words, *documents: list[int]) -> TokenStore:
    return write_store(tmp_path / "s", (" ".join(map(str, d)) for d in documents), words)


def distinct_documents(count: int) -> list[list[int]]:
    """Documents of 1 to 7 ids, no two alike."""
    return [[number + 1] * (1 + number % 7) for number in range(count)]


def as_lists(batch: list[np.ndarray]) -> list[list[int]]:
    return [window.tolist() for window in batch]


def test_a_store_is_the_documents_each_ended_by_eos(tmp_path, words):
    store = store_of(tmp_path, words, [5, 6, 7], [], [8])
    assert store.tokens.tolist() == [5, 6, 7, 0, 0, 8, 0]
    assert store.ends.tolist() == [4, 5, 7]
    assert store.tokens.dtype == np.uint16
    assert store.manifest["num_documents"] == 3
    assert store.manifest["num_tokens"] == 7
    raw = (tmp_path / "s" / "tokens.ds").read_bytes()
    assert raw == bytes([5, 0, 6, 0, 7, 0, 0, 0, 0, 0, 8, 0, 0, 0])  # little-endian, two bytes


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    store = store_of(tmp_path, word_tokenizer(66_000), [65_999, 3])
    assert store.tokens.dtype == np.uint32
    assert store.tokens.tolist() == [65_999, 3, 0]


def test_notes_and_many_documents(tmp_path, words):
    store = write_store(tmp_path / "s", (str(1 + i % 900) for i in range(2500)), words, source="x")
    assert store.manifest["source"] == "x"
    assert store.tokens[::2].tolist() == [1 + i % 900 for i in range(2500)]
    assert store.tokens[1::2].tolist() == [0] * 2500


def test_windows_are_documents_framed_by_eos(tmp_path, words):
    store = store_of(tmp_path, words, [5, 6, 7], [], [8])
    batches = Batches(store, batch_size=3, seq_len=10, seed=None)
    assert as_lists(batches[0]) == [[0, 5, 6, 7, 0], [0, 0], [0, 8, 0]]


def test_a_long_document_by_hand(tmp_path, words):
    store = store_of(tmp_path, words, [9], [1, 2, 3, 4, 5])
    batches = Batches(store, batch_size=4, seq_len=2, seed=None)
    # Three windows predict the tokens 1 2 3 4 5 EOS; each reads one more than it predicts.
    assert as_lists(batches[0]) == [[0, 9, 0], [0, 1, 2], [2, 3, 4], [4, 5, 0]]


@pytest.mark.parametrize("seq_len", [1, 2, 3, 5, 8, 100])
def test_every_token_is_predicted_once_in_both_directions(tmp_path, words, seq_len):
    documents = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11, 12], [], [13, 14, 15, 16, 17, 18, 19, 20]]
    store = store_of(tmp_path, words, *documents)
    batches = Batches(store, batch_size=1, seq_len=seq_len, seed=None)
    windows = [as_lists(batches[step])[0] for step in range(batches.steps_per_epoch)]
    assert all(2 <= len(window) <= seq_len + 1 for window in windows)
    framed = [[0, *document, 0] for document in documents]
    forward = [token for window in windows for token in window[1:]]
    assert forward == [token for document in framed for token in document[1:]]
    backward = [token for window in windows for token in window[:-1]]
    assert backward == [token for document in framed for token in document[:-1]]


def test_an_epoch_holds_every_window_once_but_for_the_remainder(tmp_path, words):
    documents = distinct_documents(30)
    batches = Batches(store_of(tmp_path, words, *documents), batch_size=4, seq_len=50, seed=3)
    assert batches.steps_per_epoch == 7
    for epoch in range(3):
        seen = [tuple(w.tolist()) for step in range(7) for w in batches[epoch * 7 + step]]
        assert len(seen) == len(set(seen)) == 28
        assert set(seen) <= {(0, *document, 0) for document in documents}


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path, words):
    store = store_of(tmp_path, words, *distinct_documents(30))
    in_order = [as_lists(b) for b in map(Batches(store, 4, 50, seed=3).__getitem__, range(14))]
    # A resumed run asks for a late step first.
    again = Batches(store, 4, 50, seed=3)
    assert [as_lists(again[step]) for step in (9, 2, 13, 0)] == [in_order[i] for i in (9, 2, 13, 0)]
    assert in_order[:7] != in_order[7:]
    assert as_lists(Batches(store, 4, 50, seed=4)[0]) != in_order[0]
    assert in_order[0] != as_lists(Batches(store, 4, 50, seed=None)[0])


def test_fewer_windows_than_a_batch(tmp_path, words):
    batches = Batches(store_of(tmp_path, words, [5], [6]), batch_size=8, seq_len=10, seed=0)
    assert batches.steps_per_epoch == 1
    for step in range(3):
        assert sorted(as_lists(batches[step])) == [[0, 5, 0], [0, 6, 0]]


@pytest.mark.parametrize("name", ["tokens.ds", "tokens.ds.index"])
def test_a_cut_or_missing_file_is_refused_by_name(tmp_path, words, name):
    store_of(tmp_path, words, [5, 6, 7], [8])
    file = tmp_path / "s" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name}: the manifest says .* bytes, found"):
        TokenStore(tmp_path / "s")
    file.unlink()
    with pytest.raises(InputError, match=f"{name}: the manifest says .* bytes, found nothing"):
        TokenStore(tmp_path / "s")


def test_the_manifest_comes_last(tmp_path, words):
    def texts():
        yield from ["5 6", "7"]
        assert not TokenStore.exists(tmp_path / "s")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "s", texts(), words)
    assert not TokenStore.exists(tmp_path / "s")
    with pytest.raises(InputError, match=r"no manifest\.json: not a finished token store"):
        TokenStore(tmp_path / "s")


def test_a_damaged_manifest_is_refused(tmp_path, words):
    store_of(tmp_path, words, [5])
    (tmp_path / "s" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is not JSON"):
        TokenStore(tmp_path / "s")


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, words):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/store: cannot be written"):
        write_store(tmp_path / "file" / "store", ["5"], words)


def test_the_manifest_tells_the_tokenizer(tmp_path, words):
    manifest = json.loads((store_of(tmp_path, words, [5]).folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == words.fingerprint
    assert manifest["eos_id"] == 0
    assert manifest["vocab_size"] == 1000
