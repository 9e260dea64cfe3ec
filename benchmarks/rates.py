"""Timing, left-padded batches and plain matmul rates, shared by several benchmarks.

A ratio of two programs' times means little without the processor's name and its rates for matmuls
of the model's shapes: other processors favor other matmuls.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from common import print_head, print_row

from ledom.lm.backends.local import HFLanguageModel
from ledom.model.kernels import linear
from ledom.model.native.layers import PackedWeight, project
from ledom.model.native.library import library_for

__all__ = [
    "MatmulRates",
    "left_padded",
    "median_seconds",
    "processor",
    "seconds",
]

LEAST_FLOP = 1e9  # per measurement


def processor() -> str:
    """The processor's name, the widest vectors that torch uses, and the number of threads."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    widest = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {widest}, {torch.get_num_threads()} threads"


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median wall-clock seconds of one call."""
    return statistics.median(seconds(work) for _ in range(rounds))


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask [prompts, longest], left-padded as `generate` requires."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def shapes(lm: HFLanguageModel) -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and count of each matmul of the model, by name."""
    config = lm.model.config
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layers = config.num_hidden_layers
    return {
        "queries, keys, values": (
            width,
            (heads + 2 * config.num_key_value_heads) * config.head_dim,
            layers,
        ),
        "attention's output": (heads * config.head_dim, width, layers),
        "gate and up": (width, 2 * inner, layers),
        "down": (inner, width, layers),
        "vocabulary": (width, config.vocab_size, 1),
    }


Product = Callable[[torch.Tensor], torch.Tensor]


def _ledoms(weight: torch.Tensor) -> Product:
    """A matmul by ledom's own kernel, or by its fallback where nothing can be compiled."""
    if library_for(weight) is None:
        return lambda x: linear(x, weight)
    packed = PackedWeight(weight)
    return lambda x: project(x, packed)


KERNELS: dict[str, Callable[[torch.Tensor], Product]] = {
    "torch's own": lambda weight: lambda x: x @ weight.t(),
    "oneDNN's": lambda weight: (
        lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    ),
    "ledom's": _ledoms,
}
"""For a weight [out, in], a function that multiplies by it."""


def _repeat(product: Product, x: torch.Tensor, times: int) -> None:
    for _ in range(times):
        product(x)


class MatmulRates:
    """Rates of the model's matmuls on `rows` rows in fp32, by kernel, measured again and again.

    A processor's speed may change from one second to the next, so a share of a rate means something
    only if both were measured together.
    """

    def __init__(self, lm: HFLanguageModel, rows: int) -> None:
        self._shapes, self._rows = shapes(lm), rows
        self._seconds: dict[str, list[list[float]]] = {name: [] for name in self._shapes}
        """Of each matmul, for each measurement, by kernel."""

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """The combined rate of the layers' matmuls in FLOP/s, by kernel, at this moment.

        It leaves out the projection to the vocabulary, which runs on fewer rows. The kernels take
        turns, so that other work on the machine affects all equally.
        """
        for name, (width, outputs, _) in self._shapes.items():
            x, weight = torch.randn(self._rows, width), torch.randn(outputs, width)
            times = max(1, round(LEAST_FLOP / (2 * self._rows * width * outputs)))
            taken = []
            for kernel in KERNELS.values():
                product = kernel(weight)
                product(x)
                taken.append(seconds(partial(_repeat, product, x, times)) / times)
            self._seconds[name].append(taken)
        return self._together({name: found[-1] for name, found in self._seconds.items()})

    def report(self) -> dict[str, float]:
        """Print the median rates of all measurements; returns those of the layers' matmuls."""
        print(f"\n{processor()}; matmuls in fp32 on {self._rows} rows, GFLOP/s")
        print_head("matmul", "shape", *KERNELS)
        medians = {
            name: [statistics.median(column) for column in zip(*found, strict=True)]
            for name, found in self._seconds.items()
        }
        for name, (width, outputs, _) in self._shapes.items():
            flop = 2.0 * self._rows * width * outputs
            rates = [f"{flop / taken / 1e9:.0f}" for taken in medians[name]]
            print_row(name, f"{width} x {outputs}", *rates)
        together = self._together(medians)
        print_row("the layers'", "", *(f"{rate / 1e9:.0f}" for rate in together.values()))
        print()
        return together

    def _together(self, taken: dict[str, list[float]]) -> dict[str, float]:
        layers = {name: shape for name, shape in self._shapes.items() if name != "vocabulary"}
        flop = sum(2.0 * self._rows * a * b * count for a, b, count in layers.values())
        spent = [
            sum(count * taken[name][place] for name, (_, _, count) in layers.items())
            for place in range(len(KERNELS))
        ]
        return {kernel: flop / one for kernel, one in zip(KERNELS, spent, strict=True)}
