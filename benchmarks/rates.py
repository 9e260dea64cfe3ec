"""What benchmarks share: times, left-padded batches, and what the processor can do.

A ratio of two programs' times means little without the processor's name and the rates of plain
products of the model's shapes: other processors favor other products.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ledom.lm.backends.local import HFLanguageModel
from ledom.model.kernels import linear, onednn_linear

__all__ = [
    "left_padded",
    "median_seconds",
    "print_rates",
    "processor",
    "product_seconds",
    "seconds",
]

REPEATS = 5
FLOP = 1e9  # of products per repeat, at least


def processor() -> str:
    """Its name, the widest vectors that torch uses, and the number of threads."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    widest = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {widest}, {torch.get_num_threads()} threads"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """The median time of one call."""
    return statistics.median(seconds(work) for _ in range(rounds))


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of prompts, padded on the left as `generate` needs them."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def shapes(lm: HFLanguageModel) -> dict[str, tuple[int, int, int]]:
    """What each of a layer's products reads and gives, and how often; the vocabulary's apart."""
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


WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "torch's own": lambda x, weight: x @ weight.t(),
    "oneDNN's": onednn_linear,
    "ledom's choice": linear,
}


@torch.inference_mode()
def product_seconds(rows: int, width: int, outputs: int) -> dict[str, float]:
    """Seconds of one product [rows, width] x [width, outputs] in fp32, each way; medians.

    The ways take turns, so that what else runs on the machine slows them alike.
    """
    x, weight = torch.randn(rows, width), torch.randn(outputs, width)
    times = max(1, round(FLOP / (2 * rows * width * outputs)))

    def repeated(way: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        return seconds(lambda: [way(x, weight) for _ in range(times)]) / times

    for way in WAYS.values():
        way(x, weight)
    rounds = [[repeated(way) for way in WAYS.values()] for _ in range(REPEATS)]
    return dict(zip(WAYS, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def print_rates(lm: HFLanguageModel, rows: int) -> dict[str, float]:
    """A line per product of the model on so many rows; the rate of all of them, by way, in FLOP/s.

    Of the shares of all products only the layers' count: the vocabulary is projected to for fewer
    rows.
    """
    print(f"\n{processor()}; products in fp32 on {rows} rows, GFLOP/s")
    print(f"| product | shape | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    total, spent = 0.0, dict.fromkeys(WAYS, 0.0)
    for name, (width, outputs, count) in shapes(lm).items():
        flop = 2.0 * rows * width * outputs
        found = product_seconds(rows, width, outputs)
        rates = " | ".join(f"{flop / taken / 1e9:.0f}" for taken in found.values())
        print(f"| {name} | {width} x {outputs} | {rates} |")
        if name != "vocabulary":
            total += count * flop
            spent = {way: spent[way] + count * found[way] for way in WAYS}
    rates_of_all = {way: total / spent[way] for way in WAYS}
    print(f"| the layers' | | {' | '.join(f'{r / 1e9:.0f}' for r in rates_of_all.values())} |\n")
    return rates_of_all
