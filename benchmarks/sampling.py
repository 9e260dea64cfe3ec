"""Tokens a second of ledom's sampler against transformers' `generate` and CTranslate2, in one run.

    python benchmarks/sampling.py [--model tiny] [--threads 2]

Needs `pip install ledom[bench]`. All draw from the same forward model and the same prompts, batch
128, fp32, warm. Only tokens that count are counted: those up to and with a text's end. `generate`
runs with each of its cache settings and CTranslate2 with each of some batch sizes, its threads in
each product or with batches of their own; the best of each is compared. Also checked: greedy output
is the same, token for token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from ctranslate import CTranslate2
from rates import print_rates
from transformers import AutoModelForCausalLM, PreTrainedModel

from ledom.data.problems import generate_problems
from ledom.lm import load
from ledom.lm.language_model import LanguageModel, Sampling

BATCH = 128
PEER_BATCHES = (32, 64, 128, 512)
ROUNDS = 5
MAX_TOKENS = 160
TEMPERATURE = 0.7

Written = tuple[float, int, list[list[int]]]
"""Seconds, tokens that count, and the texts without their ends."""


def transformers_generate(
    model: PreTrainedModel, eos: int, prompts: list[list[int]], cache: str, greedy: bool
) -> Written:
    """What `generate` writes to one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = (
        {"do_sample": False}
        if greedy
        else {"do_sample": True, "top_k": 0, "temperature": TEMPERATURE}
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
    rows = out[:, width:].tolist()
    texts = [row[: row.index(eos)] if eos in row else row for row in rows]
    return seconds, sum(len(text) + 1 for text in texts), texts


def ctranslate2_generate(
    model: CTranslate2, prompts: list[list[int]], batch: int, greedy: bool, num_samples: int = 1
) -> Written:
    """What CTranslate2 writes, in batches of some prompts."""
    temperature = 0.0 if greedy else TEMPERATURE
    started = time.perf_counter()
    texts = model.generate(prompts, batch, MAX_TOKENS, temperature, num_samples)
    seconds = time.perf_counter() - started
    return seconds, sum(len(text) + 1 for text in texts), texts


def ours(lm: LanguageModel, prompts: list[str], greedy: bool, num_samples: int = 1) -> Written:
    """What ledom writes to the same prompts."""
    sampling = Sampling(temperature=0.0 if greedy else TEMPERATURE, max_tokens=MAX_TOKENS)
    started = time.perf_counter()
    made = dict(lm.generate(prompts, sampling, num_samples))
    seconds = time.perf_counter() - started
    texts = [text.ids for i in range(len(prompts)) for text in made[i]]
    return seconds, sum(len(text) + 1 for text in texts), texts


def ways(
    lm: LanguageModel, folder: Path, texts: list[str]
) -> tuple[dict[str, Callable[[bool], Written]], dict[str, Callable[[], Written]]]:
    """By name: what writes one text to each prompt, greedy if asked, and what draws four."""
    model = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).eval()
    together, apart = (CTranslate2(lm, folder, apart=apart) for apart in (False, True))
    eos = lm.tokenizer.eos_id
    prompts = [[eos, *lm.tokenizer.encode(text).ids] for text in texts]
    one: dict[str, Callable[[bool], Written]] = {"ledom": lambda greedy: ours(lm, texts, greedy)}
    four: dict[str, Callable[[], Written]] = {"ledom": lambda: ours(lm, texts, False, 4)}
    for cache in ("dynamic", "static"):
        one[f"generate, {cache} cache"] = lambda greedy, cache=cache: transformers_generate(
            model, eos, prompts, cache, greedy
        )
    arranged = {"": together, ", each thread its own": apart}
    for (how, peer), batch in product(arranged.items(), PEER_BATCHES):
        name = f"CTranslate2, batches of {batch}{how}"
        if batch <= BATCH:
            one[name] = lambda greedy, peer=peer, batch=batch: ctranslate2_generate(
                peer, prompts, batch, greedy
            )
        four[name] = lambda peer=peer, batch=batch: ctranslate2_generate(
            peer, [p for p in prompts for _ in range(4)], batch, False
        )
    four["CTranslate2, four at once"] = lambda: ctranslate2_generate(
        together, prompts, BATCH // 4, False, 4
    )
    return one, four


def print_rows(
    title: str, rates: dict[str, list[float]], flop: float, peaks: dict[str, float]
) -> None:
    """A table: tokens a second, ledom's advantage in the same round, the share of a product."""
    print(f"\n| {title} | tokens/s | ledom's advantage (rounds) | GFLOP/s | of products |")
    print("|---|---|---|---|---|")
    for name, found in rates.items():
        ratios = [our / their for our, their in zip(rates["ledom"], found, strict=True)]
        rate = statistics.median(found)
        shares = ", ".join(f"{rate * flop / peak:.0%} of {way}" for way, peak in peaks.items())
        print(
            f"| {name} | {rate:.0f} | {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {rate * flop / 1e9:.1f} | {shares} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load(arguments.model, "forward")
    problems = list(generate_problems("valid", BATCH, seed=3))
    texts = [lm.pair_format.before_solution(problem.question) for problem in problems]
    with tempfile.TemporaryDirectory() as folder:
        one, four = ways(lm, Path(folder) / "peer", texts)
        greedy = {name: way(True)[2] for name, way in one.items()}
        for name, written in greedy.items():
            same = sum(a == b for a, b in zip(written, greedy["ledom"], strict=True))
            print(f"greedy texts of {name} that are ledom's: {same} of {BATCH}")
        rates: dict[str, list[float]] = {name: [] for name in one}
        rates_of_four: dict[str, list[float]] = {name: [] for name in four}
        for round_ in range(arguments.rounds + 1):  # the first warms up
            done = [(rates[name], way(False)) for name, way in one.items()]
            done += [(rates_of_four[name], way()) for name, way in four.items()]
            for column, (seconds, tokens, _) in done:
                if round_:
                    column.append(tokens / seconds)
    peaks = print_rates(lm, BATCH)
    flop = 2.0 * (lm.num_parameters or 0)
    print_rows(f"one sample of each of {BATCH} prompts", rates, flop, peaks)
    print_rows("four samples of each", rates_of_four, flop, peaks)


if __name__ == "__main__":
    main()
