"""Candidates, their external scores, and scores shared by equal texts."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem
from ledom.rerank.candidates import (
    AnswerClasses,
    candidate_check,
    check_problems,
    choose_external_scores,
    pools,
    read_candidates,
    scores_by_target,
)
from ledom.text.answers import equal_answers
from ledom.text.math import spelling
from made import made_score


def candidate(problem: str, index: int, text: str, greedy: bool = False) -> Candidate:
    return Candidate(problem_id=problem, index=index, text=text, greedy=greedy)


def test_equal_texts_of_one_problem_share_the_first_ones_scores() -> None:
    greedy = candidate("a", 0, "2", greedy=True)
    twin, other = candidate("a", 1, "2"), candidate("a", 2, "3")
    elsewhere = candidate("b", 0, "2")
    score = made_score("x|y", problem_id="a")
    shared = scores_by_target([greedy, twin, other, elsewhere], [score])
    mine = {"x|y": score}
    assert shared == {("a", 0): mine, ("a", 1): mine, ("a", 2): {}, ("b", 0): {}}


def test_a_pool_has_no_greedy_candidates_and_keeps_the_problems_order() -> None:
    drawn = [candidate("b", 0, "1"), candidate("a", 0, "2"), candidate("a", 1, "3", greedy=True)]
    found = pools(["a", "b"], drawn)
    assert list(found) == ["a", "b"]
    assert [[c.text for c in pool] for pool in found.values()] == [["2"], ["1"]]


@pytest.mark.parametrize("number", ["12", -7, 2.5, True])
def test_invalid_token_counts_are_refused(number: object) -> None:
    check = candidate_check([Problem(id="p", question="?")])
    with pytest.raises(InputError, match="candidate 0 of problem 'p': 'num_tokens' is .*"):
        check(judged(num_tokens=number))


def test_a_candidate_stopped_early_must_give_its_token_count() -> None:
    """It is never scored, so its cost is not known otherwise. A table may write 12 as 12.0."""
    check = candidate_check([Problem(id="p", question="?")])
    for index, known in enumerate((12, 12.0, 0)):
        check(replace(judged(index, num_tokens=known), finish_reason="unsure"))
    check(judged(3, num_tokens=None))
    with pytest.raises(InputError, match="candidate 4 of .* broken off .* no 'num_tokens'"):
        check(replace(judged(4), finish_reason="unsure"))


def judged(index: int = 0, greedy: bool = False, **scores: object) -> Candidate:
    return Candidate(problem_id="p", index=index, text="#### 1", greedy=greedy, extra=scores)


def test_self_certainty_is_used_if_all_candidates_have_it() -> None:
    sure = [judged(0, self_certainty=1.5), judged(1, self_certainty=2)]
    greedy = judged(2, greedy=True)  # separate, so it need not have it
    assert choose_external_scores([*sure, greedy]) == ("self_certainty",)
    assert choose_external_scores([*sure, judged(3)]) == ()
    assert choose_external_scores([*sure, judged(3, self_certainty=None)]) == ()
    assert choose_external_scores(sure, []) == ()


def test_a_candidate_stopped_early_needs_no_score() -> None:
    broken_off = replace(judged(3), finish_reason="unsure")
    assert choose_external_scores([judged(self_certainty=1.5), broken_off]) == ("self_certainty",)
    drawn = [judged(verifier=0.5), broken_off]
    assert choose_external_scores(drawn, ["verifier"]) == ("verifier",)


def test_requested_and_required_score_fields_are_read() -> None:
    both = [judged(verifier=0.5, other=-3)]
    assert choose_external_scores(both, ["verifier"]) == ("verifier",)
    assert choose_external_scores(both, None, ["other"]) == ("other",)
    assert choose_external_scores(both, ["verifier", "other"], ["verifier"]) == (
        "verifier",
        "other",
    )
    with pytest.raises(InputError, match="candidate 0 of problem 'p' has no 'reward'"):
        choose_external_scores(both, ["verifier"], ["reward"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", "'0.5', expected a number of at most 1e.100"),
        (True, "True, expected a number of at most 1e.100"),
        ([1.0], r"\[1.0\], expected a number of at most 1e.100"),
        (None, "has no 'verifier'"),
        (-2e100, "-2e.100, expected a number of at most 1e.100"),
    ],
)
def test_the_error_for_a_non_number_names_file_and_line(
    tmp_path: Path, value: object, message: str
) -> None:
    path = tmp_path / "c.jsonl"
    rows = [judged(0, verifier=1), judged(1, greedy=True), judged(2, verifier=value)]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    assert len(read_candidates(path)) == 3  # fields that are not requested do not matter
    with pytest.raises(InputError, match=message) as error:
        read_candidates(path, ["verifier"])
    assert str(error.value).startswith(f"{path}:3: candidate 2 of problem 'p'")


def test_a_bad_score_that_is_used_by_default_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [judged(0, self_certainty=1), judged(1, self_certainty="high")]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    assert len(read_candidates(path, [])) == 2
    with pytest.raises(InputError, match="'self_certainty' is 'high'.*expected") as error:
        read_candidates(path)
    assert str(error.value).startswith(f"{path}:2: candidate 1 of problem 'p'")


@pytest.mark.parametrize("answer", ["...", "-", r"\boxed{}"])
def test_a_right_answer_that_nothing_equals_is_refused(answer: str) -> None:
    with pytest.raises(InputError, match="problem 'p' has the answer .* correct or remove"):
        check_problems([Problem(id="p", question="2 + 2?", answer=answer)])
    check_problems([Problem(id="p", question="2 + 2?", answer=" ")])


def test_equal_answers_are_in_the_same_class() -> None:
    classes = AnswerClasses()
    answers = ["$1,200", "7", "1200 dollars", r"\frac{14}{2}", "1200.0", "yes", "Yes."]
    assert [classes.number(answer) for answer in answers] == [0, 1, 0, 1, 0, 2, 2]


@pytest.mark.parametrize("answer", [None, "", " ", "..."])
def test_no_answer_has_no_class(answer: str | None) -> None:
    assert AnswerClasses().number(answer) == -1


@pytest.mark.slow
@pytest.mark.parametrize("answers", list(permutations(["5", "5 cm", "5 m", "5 centimeters"])))
def test_members_of_a_class_are_equal_in_every_order(answers: tuple[str, ...]) -> None:
    classes = AnswerClasses()
    number_of = {answer: classes.number(answer) for answer in answers}
    assert number_of == {answer: classes.number(answer) for answer in answers}  # unchanged
    assert number_of["5 cm"] != number_of["5 m"]
    assert number_of["5 cm"] == number_of["5 centimeters"] or number_of["5"] == number_of["5 m"]
    for one, other in combinations(answers, 2):
        if number_of[one] == number_of[other]:
            assert equal_answers(one, other)


def test_a_vote_among_many_answers_converts_each_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    plain_text = spelling.plain_text
    monkeypatch.setattr(spelling, "plain_text", lambda a: (converted.append(a), plain_text(a))[1])
    answers = [f"vote {i} of many" for i in range(30)]
    assert [*map(AnswerClasses().number, answers)] == [*range(30)]
    assert sorted(converted) == sorted(answers)  # not once in each of the 435 comparisons


def test_a_percentage_does_not_join_two_numbers() -> None:
    classes = AnswerClasses()
    assert [classes.number(answer) for answer in ("50", "50%", "0.5")] == [0, 0, 1]
