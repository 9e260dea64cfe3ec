"""The training loop: one model, one direction, on one process or many.

It reads batches of windows in reading order, turns them into the model's order, and steps. What a
step does depends only on the recipe and the step's number, never on how many processes share it:
forward and reverse twins see the same documents in the same order, and a run killed at any moment
goes on from its last checkpoint as if it never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import OutputError, RecipeError, TrainingError
from ledom.core.records import Problem
from ledom.data.packing import Batches, PackedBatch, Windows, pack
from ledom.data.prepare import PreparedData, read_split
from ledom.model.checkpoint import build_model, load_checkpoint, read_context, save_checkpoint
from ledom.model.exactness import packing_reach
from ledom.model.own_forward import OwnForward
from ledom.train.checkpoints import Checkpoints
from ledom.train.distributed import (
    ProcessGroup,
    accumulate,
    distribute,
    losses_of,
    share_out,
    split_windows,
    whole_weights,
)
from ledom.train.lora import Adapters
from ledom.train.losses import token_losses
from ledom.train.metrics import Row, open_metrics
from ledom.train.objective import PairBatches, read_wrong_solutions
from ledom.train.optim import build_optimizers, schedule
from ledom.train.recipe import Recipe
from ledom.train.signals import stop_requests
from ledom.train.validation import ValidationStats

__all__ = ["Progress", "check_lengths", "train", "training_batches"]

_MAX_VALIDATION_BATCHES = 16
_ALONE = ProcessGroup(torch.device("cpu"))


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    valid_loss: float | None
    notice: str | None = None
    """What the user should know: a checkpoint that could not be written."""


def train(
    recipe: Recipe,
    direction: Direction,
    data: PreparedData,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    world: ProcessGroup = _ALONE,
) -> Path:
    """Train one direction in `folder`, going on from its newest checkpoint if there is one.

    Returns the folder of the finished model (bf16 weights). Metrics go to metrics.jsonl: `step`,
    `loss` (the objective's: by default nats a token over the batch), `gradient_norm` (before
    clipping), `tokens`, `tokens_per_second`, and at validations `valid_loss` (nats a token,
    whatever the objective) with its parts (`validate`). SIGTERM ends the process with code 0,
    Ctrl-C raises KeyboardInterrupt, both after the step in hand and a checkpoint. A checkpoint in
    between that cannot be written is told in `Progress.notice`, and the run goes on. Raises
    `TrainingError` when loss or gradient is no number, `CheckpointError` when the folder belongs to
    another run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    check_lengths(recipe, direction)
    model = _initial_model(recipe, direction, data)
    _check_shareable(recipe, world)
    _choose_packing(model, recipe, data.tokenizer.eos_id, world)
    adapters = Adapters(model, recipe.lora, recipe.seed) if recipe.lora else None
    dtype = _precision(recipe, world.device)
    distribute(model, world, recipe.parallel, dtype)
    optimizers = build_optimizers(model, recipe.optim, dtype)
    batches, eos_id = training_batches(recipe, direction, data), data.tokenizer.eos_id
    checkpoints = Checkpoints(folder, model, optimizers, recipe, direction, world)
    step, steps = checkpoints.restore(), recipe.optim.steps
    settings = {"direction": str(direction), **recipe.model_dump(mode="json")}
    metrics = open_metrics(folder, step, recipe.train.trackers, settings)
    try:
        with metrics if world.is_first else nullcontext(_unwritten) as log, stop_requests() as held:
            while step < steps:
                row = _step(model, optimizers, batches, direction, recipe, step, world, eos_id)
                step += 1
                if step % recipe.train.validate_every == 0 or step == steps:
                    row |= validate(model, data, direction, recipe, world)
                log(row)
                failure = checkpoints.failure()
                # The last one too: it says whose the finished model is.
                if step % recipe.train.checkpoint_every == 0 or step == steps:
                    failure = checkpoints.save(step) or failure
                on_progress(_progress(row, steps, failure))
                interrupted, terminated = world.total(held.interrupted, held.terminated)
                if interrupted:
                    raise KeyboardInterrupt
                if terminated:
                    raise SystemExit(0)
    except (KeyboardInterrupt, SystemExit):
        checkpoints.save(step)
        checkpoints.wait()
        raise
    checkpoints.wait()
    if adapters is not None:
        adapters.merge()
    weights = whole_weights(model, world)
    finished = folder / "model"
    if world.is_first:
        pairs = recipe.data.pairs
        save_checkpoint(finished, model, data.tokenizer, direction, pairs, torch.bfloat16, weights)
    return finished


def _progress(row: Row, steps: int, failure: OutputError | None) -> Progress:
    """What to show after a step, whose row of metrics it is; `failure` is a checkpoint's."""
    return Progress(
        step=row["step"],
        steps=steps,
        loss=row["loss"],
        tokens_per_second=row["tokens_per_second"],
        valid_loss=row.get("valid_loss"),
        notice=f"{failure}; going on" if failure else None,
    )


def _unwritten(row: Row) -> None:
    """What processes other than the first do with a row of metrics."""


def _packed(
    windows: list[NDArray[np.int64]], direction: Direction, recipe: Recipe, eos_id: int
) -> PackedBatch:
    boundaries = recipe.data.mask_across_documents, recipe.data.reset_position_ids
    return pack(windows, direction, eos_id, *boundaries)


def _initial_model(recipe: Recipe, direction: Direction, data: PreparedData) -> PreTrainedModel:
    """Random weights, or those of `init_from`, which must have the recipe's shape and tokenizer.

    `init_from` may be a model of the other direction. They are the same in every process.
    """
    start = None
    if recipe.init_from is not None:
        folder, eos_token = recipe.init_folder(direction), recipe.data.eos_token
        start = load_checkpoint(folder, direction, eos_token=eos_token, turn=True)
        if start.tokenizer.fingerprint != data.tokenizer.fingerprint:
            raise RecipeError(
                f"key init_from: {recipe.init_from} has another tokenizer than the data; give its "
                "tokenizer.json as data.tokenizer, or leave that out"
            )
        if recipe.model is None:
            return start.model
    assert recipe.model is not None  # the recipe's own check
    model = build_model(recipe.model, data.tokenizer, recipe.seed)
    if start is not None:
        try:
            model.load_state_dict(start.model.state_dict())
        except RuntimeError as error:
            raise RecipeError(
                f"key init_from: {recipe.init_from} has another shape: {error}"
            ) from None
    return model


def training_batches(
    recipe: Recipe, direction: Direction, data: PreparedData
) -> Batches | PairBatches:
    """Documents of the token store; pairs where the objective tells question from solution."""
    if not recipe.objective.needs_pairs:
        sources = [
            (Windows(source.store, recipe.train.seq_len, recipe.data.packing), source.weight)
            for source in data.sources
        ]
        return Batches(sources, recipe.train.batch_size, recipe.seed)
    problems = [record for record in read_split(recipe.data)[0] if isinstance(record, Problem)]
    wrong = recipe.objective.negatives
    return PairBatches(
        problems,
        read_wrong_solutions(wrong, problems) if wrong is not None else {},
        recipe.objective,
        direction,
        data.tokenizer,
        recipe.data.pairs,
        recipe.train.batch_size,
        recipe.train.seq_len,
        recipe.seed,
    )


def check_lengths(recipe: Recipe, direction: Direction) -> None:
    """Raise `RecipeError` where windows are longer than the model can read.

    Quick, and needs no data: to be called before any work.
    """
    contexts = []
    if recipe.model is not None:
        contexts.append(recipe.model.max_position_embeddings)
    if recipe.init_from is not None:
        contexts.append(read_context(recipe.init_folder(direction)))
    if recipe.train.seq_len > min(contexts):
        raise RecipeError(
            f"key train.seq_len is {recipe.train.seq_len}: the model's context is {min(contexts)} "
            "tokens; lower it, or set model.max_position_embeddings for random weights"
        )


def _choose_packing(
    model: PreTrainedModel, recipe: Recipe, eos_id: int, world: ProcessGroup
) -> None:
    """Let documents share rows where that is exact; elsewhere each is read alone."""

    def packed(ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor) -> Tensor:
        return -token_losses(model, ids, positions, boundaries, targets)

    own, kind, longest = OwnForward(model), type(model).__name__, recipe.train.seq_len
    if packing_reach(model, packed, eos_id, longest) >= longest:
        return
    own.restore()
    own.check_training(longest)
    if recipe.data.mask_across_documents != recipe.data.reset_position_ids:
        raise RecipeError(
            f"key data.mask_across_documents: {kind} reads one document at a time, each from its "
            "first position; give it the same value as data.reset_position_ids"
        )
    if world.size > 1:
        raise RecipeError(f"{kind} reads one document at a time, which runs in one process only")
    if world.is_first:
        logging.getLogger("ledom").warning(
            "%s: one document at a time through the model's own forward pass, as packed rows are "
            "not exact for it: slower",
            kind,
        )


def _check_shareable(recipe: Recipe, world: ProcessGroup) -> None:
    """An objective on pairs looks at a batch as a whole, and adapters are merged whole."""
    shared = world.size > 1 or recipe.parallel.tokens_per_microbatch is not None
    if shared and (recipe.objective.needs_pairs or recipe.lora is not None):
        raise RecipeError(
            "objective.target, objective.contrastive and lora run in one process, without "
            "parallel.tokens_per_microbatch"
        )


def _step(
    model: PreTrainedModel,
    optimizers: list[torch.optim.Optimizer],
    batches: Batches | PairBatches,
    direction: Direction,
    recipe: Recipe,
    step: int,
    world: ProcessGroup,
    eos_id: int,
) -> Row:
    """One optimizer step on a batch, which the processes share; returns its row of metrics.

    The loss is the objective's; by default the mean over the tokens of the whole batch, however
    that is shared out.
    """
    started = time.perf_counter()
    scale = schedule(recipe.optim, step)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak_lr"] * scale
    model.train()
    windows = batches[step]
    num_tokens = sum(len(window) - 1 for window in windows)
    loss = torch.zeros((), device=world.device)
    parts = split_windows(windows, world, recipe.parallel.tokens_per_microbatch)
    for number, part in enumerate(parts, 1):
        accumulate(model, last=number == len(parts))
        with _autocast(model, recipe):
            losses = packed_losses(model, _packed(part, direction, recipe, eos_id))
        if isinstance(batches, PairBatches):
            share = batches.loss(losses, step)
        else:
            share = losses.sum() / num_tokens
        share.backward()
        loss += share.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # Read only now: on a GPU this waits for all of the above.
    value = world.total(loss)[0]
    gradient_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    _check_finite(value, gradient_norm, step + 1)
    return {
        "step": step + 1,
        "loss": value,
        "gradient_norm": gradient_norm,
        "tokens": num_tokens,
        "tokens_per_second": num_tokens / (time.perf_counter() - started),
    }


def _check_finite(loss: float, gradient_norm: float, step: int) -> None:
    for what, value in (("loss", loss), ("gradient's norm", gradient_norm)):
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {step}; nothing of this step is kept. Lower "
                "optim.muon_lr and optim.adamw_lr and start under another name; the last "
                "checkpoint is from before"
            )


def packed_losses(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The loss of every predicted token of a batch, in model order [T]."""
    device = model.device
    return losses_of(model)(
        torch.from_numpy(batch.inputs).to(device),
        torch.from_numpy(batch.positions).to(device),
        torch.from_numpy(batch.boundaries),
        torch.from_numpy(batch.targets).to(device),
    )


@torch.no_grad()
def validate(
    model: PreTrainedModel,
    data: PreparedData,
    direction: Direction,
    recipe: Recipe,
    world: ProcessGroup = _ALONE,
) -> Row:
    """The keys of a row of metrics that a validation adds; `valid_loss` is their mean.

    It reads windows spread evenly over the validation store, sixteen batches of them at most.
    """
    model.eval()
    windows = Windows(data.valid, recipe.train.seq_len, recipe.data.packing)
    size = recipe.train.batch_size
    tally = ValidationStats(windows, _MAX_VALIDATION_BATCHES * size)
    for start in range(0, len(tally.numbers), size):
        places = range(start, min(start + size, len(tally.numbers)))
        read = tally.read(places)
        # Fewer windows than processes are read by each, as all must take part; the first counts.
        alone = len(read) < world.size
        share = range(len(read)) if alone else share_out([len(w) - 1 for w in read], world)[0]
        batch = _packed([read[i] for i in share], direction, recipe, data.tokenizer.eos_id)
        with _autocast(model, recipe):
            losses = packed_losses(model, batch)
        if world.is_first or not alone:
            tally.add([places[i] for i in share], batch, losses.cpu().double().numpy(), direction)
    return tally.row(world.total)


def _precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of the products."""
    if recipe.train.precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if recipe.train.precision == "bfloat16" else torch.float32


def _autocast(model: PreTrainedModel, recipe: Recipe) -> torch.autocast:
    """Products in the recipe's dtype; a sharded model sees to that itself."""
    device = model.device
    enabled = not isinstance(model, FSDPModule) and _precision(recipe, device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 there; on a CPU without the instructions they
    are about 50 times slower."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
