"""What Reverse Reward adds to a trained verifier, and how accurate it is without one.

    python benchmarks/verifiers.py --problems math/math500.jsonl \
        --candidates math/math500_candidates.jsonl --fields prm_last prm_min \
        --forward FOLDER --reverse FOLDER --out out/verifiers

The fields are the verifier's scores, which come with the candidates. Each arm is a weighted
sum of scores, with weights cross-fitted in five folds of the problems and intervals paired over
problems. Without models, only the verifier's own arms are measured. Scores are kept in --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import new_parser, parse, print_head, print_row
from control import PARTS, Result, cross_fitted, renamed, scored

import ledom
from ledom.core.records import Candidate, Problem, read_records, unique_ids
from ledom.lm.language_model import LanguageModel
from ledom.report.formatting import interval
from ledom.report.intervals import bootstrap_interval, paired_interval
from ledom.rerank.candidate_table import CandidateTable, build_candidate_table
from ledom.rerank.candidates import match_candidates
from ledom.rerank.strategies import STRATEGIES

ARMS: dict[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "reverse": ("question", "prior"),
    "forward + reverse": ("forward", "question", "prior"),
    "verifier": ("verifier",),
    "verifier + forward": ("verifier", "forward"),
    "verifier + reverse": ("verifier", "question", "prior"),
    "verifier + forward + reverse": ("verifier", "forward", "question", "prior"),
}
"""The scores of each arm; `verifier` stands for all of the verifier's fields."""


def gather(arguments: argparse.Namespace) -> CandidateTable:
    """One table with the verifier's fields and the models' scores."""
    candidates = read_records(arguments.candidates, Candidate)
    wanted = {candidate.problem_id for candidate in candidates}
    all_problems = read_records(arguments.problems, Problem, unique_ids())
    problems = [problem for problem in all_problems if problem.id in wanted]
    models = {
        direction: ledom.load(model, direction)
        for direction in ("forward", "reverse")
        if (model := getattr(arguments, direction))
    }
    for lm in models.values():
        problems = [problem for problem in problems if has_room(problem, lm)]
    left = {problem.id for problem in problems}
    candidates = [candidate for candidate in candidates if candidate.problem_id in left]
    print(f"{len(wanted) - len(left)} problems left out: too long for a model's context")
    match_candidates(problems, candidates)
    table = build_candidate_table(problems, candidates, [], arguments.fields)
    features = dict(table.features)
    names = {
        "forward": {"forward": "forward"},
        "reverse": {"question": "question", "prior": "prior"},
    }
    for direction, lm in models.items():
        part = scored(Path(arguments.out), direction, lm, problems, candidates)
        features |= renamed(part, names[direction])
    return replace(table, features=features)


def has_room(problem: Problem, lm: LanguageModel) -> bool:
    """Whether the question takes at most half of the model's context."""
    texts = [(problem.question, "")]
    (pair,) = lm.pair_format.encode(lm.tokenizer, texts, *lm.special_ids)
    return len(pair.ids) <= lm.context // 2


def features_of(scores: Sequence[str], fields: Sequence[str]) -> tuple[str, ...]:
    """The features of an arm."""
    found: list[str] = []
    for score in scores:
        found += fields if score == "verifier" else [f"{score}{part}" for part in PARTS]
    return tuple(found)


def report(table: CandidateTable, fields: Sequence[str]) -> None:
    """Print each arm's AUC and accuracy, with paired differences from verifier and majority."""
    results: dict[str, Result] = {name: cross_fitted(table, (name,)) for name in fields}
    for name, scores in ARMS.items():
        features = features_of(scores, fields)
        if set(features) <= set(table.features):
            results[name] = cross_fitted(table, features)
    verifier = results["verifier"]
    majority = STRATEGIES["majority"].accuracy(table, None)
    for name in ("random", "majority", "oracle"):
        right = STRATEGIES[name].accuracy(table, None)
        print(f"{name}: {interval(bootstrap_interval(100 * right), 1)}%")
    print()
    print_head("arm", "AUC", "minus verifier", "pick, %", "minus verifier", "minus majority")
    known = ~np.isnan(verifier.auc)
    for name, result in results.items():
        auc, pick = result.auc[known], 100 * result.pick
        print_row(
            name,
            interval(bootstrap_interval(auc)),
            interval(paired_interval(auc, verifier.auc[known]), sign="+"),
            interval(bootstrap_interval(pick), 1),
            interval(paired_interval(pick, 100 * verifier.pick), 1, "+"),
            interval(paired_interval(pick, 100 * majority), 1, "+"),
        )


def main() -> None:
    """Print the tables."""
    parser = new_parser(__doc__)
    parser.add_argument("--problems", required=True)
    parser.add_argument("--candidates", required=True)
    parser.add_argument("--fields", nargs="+", default=["prm_last", "prm_min"])
    parser.add_argument("--forward")
    parser.add_argument("--reverse")
    parser.add_argument("--out", default="out/verifiers")
    arguments = parse(parser)
    table = gather(arguments)
    right = (table.correct & table.mask).sum()
    print(f"{len(table.problem_ids)} problems, {table.mask.sum()} answers, {right} right")
    report(table, arguments.fields)


if __name__ == "__main__":
    main()
