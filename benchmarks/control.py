"""Does the reverse direction help, or would any second model? Which errors does it detect?

    python benchmarks/control.py --problems P.jsonl --candidates C.jsonl --out out/control \
        --forward tiny --reverse tiny --second-forward FOLDER --second-reverse FOLDER

Each arm is a weighted sum of the same four features of each of its scores: log P, its mean per
token, the log P of its numbers, and that of its least likely digit. The weights are cross-fitted in
five folds of the problems. The second models have the same size, recipe and data but another seed:

    ledom train recipes/tiny.yaml seed=2 name=tiny-2 --direction both

Scores are kept in --out, so the command resumes. Arms without their models are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import new_parser, parse, print_head, print_row
from error_kinds import ERROR_KINDS, error_kind
from numpy.typing import NDArray

import ledom
from ledom.cli.progress import track
from ledom.core.records import Candidate, Problem, read_records, unique_ids
from ledom.lm.language_model import LanguageModel
from ledom.report.formatting import MISSING, interval
from ledom.report.intervals import FloatArray, bootstrap_interval, paired_interval, pairwise_auc
from ledom.rerank.candidate_table import CandidateTable, build_candidate_table
from ledom.rerank.candidates import pools
from ledom.rerank.fit import fit_sum
from ledom.rerank.score import ScoreFiles, fill_scores
from ledom.rerank.strategies import Pick

FOLDS = 5
REFERENCE = "forward + second forward"
PARTS = ("", "_mean", "_numbers", "_min_digit_logprob")
ARMS: dict[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "forward + reverse": ("forward", "question", "prior"),
    "forward + reverse, log P(x|y) alone": ("forward", "question"),
    "forward + reverse, log P(y) alone": ("forward", "prior"),
    REFERENCE: ("forward", "second_forward"),
    "forward + second forward + reverse": ("forward", "second_forward", "question", "prior"),
    "forward + its log P(y) without the question": ("forward", "alone"),
    "reverse": ("question", "prior"),
    "second reverse": ("second_question", "second_prior"),
    "two reverse models": ("question", "prior", "second_question", "second_prior"),
}
"""The scores of each arm."""
SCORES = tuple(dict.fromkeys(score for scores in ARMS.values() for score in scores))


def scored(
    out: Path,
    name: str,
    lm: LanguageModel,
    problems: Sequence[Problem],
    candidates: Sequence[Candidate],
) -> CandidateTable:
    """The table of one model's scores, which are kept in the folder `name`."""
    scores = fill_scores(ScoreFiles(out / name, problems, candidates, lm, track))
    return build_candidate_table(problems, candidates, scores)


def renamed(table: CandidateTable, names: Mapping[str, str]) -> dict[str, FloatArray]:
    """The table's features of some scores; `names` maps each score to its new name."""
    own = {"forward": "forward", "question": "reverse", "prior": "prior"}
    found = {}
    for score, new in names.items():
        for part in PARTS:
            of_question = score == "question" and part in PARTS[2:]
            feature = f"question{part}" if of_question else f"{own[score]}{part}"
            found[f"{new}{part}"] = table.features[feature]
    return found


def all_scores(
    arguments: argparse.Namespace, problems: Sequence[Problem], candidates: Sequence[Candidate]
) -> CandidateTable:
    """One table with the features of all models."""
    out = Path(arguments.out)
    reverse = ledom.load(arguments.reverse, "reverse")
    table = scored(out, "reverse", reverse, problems, candidates)
    features = renamed(table, {"question": "question", "prior": "prior"})
    if arguments.forward != "none":
        forward = ledom.load(arguments.forward, "forward")
        part = scored(out, "forward", forward, problems, candidates)
        features |= renamed(part, {"forward": "forward"})
        alone = [replace(problem, question="") for problem in problems]
        part = scored(out, "alone", forward, alone, candidates)
        features |= renamed(part, {"forward": "alone"})
    if arguments.second_forward:
        lm = ledom.load(arguments.second_forward, "forward")
        part = scored(out, "second-forward", lm, problems, candidates)
        features |= renamed(part, {"forward": "second_forward"})
    if arguments.second_reverse:
        lm = ledom.load(arguments.second_reverse, "reverse")
        part = scored(out, "second-reverse", lm, problems, candidates)
        features |= renamed(part, {"question": "second_question", "prior": "second_prior"})
    return replace(table, features=features)


@dataclass(frozen=True)
class Result:
    """The AUC and the accuracy of the pick on each problem, both [P].

    `auc` is NaN for a problem without a right answer or without a wrong one.
    """

    auc: FloatArray
    pick: FloatArray


def cross_fitted(table: CandidateTable, features: tuple[str, ...]) -> Result:
    """Score every problem with weights that were fitted on the other folds."""
    fold = np.random.default_rng(0).permutation(len(table.problem_ids)) % FOLDS
    auc, pick = np.empty(len(fold)), np.empty(len(fold))
    arm = Pick("arm", "an arm", features)
    for i in range(FOLDS):
        weights = fit_sum(features, table.select(np.flatnonzero(fold != i)))
        rows = np.flatnonzero(fold == i)
        tested = table.select(rows)
        auc[rows] = pairwise_auc(*by_problem(arm.score(tested, weights), tested))
        pick[rows] = arm.accuracy(tested, weights)
    return Result(auc, pick)


def by_problem(
    values: FloatArray, table: CandidateTable
) -> tuple[list[FloatArray], list[NDArray[np.bool_]]]:
    """Values and labels of each problem's answers, as `pairwise_auc` takes them."""
    rows = range(len(table.problem_ids))
    return (
        [values[i, table.mask[i]] for i in rows],
        [table.correct[i, table.mask[i]] for i in rows],
    )


def print_arms(table: CandidateTable) -> None:
    """Print each arm's AUC and accuracy, and its paired differences from two forward models."""
    results = {
        name: cross_fitted(table, tuple(f"{s}{part}" for s in scores for part in PARTS))
        for name, scores in ARMS.items()
        if all(score in table.features for score in scores)
    }
    baseline = next(name for name in (REFERENCE, "forward", "reverse") if name in results)
    print()
    print_head("arm", "AUC", f"minus {baseline}", "pick, %", f"minus {baseline}, points")
    for name, result in results.items():
        other = results[baseline]
        known = ~np.isnan(result.auc)
        auc = bootstrap_interval(result.auc[known])
        auc_gain = paired_interval(result.auc[known], other.auc[known])
        pick = bootstrap_interval(100 * result.pick)
        pick_gain = paired_interval(100 * result.pick, 100 * other.pick)
        gains = interval(auc_gain, sign="+"), interval(pick_gain, 1, "+")
        print_row(name, interval(auc), gains[0], interval(pick, 1), gains[1])


def print_scores(table: CandidateTable) -> None:
    """Print the AUC of each score per token, and paired differences between twin seeds."""
    print()
    print_head("score per token", "AUC", "minus the first model")
    auc = {
        name: pairwise_auc(*by_problem(table.features[f"{name}_mean"], table))
        for name in SCORES
        if f"{name}_mean" in table.features
    }
    for name, own in auc.items():
        known, first = ~np.isnan(own), auc[name.removeprefix("second_")]
        gain = MISSING
        if own is not first:
            gain = interval(paired_interval(own[known], first[known]), sign="+")
        print_row(name, interval(bootstrap_interval(own[known])), gain)


def print_kinds(
    table: CandidateTable, problems: Sequence[Problem], candidates: Sequence[Candidate]
) -> None:
    """Print each score's AUC between the right answers and the wrong ones of each kind."""
    pool_of = pools([problem.id for problem in problems], candidates)
    kinds = np.full(table.mask.shape, "", dtype=object)
    for row, problem in enumerate(problems):
        for column, candidate in enumerate(pool_of[problem.id]):
            if not table.correct[row, column]:
                kinds[row, column] = error_kind(problem.question, candidate.text)
    shown = [f"{name}_mean" for name in SCORES if f"{name}_mean" in table.features]
    wrong = (table.mask & ~table.correct).sum()
    print()
    print_head("kind of error", "wrong answers, %", *shown)
    for kind in ERROR_KINDS:
        chosen = table.mask & (table.correct | (kinds == kind))
        part = replace(table, mask=chosen)
        share = 100 * (kinds == kind).sum() / max(1, wrong)
        cells = []
        for name in shown:
            auc = pairwise_auc(*by_problem(table.features[name], part))
            auc = auc[~np.isnan(auc)]
            cells.append(interval(bootstrap_interval(auc)) if len(auc) else MISSING)
        print_row(kind, f"{share:.1f}", *cells)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--problems", required=True)
    parser.add_argument("--candidates", required=True)
    parser.add_argument("--num-problems", type=int, help="use only the first N problems")
    parser.add_argument(
        "--forward", default="tiny", help="a model, or none to measure reverse arms only"
    )
    parser.add_argument("--reverse", default="tiny")
    parser.add_argument("--second-forward")
    parser.add_argument("--second-reverse")
    parser.add_argument("--out", default="out/control")
    arguments = parse(parser)
    problems = read_records(arguments.problems, Problem, unique_ids())[: arguments.num_problems]
    wanted = {problem.id for problem in problems}
    candidates = read_records(arguments.candidates, Candidate)
    candidates = [candidate for candidate in candidates if candidate.problem_id in wanted]
    table = all_scores(arguments, problems, candidates)
    print(f"{len(problems)} problems, {int(table.mask.sum())} answers")
    print_arms(table)
    print_scores(table)
    print_kinds(table, problems, candidates)


if __name__ == "__main__":
    main()
