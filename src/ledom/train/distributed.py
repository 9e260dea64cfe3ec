"""Distributed training: joins the processes, shards the weights, and splits batches.

torchrun starts the processes and sets their ranks in the environment. Without it, a run has a
single process, and nothing here communicates. Weights are sharded by PyTorch's FSDP2. This module
does not know about steps, and the model does not know about this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from ledom.core import processes
from ledom.core.errors import RecipeError, WorkerError, in_one_line
from ledom.core.reading import Config
from ledom.model.architectures import decoder_layers
from ledom.model.device import torch_device
from ledom.train.objective import token_losses

__all__ = [
    "ParallelConfig",
    "ProcessGroup",
    "accumulate",
    "check_compile",
    "checkpoint_activations",
    "connect",
    "distribute",
    "losses_of",
    "share_out",
    "whole_weights",
]

_LOSSES = "_token_losses"  # the attribute of a sharded model that holds `token_losses`

ValueT = TypeVar("ValueT")


class ParallelConfig(Config):
    """How the work is spread over processes and memory. A run may resume with other values.

    Results differ only by rounding. In bfloat16, several processes round more than one: FSDP keeps
    activations between layers, and the norms' weights, in bfloat16; a single process keeps them in
    fp32."""

    shard_size: PositiveInt | None = None
    """Processes that share one copy of the weights; null: all of them. If it is the number of GPUs
    per node, weights are sharded within each node and replicated across nodes."""
    tokens_per_microbatch: PositiveInt | None = None
    """Approximate maximum of tokens per process and pass. A larger share of the batch takes several
    passes with accumulated gradients. null: one pass."""
    activation_checkpointing: bool = False
    """Keep only the layers' inputs and recompute the rest in the backward pass: a third more work
    for far less memory."""
    compile: bool = False
    """Compile the layers (torch.compile)."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, as one of them sees it."""

    device: torch.device
    rank: int = 0
    size: int = 1
    background: dist.ProcessGroup | None = None
    """Group for communication in parallel with training: asynchronous checkpoints."""

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0, which writes the files."""
        return self.rank == 0

    def total(self, *values: float | Tensor) -> list[float]:
        """The sum of each value over all processes; every process gets the same sums."""
        numbers = [torch.as_tensor(value, dtype=torch.float64).detach() for value in values]
        sums = torch.stack([number.to(self.device) for number in numbers])
        if self.size > 1:
            dist.all_reduce(sums)
        return cast(list[float], sums.tolist())

    def agreed(self, value: ValueT) -> ValueT:
        """The value of the first process; every process gets it."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def connect(device: str = "cpu") -> Iterator[ProcessGroup]:
    """Within this block, connect to the other processes that torchrun started.

    If `device` is "cuda", each process uses the GPU of its local rank. Raises `InputError` for a
    device that is not available, and `WorkerError` if another process is lost.
    """
    size, rank = processes.size(), processes.rank()
    place = torch_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield ProcessGroup(place)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(place, rank, size, dist.new_group(backend="gloo"))
    except (RuntimeError, dist.DistError) as error:
        signs = ("gloo/transport", "Connection closed by peer")
        if not isinstance(error, dist.DistError) and not any(s in str(error) for s in signs):
            raise
        raise WorkerError(
            f"process {rank} of {size} lost contact with another process; see its log, and "
            "start all processes again to resume from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def distribute(
    model: PreTrainedModel, world: ProcessGroup, config: ParallelConfig, dtype: torch.dtype
) -> None:
    """Put the model on the device, and shard it if there are several processes.

    A sharded model computes matmuls in `dtype`; weights, gradient sums and optimizer state stay in
    fp32. Gradients are summed over the processes, not averaged. `shard_size` must divide the number
    of processes.
    """
    layers = decoder_layers(model)
    if config.compile:
        for layer in layers:
            layer.compile()
    if world.size > 1:
        _shard(model, layers, _mesh(world, config), dtype)
    model.to(world.device)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Make a model recompute its layers' activations in the backward pass.

    Raises `RecipeError` if its architecture does not support this.
    """
    with warnings.catch_warnings():  # newer versions of transformers rename this method
        warnings.simplefilter("ignore", FutureWarning)
        try:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            kind = type(model).__name__
            raise RecipeError(
                f"key parallel.activation_checkpointing: {kind} does not support it; leave it out"
            ) from None


def check_compile(config: ParallelConfig, device: torch.device) -> None:
    """Raise `RecipeError` if the layers are to be compiled and this machine cannot compile.

    torch would find this out in the first step, when the data has been prepared.
    """
    if config.compile:
        try:
            torch.compile(torch.cos)(torch.zeros(1, device=device))
        except Exception as error:  # torch's own types, and those of compilers
            reason = in_one_line(error).partition(" Set TORCH")[0]  # advice for torch's developers
            raise RecipeError(
                f"key parallel.compile: torch.compile does not work here ({reason}); install what "
                "it needs, or leave the key out"
            ) from None


def _mesh(world: ProcessGroup, config: ParallelConfig) -> DeviceMesh:
    """The processes as a mesh of shards, with replicas if `shard_size` is below their number."""
    kind, shard_size = world.device.type, config.shard_size or world.size
    if shard_size == world.size:
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    shape = (world.size // shard_size, shard_size)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def _shard(
    model: PreTrainedModel, layers: list[nn.Module], mesh: DeviceMesh, dtype: torch.dtype
) -> None:
    """Shard each layer, and the rest of the model; matmuls in `dtype`, gradient sums in fp32."""
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*layers, model]:
        sharded = fully_shard(module, mesh=mesh, mp_policy=precision)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot scale sums
    setattr(model, _LOSSES, MethodType(token_losses, model))
    register_fsdp_forward_method(model, _LOSSES)


def losses_of(model: PreTrainedModel) -> Callable[..., Tensor]:
    """`token_losses` for a model; if it is sharded, the weights are gathered for the call."""
    if isinstance(model, FSDPModule):
        return cast(Callable[..., Tensor], getattr(model, _LOSSES))
    return partial(token_losses, model)


def accumulate(model: nn.Module, last: bool) -> None:
    """Prepare the next backward pass; `last` says whether it is the last of its step.

    Gradients are summed over replicas only in the last pass.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)


def share_out(
    sizes: Sequence[int], world: ProcessGroup, tokens_per_microbatch: int | None = None
) -> list[list[int]]:
    """This process's share of a batch: for each micro-batch, the indices of its windows.

    `sizes` are the numbers of predicted tokens per window; a micro-batch has about
    `tokens_per_microbatch` of them. Every process gets the same number of micro-batches of nearly
    equal size, because the processes wait for each other in each one. There must be at least as
    many windows as processes.

    >>> share_out([5, 3, 2], ProcessGroup(torch.device("cpu")), tokens_per_microbatch=5)
    [[0], [1, 2]]
    """
    wanted = -(-sum(sizes) // (world.size * (tokens_per_microbatch or sum(sizes))))
    count = world.size * min(wanted, len(sizes) // world.size)
    # Greedy: the longest window first, each to the part with the fewest tokens so far.
    parts: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for window in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = min(range(count), key=lambda part: (tokens[part], part))
        parts[least].append(window)
        tokens[least] += sizes[window]
    return [sorted(part) for part in parts[world.rank :: world.size]]


def whole_weights(model: nn.Module, world: ProcessGroup) -> dict[str, Tensor]:
    """All weights, gathered on the CPU of the first process; empty in the others.

    Tied weights are one tensor, as in the model.
    """
    if world.size == 1:
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    first: dict[int, Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in weights:
            weights[name] = first.setdefault(id(weight), weights[name])
    return weights
