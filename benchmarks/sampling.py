"""Tokens a second of ledom's sampler against transformers' `generate`, in one run.

    python benchmarks/sampling.py [--model tiny] [--threads 2]

Both draw from the same forward model, the same prompts, batch 128, fp32, warm. Only tokens that
count are counted: those up to and with a text's end. The peer runs with each of its cache settings
and its best is compared. Also checked: greedy output is the same, token for token.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ledom.data.problems import generate_problems
from ledom.lm import load
from ledom.lm.language_model import LanguageModel, Sampling

BATCH = 128
ROUNDS = 3
MAX_TOKENS = 160


def peer(
    model: PreTrainedModel, eos: int, prompts: list[list[int]], cache: str, greedy: bool
) -> tuple[float, int, list[list[int]]]:
    """Seconds, useful tokens and texts of `generate` on one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = (
        {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "temperature": 0.7}
    )
    started = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=MAX_TOKENS,
        cache_implementation=cache,
        eos_token_id=eos,
        pad_token_id=eos,
        disable_compile=True,
        **options,
    )
    seconds = time.perf_counter() - started
    texts = []
    for row in out[:, width:].tolist():
        texts.append(row[: row.index(eos)] if eos in row else row)
    return seconds, sum(len(text) + 1 for text in texts), texts


def ours(
    lm: LanguageModel, prompts: list[str], greedy: bool, num_samples: int = 1
) -> tuple[float, int, list[list[int]]]:
    """Seconds, tokens and texts of ledom on the same prompts."""
    sampling = Sampling(temperature=0.0 if greedy else 0.7, max_tokens=MAX_TOKENS)
    started = time.perf_counter()
    made = dict(lm.generate(prompts, sampling, num_samples))
    seconds = time.perf_counter() - started
    texts = [text.ids for i in range(len(prompts)) for text in made[i]]
    return seconds, sum(len(text) + 1 for text in texts), texts


def product_rate(rows: int, width: int, inner: int) -> float:
    """FLOP/s of a plain fp32 product of the sampler's main shape."""
    a, b = torch.randn(rows, width), torch.randn(width, inner)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * rows * width * inner / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load(arguments.model, "forward")
    model = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).eval()
    eos = lm.tokenizer.eos_id
    problems = list(generate_problems("valid", BATCH, seed=3))
    texts = [lm.pair_format.before_solution(problem.question) for problem in problems]
    ids = [[eos, *lm.tokenizer.encode(text).ids] for text in texts]

    same = ours(lm, texts, greedy=True)[2] == peer(model, eos, ids, "dynamic", greedy=True)[2]
    print(f"greedy output identical, {BATCH} texts: {same}")
    rates: dict[str, list[float]] = {}
    for round_ in range(ROUNDS + 1):  # the first warms up
        for name in ("dynamic", "static"):
            seconds, tokens, _ = peer(model, eos, ids, name, greedy=False)
            rates.setdefault(f"generate, {name} cache", []).append(tokens / seconds)
        seconds, tokens, _ = ours(lm, texts, greedy=False)
        rates.setdefault("ledom, a sample of each", []).append(tokens / seconds)
        seconds, tokens, _ = ours(lm, texts, greedy=False, num_samples=4)
        rates.setdefault("ledom, 4 samples of each", []).append(tokens / seconds)
        if round_ == 0:
            rates = {name: [] for name in rates}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(value for name, value in medians.items() if name.startswith("generate"))
    config = lm.model.config
    peak = product_rate(BATCH, config.hidden_size, config.intermediate_size)
    per_token = 2 * lm.num_parameters
    print(
        f"plain product {BATCH} x {config.hidden_size} x {config.intermediate_size}: "
        f"{peak / 1e9:.0f} GFLOP/s"
    )
    for name, rate in medians.items():
        print(
            f"{name:34} {rate:8.0f} tokens/s  {rate / best:5.2f}x  "
            f"{rate * per_token / 1e9:5.1f} GFLOP/s, {rate * per_token / peak:.0%} of the product"
        )


if __name__ == "__main__":
    main()
