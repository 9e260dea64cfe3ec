"""The measured part of a report, compared with numbers worked out for an artificial table."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from ledom.core.records import Candidate, Problem
from ledom.report.results import Interval, Measurement, StrategyResult
from ledom.rerank.candidate_table import FEATURES, CandidateTable, build_candidate_table
from ledom.rerank.candidates import labeled_problems, question_hash
from ledom.rerank.fit import tune
from ledom.rerank.measure import changes, measure
from ledom.rerank.weights import CrossFitted, TunedWeights
from made import made_table, noise

NUM_PROBLEMS = 200


@pytest.fixture(scope="module")
def table() -> CandidateTable:
    """Half of the candidates are right; only log P(x|y) tells which."""
    rng = np.random.default_rng(0)
    shape = (NUM_PROBLEMS, 6)
    correct = np.tile([True, False, True, False, True, False], (NUM_PROBLEMS, 1))
    features = noise(shape)
    features["reverse"] = np.where(correct, 0.0, -50.0) + rng.normal(size=shape)
    return made_table(
        correct,
        features,
        answers=np.tile([0, 1, 0, 2, 0, 3], (NUM_PROBLEMS, 1)),
        greedy=np.array([1.0, 0.0] * (NUM_PROBLEMS // 2)),
        groups=["a", "b"] * (NUM_PROBLEMS // 2),
    )


@pytest.fixture(scope="module")
def report(table: CandidateTable) -> Measurement:
    tuned = tune(table.select(np.arange(60)))  # enough for a single informative term
    return measure(table, tuned)


def by_name(report: Measurement) -> dict[str, StrategyResult]:
    return {row.id: row for row in report.strategies}


@pytest.mark.slow
def test_accuracies_match_those_worked_out(report: Measurement) -> None:
    rows = by_name(report)
    assert rows["greedy"].accuracy.mean == pytest.approx(0.5)
    assert rows["random"].accuracy.mean == pytest.approx(0.5)
    unseen = 1 - 0.025 ** (1 / NUM_PROBLEMS)  # equal for all problems seen
    assert rows["random"].accuracy.low == pytest.approx(0.5 - unseen / 2)
    assert rows["reverse_only"].accuracy.mean == 1.0
    assert rows["majority"].accuracy.mean == 1.0
    assert rows["oracle"].accuracy.mean == 1.0
    versus = rows["reverse_only"].versus
    assert versus["random"].mean == pytest.approx(0.5)
    assert 0.4 < versus["greedy"].low < 0.5 < versus["greedy"].high < 0.6


def test_headline_differences_match_those_worked_out(report: Measurement) -> None:
    claims = {row.claim: row.difference for row in report.headline}
    assert [row.claim for row in report.headline if row.main] == [
        "Reverse Reward with its third term beats the greedy answer",
        "Weighted voting beats majority voting",
    ]
    assert claims["Reverse Reward beats a random candidate"].low > 0.4
    assert claims["Picking: adding reverse scores to the forward ones helps"].low > 0.3


def test_accuracy_by_n_matches_the_formula(report: Measurement) -> None:
    curves = report.accuracy_by_n
    assert curves.n == [1, 2, 4, 6]
    oracle = curves.strategies["oracle"]
    # 1 - C(3, n) / C(6, n): the chance that a subset contains a right one.
    for value, expected in zip(oracle, [0.5, 0.8, 1.0, 1.0], strict=True):
        assert value == pytest.approx(expected, abs=0.02)
    assert curves.strategies["reverse_reward"][-1] == 1.0


def test_accuracy_by_lambda_covers_0_to_1(report: Measurement) -> None:
    curve = report.accuracy_by_lambda
    assert curve.lambda_[0] == 0.0
    assert curve.lambda_[-1] == 1.0
    assert curve.accuracy[0] < 0.65  # the forward score is noise here
    assert curve.chosen in curve.lambda_


def test_every_score_has_an_auc(report: Measurement) -> None:
    aucs = {row.score: row.auc.mean for row in report.auc}
    assert aucs[FEATURES["reverse"].label] == 1.0
    assert aucs[FEATURES["forward"].label] == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
def test_texts_without_content_are_in_no_auc(table: CandidateTable) -> None:
    """An empty text has the highest log P(x|y) here, but no strategy may choose it."""
    blank = np.zeros(table.mask.shape, bool)
    blank[:, 1] = True
    reverse = np.where(blank, 100.0, table.features["reverse"])
    empty = replace(table, blank=blank, features=table.features | {"reverse": reverse})
    found = measure(empty, TunedWeights({}, 0, 0, frozenset()))
    assert {row.term: row.auc.mean for row in found.auc}["reverse"] == 1.0


@pytest.mark.slow
def test_reliability_belongs_to_the_vote_that_chooses(table: CandidateTable) -> None:
    """With only a lambda, that is the vote by Reverse Reward."""
    weights = {"forward": 1.0, "reverse": 0.0}
    votes = dict.fromkeys(("reverse_reward", "vote_reverse_reward"), weights)
    means = {f"{name}_mean": table.features[name] for name in weights}
    table = replace(table, features=table.features | means)
    found = measure(table, TunedWeights(votes, 0, 0, frozenset()))
    total = sum(row.accuracy * row.count for row in found.reliability.bins)
    right = by_name(found)["vote_reverse_reward"].accuracy.mean
    assert right != by_name(found)["vote_reverse_only"].accuracy.mean
    assert total / NUM_PROBLEMS == pytest.approx(right)


def test_reliability_counts_every_problem(report: Measurement) -> None:
    bins = report.reliability.bins
    assert sum(row.count for row in bins) == NUM_PROBLEMS
    assert all(row.low <= row.accuracy <= row.high for row in bins)


def test_reliability_does_not_depend_on_the_order_of_the_problems() -> None:
    """Sixteen problems are sure (2 of 2 votes), four are not; bins are of about two or three."""
    pools = ["11"] * 8 + ["22"] * 8 + ["12"] * 4
    expected = [(0.5, 0.5, 4), (1.0, 0.5, 16)]
    for order in (pools, pools[::-1], pools[::3] + pools[1::3] + pools[2::3]):
        found = measure(unequal(*order), TunedWeights({}, 0, 0, frozenset()))
        bins = [(bin.mean_score, bin.accuracy, bin.count) for bin in found.reliability.bins]
        assert bins == expected


def test_copies_of_a_question_do_not_narrow_an_interval() -> None:
    """Every problem four times, under other ids, has the intervals of one copy."""
    pools = ["112", "222", "121", "211", "122"]
    once, four = unequal(*pools), unequal(*pools * 4)
    hashes = [question_hash(f"question {i}") for i in range(5)]
    once, four = replace(once, question_hashes=hashes), replace(four, question_hashes=hashes * 4)
    reports = [measure(table, TunedWeights({}, 0, 0, frozenset())) for table in (once, four)]
    for name in ("random", "majority", "majority_stopped"):
        one, other = (by_name(report)[name] for report in reports)
        for first, second in zip(
            [one.accuracy, *one.versus.values()],
            [other.accuracy, *other.versus.values()],
            strict=True,
        ):
            assert asdict(first) == pytest.approx(asdict(second))


def test_groups_are_measured_separately(report: Measurement) -> None:
    rows = {row.group: row for row in report.by_group}
    assert rows["a"].num_problems == rows["b"].num_problems == NUM_PROBLEMS // 2
    assert rows["a"].accuracy["greedy"] == 1.0
    assert rows["b"].accuracy["greedy"] == 0.0


@pytest.mark.slow
def test_a_stopped_vote_reports_what_it_needed(report: Measurement, table: CandidateTable) -> None:
    """Answers 0 1 0 2 0 3: after five, the lead of 3 - 1 exceeds the one candidate left."""
    rows = by_name(report)
    assert rows["majority_stopped"].accuracy == rows["majority"].accuracy
    assert rows["majority_stopped"].kind == "vote"
    needed = rows["majority_stopped"].needed
    assert needed.of == 6
    assert needed.candidates == Interval(5.0, 5.0, 5.0)
    assert needed.saved.mean == pytest.approx(1 / 6)
    assert rows["majority"].needed is None
    stopped = measure(replace(table, num_planned=10), TunedWeights({}, 0, 0, frozenset()))
    needed = by_name(stopped)["majority_stopped"].needed
    assert (needed.of, needed.candidates.mean) == (10, 6.0)


def unequal(*pools: str) -> CandidateTable:
    """Pools with these answers; 1 is right."""
    problems = [Problem(id=str(row), question=f"{row}?", answer="1") for row in range(len(pools))]
    drawn = [
        Candidate(problem_id=problem.id, index=i, text=f"#### {answer}")
        for problem, pool in zip(problems, pools, strict=True)
        for i, answer in enumerate(pool)
    ]
    return build_candidate_table(problems, drawn, [])


def test_a_stopped_vote_averages_over_pools_of_unequal_size() -> None:
    """2 of 2 and 4 of 6 candidates are needed, 3 of 4 on average."""
    found = measure(unequal("12", "111123"), TunedWeights({}, 0, 0, frozenset()))
    needed = by_name(found)["majority_stopped"].needed
    assert (needed.candidates.mean, needed.of) == (3.0, 4)
    assert needed.saved.mean == pytest.approx((0 / 2 + 2 / 6) / 2)


def test_accuracy_by_number_averages_over_subsets_of_the_larger_pools() -> None:
    """Any two of a hundred candidates are right with probability 1/2 each."""
    found = measure(unequal("22", "12" * 50), TunedWeights({}, 0, 0, frozenset()))
    assert found.accuracy_by_n is not None
    assert found.accuracy_by_n.n == [1, 2]
    values = found.accuracy_by_n.strategies["random"]
    assert all(value not in (0, 0.25, 0.5) for value in values)  # values from a single subset
    np.testing.assert_allclose(values, 0.25, atol=0.1)


def test_a_random_candidate_is_one_that_is_drawn_whatever_the_votes() -> None:
    """Of 4 planned, 3 are drawn; the fourth only if they disagree, which changes the mean."""
    planned = replace(unequal("111", "1122", "2212", "222"), num_planned=4)
    found = measure(planned, TunedWeights({}, 0, 0, frozenset()))
    first = (1 + 2 / 3 + 1 / 3 + 0) / 4
    assert by_name(found)["random"].accuracy.mean == pytest.approx(first)
    assert found.accuracy_by_n is not None
    assert found.accuracy_by_n.n == [1, 2, 3]
    assert found.accuracy_by_n.strategies["random"][-1] == pytest.approx(first)


@pytest.mark.parametrize("texts", ["12222", "21222", "2221222"])
def test_more_candidates_never_lower_the_bound(texts: str) -> None:
    found = measure(unequal(texts), TunedWeights({}, 0, 0, frozenset()))
    assert found.accuracy_by_n is not None
    oracle = found.accuracy_by_n.strategies["oracle"]
    assert oracle == sorted(oracle)


def test_problems_without_a_group_form_one() -> None:
    groups: list[dict[str, object]] = [{}, {"group": None}, {"group": ""}, {"group": 3}]
    problems = [Problem(id=str(i), question="?", extra=extra) for i, extra in enumerate(groups)]
    drawn = [Candidate(problem_id=problem.id, index=0, text="4") for problem in problems]
    assert build_candidate_table(problems, drawn, []).groups == ["none", "none", "none", "3"]


@pytest.mark.slow
def test_external_scores_are_measured_alone_and_combined(table: CandidateTable) -> None:
    features = table.features | {"verifier": np.where(table.correct, 0.9, 0.1)}
    noise = table.features | {"reverse": table.features["forward"]}
    table = replace(table, features=noise | {"verifier": features["verifier"]})
    table = replace(table, external_scores=("verifier",))
    report = measure(table, tune(table))
    rows = by_name(report)
    for name in (
        "external:verifier",
        "vote_external:verifier",
        "all_external",
        "vote_reverse_external",
    ):
        assert rows[name].accuracy.mean == 1.0
    assert rows["all_terms"].accuracy.mean < 0.7
    assert "verifier" in rows["all_external"].formula
    aucs = {row.score: row.auc.mean for row in report.auc}
    assert aucs["verifier, external score"] == aucs["all + external scores (tuned)"] == 1.0
    claims = {row.claim: row.difference for row in report.headline}
    assert "Voting: adding external scores to all others helps" in claims


@pytest.mark.slow
def test_strategies_without_weights_are_left_out(table: CandidateTable) -> None:
    report = measure(table, TunedWeights({}, 0, 0, frozenset()))
    assert "all_terms" not in by_name(report)
    assert "forward" in by_name(report)
    assert report.accuracy_by_lambda is None


def in_folds(even: float, odd: float) -> CrossFitted:
    """Reverse Reward with these weights of log P(x|y) for even and for odd problems."""
    rows = np.arange(NUM_PROBLEMS)
    every, *folds = (
        TunedWeights({"reverse_reward": {"reverse": sign}}, 1, 1, frozenset())
        for sign in (1.0, even, odd)
    )
    return CrossFitted(**vars(every), folds=[(rows[::2], folds[0]), (rows[1::2], folds[1])])


@pytest.mark.slow
def test_each_fold_uses_its_own_weights(table: CandidateTable) -> None:
    """Weights with flipped signs in one fold choose wrongly there, and only there."""
    for odd, expected in ((-1.0, 0.5), (1.0, 1.0)):
        report = measure(table, in_folds(1.0, odd))
        assert by_name(report)["reverse_reward"].accuracy.mean == pytest.approx(expected)
        assert str(report.settings["tuned on"]).endswith("uses the weights of the other folds")


@pytest.mark.slow
def test_only_labeled_problems_are_measured(table: CandidateTable) -> None:
    """Greedy is right on every second problem, so on all even ones."""
    evens = replace(table, labeled=np.arange(NUM_PROBLEMS) % 2 == 0)
    report = measure(evens, TunedWeights({}, 0, 0, frozenset()))
    assert report.num_labeled == NUM_PROBLEMS // 2
    assert by_name(report)["greedy"].accuracy.mean == 1.0
    none = replace(table, labeled=np.zeros(NUM_PROBLEMS, bool))
    assert measure(none, TunedWeights({}, 0, 0, frozenset())) == Measurement(num_labeled=0)


@pytest.mark.slow
def test_folds_keep_their_weights_among_the_labeled(table: CandidateTable) -> None:
    """Fold 0 holds the even problems, chosen rightly; fold 1 the odd ones, chosen wrongly."""
    rows, weights = np.arange(NUM_PROBLEMS), in_folds(1.0, -1.0)
    labeled = (rows % 2 == 0) | (rows < 100)  # 100 even and 50 odd problems
    report = measure(replace(table, labeled=labeled), weights)
    assert report.num_labeled == 150
    assert by_name(report)["reverse_reward"].accuracy.mean == pytest.approx(100 / 150)
    evens = measure(replace(table, labeled=rows % 2 == 0), weights)
    assert by_name(evens)["reverse_reward"].accuracy.mean == 1.0


def test_labels_come_from_answers_or_candidates() -> None:
    problems = [Problem(id=str(i), question="?", answer="1" if i == 0 else None) for i in range(4)]
    labels: list[tuple[str, bool | None]] = [("1", True), ("1", False), ("2", True), ("2", None)]
    candidates = [
        Candidate(problem_id=problem, index=i, text="#### 1", correct=correct)
        for i, (problem, correct) in enumerate(labels)
    ]
    # An answer; a label on every candidate; a label on only some; none at all.
    assert labeled_problems(problems, candidates).tolist() == [True, True, False, False]
    broken_off = Candidate(problem_id="1", index=9, text="1", finish_reason="unsure")
    assert labeled_problems(problems, [*candidates, broken_off])[1]  # it is never chosen
    blank = [Problem(id=p.id, question="?", answer=" ") for p in problems]  # no label either
    assert labeled_problems(blank, candidates).tolist() == [False, True, False, False]


def changing(reverse: list[list[float]], correct: list[list[bool]]) -> CandidateTable:
    """Two candidates per problem; the forward model picks the first."""
    rows = len(reverse), 1
    features = {"forward": np.tile([-1.0, -2.0], rows), "reverse": np.array(reverse)}
    return made_table(np.array(correct), features, answers=np.tile([0, 1], rows))


def test_cases_are_first_the_reverse_models_fixes_then_its_largest_changes() -> None:
    table = changing(
        [[-9.0, -4.0], [-5.0, -4.0], [-1.0, -8.0], [-7.0, -4.0]],
        [[True, False], [False, True], [True, False], [False, True]],
    )
    untuned = TunedWeights({}, 0, 0, frozenset())
    found = changes(table, untuned)
    assert [row for row, _, _ in found] == [3, 1, 0]  # for 2, both models pick the first
    assert {rejected for _, _, rejected in found} == {0}
    # By means, the second is picked only for 2, with a lower log P(x|y): it is the only change.
    means = np.array([[-1.0, -2.0]] * 2 + [[-2.0, -1.0]] + [[-1.0, -2.0]])
    zeros = {"reverse_mean": np.zeros((4, 2))}
    by_means = replace(table, features=table.features | {"forward_mean": means} | zeros)
    weights = TunedWeights({"reverse_reward": {"forward_mean": 1.0}}, 0, 0, frozenset())
    assert changes(by_means, weights)[0][0] == 2
    only_reverse = replace(table, features={"reverse": table.features["reverse"]})
    worst = [(row, rejected) for row, _, rejected in changes(only_reverse, untuned)]
    assert worst == [(2, 1), (3, 0), (1, 0)]
    # A text of which nothing is read is no answer to compare with.
    unread = replace(only_reverse, blank=np.array([[False, False]] * 3 + [[True, False]]))
    worst = [(row, rejected) for row, _, rejected in changes(unread, untuned)]
    assert worst == [(2, 1), (1, 0), (0, 0)]
    assert changes(replace(table, features={}), untuned) == []
