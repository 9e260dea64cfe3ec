"""What some architectures do to the vocabulary projection before it is their logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig

__all__ = ["finish_logits", "has_plain_logits"]

_FINISH: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": torch.mul,  # Cohere
    "lm_head_multiplier": torch.mul,  # Falcon-H1
    "logits_scaling": torch.div,  # Granite
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma
}
"""By the setting that asks for it."""


def has_plain_logits(config: PretrainedConfig) -> bool:
    """Whether the logits are the projection alone."""
    return not any(getattr(config, name, None) for name in _FINISH)


def finish_logits(logits: Tensor, config: PretrainedConfig) -> Tensor:
    """The model's logits [T, vocabulary] from its projections."""
    for name, finish in _FINISH.items():
        if value := getattr(config, name, None):
            logits = finish(logits, value)
    return logits
