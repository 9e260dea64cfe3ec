"""The words of a question, and how well an answer explains each."""

from __future__ import annotations

from typing import Any

from ledom.report.results import QuestionToken
from ledom.report.words import Word, question_words

QUESTION = "Ann has 3  red apples.\nHow many?"
TOKENS = [  # (end, log-probability); the first belongs to the document's start
    *((0, -9.0), (3, -6.5), (7, -0.25), (9, -1.0), (11, -0.5), (14, -4.0)),
    *((18, -1.0), (21, -0.5), (22, -0.25), (26, -2.0), (32, -0.125)),
]


def words_of(question: str, tokens: list[dict[str, Any]]) -> list[Word]:
    return question_words(question, [QuestionToken(**token) for token in tokens])


def test_words_cover_the_question_exactly() -> None:
    for question in (QUESTION, "", " ", "  lead and trail \n", "漢字です yes", "\x00 <b> \u202e"):
        assert "".join(word.text for word in words_of(question, [])) == question


def test_in_scripts_without_spaces_a_character_is_a_word() -> None:
    for text in ("漢字", "かな", "ไทย", "한글"):
        assert [word.text for word in words_of(f"{text} ok", [])] == [*text, " ", "ok"]


def test_words_sum_the_logprobs_of_their_tokens() -> None:
    starts = [0, *(end for end, _ in TOKENS)]
    tokens = [
        {"start": start, "end": end, "logprob": logprob}
        for start, (end, logprob) in zip(starts, TOKENS, strict=False)
    ]
    words = {w.text: w.logprob for w in words_of(QUESTION, tokens)}
    assert words["Ann"] == -6.5
    assert words["3"] == -1.0
    assert words["red"] == -0.5 - 4.0  # a whitespace token belongs to the word after it
    assert words["apples."] == -1.0 - 0.5 - 0.25
    assert words["How"] == -2.0
    assert words["many?"] == -0.125
    assert words["  "] is None


def test_tokens_outside_words_are_assigned_or_dropped() -> None:
    words = words_of("one two ", [{"start": 7, "end": 8, "logprob": -1.0}])
    assert [w.logprob for w in words] == [None, None, -1.0, None]  # no word after it: before
    words = words_of("one", [{"start": 9, "end": 12, "logprob": -1.0}])
    assert words == [Word("one")]  # past the end, as in a truncated question
    assert words_of("", [{"start": 0, "end": 1, "logprob": -1.0}]) == []


def test_heat_grows_with_surprisal_and_is_clipped_at_six_nats() -> None:
    heats = [Word("w", logprob).heat for logprob in (None, 0.1, 0.0, -1.5, -3.0, -6.0, -60.0)]
    assert heats == [0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 1.0]


def test_words_beyond_one_nat_are_marked() -> None:
    marks = [Word("w", -1.0, gap).mark for gap in (None, 1.0, 1.01, -1.0, -1.01)]
    assert marks == ["", "", "lost", "", "gained"]
