"""The training loop: one process, one model, one direction.

It reads batches of windows in reading order, turns them into the model's order, and steps. The
data order depends only on the recipe, so forward and reverse twins see the same documents in the
same order, and a run killed at any moment goes on from its last checkpoint as if it never stopped.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ledom.data.shards import Batches
from ledom.data.tokenise import PreparedData, read_split
from ledom.direction import Direction
from ledom.errors import LedomError, OutputError, RecipeError
from ledom.model.checkpoint import build_model, load_checkpoint, save_checkpoint
from ledom.pairs import PairFormat
from ledom.recipe import Recipe
from ledom.records import Problem, write_atomically
from ledom.train import state
from ledom.train.lora import Adapters
from ledom.train.objective import PairBatches, read_wrong_solutions
from ledom.train.optim import build_optimizers, schedule

__all__ = ["Progress", "train"]

_MAX_VALIDATION_BATCHES = 16


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    valid_loss: float | None


def train(
    recipe: Recipe,
    direction: Direction,
    data: PreparedData,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    device: str = "cpu",
) -> Path:
    """Train one direction in `folder`, going on from its newest checkpoint if there is one.

    Returns the folder of the finished model (bf16 weights). Metrics go to metrics.jsonl: `step`,
    `loss` (the objective's: by default nats a token over the batch), `tokens`,
    `tokens_per_second`, and at validations `valid_loss` (nats a token, whatever the objective). On
    KeyboardInterrupt a checkpoint is written before it passes on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    model = _initial_model(recipe, direction, data)
    adapters = Adapters(model, recipe.lora, recipe.seed) if recipe.lora else None
    model.to(torch.device(device))  # type: ignore[arg-type]
    optimizers = build_optimizers(model, recipe.optim)
    batches = _batches(recipe, direction, data)
    step = state.restore(folder, model, optimizers, recipe, direction)
    metrics = folder / "metrics.jsonl"
    _drop_metrics_after(metrics, step)
    pair_format = PairFormat(recipe.data.pair_format, recipe.data.solution_style)
    finished = folder / "model"

    def checkpoint() -> None:
        state.save(folder, model, optimizers, step, recipe, direction)

    try:
        with metrics.open("a", encoding="utf-8") as log, _held_interrupts() as between_steps:
            while step < recipe.optim.steps:
                started = time.perf_counter()
                loss, num_tokens = _step(model, optimizers, batches, direction, recipe, step)
                step += 1
                speed = num_tokens / (time.perf_counter() - started)
                valid_loss = None
                if step % recipe.train.validate_every == 0 or step == recipe.optim.steps:
                    valid_loss = validation_loss(model, data, direction, recipe)
                row = {"step": step, "loss": loss, "tokens": num_tokens, "tokens_per_second": speed}
                if valid_loss is not None:
                    row["valid_loss"] = valid_loss
                log.write(json.dumps(row) + "\n")
                log.flush()
                on_progress(Progress(step, recipe.optim.steps, loss, speed, valid_loss))
                if step % recipe.train.checkpoint_every == 0:
                    checkpoint()
                between_steps()
    except KeyboardInterrupt:
        checkpoint()
        raise
    except OSError as error:
        raise OutputError(f"{metrics}: cannot be written: {error}") from error
    if adapters is not None:
        adapters.merge()
    save_checkpoint(finished, model, data.tokenizer, direction, pair_format, torch.bfloat16)
    return finished


def _initial_model(recipe: Recipe, direction: Direction, data: PreparedData) -> PreTrainedModel:
    """Random weights, or those of `init`, which must have the recipe's shape and tokenizer."""
    start = None
    if recipe.init is not None:
        start = load_checkpoint(recipe.init.format(direction=direction), direction)
        if start.tokenizer.fingerprint != data.tokenizer.fingerprint:
            raise RecipeError(
                f"key init: {recipe.init} has another tokenizer than the data; give its "
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
            raise RecipeError(f"key init: {recipe.init} has another shape: {error}") from None
    return model


def _batches(recipe: Recipe, direction: Direction, data: PreparedData) -> Batches | PairBatches:
    """Documents of the token store; pairs where the objective tells question from solution."""
    if not recipe.objective.needs_pairs:
        return Batches(data.train, recipe.train.batch_size, recipe.train.seq_len, recipe.seed)
    problems = [record for record in read_split(recipe.data)[0] if isinstance(record, Problem)]
    wrong = recipe.objective.wrong
    return PairBatches(
        problems,
        read_wrong_solutions(wrong, problems) if wrong is not None else {},
        recipe.objective,
        direction,
        data.tokenizer,
        PairFormat(recipe.data.pair_format, recipe.data.solution_style),
        recipe.train.batch_size,
        recipe.train.seq_len,
        recipe.seed,
    )


@contextmanager
def _held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called.

    A step is done whole or not at all: saved between the optimisers' updates, or before its row of
    metrics, it could not be resumed exactly.
    """
    pressed: list[int] = []

    def release() -> None:
        if pressed:
            raise KeyboardInterrupt

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield release  # not ours to handle
        return
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield release
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _step(
    model: PreTrainedModel,
    optimizers: list[torch.optim.Optimizer],
    batches: Batches | PairBatches,
    direction: Direction,
    recipe: Recipe,
    step: int,
) -> tuple[float, int]:
    """One optimiser step; returns the mean loss before it and the number of predicted tokens."""
    scale = schedule(recipe.optim, step)
    for optimizer, peak in zip(
        optimizers, (recipe.optim.muon_lr, recipe.optim.adamw_lr), strict=True
    ):
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
    model.train()
    with _autocast(model, recipe):
        losses = packed_losses(model, batches[step], direction)
    loss = batches.loss(losses, step) if isinstance(batches, PairBatches) else losses.mean()
    value = loss.item()
    if not math.isfinite(value):
        raise LedomError(
            f"the loss is {value} at step {step + 1}; lower optim.muon_lr and optim.adamw_lr, "
            "remove the newest checkpoint and start again"
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value, losses.numel()


def packed_losses(
    model: PreTrainedModel, windows: list[NDArray[np.int64]], direction: Direction
) -> Tensor:
    """The loss of every predicted token of some windows, in model order, end to end [T]."""
    ordered = [direction.to_model_order(window) for window in windows]
    device = model.device
    inputs = torch.from_numpy(np.concatenate([window[:-1] for window in ordered])).to(device)
    targets = torch.from_numpy(np.concatenate([window[1:] for window in ordered])).to(device)
    sizes = [len(window) - 1 for window in ordered]
    positions = torch.cat([torch.arange(size, device=device) for size in sizes])
    borders = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    logits = model(
        input_ids=inputs[None],
        position_ids=positions[None],
        use_cache=False,
        cu_seq_lens_q=borders,
    ).logits[0]
    return cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel, data: PreparedData, direction: Direction, recipe: Recipe
) -> float:
    """Mean loss in nats a token over the start of the validation store."""
    model.eval()
    batches = Batches(data.valid, recipe.train.batch_size, recipe.train.seq_len, seed=None)
    total, count = 0.0, 0
    for step in range(min(batches.steps_per_epoch, _MAX_VALIDATION_BATCHES)):
        with _autocast(model, recipe):
            losses = packed_losses(model, batches[step], direction)
        total += losses.sum().item()
        count += losses.numel()
    return total / count


def _autocast(model: PreTrainedModel, recipe: Recipe) -> torch.autocast:
    precision = recipe.train.precision
    if precision == "auto":
        precision = "bfloat16" if fast_bfloat16(model.device) else "float32"
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 there; on a CPU without the instructions they
    are about 50 times slower."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _drop_metrics_after(metrics: Path, step: int) -> None:
    """Forget the rows that a killed run wrote after its last checkpoint."""
    if metrics.is_file():
        kept = [row for row in _rows(metrics) if row["step"] <= step]
        with write_atomically(metrics) as out:
            out.writelines(json.dumps(row) + "\n" for row in kept)


def _rows(metrics: Path) -> Iterator[dict[str, float]]:
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # a line cut short by a kill
