"""Is a gap in a text filled better from its end? Measured by forward-model perplexity.

    python benchmarks/infilling.py --out out/infilling
    python benchmarks/infilling.py --novels valid.jsonl --forward FOLDER --reverse FOLDER

The middle of a held-out text is left out: the middle steps of a generated problem's solution, or a
dozen words of a novel. Only texts whose true middle has at most `--max-tokens` tokens are used, so
that a proposal can fill the gap. The reverse model, which reads the ending, or the forward model,
which reads the beginning, proposes middles. The forward model chooses among the same number of
proposals from each; the table gives the mean length of the chosen middles.
Two perplexities per token are given: of middle and ending after the beginning, and of the ending
after all text before it. Differences are of mean log-probabilities in nats per token, paired over
texts, with 95% intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from common import new_parser, parse, print_head, print_row
from numpy.typing import NDArray

import ledom
from ledom.core.records import Document, read_records
from ledom.core.stage import no_progress
from ledom.data.problems import generate_problems
from ledom.evaluate.infilling import Gap, infill, middle_spans
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.report.formatting import interval
from ledom.report.intervals import paired_interval

BEGINNING, MIDDLE, ENDING = 60, 14, 40  # words of a novel


def of_problems(count: int, seed: int) -> Iterator[tuple[Gap, str]]:
    """Gaps in solutions, each with its true middle.

    The beginning is the question and the first step, the ending the last step and the answer.
    """
    for problem in generate_problems("test", 20 * count, seed):
        lines = problem.require_solution().split("\n")
        if len(lines) < 4:
            continue
        beginning = f"{problem.question}\n\n{lines[0]}"
        ending = "\n" + "\n".join(lines[-2:])
        yield Gap(id=problem.id, beginning=beginning, ending=ending), "\n" + "\n".join(lines[1:-2])


def of_novels(path: Path, seed: int) -> Iterator[tuple[Gap, str]]:
    """An endless stream of gaps at random places in documents, each with its true middle."""
    rng, number = Random(seed), 0
    texts = [document.text.split(" ") for document in read_records(path, Document)]
    length = BEGINNING + MIDDLE + ENDING
    texts = [words for words in texts if len(words) >= length]
    while True:
        words = rng.choice(texts)
        start = rng.randrange(len(words) - length + 1)
        first, second = start + BEGINNING, start + BEGINNING + MIDDLE
        parts = (words[start:first], words[first:second], words[second : start + length])
        beginning, middle, ending = (" ".join(part) for part in parts)
        gap = Gap(id=f"novel-{number}", beginning=beginning, ending=f" {ending}")
        yield gap, f" {middle}"
        number += 1


def num_tokens(lm: LanguageModel, middle: str) -> int:
    return len(lm.tokenizer.encode_inside(middle))


def nats_per_token(
    lm: LanguageModel, gaps: Sequence[Gap], middles: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean log P per token, [gap]: of middle plus ending, and of the ending alone."""
    both = [*middle_spans(lm, list(zip(gaps, middles, strict=True)))]
    joined = [
        Gap(id=g.id, beginning=g.beginning + m, ending=g.ending)
        for g, m in zip(gaps, middles, strict=True)
    ]
    alone: list[TokenSpan] = [*middle_spans(lm, [(gap, "") for gap in joined])]
    first, second = ([float(v.mean()) for v in lm.logprobs(spans)] for spans in (both, alone))
    return np.array(first), np.array(second)


def show(
    arms: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    lengths: Mapping[str, float],
) -> None:
    """Print the table; the baseline is the forward model with its own proposals."""
    both = "perplexity, middle and ending"
    print_head("middle", "its tokens", both, "minus forward", "ending alone", "minus forward")
    for name, values in arms.items():
        cells = [name, f"{lengths[name]:.0f}"]
        for value, base in zip(values, arms["forward"], strict=True):
            versus = interval(paired_interval(value, base), sign="+")
            cells += [f"{np.exp(-value.mean()):.2f}", "–" if name == "forward" else versus]
        print_row(*cells)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--novels", type=Path, help="a JSONL file of documents; default: problems")
    parser.add_argument("--forward", default="tiny")
    parser.add_argument("--reverse", default="tiny")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--proposals", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/infilling"))
    options = parse(parser)
    source = (
        of_problems(options.count, options.seed)
        if options.novels is None
        else of_novels(options.novels, options.seed)
    )
    models = {
        "reverse": ledom.load(options.reverse, "reverse"),
        "forward": ledom.load(options.forward, "forward"),
    }
    forward = models["forward"]
    fitting = (case for case in source if num_tokens(forward, case[1]) <= options.max_tokens)
    cases = list(islice(fitting, options.count))
    gaps = [gap for gap, _ in cases]
    sampling = Sampling(temperature=0.7, max_tokens=options.max_tokens)
    middles = {"true": [middle for _, middle in cases], "none": [""] * len(gaps)}
    for name, proposer in models.items():
        for count in (1, options.proposals):
            out = options.out / f"{name}-{count}"
            found = infill(gaps, proposer, forward, sampling, count, out, no_progress)
            label = name if count > 1 else f"{name}, one proposal"
            middles[label] = best = [found[gap.id][0].text for gap in gaps]
            choice = np.mean([len(found[gap.id]) for gap in gaps])
            print(f"{label}: one of {choice:.0f} different middles is chosen; the first:")
            print(repr(gaps[0].beginning[-80:]), repr(best[0]), repr(gaps[0].ending[:80]))
    print(f"{len(gaps)} texts, {options.proposals} proposals each")
    arms = {name: nats_per_token(forward, gaps, texts) for name, texts in middles.items()}
    lengths = {
        name: float(np.mean([num_tokens(forward, text) for text in texts]))
        for name, texts in middles.items()
    }
    show(arms, lengths)


if __name__ == "__main__":
    main()
