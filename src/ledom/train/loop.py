"""The training loop: one model, one direction, on one process or many.

It reads batches of windows in reading order, flips them to model order, and takes optimizer steps.
A step depends only on the recipe and the step's number, never on the number of processes. So
forward and reverse twins see the same documents in the same order, and a run that is killed at any
moment resumes from its last checkpoint as if it had never stopped. Stop requests take effect after
the current step: a run saved between the optimizers' updates, or before its row of metrics, could
not resume exactly.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import OutputError, TrainingError
from ledom.core.files import lock_folder
from ledom.data.packing import Batch, PackedBatch, Windows, pack
from ledom.data.prepare import PreparedData
from ledom.model.checkpoint import save_checkpoint
from ledom.model.device import configure_memory
from ledom.model.exactness import vocab_size
from ledom.model.native.products import use_fast_products
from ledom.train.checkpoints import RUN, Checkpoints
from ledom.train.distributed import (
    ProcessGroup,
    accumulate,
    distribute,
    losses_of,
    share_out,
    whole_weights,
)
from ledom.train.metrics import Row, ValidationStats, open_metrics
from ledom.train.model import trainable_model
from ledom.train.optim import build_optimizers, schedule
from ledom.train.recipe import Recipe
from ledom.train.start import check_lengths, check_shareable, training_batches

__all__ = ["Progress", "TrainingRun", "train"]

_MAX_VALIDATION_BATCHES = 16
_ALONE = ProcessGroup(torch.device("cpu"))

_DEFAULT_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,  # the terminal was closed
}


@dataclass(frozen=True)
class Progress:
    """The state of a run after a step, for display."""

    step: int
    loss: float
    tokens_per_second: float
    valid_loss: float | None
    notice: str | None = None
    """A message for the user, if a checkpoint could not be written."""


class TrainingRun:
    """One direction's run: model, optimizers, batches, and the number of the next step.

    The constructor restores the newest checkpoint in `folder`. It raises `CheckpointError` if the
    folder belongs to another run.
    """

    def __init__(
        self,
        recipe: Recipe,
        direction: Direction,
        data: PreparedData,
        folder: Path,
        world: ProcessGroup,
    ) -> None:
        self.direction, self.data = direction, data
        self.folder, self.world = folder, world
        check_lengths(recipe, direction)
        check_shareable(recipe, world.size)
        made = trainable_model(recipe, direction, data.tokenizer, world)
        self.model, self.adapters = made.model, made.adapters
        for store in (*(source.store for source in data.sources), data.valid):
            store.check_ids(vocab_size(self.model), "remove this special token from the documents")
        self.recipe = recipe = made.recipe
        if made.notice and world.is_first:
            logging.getLogger("ledom").warning(made.notice)
        dtype = getattr(torch, recipe.train.precision)
        if world.device.type == "cpu" and dtype == torch.float32:
            use_fast_products(self.model)
        distribute(self.model, world, recipe.parallel, dtype)
        self.optimizers = build_optimizers(self.model, recipe.optim, dtype)
        self.batches = training_batches(recipe, direction, data)
        # Refuses a store without a window now, instead of at the first validation.
        Windows(data.valid, recipe.train.seq_len, recipe.data.packing)
        self.checkpoints = Checkpoints(
            folder, self.model, self.optimizers, recipe, direction, world
        )
        self.step = self.checkpoints.restore()

    def run(
        self, on_progress: Callable[[Progress], None], check_folder: Callable[[], None]
    ) -> OutputError | None:
        """Take the remaining steps; a stop request takes effect after the current step.

        `check_folder` is called before anything is written. Returns the failure of the last
        checkpoint, if any.
        """
        settings = {"direction": str(self.direction), **self.recipe.model_dump(mode="json")}
        metrics = open_metrics(self.folder, self.step, self.recipe.train.trackers, settings)
        try:
            with (
                metrics if self.world.is_first else nullcontext(lambda row: None) as log,
                _stop_requests() as received,
            ):
                while self.step < self.recipe.optim.steps:
                    row = self._train_step()
                    self.step += 1
                    if self._is_due(self.recipe.train.validate_every):
                        row |= validate(
                            self.model, self.data, self.direction, self.recipe, self.world
                        )
                        # The step's loss is from before its update, which may break the weights.
                        _check_finite({"validation loss": row["valid_loss"]}, self.step)
                    check_folder()
                    log(row)
                    failure = self._save()
                    notice = f"{failure}; training continues" if failure else None
                    values = row["step"], row["loss"], row["tokens_per_second"]
                    on_progress(Progress(*values, row.get("valid_loss"), notice))
                    self._stop_if(received)
        except (KeyboardInterrupt, SystemExit):
            self.checkpoints.save(self.step)
            self.checkpoints.wait()
            raise
        return self.checkpoints.failure(wait=True)

    def finish(self) -> Path:
        """Write the finished model (bf16 weights); returns its folder."""
        if self.adapters is not None:
            self.adapters.merge_and_unload()
        weights = whole_weights(self.model, self.world)
        finished = self.folder / "model"
        if self.world.is_first:
            save_checkpoint(
                finished,
                self.model,
                self.data.tokenizer,
                self.direction,
                self.recipe.data.pairs,
                torch.bfloat16,
                weights,
            )
        return finished

    def _save(self) -> OutputError | None:
        """Save a checkpoint if one is due; returns the failure of an earlier one, if any."""
        failure = self.checkpoints.failure()
        # After the last step too: the checkpoint records which run the finished model belongs to.
        if self._is_due(self.recipe.train.checkpoint_every):
            failure = self.checkpoints.save(self.step) or failure
        return failure

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.optim.steps

    def _stop_if(self, received: set[int]) -> None:
        interrupted, stopped = self.world.total(signal.SIGINT in received, bool(received))
        if interrupted:
            raise KeyboardInterrupt
        if stopped:
            raise SystemExit(0)

    def _train_step(self) -> Row:
        """Take one optimizer step on the next batch; returns its row of metrics."""
        started = time.perf_counter()
        self._seed_dropout()
        scale = schedule(self.recipe.optim, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale
        batch = self.batches[self.step]
        loss = self._backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # Read only now: on a GPU this waits for all of the above.
        value = self.world.total(loss)[0]
        gradient_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        _check_finite({"loss": value, "gradient's norm": gradient_norm}, self.step + 1)
        return {
            "step": self.step + 1,
            "loss": value,
            "gradient_norm": gradient_norm,
            "tokens": sum(batch.sizes),
            "tokens_per_second": sum(batch.sizes) / (time.perf_counter() - started),
        }

    def _seed_dropout(self) -> None:
        """Make a step's random draws, such as dropout, depend only on the recipe and the step.

        Otherwise a resumed run would draw other numbers. Each process draws its own numbers, so
        with dropout the results depend on how a batch is split.
        """
        key = (self.recipe.seed, self.step, self.world.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def _backward(self, batch: Batch) -> Tensor:
        """Accumulate the gradients of this process's part of a batch; returns that part's loss."""
        self.model.train()
        loss = torch.zeros((), device=self.world.device)
        limit = self.recipe.parallel.tokens_per_microbatch
        parts = share_out(batch.sizes, self.world, limit)
        for number, part in enumerate(parts, 1):
            accumulate(self.model, last=number == len(parts))
            windows = [batch.windows[place] for place in part]
            _, losses = _losses(self.model, windows, self.data, self.direction, self.recipe)
            share = batch.loss(losses)
            share.backward()
            loss += share.detach()
        return loss


def train(
    recipe: Recipe,
    direction: Direction,
    data: PreparedData,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    world: ProcessGroup = _ALONE,
) -> Path:
    """Train one direction in `folder`, resuming from the newest checkpoint there, if any.

    Returns the folder of the finished model (bf16 weights). Metrics go to metrics.jsonl: `step`,
    `loss` (the objective's; by default nats per token over the batch), `gradient_norm` (before
    clipping), `tokens`, `tokens_per_second`, and at validations `valid_loss` (always nats per
    token) with its parts (see `validate`). SIGTERM and SIGHUP end the process with code 0 and
    Ctrl-C raises KeyboardInterrupt, all after the current step and a checkpoint. If a periodic
    checkpoint cannot be written, `Progress.notice` reports it and the run continues. Raises
    `TrainingError` if a loss or the gradient is not finite, `CheckpointError` if the folder
    belongs to another run, and `OutputError` if it cannot be written or is removed meanwhile, or
    if another process trains there.
    """
    lock = lock_folder(folder, "trains")
    with lock if world.is_first else nullcontext(lambda: None) as check_folder:
        if world.device.type == "cpu":
            configure_memory()
        if world.is_first:
            (folder / RUN).unlink(missing_ok=True)  # left by a killed start; a twin may read it
        run = TrainingRun(recipe, direction, data, folder, world)
        failure = run.run(on_progress, check_folder)
        check_folder()
        finished = run.finish()  # smaller than a checkpoint, so it may fit where that did not
        if failure is not None:
            raise OutputError(f"{failure}; the finished model is in {finished}") from failure
        return finished


def _check_finite(values: dict[str, float], step: int) -> None:
    for what, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {step}, which is not saved; lower optim.muon_lr "
                "and optim.adamw_lr and start under another name (the last checkpoint is from an "
                "earlier step)"
            )


def packed_losses(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The loss of every predicted token of a batch [T], in model order."""
    device = model.device
    return losses_of(model)(
        torch.from_numpy(batch.inputs).to(device),
        torch.from_numpy(batch.positions).to(device),
        torch.from_numpy(batch.boundaries),
        torch.from_numpy(batch.targets).to(device),
    )


def _losses(
    model: PreTrainedModel,
    windows: list[NDArray[np.int64]],
    data: PreparedData,
    direction: Direction,
    recipe: Recipe,
) -> tuple[PackedBatch, Tensor]:
    """The windows as one row, and the losses of its tokens, with matmuls in the recipe's dtype."""
    boundaries = recipe.data.mask_across_documents, recipe.data.reset_position_ids
    packed = pack(windows, direction, data.tokenizer.eos_id, *boundaries)
    # A sharded model's dtype is FSDP's.
    enabled = not isinstance(model, FSDPModule) and recipe.train.precision == "bfloat16"
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled):
        return packed, packed_losses(model, packed)


@torch.no_grad()
def validate(
    model: PreTrainedModel,
    data: PreparedData,
    direction: Direction,
    recipe: Recipe,
    world: ProcessGroup = _ALONE,
) -> Row:
    """Validate a model; returns the keys that this adds to a row of metrics, `valid_loss` and more.

    It reads windows spread evenly over the validation store, at most sixteen batches, in passes of
    the same size as in training. See docs/formats.md for the keys.
    """
    model.eval()
    limit = recipe.parallel.tokens_per_microbatch
    windows = Windows(data.valid, recipe.train.seq_len, recipe.data.packing)
    size = recipe.train.batch_size
    stats = ValidationStats(windows, _MAX_VALIDATION_BATCHES * size)
    for start in range(0, len(stats.numbers), size):
        places = range(start, min(start + size, len(stats.numbers)))
        read = stats.read(places)
        # All processes must take part. If there are fewer windows, each process reads all of them,
        # and only the first one's losses count.
        alone = len(read) < world.size
        sizes = [len(window) - 1 for window in read]
        for part in share_out(sizes, _ALONE if alone else world, limit):
            batch, losses = _losses(model, [read[i] for i in part], data, direction, recipe)
            if world.is_first or not alone:
                found = losses.cpu().double().numpy()
                stats.add([places[i] for i in part], batch, found, direction)
    return stats.row(world.total)


@contextmanager
def _stop_requests() -> Iterator[set[int]]:
    """Within this block, record SIGINT (Ctrl-C), SIGTERM and SIGHUP instead of acting on them.

    A signal that already has a custom handler is left alone.
    """
    received: set[int] = set()

    def record(number: int, _: object) -> None:
        received.add(number)

    replaced: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        replaced = [n for n, usual in _DEFAULT_HANDLERS.items() if signal.getsignal(n) is usual]
    for number in replaced:
        signal.signal(number, record)
    try:
        yield received
    finally:
        for number in replaced:
            signal.signal(number, _DEFAULT_HANDLERS[number])
