"""Finds passages that a solution copies from its question.

A solution that repeats the question explains it by copying: log P(question | solution) is then near
0, whatever else it says. Without the copied passages, a reverse model must explain the question
from the rest. This module does not know about models or scores.
"""

from __future__ import annotations

import re

__all__ = ["UNSPACED", "WORD", "copied_passages", "without_copies"]

UNSPACED = (
    "\u0e00-\u0e4f\u0e5a-\u0e7f"
    "\u3005\u3007\u3040-\u30fa\u30fc-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
)
"""Characters of scripts without spaces between words, or after numbers: Thai (except its digits),
Japanese, Chinese and Korean."""

_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u0900-\u0963\u0966-\u0dff"
)
"""Accents and vowel signs (Hebrew, Arabic, the scripts of India), which are no letters for `re`."""

WORD = rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{_MARKS}])+"
"""A word; in the scripts without spaces, a character."""

_WORD = re.compile(WORD)


def copied_passages(solution: str, question: str, num_words: int) -> list[tuple[int, int]]:
    """The [start, end) character spans of the passages that occur in the question word for word.

    A passage has at least `num_words` words (`WORD`); letter case and the characters between words
    are ignored.

    >>> copied_passages("Ava has 3 red pens, so 3.", "AVA HAS 3 red pens and a cat", 4)
    [(0, 18)]
    """
    asked = [match.group().casefold() for match in _WORD.finditer(question)]
    known = {tuple(asked[i : i + num_words]) for i in range(len(asked) - num_words + 1)}
    found = list(_WORD.finditer(solution))
    words = [match.group().casefold() for match in found]
    passages: list[tuple[int, int]] = []
    for first in range(len(words) - num_words + 1):
        if tuple(words[first : first + num_words]) not in known:
            continue
        start, end = found[first].start(), found[first + num_words - 1].end()
        if passages and start <= passages[-1][1]:
            start = passages.pop()[0]
        passages.append((start, end))
    return passages


def without_copies(solution: str, question: str, num_words: int) -> str:
    """The solution without its `copied_passages`.

    >>> without_copies("Ava has 3 red pens.\\n3 + 4 = 7", "Ava has 3 red pens.", 4)
    '.\\n3 + 4 = 7'
    """
    parts, last = [], 0
    for start, end in copied_passages(solution, question, num_words):
        parts.append(solution[last:start])
        last = end
    return "".join([*parts, solution[last:]])
