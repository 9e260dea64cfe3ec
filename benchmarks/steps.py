"""Which step is wrong? The embedded pair on solutions with one corrupted step.

    python benchmarks/steps.py --problems 400

In the right solution of each problem, one number of one step is replaced by another number of the
same kind. Each model names the step with the lowest score. Nothing is fitted here; the score of a
step (its least likely token, its mean or its sum) was chosen on the tune split (`--split tune`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from common import new_parser, parse, print_head, print_row

import ledom
from ledom.core.records import Candidate, Problem
from ledom.data.augment import other_number
from ledom.data.problems import generate_problems
from ledom.report.formatting import accuracy, difference
from ledom.report.intervals import paired_share_interval, share_interval
from ledom.rerank.candidate_table import split_steps
from ledom.rerank.score import score_candidates

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
Step = list[float]  # log-probabilities of its tokens
_SUMMARIES: dict[str, Callable[[Step], float]] = {
    "least likely token": lambda step: min(step, default=0.0),
    "mean": lambda step: sum(step) / max(1, len(step)),
    "sum": sum,
}


def corrupt_step(solution: str, rng: Random) -> tuple[str, int]:
    """The solution with one number of a random step changed, and that step's index.

    The final answer's line is not a step.
    """
    lines = solution.splitlines()
    place = rng.choice([i for i, line in enumerate(lines[:-1]) if _NUMBER.search(line)])
    match = rng.choice(list(_NUMBER.finditer(lines[place])))
    number = next(new for _ in range(1000) if (new := other_number(match[0], "", rng)) != match[0])
    lines[place] = f"{lines[place][: match.start()]}{number}{lines[place][match.end() :]}"
    return "\n".join(lines), place


def corrupted(
    split: str, count: int, seed: int
) -> tuple[list[Problem], list[Candidate], list[int]]:
    """Problems of at least two steps, a corrupted solution for each, and its wrong step."""
    problems: list[Problem] = []
    candidates: list[Candidate] = []
    places: list[int] = []
    for problem in generate_problems(split, 2 * count, seed):
        if len(problem.require_solution().splitlines()) > 2 and len(problems) < count:
            text, place = corrupt_step(problem.require_solution(), Random(problem.id))
            problems.append(problem)
            candidates.append(Candidate(problem_id=problem.id, index=0, text=text))
            places.append(place)
    return problems, candidates, places


def read(
    model: str, direction: str, problems: list[Problem], candidates: list[Candidate]
) -> list[list[Step]]:
    """The scored steps of each solution, without its last line."""
    lm = ledom.load(model, direction=direction)
    target = "y|x" if direction == "forward" else "y"
    scores = [s for part in score_candidates(problems, candidates, lm) for s in part]
    by_id = {score.problem_id: score for score in scores if score.target == target}
    return [split_steps(by_id[c.problem_id], c.text)[:-1] for c in candidates]


def named(
    readings: Sequence[Sequence[Sequence[Step]]], summary: Callable[[Step], float]
) -> list[int]:
    """The step of each solution with the lowest score, summed over the models."""
    return [
        int(np.argmin([sum(map(summary, step)) for step in zip(*own, strict=True)]))
        for own in zip(*readings, strict=True)
    ]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=21)
    arguments = parse(parser)
    problems, candidates, places = corrupted(arguments.split, arguments.problems, arguments.seed)
    forward, reverse = (read("tiny", d, problems, candidates) for d in ("forward", "reverse"))
    chance = np.array([1 / len(steps) for steps in forward])
    print(f"{len(problems)} problems, {np.mean([len(s) for s in forward]):.1f} steps each")
    print(f"a random step is right in {100 * chance.mean():.1f}%")
    print_head("score of a step", "model", "the wrong step is named, %", "minus forward, points")
    for name, summary in _SUMMARIES.items():
        rows = {
            "forward": named([forward], summary),
            "reverse": named([reverse], summary),
            "both": named([forward, reverse], summary),
        }
        right = {reading: np.equal(row, places).astype(float) for reading, row in rows.items()}
        for reading, values in right.items():
            own, versus = share_interval(values), paired_share_interval(values, right["forward"])
            print_row(name, reading, accuracy(own), difference(versus))


if __name__ == "__main__":
    main()
