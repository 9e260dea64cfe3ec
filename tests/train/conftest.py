"""A run small enough to train in a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledom.core.records import Problem, write_records
from ledom.data.prepare import DataConfig, PreparedData, prepare_data
from ledom.model.presets import ModelConfig
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig


@pytest.fixture(scope="session")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, problems: list[Problem], tiny_config: ModelConfig
) -> Recipe:
    """Thirty steps of four windows, with a checkpoint every five steps."""
    file = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    write_records(file, problems)
    return Recipe(
        name="test",
        seed=1,
        data=DataConfig(train=str(file), vocab_size=400),
        model=tiny_config.model_copy(update={"initializer_range": 0.02}),
        optim=OptimConfig(steps=30, warmup_steps=0, decay_steps=12),
        train=TrainConfig(
            batch_size=4, seq_len=64, precision="float32", validate_every=10, checkpoint_every=5
        ),
    )


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """The folder with the recipe's prepared data."""
    folder = tmp_path_factory.mktemp("data")
    prepare_data(recipe.data, folder)
    return folder


@pytest.fixture(scope="session")
def data(data_folder: Path) -> PreparedData:
    """The recipe's data."""
    return PreparedData(data_folder, DataConfig())
