"""What many tests share: a tiny tokenizer and a pair of tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ledom.data.problems import generate_problems
from ledom.direction import Direction
from ledom.model.checkpoint import build_model, save_checkpoint
from ledom.model.presets import ModelConfig
from ledom.model.tokenizer import Tokenizer, train_tokenizer
from ledom.pairs import PairFormat
from ledom.records import Problem

torch.set_num_threads(1)  # the models are so small that threads only cost


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    """A hundred and twenty generated training problems."""
    return list(generate_problems("train", 120, seed=5))


@pytest.fixture(scope="session")
def tokenizer(problems: list[Problem]) -> Tokenizer:
    """A tokenizer of 400 tokens, trained on the generated problems."""
    return train_tokenizer((p.question + "\n\n" + (p.solution or "") for p in problems), 400)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers, width 32, grouped-query attention; weights large enough for context to matter."""
    return ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
    )


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, tiny_config: ModelConfig
) -> dict[str, Path]:
    """Folders of two tiny random models, `forward` and `reverse`; copy before you write there."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, direction in enumerate(Direction):
        model = build_model(tiny_config, tokenizer, seed)
        save_checkpoint(root / str(direction), model, tokenizer, direction, PairFormat())
    return {str(direction): root / str(direction) for direction in Direction}
