"""Muon for the hidden matrices, AdamW for the rest, and the learning-rate schedule.

Muon: Jordan et al. 2024. `torch.optim.Muon` orthogonalises in bf16 whatever the device; on a
processor without bf16 arithmetic that is about 40 times slower than fp32 (measured), so this one
orthogonalises in the dtype of the weights on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor, nn

from ledom.config import Config

__all__ = ["Muon", "OptimConfig", "build_optimizers", "schedule"]


class OptimConfig(Config):
    """Learning rates and their course."""

    steps: PositiveInt
    """Optimiser steps in all."""
    muon_lr: PositiveFloat = 0.02
    """Peak rate of Muon."""
    adamw_lr: PositiveFloat = 4e-3
    """Peak rate of AdamW."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the hidden matrices, as a share of the rate."""
    warmup_steps: NonNegativeInt = 100
    """Steps in which the rates rise linearly from 0."""
    decay_steps: NonNegativeInt = 0
    """Steps at the end in which they fall linearly to 0."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by five Newton-Schulz steps; for 2-D weights."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(momentum, group["momentum"]))
                rows, columns = weight.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    transposed = x.shape[0] > x.shape[1]
    x = x.mT if transposed else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if transposed else x).to(matrix.dtype)


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Muon over the layers' matrices; AdamW over embeddings, norms, output and adapters."""
    hidden: list[Tensor] = []
    other: list[Tensor] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            matrix = weight.ndim == 2 and ".layers." in name and "lora_" not in name
            (hidden if matrix else other).append(weight)
    # As groups, because either may be empty.
    adamw = torch.optim.AdamW(
        [{"params": other}], lr=config.adamw_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
    )
    muon = Muon([{"params": hidden}], lr=config.muon_lr, weight_decay=config.weight_decay)
    return [muon, adamw]


def schedule(config: OptimConfig, step: int) -> float:
    """The share of the peak rate at a step: warm-up, plateau, linear decay."""
    rising = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    falling = (config.steps - step) / config.decay_steps if config.decay_steps else 1.0
    return min(1.0, rising, falling)
