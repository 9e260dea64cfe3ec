r"""How a question x and a solution y become one text, and which tokens belong to which.

A pair is rendered to one text and encoded once, in reading order; character offsets then say which
tokens are x and which are y. A token that straddles a boundary belongs to the later field. The
literals of the template belong to neither: both directions condition on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import shorten

from ledom.core.errors import InputError
from ledom.text.styles import ANSWER_MARK, STYLES, Style, bare_steps, normalize_numbers, restyle
from ledom.text.tokenizer import Encoding, Tokenizer

__all__ = [
    "ANSWER_MARK",
    "STYLES",
    "EncodedPair",
    "PairFormat",
    "Style",
    "bare_steps",
    "normalize_numbers",
    "restyle",
]


_LITERAL = r"(?:(?!\{question\}|\{solution\})[\s\S])*"
_TEMPLATE = rf"{_LITERAL}\{{question\}}{_LITERAL}\{{solution\}}{_LITERAL}"


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a rendered pair and the special ones around it, in reading order.

    `question` and `solution` are the [start, end) token spans of the fields; `offsets` are each
    token's characters within its own field (empty for special tokens and literals).
    """

    ids: list[int]
    question: tuple[int, int]
    solution: tuple[int, int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class PairFormat:
    """A template with the fields {question} and {solution}, in that order.

    >>> prompted = PairFormat("Q: {question} A: {solution}.")
    >>> prompted.render("2 + 2?", "4"), prompted.literals
    ('Q: 2 + 2? A: 4.', ('Q: ', ' A: ', '.'))
    >>> prompted.before_solution("2 + 2?"), prompted.after_question("4")
    ('Q: 2 + 2? A: ', ' A: 4.')
    """

    template: str = "{question}\n\n{solution}"
    style: Style = "as written"
    """The style that solutions are converted to before they are rendered: see `restyle`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(_TEMPLATE, self.template):
            raise InputError(
                f"pair format {self.template!r} needs {{question}} and then {{solution}}, each once"
            )
        if self.style not in STYLES:
            raise InputError(f"solution style {self.style!r}; the styles are {', '.join(STYLES)}")

    @cached_property
    def literals(self) -> tuple[str, str, str]:
        """The text before the question, between the fields, and after the solution."""
        before, between, after = re.split(r"\{question\}|\{solution\}", self.template)
        return before, between, after

    def restyle(self, solution: str, answer: str | None = None) -> str:
        """A solution in the style that the model reads; `answer` replaces the one it states.

        >>> print(PairFormat(style="equations").restyle("She has 3 + 4 = 7 pens."))
        3 + 4 = 7
        #### 7
        """
        return restyle(solution, self.style, answer)

    def render(self, question: str, solution: str) -> str:
        """The pair as one text."""
        before, between, after = self.literals
        return f"{before}{question}{between}{solution}{after}"

    def before_solution(self, question: str) -> str:
        """What a forward model reads before it writes a solution."""
        before, between, _ = self.literals
        return f"{before}{question}{between}"

    def after_question(self, solution: str) -> str:
        """What a reverse model reads before it writes, backwards, a question."""
        _, between, after = self.literals
        return f"{between}{solution}{after}"

    def written_solution(self, text: str) -> str:
        """The solution in a text that a forward model wrote after `before_solution`.

        >>> PairFormat("Q: {question} A: {solution}.").written_solution("4.")
        '4'
        """
        return text.removesuffix(self.literals[2])

    def written_question(self, text: str) -> str:
        """The question in a text that a reverse model wrote before `after_question`.

        >>> PairFormat("Q: {question} A: {solution}.").written_question("Q: 2 + 2?")
        '2 + 2?'
        """
        return text.removeprefix(self.literals[0])

    def encode(
        self,
        tokenizer: Tokenizer,
        pairs: Sequence[tuple[str, str]],
        before: Sequence[int],
        after: Sequence[int],
    ) -> list[EncodedPair]:
        """Encode pairs, each with the special tokens `before` and `after` around it.

        >>> from ledom.text.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["2 + 2?"], 257)  # a token per byte, and EOS
        >>> eos = [tokenizer.eos_id]
        >>> (pair,) = PairFormat().encode(tokenizer, [("2 + 2?", "4")], eos, eos)
        >>> pair.question, pair.solution, len(pair.ids)  # EOS, 6 bytes, two line ends, 1 byte, EOS
        ((1, 7), (9, 10), 11)
        """
        encodings = tokenizer.encode_batch([self.render(q, s) for q, s in pairs])
        return [
            self._split(encoding, q, s, list(before), list(after))
            for encoding, (q, s) in zip(encodings, pairs, strict=True)
        ]

    def fit(
        self,
        tokenizer: Tokenizer,
        pairs: Sequence[tuple[str, str]],
        before: Sequence[int],
        after: Sequence[int],
        *,
        room: int,
    ) -> list[tuple[EncodedPair, str]]:
        """As `encode`, but a solution loses the end that does not fit.

        A pair fits if a model reads at most `room` tokens of it, which are all but the last.
        Returns each pair with the beginning of its solution that it holds, as if that text had been
        given. Raises `InputError` for a question that leaves no room.

        >>> from ledom.text.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["2 + 2?"], 257)  # a token per byte, and EOS
        >>> eos, pairs = [tokenizer.eos_id], [("2 + 2?", "4"), ("2 + 2?", "2 + 2 = 4")]
        >>> [text for _, text in PairFormat().fit(tokenizer, pairs, eos, eos, room=12)]
        ['4', '2 +']
        """

        def fitted(pair: EncodedPair, question: str, solution: str) -> tuple[EncodedPair, str]:
            # A beginning may be encoded to more tokens than were kept of the whole.
            while (excess := len(pair.ids) - 1 - room) > 0:
                start, end = pair.solution
                if end - excess <= start:
                    raise InputError(
                        f"the question {shorten(question, 60)!r} has "
                        f"{pair.question[1] - pair.question[0]} tokens, which leave no room for a "
                        f"solution in the {room} tokens of the model's context; remove it"
                    )
                # Cut where the last kept token ends: the offsets of some tokenizers leave out the
                # space before a token, so the next one may start later.
                (_, kept_end), (cut_start, _) = pair.offsets[end - excess - 1 : end - excess + 1]
                solution = solution[: min(kept_end, cut_start, len(solution) - 1)]
                (pair,) = self.encode(tokenizer, [(question, solution)], before, after)
            return pair, solution

        encoded = self.encode(tokenizer, pairs, before, after)
        return [fitted(pair, *texts) for pair, texts in zip(encoded, pairs, strict=True)]

    def _split(
        self,
        encoding: Encoding,
        question: str,
        solution: str,
        before: list[int],
        after: list[int],
    ) -> EncodedPair:
        opening, between, _ = self.literals
        offsets = [(0, 0)] * len(encoding.ids)
        spans: list[tuple[int, int]] = []
        after_question = len(opening) + len(question) + len(between)
        for start, field in ((len(opening), question), (after_question, solution)):
            end = start + len(field)
            # A token belongs to the field of its last character: a straddling one to the later.
            first, last = (sum(done <= at for _, done in encoding.offsets) for at in (start, end))
            for i in range(first, last):
                token_start, token_end = encoding.offsets[i]
                offsets[i] = (max(token_start, start) - start, min(token_end, end) - start)
            spans.append((len(before) + first, len(before) + last))
        return EncodedPair(
            before + encoding.ids + after,
            question=spans[0],
            solution=spans[1],
            offsets=[(0, 0)] * len(before) + offsets + [(0, 0)] * len(after),
        )
