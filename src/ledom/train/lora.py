"""Low-rank adapters (LoRA, Hu et al. 2021) with `peft`, which no other module imports.

The adapters sit inside the model during training, so the loop, the attention and the checkpoints
need not know about them. At the end they are merged, which leaves a plain model.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ledom.core.errors import RecipeError, in_one_line, needs_extra
from ledom.core.reading import Config
from ledom.model.own_forward import OwnForward

__all__ = ["LoraConfig", "add_adapters", "load_peft"]


class LoraConfig(Config):
    """Train low-rank updates of the layers' matrices instead of all weights."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The updates are scaled by alpha / rank."""
    dropout: NonNegativeFloat = Field(default=0.0, lt=1)
    """Share of an adapter's inputs that is dropped during training."""


def load_peft() -> Any:
    """The module `peft`. Raises `MissingExtraError` if it is not installed.

    >>> load_peft().LoraConfig.__name__
    'LoraConfig'
    """
    with needs_extra("peft", "lora", "key lora"):
        return import_module("peft")


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """Add adapters to every linear layer of a model except its output; freeze all other weights.

    Returns peft's wrapper, whose `merge_and_unload` adds the updates to the model's weights and
    removes the adapters. Raises `MissingExtraError` without `peft`, and `RecipeError` for an
    architecture that `peft` does not support.
    """
    peft = load_peft()
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft uses names that transformers has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sets it right for Conv1D
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys")  # of experts
        try:  # changes the model in place
            adapted = peft.get_peft_model(model, settings)
            _check(model)
            return adapted
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = in_one_line(error)  # experts that are stored as one weight have no dropout
            remedy = "set lora.dropout to 0" if "lora_dropout" in reason else "leave lora out"
            raise RecipeError(
                f"key lora: {type(model).__name__} does not support adapters ({reason}); {remedy}"
            ) from None


@torch.no_grad()
def _check(model: PreTrainedModel) -> None:
    """Raise an error now if the adapters would fail in the first step, or when they are merged."""
    bases = (getattr(module, "base_layer", None) for module in model.modules())
    adapted = [id(base.weight) for base in bases if isinstance(base, nn.Linear | Conv1D)]
    if len({*adapted}) < len(adapted):
        raise ValueError("some of its layers share weights, which have room for one update only")
    OwnForward(model)(torch.zeros(2, dtype=torch.long, device=model.device))  # some routers fail
