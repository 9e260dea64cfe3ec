"""The disk space that a run's checkpoints and finished models need, before it starts.

This is arithmetic on a recipe; no model is built.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ledom.core.direction import Direction
from ledom.model.folder import count_parameters
from ledom.train.estimate import count_parameters as count_planned
from ledom.train.estimate import planned_shape
from ledom.train.optim import STATE_PER_WEIGHT
from ledom.train.recipe import Recipe

__all__ = ["disk_space"]

_FP32, _BF16 = 4, 2  # bytes


def disk_space(recipe: Recipe, directions: Sequence[Direction], run: Path) -> tuple[float, float]:
    """The bytes that a run needs at least, and those that are available in its folder.

    Files that the run has written already count as available, because it replaces them.
    """
    place = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    needed = sum(least_space(recipe, direction) for direction in directions)
    present = sum(_size(run / str(direction)) for direction in directions)
    return needed, shutil.disk_usage(place).free + present


def least_space(recipe: Recipe, direction: Direction) -> float:
    """The bytes that one direction of a run needs, at least: checkpoints and the finished model.

    A checkpoint holds the weights in fp32 and, for each weight that is trained, at least the
    numbers that the matrices' optimizer keeps. The oldest is removed only when the next one is
    complete.

    >>> keys = {"name": "a", "model": "tiny", "data": {}, "optim": {"steps": 250}}
    >>> recipe = Recipe.model_validate(keys)  # one checkpoint: weights and at least one number each
    >>> least_space(recipe, Direction.REVERSE) == (4 + 4 + 2) * 2755008
    True
    """
    if recipe.init_from is None:
        parameters = count_planned(*planned_shape(recipe, direction)).total
    else:
        parameters = count_parameters(Path(recipe.init_folder(direction)))
    state = 0 if recipe.lora is not None else STATE_PER_WEIGHT[recipe.optim.matrix_optimizer]
    written = -(-recipe.optim.steps // recipe.train.checkpoint_every)
    checkpoints = min(recipe.train.keep_checkpoints + 1, written)
    return parameters * (checkpoints * _FP32 * (1 + state) + _BF16)


def _size(folder: Path) -> int:
    """The bytes of all files in a folder; 0 if there is no such folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # a twin that trains now removes its old checkpoints
            total += file.stat().st_size if file.is_file() else 0
    return total
