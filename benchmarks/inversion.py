"""Can an output's prompt be recovered? Two inverters of the embedded forward model.

    python benchmarks/inversion.py --num-outputs 100 --out out/inversion

The forward model answers questions that no model was trained on, once each. A reverse model then
proposes questions for each answer, and the forward model scores them. The arms:

embedded    the embedded reverse model, unchanged
trained     the same model, fine-tuned on questions and the forward model's answers

For both orders of `ledom invert`, the script prints the share of outputs whose question comes first
(exact match) and its mean reciprocal rank (0 if it was not proposed), with 95% intervals over
outputs. `drawn` orders proposals by how often they were sampled, without the forward model.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import new_parser, parse, print_head, print_row
from numpy.typing import NDArray

import ledom
from ledom.core.direction import Direction
from ledom.core.records import Problem, read_records, write_records
from ledom.core.stage import no_progress
from ledom.data.prepare import DataConfig, prepare_data
from ledom.data.problems import generate_problems
from ledom.evaluate.inversion import (
    Output,
    invert,
    sample_pairs,
)
from ledom.evaluate.proposals import Prompt, Proposal
from ledom.evaluate.results import reciprocal_ranks
from ledom.lm import embedded_folder
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.report.formatting import accuracy, difference, interval
from ledom.report.intervals import paired_share_interval, share_interval
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

SAMPLING = Sampling(temperature=0.7)
Arms = dict[str, NDArray[np.float64]]


def pairs(forward: LanguageModel, split: str, count: int, seed: int, out: Path) -> list[Problem]:
    """Questions from a split, each with the forward model's answer as its solution."""
    problems = generate_problems(split, count, seed)
    prompts = [Prompt(problem.id, problem.question) for problem in problems]
    return sample_pairs(forward, prompts, SAMPLING, out / f"outputs.{split}.jsonl", no_progress)


def trained_inverter(found: Sequence[Problem], steps: int, out: Path) -> Path:
    """Fine-tune the embedded reverse model on pairs; returns the folder of the result."""
    write_records(out / "pairs.jsonl", found)
    recipe = Recipe(
        name="inverter",
        init_from=str(embedded_folder("reverse")),
        data=DataConfig(train=str(out / "pairs.jsonl")),
        optim=OptimConfig(
            steps=steps, warmup_steps=10, decay_steps=steps * 4 // 5, muon_lr=0.002, adamw_lr=3e-4
        ),
        train=TrainConfig(batch_size=16),
    )
    data = prepare_data(recipe.data_of(Direction.REVERSE), out / "data")
    return train(recipe, Direction.REVERSE, data, out / "inverter")


def by_count(out: Path) -> list[tuple[str, str, float]]:
    """The finished proposals in a folder as (output, prompt, -place), the most frequent first."""
    drawn: dict[str, Counter[str]] = {}
    for one in read_records(out / "proposals.jsonl", Proposal):
        if one.finish_reason == "stop":
            drawn.setdefault(one.item_id, Counter())[one.text] += 1
    return [
        (output_id, prompt.strip(), -place)
        for output_id, counts in drawn.items()
        for place, (prompt, _) in enumerate(counts.most_common())
    ]


def measure(
    name: str, folder: str, forward: LanguageModel, outputs: list[Output], samples: int, out: Path
) -> Arms:
    """The reciprocal ranks of the true prompts in one arm, for each order."""
    reverse, found = ledom.load(folder, "reverse"), {}
    right = {one.id: [one.prompt.strip()] for one in outputs if one.prompt is not None}
    for prior in (True, False):
        path = out / f"{name}-{'prior' if prior else 'no-prior'}"
        if not prior:  # the same proposals
            path.mkdir(parents=True, exist_ok=True)
            for file in (out / f"{name}-prior").glob("proposals.jsonl*"):
                shutil.copy(file, path)
        ranking = invert(outputs, reverse, forward, SAMPLING, samples, path, no_progress, prior)
        order = "log P(prompt, output)" if prior else "log P(output | prompt)"
        found[f"{name}, {order}"] = reciprocal_ranks(
            right, [(one.output_id, one.prompt.strip(), one.score) for one in ranking]
        )
    return found | {f"{name}, drawn": reciprocal_ranks(right, by_count(path))}


def show(arms: Arms) -> None:
    """Print the table, with the trained arm's paired difference from the embedded one."""
    exact_match = ("exact match, %", "MRR", "exact match minus embedded")
    print_head("arm, ordered by", "proposed, %", *exact_match)
    for name, ranks in arms.items():
        exact, arm = (ranks == 1).astype(float), name.partition(",")[0]
        other = arms[name.replace(arm, "embedded", 1)] == 1
        versus = difference(paired_share_interval(exact, other.astype(float)))
        print_row(
            name,
            accuracy(share_interval((ranks > 0).astype(float))),
            accuracy(share_interval(exact)),
            interval(share_interval(ranks)),
            "–" if arm == "embedded" else versus,
        )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--num-outputs", type=int, default=100)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--num-pairs", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("out/inversion"))
    options = parse(parser)
    forward = ledom.load("tiny", "forward")
    outputs = [
        Output(id=pair.id, text=pair.require_solution(), prompt=pair.question)
        for pair in pairs(forward, "test", options.num_outputs, 7, options.out)
    ]
    train_pairs = pairs(forward, "train", options.num_pairs, 7, options.out)
    folders = {
        "embedded": "tiny",
        "trained": str(trained_inverter(train_pairs, options.steps, options.out)),
    }
    arms: Arms = {}
    for name, folder in folders.items():
        arms |= measure(name, folder, forward, outputs, options.samples, options.out)
    print(f"{len(outputs)} outputs, {options.samples} proposals each")
    show(arms)


if __name__ == "__main__":
    main()
