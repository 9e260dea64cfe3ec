"""Timing, left-padded batches and plain matmul rates, shared by several benchmarks.

A ratio of two programs' times means little without the processor's name and its rates for matmuls
of the model's shapes: other processors favor other matmuls.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import print_head, print_row

from ledom.lm.backends.local import HFLanguageModel
from ledom.model.kernels import linear, onednn_linear
from ledom.model.native.layers import PackedWeight, project
from ledom.model.native.library import library_for

__all__ = [
    "left_padded",
    "median_seconds",
    "print_rates",
    "processor",
    "product_seconds",
    "seconds",
]

REPEATS = 5
LEAST_FLOP = 1e9  # per repeat


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
    "oneDNN's": lambda weight: lambda x: onednn_linear(x, weight),
    "ledom's": _ledoms,
}
"""For a weight [out, in], a function that multiplies by it."""


@torch.inference_mode()
def product_seconds(rows: int, width: int, outputs: int) -> dict[str, float]:
    """Median seconds of one matmul [rows, width] x [width, outputs] in fp32, by kernel.

    The kernels take turns, so that other work on the machine affects all equally.
    """
    x, weight = torch.randn(rows, width), torch.randn(outputs, width)
    times = max(1, round(LEAST_FLOP / (2 * rows * width * outputs)))

    products = [kernel(weight) for kernel in KERNELS.values()]

    def repeated(product: Product) -> float:
        return seconds(lambda: [product(x) for _ in range(times)]) / times

    for product in products:
        product(x)
    rounds = [[repeated(product) for product in products] for _ in range(REPEATS)]
    return dict(zip(KERNELS, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def print_rates(lm: HFLanguageModel, rows: int) -> dict[str, float]:
    """Print the rate of each of the model's matmuls on `rows` rows.

    Returns the combined rate of the layers' matmuls in FLOP/s, by kernel. It leaves out the
    projection to the vocabulary, which runs on fewer rows.
    """
    print(f"\n{processor()}; matmuls in fp32 on {rows} rows, GFLOP/s")
    print_head("matmul", "shape", *KERNELS)
    total, spent = 0.0, dict.fromkeys(KERNELS, 0.0)
    for name, (width, outputs, count) in shapes(lm).items():
        flop = 2.0 * rows * width * outputs
        found = product_seconds(rows, width, outputs)
        rates = [f"{flop / taken / 1e9:.0f}" for taken in found.values()]
        print_row(name, f"{width} x {outputs}", *rates)
        if name != "vocabulary":
            total += count * flop
            spent = {name: spent[name] + count * found[name] for name in KERNELS}
    together = {name: total / spent[name] for name in KERNELS}
    print_row("the layers'", "", *(f"{rate / 1e9:.0f}" for rate in together.values()))
    print()
    return together
