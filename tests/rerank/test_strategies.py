"""Every strategy on a table small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score
from ledom.report import selection_page
from ledom.rerank import measure, weights
from ledom.rerank.candidate_table import CandidateTable, build_candidate_table
from ledom.rerank.strategies import STRATEGIES, check_score_names, strategies
from ledom.rerank.weights import TunedWeights, default_weights, select
from made import made_score, token_score

PROBLEM = Problem(id="p", question="What is 1 + 1?", answer="2")


def score(index: int, target: str, values: list[float], spans: list[list[int]]) -> Score:
    return token_score(target, values, spans, index=index)


def table(
    forward: list[float], answers: list[str], reverse: list[float] | None = None
) -> CandidateTable:
    """One problem whose candidate i says `#### answers[i]` and has these summed scores."""
    candidates = [
        Candidate(problem_id="p", index=i, text=f"{chr(97 + i)}\n#### {answer}")
        for i, answer in enumerate(answers)
    ]
    scores = [score(i, "y|x", [value], [[0, 4]]) for i, value in enumerate(forward)]
    for i, value in enumerate(reverse or []):
        scores += [score(i, "x|y", [value], [[0, 4]]), score(i, "y", [0.0], [[0, 4]])]
        scores += [score(i, target, [-1.0], [[0, 4]]) for target in ("x'|y", "x~|y")]
    return build_candidate_table([PROBLEM], candidates, scores)


def accuracy(name: str, pool: CandidateTable, weights: dict[str, float] | None = None) -> float:
    return float(STRATEGIES[name].accuracy(pool, weights)[0])


def test_picks_equal_those_by_hand() -> None:
    pool = table([-1.0, -3.0, -2.0], ["3", "2", "3"], reverse=[-9.0, -7.0, -9.0])
    assert accuracy("forward", pool) == 0.0
    assert accuracy("reverse_only", pool) == 1.0
    assert accuracy("random", pool) == pytest.approx(1 / 3)
    assert accuracy("oracle", pool) == 1.0
    # (-1 - 9) / 2 = -5 against (-3 - 7) / 2 = -5: a tie, split evenly.
    assert accuracy("reverse_reward", pool, {"forward": 0.5, "reverse": 0.5}) == 0.5
    assert accuracy("reverse_reward", pool, {"forward": 0.25, "reverse": 0.75}) == 1.0
    assert accuracy("reverse_reward", pool, {"forward": 0.75, "reverse": 0.25}) == 0.0


def test_votes_equal_those_by_hand() -> None:
    pool = table([-1.0, -1.0, 0.0], ["3", "3.0", "2"])
    assert accuracy("majority", pool) == 0.0  # 3 and 3.0 are the same answer
    # exp(0) = 1 against 2 exp(-1) = 0.74
    assert accuracy("vote_forward", pool) == 1.0
    shares = STRATEGIES["vote_forward"].shares(pool, None)[0]
    expected = 1 / (1 + 2 * np.exp(-1))
    np.testing.assert_allclose(shares, [1 - expected, 1 - expected, expected])
    assert accuracy("vote_forward", pool, {"forward": 0.5}) == 0.0  # 2 exp(-0.5) = 1.21


def test_a_tied_vote_is_between_answers_not_candidates() -> None:
    pool = table([0.0] * 5, ["2", "3", "3", "2", "4"])
    assert accuracy("majority", pool) == pytest.approx(0.5)


def test_unreadable_answers_do_not_vote() -> None:
    pool = table([0.0, 0.0, 0.0], ["", "", "2"])
    assert accuracy("majority", pool) == 1.0
    assert accuracy("random", pool) == pytest.approx(1 / 3)
    nothing = table([0.0, 0.0], ["", ""])
    assert accuracy("majority", nothing) == 0.0


def labeled(text: str, answers: str, labels: list[bool]) -> tuple[CandidateTable, list[Candidate]]:
    """Candidates with their own labels, each more likely than the previous one."""
    drawn = [
        Candidate(problem_id="p", index=i, text=f"{chr(97 + i)} {text}{answer}", correct=right)
        for i, (answer, right) in enumerate(zip(answers, labels, strict=True))
    ]
    scores = [score(i, "y|x", [float(i - 9)], [[0, 4]]) for i in range(len(drawn))]
    return build_candidate_table([replace(PROBLEM, answer=None)], drawn, scores), drawn


def test_a_vote_without_answers_is_measured_by_the_text_it_chooses() -> None:
    """For example, labeled translations: the best is chosen, as if all answers differed."""
    pool, drawn = labeled("cat sleeps", "   ", [True, False, True])
    assert accuracy("vote_forward", pool) == 1.0
    assert accuracy("majority", pool) == pytest.approx(2 / 3)  # a three-way tie
    (selection,) = select(pool, drawn, "vote_forward", default_weights())
    assert (selection.index, selection.answer) == (2, None)


def test_votes_for_the_same_answer_are_equally_right_if_its_labels_disagree() -> None:
    """As a strict grader's do. Which text a vote prefers must not make it look better."""
    pool, drawn = labeled("#### ", "22232", [True, False, False, True, True])
    weights = {"forward": 0.01}
    for name in ("majority", "majority_stopped", "vote_forward"):  # the stopped one draws three
        assert accuracy(name, pool, weights) == 0.5
    assert accuracy("forward", pool) == 1.0
    tuned = TunedWeights({"vote_forward": weights}, 0, 0, frozenset())
    (selection,) = select(pool, drawn, "vote_forward", tuned)
    assert (selection.index, selection.answer) == (4, "2")  # the best text with this answer


def test_far_below_a_text_without_an_answer_the_best_still_wins() -> None:
    """A short refusal is thousands of nats more likely than any solution; exp(-2000) is 0."""
    pool = table([-5.0, -2000.0, -2010.0, -2010.0], ["", "2", "3", "3"])
    assert accuracy("vote_forward", pool) == 1.0
    shares = STRATEGIES["vote_forward"].shares(pool, None)[0]
    expected = 1 / (1 + 2 * np.exp(-10))
    np.testing.assert_allclose(shares, [0, expected, 1 - expected, 1 - expected])
    nothing = table([-5.0, -2000.0], ["", ""])
    assert STRATEGIES["vote_forward"].shares(nothing, None).tolist() == [[0.0, 0.0]]


def test_the_chosen_answer_is_the_measured_one() -> None:
    """A lead of 3e-6 is a lead, even though the other answer has the best single candidate."""
    pool = table([0.0, -np.log(2) + 3e-6, -np.log(2) + 3e-6], ["3", "2", "2"])
    assert accuracy("vote_forward", pool) == 1.0
    drawn = [
        Candidate(problem_id="p", index=i, text=f"#### {answer}") for i, answer in enumerate("322")
    ]
    (selection,) = select(pool, drawn, "vote_forward", default_weights())
    assert selection.answer == "2"
    (picked,) = select(pool, drawn, "forward", default_weights())
    assert (picked.index, picked.confidence) == (0, 0.5)


def test_a_text_of_which_nothing_is_read_is_chosen_only_if_there_is_no_other() -> None:
    """An empty text has the highest sum, and so has a thought without words or its end."""
    texts = ["<think></think>", "<think>2, or 5?", "2", "5"]
    drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate(texts)]
    scores = [made_score("y|x", value, index=i) for i, value in enumerate([-1, -2, -9, -8])]
    for count, right, chosen in ((4, 0.0, 3), (3, 1.0, 2), (2, 0.0, 0)):
        pool = build_candidate_table([PROBLEM], drawn[:count], scores[:count])
        assert accuracy("forward", pool) == right
        (found,) = select(pool, drawn[:count], "forward", default_weights())
        assert found.index == chosen
    pool = build_candidate_table([PROBLEM], drawn[:3], scores[:3])
    assert accuracy("random", pool) == pytest.approx(1 / 3)  # both count as wrong


def test_the_greedy_candidate_is_separate() -> None:
    candidates = [
        Candidate(problem_id="p", index=0, text="#### 5"),
        Candidate(problem_id="p", index=1, text="#### 2", greedy=True),
    ]
    pool = build_candidate_table([PROBLEM], candidates, [score(0, "y|x", [-1.0], [[0, 4]])])
    assert pool.mask.sum() == 1
    assert accuracy("greedy", pool) == 1.0
    assert accuracy("random", pool) == 0.0


def test_an_unlabeled_greedy_candidate_does_not_count_as_wrong() -> None:
    """The pool has labels but the problem no answer: the greedy text is neither right nor wrong."""
    unlabeled = replace(PROBLEM, answer=None)
    candidates = [
        Candidate(problem_id="p", index=0, text="#### 2", correct=True),
        Candidate(problem_id="p", index=1, text="#### 2", greedy=True),
    ]
    pool = build_candidate_table([unlabeled], candidates, [])
    assert np.isnan(accuracy("greedy", pool))
    assert accuracy("random", pool) == 1.0
    candidates[1].correct = False
    assert accuracy("greedy", build_candidate_table([unlabeled], candidates, [])) == 0.0


def test_features_equal_those_by_hand() -> None:
    """The numbers in the question (characters 8 and 12) are separated from its words."""
    candidates = [Candidate(problem_id="p", index=0, text="1 + 1 = 2")]
    spans = [[0, 7], [7, 9], [9, 11], [11, 13], [13, 14]]
    scores = [
        score(0, "x|y", [-1.0, -2.0, -4.0, -8.0, -16.0], spans),
        score(0, "y", [-0.5, -0.25], [[0, 7], [7, 9]]),
    ]
    features = build_candidate_table([PROBLEM], candidates, scores).features
    assert features["reverse"][0, 0] == -31
    assert features["reverse_mean"][0, 0] == pytest.approx(-31 / 5)
    assert features["question_numbers"][0, 0] == -10
    assert features["prior"][0, 0] == -0.75
    assert "forward" not in features


def test_a_label_in_the_file_takes_precedence() -> None:
    candidates = [Candidate(problem_id="p", index=0, text="two", correct=True)]
    pool = build_candidate_table([PROBLEM], candidates, [score(0, "y|x", [-1.0], [[0, 3]])])
    assert accuracy("forward", pool) == 1.0


def test_equal_texts_share_the_score_of_the_first() -> None:
    candidates = [Candidate(problem_id="p", index=i, text="#### 2") for i in (4, 7)]
    pool = build_candidate_table([PROBLEM], candidates, [score(4, "y|x", [-3.0], [[0, 4]])])
    assert pool.features["forward"].tolist() == [[-3.0, -3.0]]


def test_the_error_for_a_missing_score_names_it() -> None:
    candidates = [Candidate(problem_id="p", index=i, text=f"#### {i}") for i in range(2)]
    with pytest.raises(InputError, match="candidate 1 of problem 'p' has no score for y|x"):
        build_candidate_table([PROBLEM], candidates, [score(0, "y|x", [-3.0], [[0, 4]])])


def test_subsets_are_drawn_without_replacement() -> None:
    pool = table([float(-i) for i in range(6)], [str(i) for i in range(6)])
    rng = np.random.default_rng(0)
    kept = [pool.sample(3, rng).features["forward"][0] for _ in range(200)]
    assert all(len(set(row)) == 3 for row in kept)
    counts = np.bincount((-np.concatenate(kept)).astype(int), minlength=6)
    assert counts.min() > 60  # 100 each expected


def test_every_strategy_is_described_and_of_a_known_kind() -> None:
    pool = table([-1.0, -2.0], ["2", "3"], reverse=[-1.0, -2.0])
    for name, strategy in STRATEGIES.items():
        assert strategy.description
        assert strategy.available(pool)
        value = accuracy(name, pool, dict.fromkeys(strategy.features, 1.0))
        assert np.isnan(value) if name == "greedy" else value in (0.5, 1.0)


def test_a_column_can_pick_vote_and_join_the_scores() -> None:
    """A verifier that prefers candidate 1, with 0.9 against 0.2 and 0.3."""
    verifier = [0.2, 0.9, 0.3]
    candidates = [
        Candidate(problem_id="p", index=i, text=f"#### {answer}", extra={"verifier": verifier[i]})
        for i, answer in enumerate(["3", "2", "3.0"])
    ]
    candidates.append(Candidate(problem_id="p", index=3, text="#### 2", greedy=True))
    scores = [
        score(i, target, [float(-i)], [[0, 4]]) for i in range(3) for target in ("y|x", "x|y", "y")
    ]
    pool = build_candidate_table([PROBLEM], candidates, scores, ["verifier"])
    assert pool.features["verifier"].tolist() == [verifier]
    known = strategies(["verifier"])
    assert list(known)[-1] == "oracle"
    assert known["external:verifier"].accuracy(pool, None) == [1.0]
    # exp(0.9) = 2.46 against exp(0.2) + exp(0.3) = 2.57; at temperature 1/2 6.05 against 3.31.
    assert known["vote_external:verifier"].accuracy(pool, None) == [0.0]
    assert known["vote_external:verifier"].accuracy(pool, {"verifier": 2.0}) == [1.0]
    joint = known["all_external"]
    np.testing.assert_allclose(
        joint.score(pool, {"forward": 1.0, "verifier": 10.0}), [[2.0, 9.0 - 1.0, 3.0 - 2.0]]
    )
    assert set(known["reverse_external"].features) < set(joint.features)
    # Without the external score, they are unknown or unavailable.
    assert "external:verifier" not in strategies()
    assert not joint.available(build_candidate_table([PROBLEM], candidates, scores))
    with pytest.raises(InputError, match="candidate 0 of problem 'p' has no 'reward'"):
        build_candidate_table([PROBLEM], candidates, scores, ["reward"])


def test_columns_are_carried_and_centered_like_scores() -> None:
    problems = [Problem(id=f"p{i}", question="How many?", answer="1") for i in range(30)]
    candidates = [
        Candidate(
            problem_id=problem.id,
            index=i,
            text=f"{i}\n#### {i}",
            model="ab"[i % 2],
            extra={"verifier": 100.0 * (i % 2) + i + number},
        )
        for number, problem in enumerate(problems)
        for i in range(4)
    ]
    pool = build_candidate_table(problems, candidates, [], ["verifier"])
    assert pool.by_model
    # 0, 101, 2, 103 plus the problem's number, minus each model's average: -1 and +1.
    np.testing.assert_allclose(pool.features["verifier"], np.tile([-1.0, -1.0, 1.0, 1.0], (30, 1)))
    some = pool.select(np.array([3, 4])).sample(2, np.random.default_rng(0))
    assert some.external_scores == ("verifier",)
    assert some.features["verifier"].shape == (2, 2)


def test_pools_record_an_early_stop() -> None:
    drawn = Candidate(problem_id="p", index=0, text="#### 2", sampling={"early_stop_of": 8})
    pool = build_candidate_table([PROBLEM], [drawn], [])
    assert pool.num_planned == 8
    assert pool.sample(1, np.random.default_rng(0)).num_planned == 0
    for value in ("8", -1, 10**30, None):
        odd = Candidate(problem_id="p", index=0, text="#### 2", sampling={"early_stop_of": value})
        assert build_candidate_table([PROBLEM], [odd], []).num_planned == 0


def test_scores_are_relative_to_the_model_that_wrote_the_text() -> None:
    """Two models of opposite styles: raw scores reveal the model, relative ones the truth."""
    problems = [Problem(id=f"p{i}", question="How many?", answer="1") for i in range(30)]
    candidates, scores = [], []
    for number, problem in enumerate(problems):
        for index in range(4):
            model = "terse" if index < 2 else "wordy"
            right = (index + number) % 2 == 0
            text = f"{model} {index}\n#### {1 if right else 2}"
            candidates.append(Candidate(problem_id=problem.id, index=index, text=text, model=model))
            value = (0.0 if model == "terse" else -100.0) + (5.0 if right else 0.0) + number
            scores.append(made_score("x|y", value, problem_id=problem.id, index=index))
    table = build_candidate_table(problems, candidates, scores)
    assert table.by_model
    values = table.features["reverse"]
    right, wrong = values[table.correct], values[~table.correct]
    np.testing.assert_allclose(right, 2.5)
    np.testing.assert_allclose(wrong, -2.5)
    # Without labels of the writer, or with few texts by each, nothing changes.
    unnamed = [replace(candidate, model=None) for candidate in candidates]
    raw = build_candidate_table(problems, unnamed, scores)
    assert not raw.by_model
    assert raw.features["reverse"].min() < -90
    few = [c for c in candidates if c.problem_id in ("p0", "p1")]
    assert not build_candidate_table(problems[:2], few, scores).by_model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forward", "ledom computes a score of that name"),
        ("majority", "ledom computes a score of that name"),
        ("index", "a key of every candidate"),
        ("correct", "a key of every candidate"),
        ("vote, verifier", "letters, digits"),
        ("", "letters, digits"),
    ],
)
def test_names_that_are_taken_or_invalid_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_score_names(["verifier", name])


@pytest.mark.parametrize("name", ["greedy", "random", "oracle", "reverse_reward", "no_such"])
def test_a_strategy_that_chooses_no_candidate_is_refused(name: str) -> None:
    drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("5446")]
    table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, [])
    with pytest.raises(InputError, match=f"'{name}' is not a strategy .*choose among: majority"):
        select(table, drawn, name, default_weights())


def test_a_sum_without_weights_chooses_nothing() -> None:
    drawn = [Candidate(problem_id="p", index=0, text="a\n#### 2")]
    pool = table([-1.0], ["2"], reverse=[-2.0])
    with pytest.raises(InputError, match="'noisy_channel' is not a strategy .*reverse_reward"):
        select(pool, drawn, "noisy_channel", default_weights())


def test_lists_of_strategies_name_only_those_that_exist() -> None:
    """A report leaves out an unknown id without a message."""
    claims = {name for _, *pair in measure._CLAIMS for name in pair}
    named = {*claims, *measure._SHOWN_BY_N, *measure._OPPONENTS, *weights._PREFERRED}
    named |= {*selection_page._NAMES, *selection_page._OPPONENTS, *selection_page._REWARDS}
    assert named - strategies(["verifier"]).keys() == set()
