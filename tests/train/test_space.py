"""The disk space that a run needs, against the files that a run writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ledom.core.direction import Direction
from ledom.data.prepare import PreparedData
from ledom.train.loop import train
from ledom.train.recipe import Recipe
from ledom.train.space import disk_space, least_space

REVERSE = Direction.REVERSE


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_needs_what_its_files_take(
    recipe: Recipe, data: PreparedData, tmp_path: Path, optimizer: str
) -> None:
    """Each file also has a header, and names of tensors."""
    optim = recipe.optim.model_copy(update={"steps": 1, "matrix_optimizer": optimizer})
    recipe = recipe.model_copy(update={"optim": optim})
    train(recipe, REVERSE, data, tmp_path / "reverse")
    files = [*tmp_path.glob("reverse/*/**/*.distcp"), *tmp_path.glob("reverse/model/*.safetensors")]
    written = sum(file.stat().st_size for file in files)
    named = recipe.data.model_copy(update={"vocab_size": data.tokenizer.vocab_size})
    needed = least_space(recipe.model_copy(update={"data": named}), REVERSE)
    assert needed < written < 2 * needed


def test_what_a_run_has_written_counts_as_free(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=100))
    both = list(Direction)
    assert disk_space(recipe, both, tmp_path / "new")[1] == 100
    (tmp_path / "new" / "reverse" / "checkpoints").mkdir(parents=True)
    (tmp_path / "new" / "reverse" / "checkpoints" / "a").write_bytes(b"12345")
    needed, available = disk_space(recipe, both, tmp_path / "new")
    assert available == 105
    assert needed == 2 * least_space(recipe, REVERSE)


def test_only_the_newest_checkpoints_and_one_more_take_space(recipe: Recipe) -> None:
    """Thirty steps with a checkpoint every five: six are written, at most three are there."""
    model = 2.0  # bytes per weight
    one = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": 5})})
    weights = least_space(one, REVERSE) / (8 + model)
    assert least_space(recipe, REVERSE) == weights * (3 * 8 + model)
