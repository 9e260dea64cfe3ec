"""Does copying the question raise the reward, and does the guard prevent it?

    python benchmarks/copies.py --problems gsm8k/test.jsonl --reverse FOLDER
    python benchmarks/copies.py

Each reference solution is compared with a planted answer: the question itself and a wrong number.
log P(x|y) of both is computed with and without the guard, `ledom rerank --mask-copies N`. The table
counts the problems where the planted answer is preferred: a policy could win these without solving
them. Without --problems, the problems are generated. From a file, the problems with a solution and
the shortest questions are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from common import new_parser, parse, print_head, print_row

import ledom
from ledom.core.records import Candidate, Problem, read_records
from ledom.data.problems import generate_problems
from ledom.lm.language_model import LanguageModel
from ledom.report.intervals import FloatArray
from ledom.rerank.score import score_candidates


def planted(problem: Problem) -> str:
    """An answer that repeats the question and is wrong."""
    wrong = "1" if (problem.answer or "").strip() != "1" else "2"
    return f"{problem.question}\n#### {wrong}"


def question_logprobs(
    problems: Sequence[Problem], lm: LanguageModel, mask_copies: int
) -> FloatArray:
    """log P(x|y) of the reference and of the planted answer, [problems, 2]."""
    candidates = [
        Candidate(problem_id=problem.id, index=index, text=text)
        for problem in problems
        for index, text in enumerate((problem.require_solution(), planted(problem)))
    ]
    found = {
        (score.problem_id, score.index): score.logprob
        for part in score_candidates(problems, candidates, lm, mask_copies=mask_copies)
        for score in part
        if score.target == "x|y"
    }
    return np.array([[found[problem.id, index] for index in (0, 1)] for problem in problems])


def main() -> None:
    """Print a row without the guard and one with it."""
    parser = new_parser(__doc__)
    parser.add_argument("--problems", help="a JSONL file of problems with solutions")
    parser.add_argument("--reverse", default="tiny", help="the model that scores")
    parser.add_argument("--num-problems", type=int, default=100)
    parser.add_argument(
        "--mask-copies", type=int, default=12, help="minimum words of a masked passage"
    )
    arguments = parse(parser)
    count = arguments.num_problems
    if arguments.problems is None:
        problems = list(generate_problems("test", count, seed=0))
    else:
        solved = [p for p in read_records(arguments.problems, Problem) if p.solution]
        problems = sorted(solved, key=lambda problem: len(problem.question))[:count]
    lm = ledom.load(arguments.reverse, "reverse")
    print_head(
        "the scorer reads", "median log P(x|y), reference", "planted", "planted answer preferred"
    )
    for words in (0, arguments.mask_copies):
        values = question_logprobs(problems, lm, words)
        reads = f"no copies of {words} words or more" if words else "everything"
        medians = [f"{value:.1f}" for value in np.median(values, axis=0)]
        won = int((values[:, 1] > values[:, 0]).sum())
        print_row(reads, *medians, f"{won} of {len(problems)}")


if __name__ == "__main__":
    main()
