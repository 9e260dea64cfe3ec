"""The parts of a solution that are copied from its question."""

from __future__ import annotations

import re

import pytest

from ledom.text.copies import WORD, copied_passages, without_copies

QUESTION = "Ava has 24 red pens and gives 6 of them away. How many are left?"


@pytest.mark.parametrize(
    ("solution", "left"),
    [
        ("24 - 6 = 18\n#### 18", "24 - 6 = 18\n#### 18"),
        (f"{QUESTION}\n#### 7", "?\n#### 7"),
        ("ava HAS 24 red\npens; that is 18.", "; that is 18."),
        ("Ava has 24 blue pens and gives 6 of them away.", "Ava has 24 blue ."),
        ("So: has 24 red pens, yes; gives 6 of them away!", "So: , yes; !"),
        ("", ""),
    ],
)
def test_copies_are_removed(solution: str, left: str) -> None:
    assert without_copies(solution, QUESTION, 4) == left


def test_fewer_words_are_not_a_copy() -> None:
    words = "has 24 red pens"
    assert copied_passages(words, QUESTION, 5) == []
    assert copied_passages(words, QUESTION, 4) == [(0, len(words))]


def test_characters_are_the_words_of_scripts_without_spaces() -> None:
    assert without_copies("小明有24支红笔。24-6=18", "小明有24支红笔，送出6支。", 4) == "。24-6=18"
    assert copied_passages("小红有8支", "小明有24支红笔，送出6支。", 3) == []


def test_digits_in_such_a_script_form_one_number() -> None:
    assert [match.group() for match in re.finditer(WORD, "๑๒ บ人々3")] == [
        "๑๒",
        "บ",
        "人",
        "々",
        "3",
    ]


def test_a_passage_grows_word_by_word() -> None:
    copied = "gives 6 of them away"
    (passage,) = copied_passages(f"She {copied} now.", QUESTION, 3)
    assert passage == (4, 4 + len(copied))


def test_vowel_signs_belong_to_their_word() -> None:
    assert re.findall(WORD, "दीन 3 cafe\u0301") == ["दीन", "3", "cafe\u0301"]
    assert copied_passages("दीन के पास 3 कलम", "दिन के पास 3 कलम", 5) == []
