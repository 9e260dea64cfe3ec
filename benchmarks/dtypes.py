"""How much bf16 and int8 change the scores and the choices, and how much time they save.

    python benchmarks/dtypes.py [--dtypes bfloat16 int8] [--questions 200] [--answers 8]
        [--problems P.jsonl --candidates C.jsonl] [--threads 1]

The embedded pair scores candidates in fp32 and in each other precision. The precisions take turns,
a few problems at a time, so that other work on the machine affects all equally. The baseline for
noise is fp32 with other batches. Without files, the problems are generated and the embedded forward
model answers them. A CPU without bf16 instructions takes 50 times as long in bf16.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from common import add_answers, new_parser, parse, print_head, print_row, read_answers
from control import by_problem

from ledom.core.records import Candidate, Problem, Score
from ledom.lm import EMBEDDED, embedded_folder
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import LanguageModel
from ledom.report.formatting import interval
from ledom.report.intervals import paired_interval, pairwise_auc
from ledom.rerank.candidate_table import CandidateTable, build_candidate_table
from ledom.rerank.score import score_candidates
from ledom.rerank.strategies import STRATEGIES
from ledom.rerank.weights import choose_weights

TURN = 20  # problems that a precision scores before the next precision's turn
SMALL_BATCH = 1024  # tokens; the other arms have four times as many
STRATEGY = "all_terms"


@dataclass
class Arm:
    """The pair in one precision, with its scores and the CPU seconds that they took."""

    name: str
    models: list[LanguageModel]
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0

    def score(self, problems: Sequence[Problem], candidates: Sequence[Candidate]) -> None:
        """Add the scores of some problems' candidates."""
        started = time.process_time()
        for lm in self.models:
            for scores in score_candidates(problems, candidates, lm):
                self.scores += scores
        self.seconds += time.process_time() - started


def make_arms(dtypes: Sequence[str]) -> list[Arm]:
    """fp32, fp32 in smaller batches, and the other precisions."""

    def pair(dtype: str, tokens: int = 4 * SMALL_BATCH) -> list[LanguageModel]:
        folders = [embedded_folder(direction) for direction in ("forward", "reverse")]
        return [
            HFLanguageModel(folder, device="cpu", dtype=dtype, tokens_per_batch=tokens)
            for folder in folders
        ]

    noise = Arm("float32, other batches", pair("float32", SMALL_BATCH))
    others = [Arm(dtype, pair(dtype)) for dtype in dtypes]
    return [Arm("float32", pair("float32")), noise, *others]


@dataclass(frozen=True)
class Result:
    """The scores of one precision, and the choices that follow from them."""

    tokens: np.ndarray
    """log P of every scored token, in nats."""
    auc: np.ndarray
    """The AUC per problem; NaN where all answers are right or all are wrong."""
    pick: np.ndarray
    """The column of each problem's chosen candidate."""
    right: np.ndarray
    """Whether the chosen candidate is right."""


def choose(table: CandidateTable, scores: Sequence[Score]) -> Result:
    """Choose the candidate with the highest weighted sum of all scores (embedded weights)."""
    weights = choose_weights(None, None, EMBEDDED, EMBEDDED)
    value = STRATEGIES[STRATEGY].score(table, weights.weights[STRATEGY])
    pick = np.where(table.mask, value, -np.inf).argmax(axis=1)
    return Result(
        np.concatenate([score.token_logprobs or [] for score in scores]),
        pairwise_auc(*by_problem(value, table)),
        pick,
        table.correct[range(len(pick)), pick].astype(float),
    )


def print_table(
    problems: Sequence[Problem], candidates: Sequence[Candidate], arms: Sequence[Arm]
) -> None:
    """Print a row per precision, with its differences from fp32."""
    print_head(
        f"{len(problems)} problems, {len(candidates)} texts",
        "CPU s",
        "of fp32's time",
        "error of a token, mean and largest, nats",
        "AUC",
        "other picks",
        "picks right",
        "minus fp32, points",
    )
    exact: Result | None = None
    for arm in arms:
        found = choose(build_candidate_table(problems, candidates, arm.scores), arm.scores)
        exact = exact or found
        error = np.abs(found.tokens - exact.tokens)
        points = paired_interval(100 * found.right, 100 * exact.right)
        print_row(
            arm.name,
            f"{arm.seconds:.1f}",
            f"{arm.seconds / arms[0].seconds:.2f}",
            f"{error.mean():.1e}, {error.max():.2g}",
            f"{np.nanmean(found.auc):.4f}",
            (found.pick != exact.pick).sum(),
            f"{found.right.mean():.1%}",
            interval(points, 1, "+"),
        )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    add_answers(parser, questions=200)
    args = parse(parser)
    problems, candidates = read_answers(args)
    arms = make_arms(args.dtypes)
    for start in range(0, len(problems), TURN):
        some = problems[start : start + TURN]
        ids = {problem.id for problem in some}
        own = [candidate for candidate in candidates if candidate.problem_id in ids]
        for arm in arms:
            arm.score(some, own)
    print_table(problems, candidates, arms)


if __name__ == "__main__":
    main()
