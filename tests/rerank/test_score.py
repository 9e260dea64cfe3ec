"""Scores of pairs: which tokens count and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ledom
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import TokenSpan
from ledom.rerank.candidates import distinct_candidates, match_candidates
from ledom.rerank.score import read_solution, score_candidates
from ledom.text.tokenizer import Tokenizer

PROBLEM = Problem(id="p", question="Ava has 2 pens. How many?", answer="2")


def candidate(index: int, text: str, problem_id: str = "p") -> Candidate:
    return Candidate(problem_id=problem_id, index=index, text=text)


def scores(lm: ledom.LanguageModel, *texts: str) -> list[Score]:
    candidates = [candidate(i, text) for i, text in enumerate(texts)]
    return [s for chunk in score_candidates([PROBLEM], candidates, lm) for s in chunk]


def test_forward_scores_the_solution_and_its_end(checkpoints: dict[str, Path]) -> None:
    lm = ledom.load(checkpoints["forward"])
    (score,) = scores(lm, "2 pens\n#### 2")
    question = lm.tokenizer.encode(PROBLEM.question + "\n\n").ids
    solution = lm.tokenizer.encode("2 pens\n#### 2").ids
    ids = lm.add_special_tokens([*question, *solution])
    expected = lm.logprobs([TokenSpan(ids, 1 + len(question), len(ids))])[0]
    assert score.target == "y|x"
    assert score.num_tokens == len(solution) + 1
    assert score.logprob == pytest.approx(expected.sum(), abs=1e-3)
    assert score.token_spans is not None
    assert score.token_spans[-1] == [0, 0]  # the document's end has no characters


def test_reverse_scores_question_and_solution_in_one_pass(checkpoints: dict[str, Path]) -> None:
    lm = ledom.load(checkpoints["reverse"])
    given, prior = scores(lm, "2 pens\n#### 2")
    question = lm.tokenizer.encode(PROBLEM.question).ids
    literal = lm.tokenizer.encode("\n\n").ids
    solution = lm.tokenizer.encode("2 pens\n#### 2").ids
    ids = lm.add_special_tokens([*question, *literal, *solution])
    every = lm.logprobs([TokenSpan(ids, 0, len(ids) - 1)])[0]
    assert (given.target, prior.target) == ("x|y", "y")
    # The document's start counts as part of the question; the literal belongs to neither.
    np.testing.assert_allclose(given.token_logprobs or [], every[: len(question) + 1], atol=1e-4)
    np.testing.assert_allclose(prior.token_logprobs or [], every[-len(solution) :], atol=1e-4)
    # log P(y) does not depend on the question: another question changes nothing.
    other = Problem(id="p", question="Something else altogether?")
    (chunk,) = score_candidates([other], [candidate(0, "2 pens\n#### 2")], lm)
    assert chunk[1].logprob == pytest.approx(prior.logprob, abs=1e-4)


def test_spans_cover_the_fields_own_characters(tokenizer: Tokenizer) -> None:
    given, prior = scores(FakeLanguageModel(tokenizer, "reverse"), "2 pens\n#### 2")
    for score, text in ((given, PROBLEM.question), (prior, "2 pens\n#### 2")):
        assert "".join(text[start:end] for start, end in score.token_spans or []) == text


def test_equal_texts_are_scored_once(tokenizer: Tokenizer) -> None:
    lm = FakeLanguageModel(tokenizer)
    made = scores(lm, "a", "b", "a", "a")
    assert [score.index for score in made] == [0, 1]
    assert lm.num_scored == 2
    twins = [candidate(0, "a"), candidate(1, "a"), candidate(0, "a", "q")]
    assert distinct_candidates(twins) == [twins[0], twins[2]]


def test_a_text_longer_than_the_context_loses_its_end(tokenizer: Tokenizer) -> None:
    lm = FakeLanguageModel(tokenizer, context=60)
    long, short = scores(lm, "7 " * 500, "7")
    assert long.extra["truncated"] is True
    assert "truncated" not in short.extra
    with pytest.raises(InputError, match="question 'Ava .* leave no room for a solution in"):
        scores(FakeLanguageModel(tokenizer, context=10), "7 " * 30)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("long", ["7 " * 500, "\U0001f600 7" * 40])
@pytest.mark.parametrize("context", range(57, 61))  # cuts inside and between characters
def test_a_truncated_text_has_the_scores_of_its_beginning(
    tokenizer: Tokenizer, direction: Direction, long: str, context: int
) -> None:
    """A four-byte character is read whole or not at all."""
    lm = FakeLanguageModel(tokenizer, direction, context=context)
    cut = scores(lm, long)
    beginning = long[: max(end for _, end in cut[-1].token_spans or [])]
    assert cut[-1].text == beginning
    whole = scores(lm, beginning)
    assert [score.logprob for score in whole] == [score.logprob for score in cut]
    assert not any("truncated" in score.extra for score in whole)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([candidate(0, "a", "q")], "'q', which is not among the 1 problems"),
        ([candidate(0, "a"), candidate(0, "b")], "two candidates with index 0"),
        ([], "1 of 1 problems have no candidates to choose from, the first is 'p'"),
    ],
)
def test_problems_and_candidates_must_match(candidates: list[Candidate], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_candidates([PROBLEM], candidates)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<think>Ava has 2 pens. How many?</think>\n\n#### 2", "#### 2"),
        ("Hm.</think>Or 3?</think>#### 2", "#### 2"),  # the chat template contains the opening tag
        ("<think>It is 2.</think>\n", "<think>It is 2.</think>\n"),
        ("<think>Ava has 2 pens. How", ""),  # cut off
        ("<think>Ava has 2.\n#### 2", "<think>Ava has 2.\n#### 2"),  # never closed
        ("It is 2.<think>Ava has 2", "It is 2."),
        ("</think>\n\n#### 2", "\n\n#### 2"),
        ("<think>\n\n</think>\n\n#### 2", "#### 2"),
        ("<think>\n\n</think>\n\n", ""),  # an empty answer
        (" #### 2", " #### 2"),
    ],
)
def test_a_thought_is_not_scored(
    direction: Direction, written: str, read: str, tokenizer: Tokenizer
) -> None:
    lm = FakeLanguageModel(direction=direction, tokenizer=tokenizer)
    question = PROBLEM.question
    assert read_solution(candidate(0, written), question, lm) == read
    for score, alone in zip(scores(lm, written), scores(lm, read), strict=True):
        assert (score.logprob, score.num_tokens) == (alone.logprob, alone.num_tokens)
        assert score.target == "x|y" or score.solution(written) == read


def test_problem_ids_must_be_unique() -> None:
    with pytest.raises(InputError, match="the id 'p' occurs twice"):
        match_candidates([PROBLEM, PROBLEM], [candidate(0, "a")])


def test_scores_record_the_models_direction(tokenizer: Tokenizer) -> None:
    for direction in Direction:
        made = scores(FakeLanguageModel(tokenizer, direction), "a")
        assert {score.direction for score in made} == {str(direction)}


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_demonstrations_are_read_first(checkpoints: dict[str, Path], direction: str) -> None:
    lm = ledom.load(checkpoints[direction])
    shown = [Problem(id="d", question="1 + 2?", solution="1 + 2 = 3\n#### 3")]
    own = lm.tokenizer.encode(f"{PROBLEM.question}\n\n2 pens\n#### 2").ids
    other = lm.tokenizer.encode("1 + 2?\n\n1 + 2 = 3\n#### 3").ids
    solution = lm.tokenizer.encode("2 pens\n#### 2").ids
    eos = lm.tokenizer.eos_id
    (chunk,) = score_candidates([PROBLEM], [candidate(0, "2 pens\n#### 2")], lm, shown)
    if direction == "forward":
        ids = [eos, *other, eos, *own, eos]
        target = TokenSpan(ids, len(ids) - 1 - len(solution), len(ids))
    else:
        ids = [eos, *own, eos, *other, eos]
        target = TokenSpan(ids, 1 + len(own) - len(solution), 1 + len(own))
    np.testing.assert_allclose(chunk[-1].token_logprobs or [], lm.logprobs([target])[0], atol=1e-4)
    (alone,) = score_candidates([PROBLEM], [candidate(0, "2 pens\n#### 2")], lm)
    assert alone[-1].logprob != chunk[-1].logprob


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_score_that_is_not_a_number_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    lm = FakeLanguageModel(tokenizer, "reverse")
    real = lm.logprobs

    def overflown(targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        return [np.where(np.arange(len(v)) == 1, np.float32(value), v) for v in real(targets)]

    monkeypatch.setattr(lm, "logprobs", overflown)
    with pytest.raises(InputError, match=r"fake: candidate 0 of problem 'p' .* not finite"):
        list(score_candidates([PROBLEM], [candidate(0, "a")], lm))
