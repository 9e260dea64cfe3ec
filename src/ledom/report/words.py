"""The words of a question, and how well an answer explains each of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ledom.report.formatting import number
from ledom.report.results import QuestionToken
from ledom.text.copies import UNSPACED

__all__ = ["Word", "compare", "question_words"]

WORST_LOGPROB = -6.0  # nats: a word at or below this gets the strongest color
NOTABLE_GAP = 1.0  # nats: a word with at least this gap between two answers is underlined
# A word is a run of non-spaces; scripts written without spaces count each character as a word.
_WORD = re.compile(rf"\s+|[{UNSPACED}]|[^\s{UNSPACED}]+")


@dataclass(frozen=True)
class Word:
    """A piece of the question, and how well an answer explains it.

    `logprob` (nats) is the sum of log P(token | rest of the question after it, answer) over the
    word's tokens; None for white space and for words without a token. `gap` is the logprob under
    the picked answer minus that under the rejected one; None without such a pair.

    >>> word = Word("pens", logprob=-3.0, gap=1.5)
    >>> word.heat, word.mark
    (0.5, 'lost')
    """

    text: str
    logprob: float | None = None
    gap: float | None = None

    @property
    def heat(self) -> float:
        """How strongly the word is colored: 0 (well explained) to 1 (`WORST_LOGPROB` or worse)."""
        return 0.0 if self.logprob is None else min(max(self.logprob / WORST_LOGPROB, 0.0), 1.0)

    @property
    def mark(self) -> str:
        """`lost` if the rejected answer explains the word notably worse, `gained` if better."""
        if self.gap is None or abs(self.gap) <= NOTABLE_GAP:
            return ""
        return "lost" if self.gap > 0 else "gained"

    @property
    def title(self) -> str:
        r"""The numbers, for a tooltip.

        >>> Word("pens", logprob=-3.0, gap=1.5).title
        'log P = \u22123.00 nats; picked minus rejected +1.50'
        """
        if self.logprob is None:
            return ""
        gap = "" if self.gap is None else f"; picked minus rejected {number(self.gap, sign='+')}"
        return f"log P = {number(self.logprob)} nats{gap}"


def question_words(question: str, tokens: Sequence[QuestionToken]) -> list[Word]:
    """Split a question into words and white space, each word with the sum of its tokens' logprobs.

    A token belongs to the word of its first character that is not white space; a token of white
    space alone belongs to the next word.

    >>> token = QuestionToken(start=0, end=3, logprob=-2.5)
    >>> question_words("How many", [token])[0]
    Word(text='How', logprob=-2.5, gap=None)
    """
    pieces = [match.group() for match in _WORD.finditer(question)]
    piece_of = [index for index, piece in enumerate(pieces) for _ in piece]
    sums: dict[int, float] = {}
    for token in tokens:
        if not 0 <= token.start < min(token.end, len(question)):
            continue  # the document-end token has no characters; a clipped question lacks some
        covered = question[token.start : token.end]
        first = token.start + len(covered) - len(covered.lstrip())
        index = piece_of[min(first, len(question) - 1)]
        if pieces[index].isspace():
            index = index + 1 if index + 1 < len(pieces) else index - 1
        sums[index] = sums.get(index, 0.0) + token.logprob
    return [Word(piece, sums.get(index)) for index, piece in enumerate(pieces)]


def compare(picked: list[Word], rejected: list[Word]) -> tuple[list[list[Word]], list[Word]]:
    """Both lists with their gaps, and the words with a `lost` mark, worst first.

    >>> compare([Word("red", -1.0)], [Word("red", -5.0)])[1]
    [Word(text='red', logprob=-5.0, gap=4.0)]
    """
    gaps = [
        None if p.logprob is None or r.logprob is None else p.logprob - r.logprob
        for p, r in zip(picked, rejected, strict=True)
    ]
    both = [
        [Word(word.text, word.logprob, gap) for word, gap in zip(words, gaps, strict=True)]
        for words in (picked, rejected)
    ]
    lost = sorted((w for w in both[1] if w.mark == "lost"), key=lambda w: -(w.gap or 0.0))
    return both, lost
