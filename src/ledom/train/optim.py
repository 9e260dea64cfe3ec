"""Muon for the hidden matrices, AdamW for the rest, and the learning-rate schedule.

Muon: Jordan et al. 2024. `torch.optim.Muon` orthogonalizes in bf16 on every device; on a processor
without bf16 arithmetic that is about 40 times slower than fp32 (measured), so this one takes the
dtype as an argument.

Orthogonalizing needs the whole matrix, but with FSDP2 each process holds only some of its rows. So
processes exchange matrices of equal shape: each receives one whole matrix, orthogonalizes it, and
sends the rows back. No matrix is orthogonalized twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ledom.core.reading import Config
from ledom.model.architectures import layer_matrices

__all__ = [
    "STATE_PER_WEIGHT",
    "MatrixOptimizer",
    "Muon",
    "OptimConfig",
    "build_optimizers",
    "reaches_peak",
    "schedule",
]

MatrixOptimizer = Literal["muon", "adamw"]
STATE_PER_WEIGHT: dict[MatrixOptimizer, int] = {"muon": 1, "adamw": 2}
"""How many numbers an optimizer's state has per weight; AdamW also updates the other weights."""

_DECAY_SHARE = 0.4  # as in most recipes; a run without decay ends far worse (docs/log.md)


class OptimConfig(Config):
    """Learning rates and their schedule."""

    steps: PositiveInt
    """Total optimizer steps."""
    matrix_optimizer: MatrixOptimizer = "muon"
    """The optimizer of the layers' matrices; AdamW always updates embeddings, norms and output."""
    muon_lr: PositiveFloat = 0.02
    """Peak learning rate of Muon."""
    adamw_lr: PositiveFloat = 4e-3
    """Peak learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of the layers' matrices, as a factor of the learning rate."""
    warmup_steps: NonNegativeInt = 100
    """Steps over which the rates rise linearly from 0."""
    schedule: Literal["trapezoid", "cosine"] = "trapezoid"
    """After the warm-up: a plateau with a linear decay at the end, or half a cosine period."""
    decay_steps: NonNegativeInt | None = None
    """Steps of the linear decay at the end of a trapezoid; null: two fifths of all, 0: none."""
    min_lr_ratio: NonNegativeFloat = Field(default=0.0, le=1)
    """Final learning rate, as a share of the peak."""
    clip: PositiveFloat = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized by five Newton-Schulz steps; for 2-D weights.

    A weight is [outputs, inputs], as in `nn.Linear`; in a group with `transposed` it is
    [inputs, outputs], as in GPT-2's `Conv1D`. An update is scaled by
    sqrt(max(1, outputs / inputs)).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is the precision of the Newton-Schulz steps."""
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"transposed": False})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        shape = attrgetter("shape")
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for _, alike in groupby(sorted(weights, key=shape), key=shape):
                for chunk in _chunks(list(alike)):
                    self._update(chunk, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update weights of one shape."""
        directions = []
        for weight in weights:
            assert weight.grad is not None
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            directions.append(weight.grad.lerp(momentum, group["momentum"]))
        outputs, inputs = weights[0].shape[::-1] if group["transposed"] else weights[0].shape
        scale = max(1.0, outputs / inputs) ** 0.5
        if isinstance(directions[0], DTensor):
            updates = _exchange_and_orthogonalize(cast(list[DTensor], directions), self._dtype)
        else:
            updates = [orthogonalize(direction, self._dtype) for direction in directions]
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-group["lr"] * scale)


def _chunks(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Split weights of one shape into chunks, to limit the memory in use.

    A chunk has one weight or, if the weights are sharded, one per shard, so that each process
    orthogonalizes one.
    """
    first = weights[0]
    number = first.device_mesh.shape[-1] if isinstance(first, DTensor) else 1
    for start in range(0, len(weights), number):
        yield weights[start : start + number]


def _exchange_and_orthogonalize(matrices: list[DTensor], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalize sharded matrices, at most one per process; each process gathers a whole one.

    FSDP2 gives each process, in rank order, the next ceil(rows / shards) rows; the last ones get
    fewer or none.
    """
    mesh = matrices[0].device_mesh
    group, rank = mesh.get_group(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    shards = dist.get_world_size(group)
    rows, columns = matrices[0].shape
    each = -(-rows // shards)
    heights = [max(0, min(each, rows - each * place)) for place in range(shards)]
    own = heights[rank] * columns  # elements of my rows
    sent = torch.cat([matrix.to_local().reshape(-1) for matrix in matrices])
    sent_sizes = [own if place < len(matrices) else 0 for place in range(shards)]
    whole_sizes = [h * columns if rank < len(matrices) else 0 for h in heights]
    whole = sent.new_empty(sum(whole_sizes))
    dist.all_to_all_single(whole, sent, whole_sizes, sent_sizes, group)
    if whole_sizes[0]:
        whole = orthogonalize(whole.view(rows, columns), dtype).reshape(-1)
    returned = torch.empty_like(sent)
    dist.all_to_all_single(returned, whole, sent_sizes, whole_sizes, group)
    parts = returned.view(len(matrices), heights[rank], columns).unbind()
    return [
        DTensor.from_local(
            part,
            mesh,
            matrix.placements,
            run_check=False,
            shape=matrix.shape,
            stride=matrix.stride(),
        )
        for part, matrix in zip(parts, matrices, strict=True)
    ]


def orthogonalize(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring a matrix's singular values near 1, by five quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    transposed = x.shape[0] > x.shape[1]
    x = x.mT if transposed else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if transposed else x).to(matrix.dtype)


def build_optimizers(
    model: PreTrainedModel, config: OptimConfig, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embeddings, norms, output and adapters.

    With `matrix_optimizer: adamw`, AdamW for all. Each parameter group's `peak_lr` is its peak
    learning rate. `dtype` is the precision of matmuls in the run and in Muon; all state is in fp32.

    >>> from ledom.lm import load
    >>> found = build_optimizers(load("tiny", "forward").model, OptimConfig(steps=10, muon_lr=0.02))
    >>> [type(optimizer).__name__ for optimizer in found], found[0].param_groups[0]["peak_lr"]
    (['Muon', 'AdamW'], 0.02)
    """
    hidden: list[Tensor] = []
    other: list[Tensor] = []
    matrices = layer_matrices(model)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            matrix = id(weight) in matrices and "lora_" not in name
            (hidden if matrix else other).append(weight)
    adamw = partial(torch.optim.AdamW, lr=config.adamw_lr, betas=(0.9, 0.95), eps=1e-10, fused=True)
    decay = config.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    # An optimizer without weights cannot be saved; with adapters no plain matrix is trained.
    if hidden and config.matrix_optimizer == "muon":
        groups = _by_layout(model, hidden)
        optimizers.append(Muon(groups, lr=config.muon_lr, weight_decay=decay, dtype=dtype))
    elif hidden:
        optimizers.append(adamw(hidden, weight_decay=decay))
    if other:
        optimizers.append(adamw(other, weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _by_layout(model: PreTrainedModel, matrices: list[Tensor]) -> list[dict[str, Any]]:
    """Muon's parameter groups: matrices [outputs, inputs], and transposed ones (`Conv1D`)."""
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    groups = [
        {"params": [w for w in matrices if (id(w) in transposed) == flag], "transposed": flag}
        for flag in (False, True)
    ]
    return [group for group in groups if group["params"]]


def schedule(config: OptimConfig, step: int) -> float:
    """The learning rate at a step, as a share of the peak.

    >>> schedule(OptimConfig(steps=10, warmup_steps=2, decay_steps=4), step=0)
    0.5
    """
    rising = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        height = (1 + math.cos(math.pi * max(0.0, done))) / 2
    else:
        decay = _decay_steps(config)
        height = (config.steps - step) / decay if decay else 1.0
    falling = config.min_lr_ratio + (1 - config.min_lr_ratio) * min(1.0, height)
    return min(1.0, rising, falling)


def reaches_peak(config: OptimConfig) -> bool:
    """Whether some step has the peak learning rate: warm-up and decay do not overlap.

    >>> reaches_peak(OptimConfig(steps=100)), reaches_peak(OptimConfig(steps=200))
    (False, True)
    """
    decay = 0 if config.schedule == "cosine" else _decay_steps(config)
    return max(config.warmup_steps, 1) + max(decay, 1) <= config.steps + 1


def _decay_steps(config: OptimConfig) -> int:
    """The steps of a trapezoid's decay."""
    usual = round(_DECAY_SHARE * config.steps)
    return usual if config.decay_steps is None else config.decay_steps
