"""Token stores by datatrove's tasks: the ids never change, and no stop damages a store."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from filelock import FileLock
from pyarrow import parquet

from ledom.core.errors import InputError, OutputError, WorkerError
from ledom.data import tokenize as module
from ledom.data.documents import Documents, HubDocuments, open_documents
from ledom.data.prepare import DataConfig, prepare_data
from ledom.data.store import MANIFEST, TokenStore, write_store
from ledom.data.tokenize import Execution, TokenizeProgress, tokenize
from ledom.text.tokenizer import Tokenizer
from number_documents import EXPECTED, NUMBERS, Make, ids_of, write_numbers

pytestmark = pytest.mark.slow


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run tasks one after the other in this process; returns the list of tasks run."""
    done: list[int] = []
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def run(self: module.LocalExecutor) -> None:
        for rank in self.get_incomplete_ranks():
            done.append(rank)
            self._run_for_rank(rank)

    monkeypatch.setattr(module.LocalExecutor, "run", run)
    return done


@pytest.mark.parametrize("tasks", [1, 3, 8])
def test_the_store_is_the_documents_in_order(
    tmp_path: Path, make: Make, words: Tokenizer, here: list[int], tasks: int
) -> None:
    store = make(Execution(tasks=tasks))
    assert ids_of(store) == EXPECTED
    assert store is not None
    assert here == [*range(tasks)]
    assert len(store.shards) == tasks
    raw = b"".join((tmp_path / "s" / f"{k:05d}_unshuffled.ds").read_bytes() for k in range(tasks))
    assert raw == np.array(EXPECTED, "<u2").tobytes()  # datatrove's format
    index = np.fromfile(tmp_path / "s" / "00000_unshuffled.ds.index", "<u8")
    assert index.tolist() == [3 * (n + 1) for n in range(len(index))]
    assert Tokenizer.load(tmp_path / "s").fingerprint == words.fingerprint
    assert store.manifest.num_documents == 40
    assert store.manifest.num_tokens == 120
    assert store.manifest.source == "documents.jsonl"


def test_another_tokenizer_is_not_overwritten(
    tmp_path: Path, make: Make, words: Tokenizer, tokenizer: Tokenizer, file: Path, here: list[int]
) -> None:
    tokenizer.save(tmp_path / "s")
    with pytest.raises(InputError, match=r"s: holds another tokenizer.json, which would be replac"):
        make(Execution(tasks=1))
    assert Tokenizer.load(tmp_path / "s").fingerprint == tokenizer.fingerprint
    words.save(tmp_path / "own")
    store = tokenize(open_documents([str(file)]), words, tmp_path / "own", Execution(tasks=1))
    assert ids_of(store) == EXPECTED


def test_a_wrong_file_is_found_before_any_work(
    tmp_path: Path, words: Tokenizer, file: Path, here: list[int]
) -> None:
    """The last file lacks the key; without the check, only the last task would find it."""
    other = tmp_path / "other.jsonl"
    other.write_text('{"content": "1"}\n')
    with pytest.raises(InputError, match=r"other.jsonl:1: no key 'text', only content"):
        tokenize(open_documents([str(file), str(other)]), words, tmp_path / "s", Execution(tasks=2))
    assert here == []
    assert not [*(tmp_path / "s").iterdir()]


def test_datatrove_reads_the_store(tmp_path: Path, make: Make, here: list[int]) -> None:
    from datatrove.utils.dataset import DatatroveFolderDataset

    make(Execution(tasks=2))
    dataset = DatatroveFolderDataset(str(tmp_path / "s"), seq_len=2, token_size=2)
    assert len(dataset) == 40
    assert dataset[1]["input_ids"].tolist() == [3, 4, 0]


def test_a_large_vocabulary_takes_four_bytes(
    tmp_path: Path, word_tokenizer: Callable[[int], Tokenizer], here: list[int]
) -> None:
    write_numbers(tmp_path / "d.jsonl", [[65_999, 3]])
    store = tokenize(
        open_documents([str(tmp_path / "d.jsonl")]),
        word_tokenizer(66_000),
        tmp_path / "s",
        Execution(tasks=2),  # one task has nothing to do
    )
    assert ids_of(store) == [[65_999, 3, 0]]


def test_finished_work_is_not_redone(
    tmp_path: Path, make: Make, file: Path, here: list[int]
) -> None:
    documents = open_documents([str(file)])

    class Unreadable(Killed):
        def read(self, part: int = 0, num_parts: int = 1) -> Any:
            if part == 2:
                raise InputError("no key 'text'", path=file, line=26)
            return documents.read(part, num_parts)

    with pytest.raises(InputError, match=r"documents\.jsonl:26: no key 'text'"):
        make(Execution(tasks=4), Unreadable(documents))
    assert here == [0, 1, 2]
    assert not [*(tmp_path / "s").glob("*.part*")]  # a full disk needs the space
    assert not (tmp_path / "s" / MANIFEST).is_file()
    assert not (tmp_path / "s" / "00002_unshuffled.ds").exists()
    assert len([*(tmp_path / "s").glob("*.ds")]) == 2
    assert ids_of(make()) == EXPECTED  # still four tasks, as at the start
    assert here == [0, 1, 2, 2, 3]
    assert ids_of(make()) == EXPECTED
    assert len(here) == 5


@pytest.mark.parametrize("damage", ["cut", "gone", "index gone", "no finalize"])
def test_a_damaged_shard_is_rewritten(
    tmp_path: Path, make: Make, here: list[int], damage: str
) -> None:
    make(Execution(tasks=3))
    shard = tmp_path / "s" / "00001_unshuffled.ds"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "gone":
        shard.unlink()
    elif damage == "index gone":
        Path(f"{shard}.index").unlink()
    else:  # killed after the shard was written, before it was finalized
        (tmp_path / "s" / "tasks" / "shards" / "00001.json").unlink()
        (tmp_path / "s" / "manifest.json").unlink()
    assert ids_of(make()) == EXPECTED
    assert here == [0, 1, 2, 1]


def test_other_settings_are_refused(
    tmp_path: Path,
    make: Make,
    word_tokenizer: Callable[[int], Tokenizer],
    file: Path,
    here: list[int],
) -> None:
    documents = open_documents([str(file)])
    make(Execution(tasks=2))
    with pytest.raises(InputError, match=r"s: was made with other settings \(tokenizer: "):
        tokenize(documents, word_tokenizer(999), tmp_path / "s")
    with pytest.raises(InputError, match=r"\(tasks: 2 there, 3 now\); give another output folder"):
        make(Execution(tasks=3))
    write_numbers(file, NUMBERS[1:])
    with pytest.raises(InputError, match=r"\(documents: '1 files, \d+ bytes, state .*' there"):
        make()
    assert here == [0, 1]


def test_a_run_without_a_finished_shard_may_change_settings(
    tmp_path: Path, make: Make, words: Tokenizer, here: list[int]
) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:1"):
        tokenize(open_documents([str(tmp_path / "bad.jsonl")]), words, tmp_path / "s")
    assert ids_of(make()) == EXPECTED


def test_a_store_from_another_program_is_left_alone(
    tmp_path: Path, make: Make, words: Tokenizer
) -> None:
    store = write_store(tmp_path / "s", ["5 6"], words)
    for found in ("a store that was not made by ledom tokenize", r"shards \(.ds\), which would be"):
        with pytest.raises(InputError, match=f"s: holds {found}.*; give another folder"):
            make()
        (tmp_path / "s" / MANIFEST).unlink(missing_ok=True)  # as from datatrove
    assert ids_of(store) == [[5, 6, 0]]


def test_an_empty_corpus_is_refused(tmp_path: Path, words: Tokenizer, here: list[int]) -> None:
    (tmp_path / "d.jsonl").write_text("\n\n")
    for tasks in (1, 2):
        out = tmp_path / str(tasks)
        with pytest.raises(InputError, match="^d.jsonl: there are no documents to tokenize"):
            tokenize(open_documents([str(tmp_path)]), words, out, Execution(tasks=tasks))


def test_a_place_that_cannot_be_written_is_refused(
    make: Make, words: Tokenizer, file: Path, monkeypatch: pytest.MonkeyPatch, here: list[int]
) -> None:
    with pytest.raises(OutputError, match=r"documents\.jsonl/s: cannot be written"):
        tokenize(open_documents([str(file)]), words, file / "s")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_shard", full)
    with pytest.raises(OutputError, match="s: cannot be written: .*No space left"):
        make()


def test_two_concurrent_runs_are_refused(tmp_path: Path, make: Make) -> None:
    (tmp_path / "s").mkdir()
    with (
        FileLock(tmp_path / "s" / ".ledom.lock"),
        pytest.raises(OutputError, match="in use by .*, which tokenizes there; stop it, or"),
    ):
        make()


def test_tasks_run_in_separate_processes(make: Make) -> None:
    seen: list[TokenizeProgress] = []
    execution = Execution(workers=2, tasks=3, on_progress=seen.append)
    assert ids_of(make(execution)) == EXPECTED
    assert seen[-1] == TokenizeProgress(tasks_done=3, num_tasks=3, num_tokens=120)
    assert [p.tasks_done for p in seen] == sorted(p.tasks_done for p in seen)


def test_the_error_of_a_process_is_passed_on(tmp_path: Path, make: Make, file: Path) -> None:
    file.write_text(file.read_text() + '{"txt": 1}\n')
    with pytest.raises(InputError, match=r"documents\.jsonl:41: no key 'text', only txt"):
        make(Execution(workers=1, tasks=1))
    assert not (tmp_path / "s" / MANIFEST).is_file()


class Killed:
    """Documents whose second part kills the process that reads it."""

    num_bytes, source = None, "documents.jsonl"

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def settings(self) -> dict[str, Any]:
        return self.documents.settings()

    def check(self) -> None:
        self.documents.check()

    def read(self, part: int = 0, num_parts: int = 1) -> Any:
        yield from self.documents.read(part, num_parts)
        if part == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_cannot_start_is_not_blamed_on_the_folder(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a TMPDIR whose path is too long for a socket, or at the limit on processes."""

    def start(self: BaseProcess) -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(BaseProcess, "start", start)
    message = r"^task 0 cannot start a process \(AF_UNIX path too long\); .*TMPDIR"
    with pytest.raises(WorkerError, match=message):
        make()


def test_a_killed_task_leaves_no_finished_work(tmp_path: Path, make: Make, file: Path) -> None:
    documents = open_documents([str(file)])
    out, execution = tmp_path / "s", Execution(workers=1, tasks=2)
    with pytest.raises(WorkerError, match="task 1 was killed by signal 9 .* run the same command"):
        make(execution, Killed(documents))
    assert [f.name for f in out.glob("*.ds")] == ["00000_unshuffled.ds"]
    assert [*out.glob("00001*.part")]
    assert not (out / MANIFEST).is_file()
    made = (out / "00000_unshuffled.ds").stat().st_mtime_ns
    assert ids_of(make(execution)) == EXPECTED
    assert (out / "00000_unshuffled.ds").stat().st_mtime_ns == made
    assert not [*out.glob("*.part*")]


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("settings.json", '{"tasks": "2"}', "key tasks: Input should be a valid integer"),
        ("settings.json", "[" * 100_000, "nested more than 64 deep"),
        ("shards/00000.json", '{"file": "x"}', "key num_documents: Field required"),
        ("shards/00000.json", '{"file": "x"', "not JSON"),
    ],
)
def test_damaged_records_of_finished_work_are_refused(
    tmp_path: Path, make: Make, here: list[int], name: str, contents: str, message: str
) -> None:
    out = tmp_path / "s"
    execution = Execution(workers=1, tasks=2)
    make(execution)
    (out / "tasks" / name).write_text(contents)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        make(execution)


def test_an_unknown_executor_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match="unknown executor 'dask'; known: local, slurm, ray"):
        make(Execution("dask"))


def test_the_number_of_tasks_follows_size_and_workers(file: Path) -> None:
    def count(size: int, workers: int) -> int:
        with file.open("wb") as large:
            large.truncate(size)
        return module._count_tasks(open_documents([str(file)]), Execution(workers=workers))

    assert [count(size, 64) for size in (0, 1, 2**22, 2**23 - 1, 2**23)] == [1, 1, 1, 1, 2]
    assert [count(2**28, workers) for workers in (1, 3, 64, 65)] == [1, 3, 64, 64]
    assert count(5 * 2**28 + 1, 3) == 6
    assert module._count_tasks(HubDocuments("x"), Execution(workers=3)) == 3


def test_the_error_for_a_file_system_without_locks_names_it(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "no flock")

    monkeypatch.setattr(FileLock, "acquire", none)
    with pytest.raises(OutputError, match="s: its file system has no file locks"):
        make()
    documents = tmp_path / "d.jsonl"
    documents.write_text('{"text": "one two"}\n' * 20)
    with pytest.raises(OutputError, match="data: its file system has no file locks"):
        prepare_data(DataConfig(train=str(documents), vocab_size=300), tmp_path / "data")


@pytest.mark.parametrize("tasks", [1, 3, 8])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_store_records_the_sources(
    tmp_path: Path, make: Make, here: list[int], tasks: int, suffix: str
) -> None:
    names = ["web"] * 9 + [None] * 4 + ["books"] * 20 + ["web"] * 7
    rows = [{"text": f"{n} {n + 1}", "source": name} for n, name in enumerate(names, start=2)]
    file = tmp_path / f"named.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=7)
    store = make(Execution(tasks=tasks), open_documents([str(file)]))
    assert ids_of(store) == EXPECTED
    assert store is not None
    assert store.document_sources() == [name or "no source" for name in names]


def test_the_sources_of_finished_shards_are_checked_and_kept(
    tmp_path: Path, make: Make, here: list[int]
) -> None:
    file = tmp_path / "named.jsonl"
    rows = [{"text": f"{n} {n + 1}", "source": "web"} for n in range(2, 42)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, out = open_documents([str(file)]), tmp_path / "s"
    first = make(Execution(tasks=2), documents)
    assert first is not None
    assert first.manifest.sources == [("web", 40)]
    entry, shard = out / "tasks/shards/00000.json", out / first.manifest.shards[1].file

    def resumed_with(sources: dict[str, object]) -> TokenStore | None:
        kept = json.loads(entry.read_text())
        del kept["sources"]
        entry.write_text(json.dumps(kept | sources))
        shard.unlink()
        return make(Execution(tasks=2), open_documents([str(file)]))

    with pytest.raises(InputError, match=r"00000.json: key sources.0"):
        resumed_with({"sources": ["web"]})
    count = first.manifest.shards[0].num_documents
    again = resumed_with({"sources": [["book", count]]})
    assert again is not None
    assert again.manifest.sources == [("book", count), ("web", 40 - count)]


def test_sources_that_change_too_often_are_not_recorded(
    tmp_path: Path,
    make: Make,
    here: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ledom.data.store._MOST_RUNS", 39)
    rows = [{"text": f"{n} {n + 1}", "source": f"s{n}"} for n in range(2, 42)]
    file = tmp_path / "named.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = make(Execution(tasks=2), open_documents([str(file)]))
    assert ids_of(store) == EXPECTED
    assert store is not None
    assert store.document_sources() == []
    assert "the source changes more than 39 times" in caplog.text
