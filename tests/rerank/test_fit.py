"""Weights: fitted if there is a signal, saved, and never used on their own problems."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.rerank.candidate_table import CandidateTable
from ledom.rerank.candidates import question_hash
from ledom.rerank.fit import cross_fit, fit_sum, tune
from ledom.rerank.strategies import STRATEGIES, strategies
from ledom.rerank.weights import TunedWeights
from made import made_table, noise


def made_pools(num_problems: int = 300, seed: int = 0) -> CandidateTable:
    """A table where right candidates have a higher log P(x|y) and nothing else has a signal."""
    rng = np.random.default_rng(seed)
    shape = (num_problems, 8)
    correct = rng.random(shape) < 0.3
    features = noise(shape, seed)
    features["reverse"] = rng.normal(size=shape) + 2.0 * correct
    answers = np.where(correct, 0, 1 + rng.integers(0, 4, shape))
    return made_table(correct, features, answers=answers)


def with_few_terms(table: CandidateTable) -> CandidateTable:
    """A table with only the terms of interpolation, so that few strategies are fitted."""
    terms = ("forward", "forward_mean", "reverse", "reverse_mean")
    return replace(table, features={name: table.features[name] for name in terms})


@pytest.mark.slow
def test_the_informative_feature_gets_the_weight() -> None:
    tuned = tune(made_pools())
    lam = tuned.weights["reverse_reward"]
    second = lam.get("reverse", lam.get("reverse_mean", 0.0))
    assert second > 0.8
    every = tuned.weights["all_terms"]
    assert every["reverse"] > 5 * max(abs(v) for k, v in every.items() if k != "reverse")
    # The true logit has weight 2, because the classes are normals two apart.
    assert every["reverse"] == pytest.approx(2.0, rel=0.25)
    fresh = made_pools(seed=1)
    for with_reverse, without in (("all_terms", "forward_tuned"), ("vote_all_terms", "majority")):
        gain = (
            STRATEGIES[with_reverse].accuracy(fresh, tuned.weights[with_reverse]).mean()
            - STRATEGIES[without].accuracy(fresh, tuned.weights.get(without)).mean()
        )
        assert gain > 0.1


def test_a_useless_score_of_long_texts_does_not_outvote_the_majority() -> None:
    """Its sums differ by hundreds of nats; a high temperature makes all votes count the same."""
    rng = np.random.default_rng(0)
    correct = rng.random((200, 8)) < 0.7
    table = made_table(correct, {"forward": rng.normal(size=correct.shape) * 100})
    own = tune(table).weights["vote_forward"]
    majority = STRATEGIES["majority"].accuracy(table, None).mean()
    assert STRATEGIES["vote_forward"].accuracy(table, own).mean() > majority - 0.01


def test_interpolation_is_that_of_the_paper() -> None:
    strategy = STRATEGIES["reverse_reward"]
    assert strategy.interpolation(0.25, mean=False) == {"forward": 0.75, "reverse": 0.25}
    assert set(strategy.interpolation(0.25, mean=True)) == {"forward_mean", "reverse_mean"}


def with_external_score(table: CandidateTable, unit: float) -> CandidateTable:
    """A verifier whose logit, in some unit, is as informative as log P(x|y)."""
    noise = np.random.default_rng(7).normal(size=table.mask.shape)
    verifier = unit * (noise + 2.0 * table.correct)
    return replace(
        table, features=table.features | {"verifier": verifier}, external_scores=("verifier",)
    )


@pytest.mark.slow
def test_an_external_score_is_weighted_in_any_unit(tmp_path: Path) -> None:
    for unit in (1e-200, 1e98):
        table = with_external_score(made_pools(), unit)
        tuned = tune(table)
        assert tuned.external_scores == ("verifier",)
        every = tuned.weights["all_external"]
        # Two independent signals, each two standard deviations apart: equal weights in their units.
        assert every["verifier"] * unit == pytest.approx(every["reverse"], rel=0.25)
        fresh, known = with_external_score(made_pools(seed=1), unit), strategies(["verifier"])
        accuracy = {
            name: known[name].accuracy(fresh, tuned.weights.get(name)).mean()
            for name in ("majority", "vote_external:verifier", "all_terms", "all_external")
        }
        assert accuracy["vote_external:verifier"] > accuracy["majority"] + 0.1
        assert accuracy["all_external"] > accuracy["all_terms"] + 0.05
        tuned.save(tmp_path / "weights.json")
        assert TunedWeights.load(tmp_path / "weights.json") == tuned


@pytest.mark.slow
def test_a_constant_score_has_no_weight_in_a_sum() -> None:
    """0.1 + 0.1 + ... rounds, which is not a difference between candidates."""
    table = made_pools()
    constant = np.full(table.mask.shape, 0.1)
    for values in (constant, 0 * constant, 1e-200 * constant):
        features = table.features | {"verifier": values}
        weights = fit_sum(("reverse", "verifier"), replace(table, features=features))
        assert abs(weights["verifier"] * values.max()) < 1e-6 * weights["reverse"]


@pytest.mark.slow
def test_weights_converge_to_the_true_ones_with_more_problems() -> None:
    """For normals at 0 and 2 with spread 1, the log odds of (x right, x' wrong) are 2 (x - x').

    The penalty's share of the loss falls with the number of problems, so only noise remains: a
    standard error of about 4%.
    """
    features = ("reverse", "verifier", "forward")
    many = fit_sum(features, with_external_score(made_pools(2000), 1.0))
    assert many["reverse"] == pytest.approx(2.0, rel=0.12)
    assert many["verifier"] == pytest.approx(2.0, rel=0.12)
    assert many["forward"] == pytest.approx(0.0, abs=0.2)


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    tuned = tune(with_few_terms(made_pools(50)))
    tuned.save(tmp_path / "weights.json")
    assert TunedWeights.load(tmp_path / "weights.json") == tuned


def test_weights_refuse_the_problems_they_were_tuned_on() -> None:
    tuned = tune(with_few_terms(made_pools(50)))
    tuned.refuse_overlap([Problem(id="x", question="a new one")])
    with pytest.raises(InputError, match="problem 'y' is one of those that the weights were tuned"):
        tuned.refuse_overlap([Problem(id="y", question="question 7")])


def test_having_nothing_to_tune_is_reported() -> None:
    table = made_pools(20)
    table.correct[:] = True
    with pytest.raises(InputError, match="both right and wrong"):
        tune(table)
    unlabeled = replace(table, labeled=np.zeros(20, bool))
    with pytest.raises(InputError, match="no.* known answer to fit on; add answers to the problem"):
        tune(unlabeled)


@pytest.mark.slow
def test_one_problem_with_thousands_of_candidates_takes_no_square_of_memory() -> None:
    """A byte for each pair of candidates of each problem would be 100 MB."""
    few = with_few_terms(made_pools(100))
    wide = {name: np.pad(values, ((0, 0), (0, 992))) for name, values in few.features.items()}
    more = {
        name: np.pad(getattr(few, name), ((0, 0), (0, 992)))
        for name in ("answers", "correct", "mask", "blank")
    }
    for name, values in wide.items():  # only the first problem has more candidates
        values[0] = np.tile(few.features[name][0], 125)
    for name, values in more.items():
        values[0] = np.tile(getattr(few, name)[0], 125)
    many = replace(few, features=wide, **more)
    tracemalloc.start()
    try:
        found = tune(many)
        assert tracemalloc.get_traced_memory()[1] < 8e7
    finally:
        tracemalloc.stop()
    # Each of these candidates is there 125 times, so their votes and pairs count the same.
    assert found.weights == tune(few).weights


@pytest.mark.slow
def test_pairs_of_thousands_of_candidates_do_not_fill_the_memory() -> None:
    """All pairs of 10 problems with 240 right and 560 wrong candidates each would be 11 MB."""
    pools = [made_pools(10, seed) for seed in range(100)]
    table = replace(
        pools[0],
        features={"reverse": np.hstack([pool.features["reverse"] for pool in pools])},
        **{
            name: np.hstack([getattr(pool, name) for pool in pools])
            for name in ("answers", "correct", "mask", "blank")
        },
    )
    tracemalloc.start()
    try:
        weights = fit_sum(("reverse",), table)
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()
    assert weights["reverse"] == pytest.approx(1.083, rel=0.03)  # the weight by all pairs


@pytest.mark.slow
def test_cross_fitting_never_sees_the_fold_it_is_applied_to() -> None:
    table = with_few_terms(made_pools(60))
    folds = cross_fit(table, 3).folds
    assert sorted(row for rows, _ in folds for row in rows) == list(range(60))
    rows, weights = folds[1]
    assert weights.num_problems == 40
    flipped = replace(table, correct=table.correct.copy())
    flipped.correct[rows] = ~flipped.correct[rows]
    again = cross_fit(flipped, 3).folds
    assert again[1][1].weights == weights.weights
    assert again[0][1].weights != folds[0][1].weights


def test_cross_fitted_weights_are_saved_as_those_fitted_on_all_problems(tmp_path: Path) -> None:
    table = with_few_terms(made_pools(60))
    cross_fit(table, 2).save(tmp_path / "weights.json")
    assert TunedWeights.load(tmp_path / "weights.json") == tune(table)


@pytest.mark.slow
def test_cross_fitting_keeps_equal_questions_in_one_fold() -> None:
    ends = ("", " ", "\n")  # copies of a problem in other files
    questions = [f"question {i % 20}{ends[i // 20]}" for i in range(60)]
    hashes = [question_hash(question) for question in questions]
    table = replace(with_few_terms(made_pools(60)), question_hashes=hashes)
    folds = cross_fit(table, 3).folds
    assert sorted(row for rows, _ in folds for row in rows) == list(range(60))
    for rows, weights in folds:
        asked = [Problem(id=str(row), question=questions[row]) for row in rows]
        weights.refuse_overlap(asked)  # raises if both have a question
        assert weights.num_problems == 60 - len(rows)
    with pytest.raises(InputError, match="21 folds of 20 problems"):
        cross_fit(table, 21)


@pytest.mark.slow
def test_the_penalty_is_chosen_on_questions_that_were_not_fitted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing here has a signal, so the strongest penalty orders new candidates best.

    Copies of a problem in another fold would reward the weakest one, which remembers them.
    """
    few = made_pools(20)
    few.features["reverse"] = np.random.default_rng(2).normal(size=few.mask.shape)
    copies = few.select(np.tile(np.arange(20), 4))
    tuned = tune(copies)
    monkeypatch.setattr("ledom.rerank.fit._PENALTIES", (30.0,))
    assert tuned.weights["all_terms"] == tune(copies).weights["all_terms"]


@pytest.mark.slow
def test_unlabeled_problems_are_neither_fitted_on_nor_counted() -> None:
    """The last 20 of 60 problems are unlabeled, so their contents must not matter."""
    labeled = np.arange(60) < 40
    table = replace(with_few_terms(made_pools(60)), labeled=labeled)
    asked = [Problem(id=str(i), question=f"question {i}") for i in range(60)]
    tuned = tune(table)
    assert tuned.num_problems == 40
    assert tuned == tune(with_few_terms(made_pools(60)).select(np.arange(40)))
    tuned.refuse_overlap(asked[40:])
    with pytest.raises(InputError, match="tuned on"):
        tuned.refuse_overlap(asked[39:40])
    for rows, fold in cross_fit(table, 3).folds:
        assert fold.num_problems == 40 - labeled[rows].sum()


@pytest.mark.parametrize("num_folds", [-1, 1, 61])
def test_a_senseless_number_of_folds_is_refused(num_folds: int) -> None:
    with pytest.raises(InputError, match=f"{num_folds} folds of 60 problems"):
        cross_fit(made_pools(60), num_folds)


def test_texts_without_content_change_no_weight() -> None:
    """Their scores say nothing of what a strategy has to choose between."""
    table, terms = made_pools(100), ("forward", "reverse")
    blank = np.zeros(table.mask.shape, bool)
    blank[:, 0] = True

    def weights(empty: float) -> dict[str, float]:
        features = {name: np.where(blank, empty, table.features[name]) for name in terms}
        return fit_sum(terms, replace(table, blank=blank, features=features))

    assert weights(0.0) == weights(1000.0)
