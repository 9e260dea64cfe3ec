"""What a run needs to go on exactly where it stopped: weights, optimiser state, step.

A checkpoint is one file, `checkpoints/<step>.pt`, written beside its name and renamed, so that a
kill at any moment leaves the last good one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ledom.direction import Direction
from ledom.errors import CheckpointError, OutputError
from ledom.recipe import Recipe

__all__ = ["restore", "save"]


def save(
    folder: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    recipe: Recipe,
    direction: Direction,
) -> None:
    """Write a checkpoint and remove all but the newest `keep_checkpoints`."""
    checkpoints = folder / "checkpoints"
    file = checkpoints / f"{step:08d}.pt"
    temporary = file.with_suffix(".tmp")
    contents = {
        "step": step,
        "run": _identity(recipe, direction),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        torch.save(contents, temporary)
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(f"{file}: cannot be written: {error}") from error
    for old in sorted(checkpoints.glob("*.pt"))[: -recipe.train.keep_checkpoints]:
        old.unlink()


def restore(
    folder: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    direction: Direction,
) -> int:
    """Load the newest checkpoint into model and optimisers; returns its step, 0 without one.

    Raises `CheckpointError` when it is damaged or belongs to a run with other settings.
    """
    files = sorted((folder / "checkpoints").glob("*.pt"))
    if not files:
        return 0
    newest = files[-1]
    try:
        contents: dict[str, Any] = torch.load(newest, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        raise CheckpointError(
            f"{newest}: damaged; remove it to go on from the one before"
        ) from error
    if contents["run"] != _identity(recipe, direction):
        raise CheckpointError(
            f"{newest}: belongs to a run with other settings; give this run another name, or "
            "remove the folder"
        )
    model.load_state_dict(contents["model"])
    for optimizer, saved in zip(optimizers, contents["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(contents["step"])


def _identity(recipe: Recipe, direction: Direction) -> str:
    """What must not change between stop and resume; how often to checkpoint may."""
    fixed = recipe.model_dump(
        exclude={"train": {"validate_every", "checkpoint_every", "keep_checkpoints"}}
    )
    return f"{direction} {sorted(fixed.items())}"
