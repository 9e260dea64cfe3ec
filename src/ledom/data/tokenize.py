"""Tokenizes documents into a token store with `datatrove`, which no other module imports.

    Documents -> part k of n -> TokenizePart -> K_unshuffled.ds, tasks/shards/K.json
    the last task to finish -> manifest.json

The work is divided into tasks. Each writes one shard from one part of the documents, on one core.
datatrove's executors run the tasks: local processes, Slurm, or Ray. A shard gets its final name
when it is complete; a finished task is never repeated. The store has the documents in the order of
their files, for any number of tasks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

from pydantic import PositiveInt

from ledom.core.errors import InputError, LedomError, WorkerError, in_one_line, needs_extra
from ledom.core.files import check_settings, lock_folder, write_json, writing
from ledom.core.processes import available_cpus
from ledom.core.reading import JsonObject, as_type, read_json
from ledom.data.documents import Documents
from ledom.data.slurm import JOB_FILE, ExecutorOptions, refuse_queued, slurm_options
from ledom.data.store import (
    MANIFEST,
    ShardEntry,
    SourceRuns,
    TokenStore,
    finalize_shard,
    token_dtype,
    write_manifest,
    write_shard,
)
from ledom.text.tokenizer import Tokenizer, refuse_to_replace

with needs_extra("datatrove", "data"):
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger

__all__ = ["Execution", "TokenizeProgress", "tokenize"]

TASKS = "tasks"  # the folder for the tasks' settings, logs and state
_SETTINGS = f"{TASKS}/settings.json"
_BYTES_PER_TASK = 1 << 28  # at most: a few minutes of work on one core
_LEAST_BYTES = 1 << 22  # per task, because fixed windows leave out a part of each shard
_POLL_SECONDS = 0.5
_SECONDS_TO_STOP = 10.0  # between asking a process to stop and killing it
# Imports take a second. On Linux, where forking is safe, a server imports once for all tasks.
_PROCESSES: Any = get_context("forkserver" if sys.platform == "linux" else "spawn")
_PROCESSES.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class TokenizeProgress:
    """The progress of a run on this machine."""

    tasks_done: int
    num_tasks: int
    num_tokens: int
    """The number of tokens written so far, including unfinished tasks."""


@dataclass(frozen=True)
class Execution:
    """Where tasks run, and how many run at a time."""

    executor: str = "local"
    """One of `EXECUTORS`."""
    workers: int | None = None
    """Tasks at a time; None means one per core locally, and no limit on a cluster."""
    tasks: int | None = None
    """The number of tasks; None means that it depends on the documents' size."""
    slurm: Mapping[str, str] = field(default_factory=dict)
    """Options for sbatch, without dashes; `partition` is required, `time` defaults to 24 h."""
    on_progress: Callable[[TokenizeProgress], None] = lambda progress: None


class TokenizePart(PipelineStep):  # type: ignore[misc]
    """Writes a shard from a task's part of the documents; the last task adds the manifest."""

    name = "ledom"
    type = "🔢 - TOKENIZER"

    def __init__(self, documents: Documents, out: Path) -> None:
        super().__init__()
        self.documents, self.out = documents, out

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
        tokenizer = Tokenizer.load(self.out)
        with writing(self.out):
            self._write(tokenizer, rank, world_size)
            finish(self.out, world_size, tokenizer)

    def _write(self, tokenizer: Tokenizer, rank: int, world_size: int) -> None:
        shard = self.out / f"{rank:05d}_unshuffled.ds"  # datatrove's name
        for leftover in self.out.glob(f"{shard.name}.*.part*"):  # left by a task that was killed
            leftover.unlink(missing_ok=True)
        part, sources = Path(f"{shard}.{os.getpid()}.part"), SourceRuns()
        try:
            write_shard(part, self._texts(sources, rank, world_size), tokenizer)
        except BaseException:  # such as a full disk
            for file in (part, Path(f"{part}.index")):
                file.unlink(missing_ok=True)
            raise
        os.replace(f"{part}.index", f"{shard}.index")
        os.replace(part, shard)
        entry = finalize_shard(shard, token_dtype(tokenizer))
        self.stat_update("tokens", value=entry.num_tokens, unit="task")
        write_json(_entry_file(self.out, rank), asdict(entry) | {"sources": sources.runs})

    def _texts(self, sources: SourceRuns, rank: int, world_size: int) -> Iterator[str]:
        for text, source in self.documents.read(rank, world_size):
            sources.add(source)
            yield text


def tokenize(
    documents: Documents, tokenizer: Tokenizer, out: str | Path, execution: Execution = Execution()
) -> TokenStore | None:
    """Tokenize documents into the store `out`, or resume; None while a cluster is still working.

    Raises `InputError` for a bad document, or for a folder that was started with other documents or
    another tokenizer; `OutputError` for a folder that cannot be written; `WorkerError` for a task
    that was killed. Finished tasks are kept.
    """
    out = Path(out).absolute()  # tasks on a cluster have another working directory
    if execution.executor not in EXECUTORS:
        raise InputError(f"unknown executor {execution.executor!r}; known: {', '.join(EXECUTORS)}")
    with writing(out), lock_folder(out, "tokenizes"):
        return _tokenize(documents, tokenizer, out, execution)


def _tokenize(
    documents: Documents, tokenizer: Tokenizer, out: Path, execution: Execution
) -> TokenStore | None:
    if not (out / MANIFEST).is_file():
        refuse_queued(out / TASKS / JOB_FILE)
    tasks = _begin(documents, tokenizer, out, execution)
    _drop_damaged(out, tasks, token_dtype(tokenizer).itemsize)
    if (out / MANIFEST).is_file():
        return TokenStore(out)
    steps = [TokenizePart(documents, out)]
    logger.disable("datatrove")
    try:
        options = {"tasks": tasks, "logging_dir": str(out / TASKS)}
        executor = EXECUTORS[execution.executor](steps, execution, out, options)
        executor.run()
    except subprocess.CalledProcessError as error:
        raise InputError(f"sbatch refused the job (exit code {error.returncode})") from error
    finally:
        logger.enable("datatrove")
    store = finish(out, tasks, tokenizer)
    if execution.executor == "slurm":  # jobs are only queued
        (out / TASKS / JOB_FILE).write_text(str(executor.job_id))
    elif store is None:
        raise WorkerError(
            f"{out}: not all of the {tasks} tasks have finished, see {out / TASKS / 'logs'}; "
            "run the same command again to resume"
        )
    return store


def _begin(documents: Documents, tokenizer: Tokenizer, out: Path, execution: Execution) -> int:
    """Write the store's settings, or check them against the earlier ones; returns `tasks`."""
    file = out / _SETTINGS
    has_shards = any((out / TASKS / "shards").glob("*.json"))
    found = _read_settings(out) if file.is_file() and has_shards else None
    if found is None and (out / MANIFEST).is_file():
        raise InputError(
            "holds a store that was not made by ledom tokenize; give another folder", path=out
        )
    tasks = execution.tasks or (found["tasks"] if found else _count_tasks(documents, execution))
    settings = {"tokenizer": tokenizer.fingerprint, "eos_id": tokenizer.eos_id, "tasks": tasks}
    settings |= documents.settings() | {"source": documents.source}
    if found is None:
        for leftover in out.glob("*_unshuffled.ds.*.part*"):  # from tasks with other settings
            leftover.unlink(missing_ok=True)
        refuse_to_replace(out)
        _refuse_other_files(out, tokenizer)
        documents.check()
        tokenizer.save(out)
        write_json(file, settings)
    else:
        check_settings(found, settings, out)
    return tasks


def _refuse_other_files(out: Path, tokenizer: Tokenizer) -> None:
    """Raise `InputError` for a folder with datatrove's own shards, or with another tokenizer."""
    if (out / TASKS).exists():
        return
    what = "shards (.ds)" if any(out.glob("*.ds")) else None
    if what is None and (out / "tokenizer.json").exists():
        same = Tokenizer.load(out, tokenizer.eos_token).fingerprint == tokenizer.fingerprint
        what = None if same else "another tokenizer.json"
    if what:
        raise InputError(f"holds {what}, which would be replaced; give another folder", path=out)


def _count_tasks(documents: Documents, execution: Execution) -> int:
    workers, size = execution.workers or available_cpus(), documents.num_bytes
    if size is None:
        return workers
    least, most = -(-size // _BYTES_PER_TASK), size // _LEAST_BYTES
    return max(1, least, min(workers, most))


@dataclass(frozen=True)
class _Settings:
    """The settings that are read; the rest are only compared."""

    tasks: PositiveInt
    source: str


def _read_settings(out: Path) -> JsonObject:
    file = out / _SETTINGS
    settings = read_json(file)
    as_type(settings, _Settings, file)
    return settings


def _entry_file(out: Path, task: int) -> Path:
    """The file of a shard's manifest entry; its existence means that the shard is complete."""
    return out / TASKS / "shards" / f"{task:05d}.json"


def _read_entry(out: Path, task: int) -> ShardEntry | None:
    file = _entry_file(out, task)
    return as_type(read_json(file), ShardEntry, file) if file.is_file() else None


@dataclass(frozen=True)
class _ShardSources:
    """The part of an entry's file that becomes the manifest's `sources`."""

    sources: list[tuple[str, int]]


def _drop_damaged(out: Path, tasks: int, token_bytes: int) -> None:
    """Mark tasks without a complete shard as not done, even if datatrove marked them done."""
    for task in range(tasks):
        entry = _read_entry(out, task)
        if entry is None or not _is_whole(out / entry.file, entry, token_bytes):
            (out / MANIFEST).unlink(missing_ok=True)
            _entry_file(out, task).unlink(missing_ok=True)
            (out / TASKS / "completions" / f"{task:05d}").unlink(missing_ok=True)


def _is_whole(shard: Path, entry: ShardEntry, token_bytes: int) -> bool:
    sizes = {shard: token_bytes * entry.num_tokens, Path(f"{shard}.index"): 8 * entry.num_documents}
    return all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())


def finish(out: Path, tasks: int, tokenizer: Tokenizer) -> TokenStore | None:
    """Write the manifest if every task has finished."""
    entries = [entry for task in range(tasks) if (entry := _read_entry(out, task)) is not None]
    if len(entries) < tasks:
        return None
    runs = SourceRuns()
    for file in (_entry_file(out, task) for task in range(tasks)):
        for source, count in as_type(read_json(file), _ShardSources, file).sources:
            runs.add(source, count)
    source = _read_settings(out)["source"]
    return write_manifest(out, entries, tokenizer, source, runs.named(out))


class LocalExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """Runs datatrove's tasks on this machine, each in its own process.

    datatrove's own pool waits forever for a process that was killed, and reports no progress.
    """

    def __init__(self, steps: list[Any], out: Path, execution: Execution, **options: Any) -> None:
        super().__init__(steps, **options)
        self.out, self.on_progress = out, execution.on_progress
        self.token_bytes = token_dtype(Tokenizer.load(out)).itemsize

    def run(self) -> None:
        waiting = self.get_incomplete_ranks()
        running: dict[int, _Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.pop(0)
                    running[rank] = _Task(self, rank)
                wait([task.process.sentinel for task in running.values()], _POLL_SECONDS)
                for rank, task in [*running.items()]:
                    if not task.process.is_alive():
                        del running[rank]
                        task.check()
                self.on_progress(self._progress(len(waiting) + len(running)))
        finally:
            for task in running.values():
                task.stop()

    def _progress(self, left: int) -> TokenizeProgress:
        written = 0
        for file in (*self.out.glob("*.ds"), *self.out.glob("*.part")):
            with suppress(FileNotFoundError):  # just renamed
                written += file.stat().st_size
        return TokenizeProgress(self.tasks - left, self.tasks, written // self.token_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"on_progress": None}  # only this process reports progress


class _Task:
    """A task in its own process, which sends a `LedomError` if the task fails with one."""

    def __init__(self, executor: LocalExecutor, rank: int) -> None:
        self.rank = rank
        self._errors, sender = _PROCESSES.Pipe(duplex=False)
        self.process: BaseProcess = _PROCESSES.Process(
            target=_run_task, args=(executor, rank, sender), daemon=True
        )
        try:
            self.process.start()
        except (OSError, EOFError) as error:  # the second if the fork server died
            raise WorkerError(
                f"task {rank} cannot start a process ({in_one_line(error)}); check this system's "
                "limits (ulimit -a), and that TMPDIR is a folder with a short path"
            ) from error
        sender.close()

    def stop(self) -> None:
        """Terminate the process; kill it if it does not stop in time."""
        self.process.terminate()
        self.process.join(_SECONDS_TO_STOP)
        self.process.kill()
        self.process.join()

    def check(self) -> None:
        """Join the process and raise the error that ended it, if any."""
        self.process.join()
        with suppress(EOFError):  # it sent nothing
            if self._errors.poll():
                raise self._errors.recv()
        if code := self.process.exitcode:
            killed = f"was killed by signal {-code} (out of memory?)"
            raise WorkerError(
                f"task {self.rank} {killed if code < 0 else f'ended with exit code {code}'}; "
                "finished tasks are kept, run the same command again to resume"
            )


def _run_task(executor: LocalExecutor, rank: int, errors: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    Thread(target=_end_with_parent, daemon=True).start()
    logger.disable("datatrove")
    try:
        with writing(executor.out):
            executor._run_for_rank(rank)
    except LedomError as error:
        errors.send(error)


def _end_with_parent() -> None:
    """End this process once the command is killed; it would write into a later run's store."""
    parent = parent_process()
    assert parent is not None  # this is a task's process
    parent.join()
    os._exit(1)


def _local(
    steps: list[Any], execution: Execution, out: Path, options: ExecutorOptions
) -> LocalExecutor:
    workers = execution.workers or available_cpus()
    return LocalExecutor(steps, out, execution, workers=workers, **options)


def _slurm(steps: list[Any], execution: Execution, out: Path, options: ExecutorOptions) -> Any:
    options |= slurm_options(execution.slurm)
    return SlurmPipelineExecutor(steps, workers=execution.workers or -1, **options)


def _ray(steps: list[Any], execution: Execution, out: Path, options: ExecutorOptions) -> Any:
    with needs_extra("ray", "ray"):
        import ray  # noqa: F401
    return RayPipelineExecutor(steps, workers=execution.workers or -1, **options)


_Make = Callable[[list[Any], Execution, Path, ExecutorOptions], Any]
EXECUTORS: dict[str, _Make] = {"local": _local, "slurm": _slurm, "ray": _ray}
"""Functions that create executors, by name: local processes, Slurm, or a Ray cluster."""
