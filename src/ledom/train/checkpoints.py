"""Checkpoints from which a run resumes exactly: weights, optimizer state, step.

A checkpoint is a folder, `checkpoints/<step>/`, in the format of torch.distributed.checkpoint: each
process writes its shard, and any number of processes can read it. It is written in the background,
under a temporary name until it is complete, so the last good one survives a kill at any moment.
Its `run.json` identifies the run and holds the hashes of its files. Another one, next to
`checkpoints/`, exists from the run's start, without hashes.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, OutputError
from ledom.core.files import differences, file_hash, lock_folder, write_json
from ledom.core.reading import JsonObject, exists, read_json
from ledom.train.distributed import ProcessGroup
from ledom.train.optim import OptimConfig, schedule
from ledom.train.recipe import Recipe
from ledom.train.start import is_training

__all__ = ["RUN", "Checkpoints", "newest_step"]

RUN = "run.json"
"""The settings of a run: in each checkpoint, and in the folder of a run that has started."""

_FOLDER = "checkpoints"
_UNFINISHED = ".tmp"
_HASHES = "sha256"
_HOUR = 3600.0  # seconds
_NO_MEMORY = (MemoryError, torch.OutOfMemoryError)
_REPORTING = {"validate_every", "checkpoint_every", "keep_checkpoints", "keep_hours", "trackers"}
_FREE = {  # keys of a recipe's groups that may change, such as the locations of files
    "train": _REPORTING,
    "data": {"train", "valid", "tokenizer", "verify"},
    "sources": {"path"},
    "objective": {"negatives"},
}

# torch warns about a run with a single process, which is intended here.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class Checkpoints:
    """The checkpoints of one run: writes them in the background, restores one, removes old ones."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        recipe: Recipe,
        direction: Direction,
        world: ProcessGroup,
    ) -> None:
        self.folder = folder / _FOLDER
        self._model, self._optimizers = model, optimizers
        settings = recipe.model_dump(mode="json", exclude={"parallel": True, "train": _REPORTING})
        self._run = {"direction": str(direction), "recipe": settings}
        self._keep, self._keep_hours = recipe.train.keep_checkpoints, recipe.train.keep_hours
        self._world = world
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved: int | None = None  # the step of the last write that has not failed

    def save(self, step: int) -> OutputError | None:
        """Start writing a checkpoint in the background.

        Waits for the previous write, and returns its failure if that has not been reported yet.
        """
        failure = self.failure(wait=True)
        if self._saved == step:
            return failure
        temporary = self.folder / f"{step:08d}{_UNFINISHED}"
        # Weights and state are copied before this returns, so training may continue.
        written = async_save(
            self._contents(),
            storage_writer=FileSystemWriter(temporary),
            process_group=self._world.background,
            no_dist=self._world.size == 1,
        )
        self._saved = step
        assert isinstance(written, Future)  # as returned with the default stager
        self._writing = self._thread.submit(self._finish, step, temporary, written)
        return failure

    def _finish(self, step: int, temporary: Path, written: Future[Any]) -> None:
        """Wait for the shards of all processes; the first one then renames the folder."""
        file = self.folder / f"{step:08d}"
        try:
            written.result()
            if self._world.is_first:
                hashes = {path.name: file_hash(path) for path in temporary.iterdir()}
                run = {"step": step, **self._run, _HASHES: hashes}
                (temporary / RUN).write_text(json.dumps(run, indent=1), encoding="utf-8")
                temporary.rename(file)
                self._thin_out()
        except (OSError, RuntimeError, CheckpointException) as error:
            reason = _reason(error, self.folder)
            if self._world.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise OutputError(f"{file}: cannot be written: {reason}") from error

    def failure(self, wait: bool = False) -> OutputError | None:
        """The error of the last write if it failed; each error is returned once."""
        if self._writing is None or not (wait or self._writing.done()):
            return None
        error = self._writing.exception()
        self._writing = None
        if error is None:
            return None
        self._saved = None
        if isinstance(error, OutputError):
            return error
        raise error

    def wait(self) -> None:
        """Wait until the last write is done; raises its `OutputError` if it failed."""
        if error := self.failure(wait=True):
            raise error

    def restore(self) -> int:
        """Load the newest checkpoint into model and optimizers; returns its step, or 0 without one.

        Raises `CheckpointError` if it is damaged or belongs to a run with other settings. Without a
        checkpoint, raises it if the folder has a finished model, which would be replaced, and if
        the twin in `runs/<name>` was or is being trained with others.
        """
        newest, refusal = self._world.agreed(self._start() if self._world.is_first else (None, ""))
        if refusal:
            raise CheckpointError(refusal)
        if newest is None:
            return 0
        if any(self._world.total(self._is_changed(newest))):
            raise CheckpointError(
                f"{_damaged(newest)} (its bytes have changed since it was written)"
            )
        contents = self._contents()
        try:
            _drop_unsaved(contents["optimizers"]["state"], newest)
            load(
                contents,
                checkpoint_id=newest,
                process_group=self._world.background,
                no_dist=self._world.size == 1,
            )
        except (Exception, CheckpointException) as error:  # torch raises many types for damage
            cause = _cause(error)
            if not isinstance(cause, Exception) or isinstance(cause, _NO_MEMORY):
                raise cause from None  # such as Ctrl-C, which torch wraps too
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise CheckpointError(
                    f"{newest}: cannot be read: {cause.strerror or cause}"
                ) from error
            raise CheckpointError(_damaged(newest)) from error
        set_state_dict(
            self._model,
            self._optimizers,
            model_state_dict=contents["model"],
            optim_state_dict=contents["optimizers"],
            options=StateDictOptions(strict=False),  # weights without a state
        )
        self._saved = int(newest.name)
        return self._saved

    def _is_changed(self, checkpoint: Path) -> bool:
        """Whether a file in this process's share has other bytes than were written.

        torch would read them without an error.
        """
        hashes = read_json(checkpoint / RUN).get(_HASHES, {})  # none in those of earlier versions
        with suppress(OSError):  # reading the checkpoint names the reason
            own = sorted(hashes)[self._world.rank :: self._world.size]
            return any(file_hash(checkpoint / name) != hashes[name] for name in own)
        return False

    def _contents(self) -> dict[str, Any]:
        weights, optimizers = get_state_dict(self._model, self._optimizers)
        return {"model": weights, "optimizers": optimizers}

    def _start(self) -> tuple[Path | None, str]:
        """Like `_find`, but then write this run's settings for the twin.

        The twin may start before there is a checkpoint, or at the same time; a lock orders the two.
        """
        run = self.folder.parent
        together = lock_folder(run.parent, "compares its settings", wait=True, name=".inputs.lock")
        with together if run.name == self._run["direction"] else nullcontext():
            newest, refusal = self._find()
            if not refusal:
                write_json(run / RUN, self._run)
        return newest, refusal

    def _find(self) -> tuple[Path | None, str]:
        """The newest checkpoint if any, and the reason if it cannot be used, else an empty text."""
        for unfinished in self.folder.glob("*" + _UNFINISHED):
            shutil.rmtree(unfinished, ignore_errors=True)
        finished = _finished(self.folder)
        if not finished and exists(self.folder.with_name("model")):
            return None, (
                f"{self.folder.parent}: has a finished model but no checkpoint, so this run would "
                "start again and replace it; train the other direction alone (--direction), remove "
                "the model, or give this run another name"
            )
        if not finished:
            return None, self._twins_refusal()
        newest = finished[-1]
        try:
            run = read_json(newest / RUN)
        except InputError as error:
            return newest, f"{_damaged(newest)} ({error})"
        if changes := self._changes(run):
            return newest, (
                f"{newest}: belongs to a run with other settings ({changes}); put them back, give "
                "this run another name, or remove the folder"
            )
        return newest, ""

    def _twins_refusal(self) -> str:
        """The reason if the twin was trained with other settings; else an empty text.

        Their losses would be compared as if only the direction differed.
        """
        run, direction = self.folder.parent, self._run["direction"]
        (other,) = (run.with_name(str(way)) for way in Direction if way != direction)
        # It may have no checkpoint: not yet, or no longer.
        started = [other] if is_training(other) or exists(other / "model") else []
        twins = [*started, *_finished(other / _FOLDER)]
        if not twins or run.name != direction:
            return ""
        try:
            theirs = read_json(twins[-1] / RUN)
        except InputError:  # its own restart reports the damage
            return ""
        if changes := self._changes(theirs, "direction", "init_from"):
            return (
                f"{run}: its twin {twins[-1]} was trained with other settings ({changes}); train "
                "both with the same, or give this run another name"
            )
        return ""

    def _changes(self, run: JsonObject, *but: str) -> str:
        """How the settings of `run` differ from this run's, ignoring some keys; empty if equal."""
        there, now = _settings(_as_scheduled(run, self._run)), _settings(self._run)
        equal = dict.fromkeys(but)
        return "; ".join(islice(differences(there | equal, now | equal), 3))

    def _thin_out(self) -> None:
        """Remove checkpoints that are neither among the newest nor recent."""
        for old in _finished(self.folder)[: -self._keep]:
            if time.time() - old.stat().st_mtime >= self._keep_hours * _HOUR:
                shutil.rmtree(old)


def _drop_unsaved(state: dict[str, Any], checkpoint: Path) -> None:
    """Drop the state of each weight that had none in the checkpoint, because no text has used it.

    Image towers, cross-attention and rare experts are such weights.
    """
    saved = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    for weight, parts in list(state.items()):
        if not any(f"optimizers.state.{weight}.{part}" in saved for part in parts):
            del state[weight]


def newest_step(folder: Path) -> int:
    """The step at which a run in `folder` resumes; 0 without a checkpoint.

    >>> newest_step(Path("no-run"))
    0
    """
    return max((int(path.name) for path in _finished(folder / _FOLDER)), default=0)


def _finished(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def _damaged(checkpoint: Path) -> str:
    return f"{checkpoint}: damaged; remove it to resume from the previous one"


def _cause(error: BaseException) -> BaseException:
    """The error of one process, instead of the tracebacks of all."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _reason(error: BaseException, folder: Path) -> str:
    error = _cause(error)
    if "inline_container" in str(error):  # torch's writer hides the system's reason
        free = shutil.disk_usage(folder).free / 1e6
        return (
            f"a file was cut short, with {free:.1f} MB free on the disk; free some space, or raise "
            "the quota or the limit on file sizes (ulimit -f)"
        )
    return str(error)


def _as_scheduled(run: JsonObject, now: JsonObject) -> JsonObject:
    """`run` with the length of `now`, if both schedules agree on all steps so far; else `run`.

    This lets a run become longer or shorter until its learning rate begins to decay.
    """
    try:
        before = OptimConfig.model_validate(run["recipe"]["optim"])
        after = OptimConfig.model_validate(now["recipe"]["optim"])
        same = all(schedule(before, s) == schedule(after, s) for s in range(run["step"]))
    except (KeyError, TypeError, ValidationError):  # written by another version of ledom
        return run
    if run["step"] >= after.steps or not same:
        return run
    length = {"steps": after.steps, "decay_steps": after.decay_steps}
    optim = {**run["recipe"]["optim"], **length}
    return {**run, "recipe": {**run["recipe"], "optim": optim}}


def _settings(run: JsonObject) -> JsonObject:
    """The settings that a resumed run must keep, by recipe key: no steps, paths or reporting.

    A file may be moved; `prepare_data` and `check_inputs` compare its contents.
    """
    kept: JsonObject = _kept({**run, "step": None, _HASHES: None})
    recipe = kept.pop("recipe", None)
    if isinstance(recipe, dict):
        kept |= recipe
        kept["init_from"] = recipe.get("init_from") and "a model"
    return kept


def _kept(value: Any, group: str = "") -> Any:
    """A group of settings without the keys that may change."""
    if isinstance(value, list):
        return [_kept(item, group) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: _kept(v, k) for k, v in value.items() if k not in _FREE.get(group, ())}
