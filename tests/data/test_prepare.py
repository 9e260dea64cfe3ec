import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledom.core import files
from ledom.core.errors import CheckpointError, InputError, OutputError, RecipeError
from ledom.core.records import Document, write_records
from ledom.data import prepare
from ledom.data.packing import Windows
from ledom.data.prepare import DataConfig, PreparedData, SourceConfig, prepare_data, shortfalls
from ledom.data.problems import split_of
from ledom.data.store import TokenStore, write_store
from ledom.text.tokenizer import EOS_TOKEN, Tokenizer
from number_documents import ids_of
from waiting import SECONDS, until


def train_texts(data: PreparedData) -> list[str]:
    """The documents of the only source."""
    (source,) = data.sources
    return texts_of(data, source.store)


def texts_of(data: PreparedData, store: TokenStore) -> list[str]:
    """The documents of a store, decoded."""
    return [data.tokenizer.decode(ids) for ids in ids_of(store)]


def write_documents(path: Path, count: int) -> list[str]:
    documents = [
        Document(id=f"d{i}", text=f"Document {i} has {i * i} words.") for i in range(count)
    ]
    write_records(path, documents)
    return [d.text for d in documents]


def altered(config, **changes):
    return config.model_copy(update=changes)


@pytest.fixture
def config(tmp_path):
    """A config for twenty documents in d.jsonl."""
    write_documents(tmp_path / "d.jsonl", 20)
    return DataConfig(train=str(tmp_path / "d.jsonl"), vocab_size=300)


@pytest.mark.slow
def test_the_generator_gives_disjoint_parts(tmp_path):
    config = DataConfig(num_documents=200, num_valid=4, vocab_size=400)
    data = prepare_data(config, tmp_path)
    train, valid = train_texts(data), texts_of(data, data.valid)
    assert (len(train), len(valid)) == (200, 4)
    for split, texts in (("train", train), ("valid", valid)):
        for text in texts:
            question, _, solution = text.partition("\n\n")
            assert split_of(question) == split
            assert "#### " in solution
    assert data.tokenizer.vocab_size == 400
    windows = list(Windows(data.sources[0].store, 4096))
    assert {data.tokenizer.decode(w.tolist()) for w in windows} == set(train)


@pytest.mark.slow
def test_problems_become_rendered_pairs(tmp_path, problems):
    file = tmp_path / "p.jsonl"
    write_records(file, problems)
    config = DataConfig(train=str(file), pair_format="Q {question} A {solution}", vocab_size=400)
    data = prepare_data(config, tmp_path / "data")
    rendered = [f"Q {p.question} A {p.solution}" for p in problems]
    assert texts_of(data, data.valid) == [rendered[0], rendered[50], rendered[100]]
    assert train_texts(data) == rendered[1:50] + rendered[51:100] + rendered[101:]


def test_a_validation_file_and_limits_are_used(tmp_path, config):
    texts = write_documents(tmp_path / "d.jsonl", 20)
    valid = write_documents(tmp_path / "v.jsonl", 10)
    config = altered(config, valid=str(tmp_path / "v.jsonl"), num_documents=5, num_valid=3)
    data = prepare_data(config, tmp_path / "data")
    assert train_texts(data) == texts[:5]
    assert texts_of(data, data.valid) == valid[:3]


@pytest.mark.parametrize("changes", [{}, {"packing": "fixed"}])
def test_prepared_data_are_reused(tmp_path, config, monkeypatch, changes):
    """Settings for reading windows may change, because the stores stay the same."""
    first = prepare_data(config, tmp_path / "data")

    def never(*_, **__):
        raise AssertionError("done twice")

    monkeypatch.setattr(prepare, "write_store", never)
    monkeypatch.setattr(prepare, "train_tokenizer", never)
    second = prepare_data(altered(config, **changes), tmp_path / "data")
    assert second.sources[0].store.manifest == first.sources[0].store.manifest
    assert second.valid.manifest == first.valid.manifest
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_other_settings_files_and_tokenizers_are_refused(tmp_path, config, tokenizer):
    prepare_data(config, tmp_path / "data")
    with pytest.raises(InputError, match="other settings .vocab_size: 300 there, 301 now."):
        prepare_data(altered(config, vocab_size=301), tmp_path / "data")
    own = Tokenizer.load(tmp_path / "data")
    tokenizer.save(tmp_path / "data")
    with pytest.raises(InputError, match="train: was made with a different tokenizer"):
        prepare_data(config, tmp_path / "data")
    own.save(tmp_path / "data")
    write_documents(tmp_path / "d.jsonl", 21)
    changed = r"data: .* settings .train: 'SHA-256 \w+' there, 'SHA-256 \w+' now.*another name"
    with pytest.raises(InputError, match=changed):
        prepare_data(config, tmp_path / "data")
    (tmp_path / "d.jsonl").rename(tmp_path / "e.jsonl")
    with pytest.raises(InputError, match=changed):
        prepare_data(altered(config, train=str(tmp_path / "e.jsonl")), tmp_path / "data")
    with pytest.raises(InputError, match="train: 'SHA-256 .*' there, 'gsm_symbolic' now"):
        prepare_data(DataConfig(num_documents=20, vocab_size=300), tmp_path / "data")


def test_a_file_may_be_moved_after_preparation(tmp_path, config):
    first = prepare_data(config, tmp_path / "a")
    (tmp_path / "d.jsonl").rename(tmp_path / "e.jsonl")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = prepare_data(altered(config, train=str(tmp_path / "e.jsonl")), tmp_path / "b")
    assert moved.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert moved.sources[0].store.manifest == first.sources[0].store.manifest


def test_twins_that_start_together_prepare_once(tmp_path, config, monkeypatch, caplog):
    whole, written = prepare.write_store, []

    def slow(folder, *rest, **notes):
        written.append(folder.name)
        until(lambda: caplog.messages)  # the other twin waits
        return whole(folder, *rest, **notes)

    monkeypatch.setattr(prepare, "write_store", slow)
    monkeypatch.setattr(files, "_LOG_AFTER", (0.01, 0.01))
    with ThreadPoolExecutor(2) as pool:
        twins = list(pool.map(lambda _: prepare_data(config, tmp_path / "data"), range(2)))
    assert written == ["train", "valid"]
    assert twins[0].sources[0].store.manifest == twins[1].sources[0].store.manifest


def test_waiting_names_the_lock_holder_and_ends_when_it_dies(tmp_path, config, monkeypatch, caplog):
    """The holder is another process, which keeps the lock until it is killed."""
    monkeypatch.setattr(files, "_LOG_AFTER", (0.01, 0.01))
    ready, said = os.pipe()
    child = os.fork()
    if child == 0:
        with files.lock_folder(tmp_path / "data", "prepares the data"):
            os.write(said, b"!")
            time.sleep(2 * SECONDS)
        os._exit(1)
    assert os.read(ready, 1) == b"!"

    def kill() -> None:
        until(lambda: caplog.messages)
        os.kill(child, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        prepare_data(config, tmp_path / "data")
        killed.result(SECONDS)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    who = f"{tmp_path / 'data'}: waiting for process {child} on {socket.gethostname()}, which"
    assert who in caplog.messages[0]
    assert "stop it or write to another folder" in caplog.messages[0]
    assert not (tmp_path / "data" / ".ledom.lock.holder").exists()


def test_interrupted_preparation_is_redone(tmp_path, config, monkeypatch):
    texts = write_documents(tmp_path / "d.jsonl", 20)
    with monkeypatch.context() as patch:
        whole = prepare.write_store

        def break_off(folder, *rest, **notes):
            if folder.name == "valid":
                raise KeyboardInterrupt
            return whole(folder, *rest, **notes)

        patch.setattr(prepare, "write_store", break_off)
        with pytest.raises(KeyboardInterrupt):
            prepare_data(config, tmp_path / "data")
    data = prepare_data(config, tmp_path / "data")
    assert train_texts(data) + texts_of(data, data.valid) == texts[1:] + texts[:1]


def test_a_recipe_can_name_the_eos_that_the_files_do_not(tmp_path, config, tokenizer):
    own = tmp_path / "tokenizer.json"
    own.write_text(tokenizer.backend.to_str().replace(json.dumps(EOS_TOKEN), '"</s>"'))
    config = altered(config, tokenizer=str(own))
    with pytest.raises(CheckpointError, match=r"no token '<\|end\|>'.* data\.eos_token"):
        prepare_data(config, tmp_path / "data")
    config = altered(config, eos_token="</s>")
    data = prepare_data(config, tmp_path / "data")
    assert data.tokenizer.eos_token == "</s>"
    assert data.sources[0].store.eos_id == data.tokenizer.eos_id
    sources = (SourceConfig(path=str(tmp_path / "data" / "train")),)
    other = DataConfig(
        sources=sources, valid=str(tmp_path / "data" / "valid"), tokenizer=str(own), eos_token="a"
    )
    with pytest.raises(InputError, match=r"documents end with token 0, the run's with 'a'"):
        prepare_data(other, tmp_path / "mixed")
    with pytest.raises(RecipeError, match=r"data\.eos_token is 'a' without data\.tokenizer"):
        prepare_data(DataConfig(num_documents=3, eos_token="a"), tmp_path / "trained")


def test_a_custom_tokenizer_keeps_its_eos(tmp_path, config, tokenizer):
    """Its EOS token has another name, given in tokenizer_config.json."""
    own = tmp_path / "own"
    own.mkdir()
    content = tokenizer.backend.to_str().replace(json.dumps(EOS_TOKEN), '"</s>"')
    (own / "tokenizer.json").write_text(content)
    (own / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    config = altered(config, tokenizer=str(own / "tokenizer.json"))
    data = prepare_data(config, tmp_path / "data")
    assert data.tokenizer.eos_token == "</s>"
    assert data.sources[0].store.eos_id == Tokenizer.load(own).eos_id
    with pytest.raises(CheckpointError, match=r"none\.json: no such file"):
        prepare_data(altered(config, tokenizer="none.json"), tmp_path / "other")


def test_a_tokenizer_is_read_once(tmp_path, config, tokenizer, monkeypatch):
    read, load = [], Tokenizer.load
    tokenizer.save(tmp_path / "own")
    monkeypatch.setattr(Tokenizer, "load", lambda path, *eos: read.append(path) or load(path, *eos))
    prepare_data(altered(config, tokenizer=str(tmp_path / "own")), tmp_path / "data")
    assert read == [str(tmp_path / "own"), str(tmp_path / "data")]


@pytest.mark.parametrize("changed", ["tokenizer.json", "tokenizer_config.json"])
def test_a_changed_tokenizer_folder_is_noticed(
    tmp_path, config, tokenizer, word_tokenizer, changed
):
    """Training would otherwise continue with the old tokenizer in the data folder."""
    own = tmp_path / "own"
    tokenizer.save(own)
    config = altered(config, tokenizer=str(own))
    prepare_data(config, tmp_path / "data")
    prepare_data(config, tmp_path / "data")
    if changed == "tokenizer.json":
        word_tokenizer(40).save(own)
    else:
        (own / changed).write_text('{"eos_token": "a"}')
    with pytest.raises(InputError, match=r"data: was made .* settings \(tokenizer: 'SHA-256 \w+,"):
        prepare_data(config, tmp_path / "data")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a", "text": "x"}', '{"id": "b", "txt": "y"}'], r":2: missing key 'text'"),
        (['{"id": "a", "question": "q", "answer": "1"}'], r":1: problem 'a' has no solution"),
        (['{"id": "a", "text": "x"}'], ": nothing is left to train on"),  # one document is held out
    ],
)
def test_a_file_without_training_data_is_refused(tmp_path, lines, message):
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"d\.jsonl{message}"):
        prepare_data(DataConfig(train=str(file)), tmp_path / "data")


def test_less_data_than_requested_is_noted(tmp_path, config):
    """A thousand tokens cannot be learned from twenty documents of a few words."""
    more = altered(config, num_documents=25, vocab_size=1000)
    data = prepare_data(more, tmp_path / "data")
    documents, vocabulary = shortfalls(more, data)
    assert documents == f"data.num_documents is 25; {config.train} holds 20"
    assert vocabulary.startswith("data.vocab_size is 1000; the documents have no more pairs")
    assert data.tokenizer.vocab_size < 1000
    enough = altered(config, num_documents=20, vocab_size=260)
    assert shortfalls(enough, prepare_data(enough, tmp_path / "enough")) == []


def test_the_generator_needs_a_number(tmp_path):
    with pytest.raises(RecipeError, match=r"data\.num_documents is missing"):
        prepare_data(DataConfig(), tmp_path / "data")


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/data: cannot be written"):
        prepare_data(DataConfig(num_documents=1), tmp_path / "file" / "data")


@pytest.mark.slow
def test_some_documents_are_only_equations_of_training_problems(tmp_path):
    config = DataConfig(num_documents=60, num_valid=2, vocab_size=300, equation_only_fraction=0.5)
    data = prepare_data(config, tmp_path / "data")
    assert data.sources[0].store.manifest.num_documents == 60
    texts = train_texts(data)
    equations_only = [text for text in texts if "?" not in text and "####" not in text]
    assert 18 <= len(equations_only) <= 42  # 30 expected, standard deviation 3.9
    for document in equations_only:
        assert all(re.fullmatch(r"[-+*/=%. \d]+", line) for line in document.splitlines())
    # Validation has none, so losses are comparable with those of a run without such documents.
    assert data.valid.manifest.num_documents == 2


@pytest.fixture
def stores(tmp_path, tokenizer) -> Path:
    """A folder with token stores `a`, `b` and `valid`, as written by `ledom tokenize`."""
    for name in ("a", "b", "valid"):
        texts = [f"{name} {number}" for number in range(9)]
        write_store(tmp_path / name, texts, tokenizer)
        tokenizer.save(tmp_path / name)
    return tmp_path


def mixture(stores: Path, **changes) -> DataConfig:
    named = [{"path": str(stores / "a"), "weight": 3}, {"path": str(stores / "b")}]
    return DataConfig(**{"sources": named, "valid": str(stores / "valid"), **changes})


def test_sources_are_used_in_place(stores, tokenizer):
    data = prepare_data(mixture(stores), stores / "run")
    assert not (stores / "run").exists()
    assert [source.weight for source in data.sources] == [3, 1]
    assert texts_of(data, data.sources[1].store) == [f"b {number}" for number in range(9)]
    assert texts_of(data, data.valid) == [f"valid {number}" for number in range(9)]
    assert data.tokenizer.fingerprint == tokenizer.fingerprint


def test_sources_with_another_tokenizer_are_refused_before_any_is_read(stores, word_tokenizer):
    write_store(stores / "b", ["1"], word_tokenizer(9))
    damaged = stores / "a" / "tokens.ds"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    with pytest.raises(InputError, match=r"b: was made with a different .* with .*/a$"):
        prepare_data(mixture(stores), stores / "run")
    own = stores / "own"
    word_tokenizer(9).save(own)
    with pytest.raises(InputError, match=r"a: was made with a different .* with .*/own$"):
        prepare_data(mixture(stores, tokenizer=str(own)), stores / "run")


def test_a_source_that_is_no_store_is_named(stores):
    source = [{"path": str(stores / "documents")}]
    with pytest.raises(InputError, match=r"documents: no manifest\.json: not a finished token"):
        prepare_data(mixture(stores, sources=source), stores / "run")


def test_damaged_sources_are_refused_before_the_first_step(stores):
    file = stores / "b" / "tokens.ds"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"b/tokens\.ds: its checksum"):
        prepare_data(mixture(stores), stores / "run")
    prepare_data(mixture(stores, verify=False), stores / "run")
    file.write_bytes(content[:-2])
    with pytest.raises(InputError, match=r"b/tokens\.ds: the manifest says"):
        prepare_data(mixture(stores, verify=False), stores / "run")


def test_sources_need_a_validation_store_and_no_training_file(stores):
    with pytest.raises(RecipeError, match=r"key data\.valid is missing: with data\.sources"):
        prepare_data(mixture(stores, valid=None), stores / "run")
    with pytest.raises(RecipeError, match=r"key data\.train is 'x\.jsonl' and data\.sources"):
        prepare_data(mixture(stores, train="x.jsonl"), stores / "run")
    with pytest.raises(InputError, match=r"none: no manifest\.json"):
        prepare_data(mixture(stores, valid="none"), stores / "run")


def test_the_validation_store_records_the_sources_of_its_documents(tmp_path):
    """Every fiftieth record is held out: 0, 50 and 100."""
    records = [
        Document(id=str(i), text=f"text {i}", source=None if i == 100 else f"book {i // 75}")
        for i in range(101)
    ]
    write_records(tmp_path / "texts.jsonl", records)
    config = DataConfig(train=str(tmp_path / "texts.jsonl"), vocab_size=300)
    data = prepare_data(config, tmp_path / "data")
    assert data.valid.document_sources() == ["book 0", "book 0", "no source"]
    assert data.sources[0].store.document_sources() == []


def test_records_that_share_an_id_with_a_held_out_one_are_counted(tmp_path, caplog):
    """Of four files of 60, records 0, 50, 40, 30 and 20 are held out; 1 has the text of 0."""
    file = tmp_path / "joined.jsonl"
    documents = [Document(id=str(i % 60), text=f"Document {i}.") for i in range(240)]
    documents[1].text = documents[0].text
    write_records(file, documents)
    data = prepare_data(DataConfig(train=str(file), vocab_size=257), tmp_path / "data")
    assert len(texts_of(data, data.valid)) == 5
    assert len(train_texts(data)) == 240 - 5 * 4
    assert "15 records have the id of a record held out for validation and" in caplog.messages[0]
    assert f"{file}: 1 records to train on have the text or question of a " in caplog.messages[1]
    caplog.clear()
    write_documents(file, 100)
    prepare_data(DataConfig(train=str(file), vocab_size=257), tmp_path / "other")
    assert caplog.messages == []
