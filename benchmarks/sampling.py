"""Tokens per second of ledom's sampler, transformers' `generate` and CTranslate2, in one run.

    python benchmarks/sampling.py [--model tiny] [--samples 1 4] [--rounds 3]

Needs `pip install ledom[bench]`. All sample from the same forward model and the same 128 prompts,
in fp32, after warm-up. Tokens are counted up to and including EOS. Each configuration of the other
programs runs once: `generate` with each cache setting (one sample per prompt), CTranslate2 with
several batch sizes, its threads sharing each matmul or computing a batch each. Then the best of
each takes turns with ledom. The run also counts the greedy texts that equal ledom's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import new_parser, parse, print_head, print_row, spread
from ctranslate import CTranslate2
from rates import MatmulRates, left_padded
from transformers import AutoModelForCausalLM, PreTrainedModel

from ledom.data.problems import generate_problems
from ledom.lm import load
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import LanguageModel, Sampling

BATCH = 128
PEER_BATCHES = (32, 64, 128, 512)
ROUNDS = 3
MAX_TOKENS = 160
TEMPERATURE = 0.7

Written = tuple[float, int, list[list[int]]]
"""Seconds, number of tokens (including EOS), and the texts' tokens without EOS."""
Configuration = Callable[[bool], Written]
"""Generates texts for all prompts, greedily if called with True."""


def transformers_generate(
    model: PreTrainedModel, eos: int, prompts: list[list[int]], cache: str, greedy: bool
) -> Written:
    """Generate texts with `generate`, as one left-padded batch."""
    ids, mask = left_padded(prompts, eos)
    options = (
        {"do_sample": False}
        if greedy
        else {"do_sample": True, "top_k": 0, "temperature": TEMPERATURE}
    )
    started = time.perf_counter()
    generate: Any = model.generate  # typed as a tensor
    out = generate(
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
    rows = out[:, ids.shape[1] :].tolist()
    texts = [row[: row.index(eos)] if eos in row else row for row in rows]
    return seconds, sum(len(text) + 1 for text in texts), texts


def ctranslate2_generate(
    model: CTranslate2, prompts: list[list[int]], batch: int, greedy: bool, num_samples: int = 1
) -> Written:
    """Generate texts with CTranslate2, in batches of `batch` prompts."""
    temperature = 0.0 if greedy else TEMPERATURE
    started = time.perf_counter()
    texts = model.generate(prompts, batch, MAX_TOKENS, temperature, num_samples)
    seconds = time.perf_counter() - started
    return seconds, sum(len(text) + 1 for text in texts), texts


def ledom_generate(
    lm: LanguageModel, prompts: list[str], greedy: bool, num_samples: int = 1
) -> Written:
    """Generate texts with ledom."""
    sampling = Sampling(temperature=0.0 if greedy else TEMPERATURE, max_tokens=MAX_TOKENS)
    started = time.perf_counter()
    made = dict(lm.generate(prompts, sampling, num_samples))
    seconds = time.perf_counter() - started
    texts = [text.ids for i in range(len(prompts)) for text in made[i]]
    return seconds, sum(len(text) + 1 for text in texts), texts


def configurations(
    lm: HFLanguageModel, folder: Path, texts: list[str], num_samples: int
) -> dict[str, dict[str, Configuration]]:
    """All configurations by program and name; each samples `num_samples` texts per prompt."""
    eos = lm.tokenizer.eos_id
    prompts = [[eos, *lm.tokenizer.encode(text).ids] for text in texts]
    found: dict[str, dict[str, Configuration]] = {
        "ledom": {"": lambda greedy: ledom_generate(lm, texts, greedy, num_samples)}
    }
    if num_samples == 1:
        model = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).eval()
        found["generate"] = {
            f"{cache} cache": partial(transformers_generate, model, eos, prompts, cache)
            for cache in ("dynamic", "static")
        }
    together, apart = (CTranslate2(lm, folder, batch_per_thread=flag) for flag in (False, True))
    peers = {"": together, ", a batch per thread": apart}
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    found["CTranslate2"] = {
        f"batches of {batch}{how}": partial(ctranslate2_generate, peer, repeated, batch)
        for (how, peer), batch in product(peers.items(), PEER_BATCHES)
        if batch <= BATCH * num_samples
    }
    if num_samples > 1:
        found["CTranslate2"][f"{num_samples} at once"] = lambda greedy: ctranslate2_generate(
            together, prompts, BATCH // num_samples, greedy, num_samples
        )
    return found


def fastest(by_program: dict[str, dict[str, Configuration]]) -> dict[str, Configuration]:
    """Each program's fastest configuration, from one warm run of each, named after both."""
    best: dict[str, Configuration] = {}
    for program, found in by_program.items():
        taken = {
            how: seconds / tokens
            for how, write in found.items()
            for seconds, tokens, _ in [write(False)]
        }
        how = min(taken, key=lambda how: taken[how])
        best[f"{program}, {how}" if how else program] = found[how]
    return best


def check_greedy(by_program: dict[str, dict[str, Configuration]]) -> None:
    """Print how many greedy texts of each configuration equal ledom's; also warms up."""
    ledom = by_program["ledom"][""](True)[2]
    for program, found in by_program.items():
        for how, write in found.items():
            same = sum(a == b for a, b in zip(write(True)[2], ledom, strict=True))
            name = f"{program}, {how}" if how else program
            print(f"greedy texts of {name} that equal ledom's: {same} of {len(ledom)}")


def print_rows(
    title: str, rates: dict[str, list[float]], flop: float, peaks: dict[str, float]
) -> None:
    """Print tokens per second, ledom's advantage per round, and shares of the matmul rates."""
    print()
    print_head(title, "tokens/s", "ledom's advantage (rounds)", "GFLOP/s", "of matmuls")
    for name, found in rates.items():
        ratios = [our / their for our, their in zip(rates["ledom"], found, strict=True)]
        rate = statistics.median(found)
        shares = ", ".join(
            f"{rate * flop / peak:.0%} of {kernel}" for kernel, peak in peaks.items()
        )
        print_row(name, f"{rate:.0f}", spread(ratios), f"{rate * flop / 1e9:.1f}", shares)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--samples", type=int, nargs="+", default=[1], help="per prompt")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parse(parser)
    lm = load(arguments.model, "forward")
    assert isinstance(lm, HFLanguageModel)
    matmuls = MatmulRates(lm, BATCH)
    for _ in range(arguments.rounds):
        matmuls.measure()
    peaks = matmuls.report()
    problems = list(generate_problems("valid", BATCH, seed=3))
    texts = [lm.pair_format.before_solution(problem.question) for problem in problems]
    flop = 2.0 * (lm.num_parameters or 0)
    for num_samples in arguments.samples:
        with tempfile.TemporaryDirectory() as folder:
            by_program = configurations(lm, Path(folder) / "peer", texts, num_samples)
            if num_samples == 1:
                check_greedy(by_program)
            best = fastest(by_program)
            rounds = [
                {name: write(False) for name, write in best.items()}
                for _ in range(arguments.rounds)
            ]
        rates = {name: [done[name][1] / done[name][0] for done in rounds] for name in best}
        print_rows(f"{num_samples} sample(s) for each of {BATCH} prompts", rates, flop, peaks)


if __name__ == "__main__":
    main()
