"""Log-likelihoods of a context and a continuation, by a model of either direction.

A forward model reads the context and answers directly. A reverse model reads the continuation
first: one pass over the text gives log P(continuation) and log P(context | continuation), whose sum
is the joint; a pass over the context alone gives log P(context). The requests of one document are
compared with each other, so if one of them is too long, all lose the same tokens.

This module does not know about tasks, metrics or files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.evaluate.scorings import Kind, Parts, Request
from ledom.lm.language_model import LanguageModel, TokenSpan
from ledom.rerank.score import check_finite

__all__ = ["Convention", "check_requests", "score"]


@dataclass(frozen=True)
class Convention:
    """The special tokens that a model reads first, in model order."""

    first: tuple[int, ...]
    """Read before a text."""
    prefix: tuple[int, ...]
    """Read before a text whose first token is scored too."""


@dataclass(frozen=True)
class _Text:
    """A request's token ids in reading order; the first `boundary` belong to the context."""

    ids: list[int]
    boundary: int
    kind: Kind
    behind: list[int] = field(default_factory=list)
    cut: int = 0
    """Tokens that the context lost on its left."""
    cut_behind: int = 0
    """Tokens that `behind` lost on its right."""


def score(
    lm: LanguageModel, requests: Sequence[Request], convention: Convention, control: bool = False
) -> list[Parts]:
    """The parts of every request; with `control`, also the parts of the reversed prompt.

    Raises the errors of `check_requests`.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> convention = Convention(first=(), prefix=tuple(lm.bos_ids))
    >>> (parts,) = score(lm, [Request("2 + 2 =", " 4")], convention)
    >>> round(parts.continuation, 3)  # nats
    -3.178
    """
    return _scorer(lm, requests, convention, control).run()


def check_requests(lm: LanguageModel, requests: Sequence[Request], convention: Convention) -> None:
    """Raise `InputError` for requests that cannot be scored, without scoring any.

    These are: a continuation that is empty or longer than the model's context, and contexts of one
    document that are too long and cannot all be cut the same way.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, convention = FakeLanguageModel(context=8), Convention(first=(), prefix=(0,))
    >>> check_requests(lm, [Request("2 + 2 =", " 4, I think")], convention)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: ...: a choice of 11 tokens is longer than the model's context ...
    """
    _scorer(lm, requests, convention, False).check()


def _scorer(
    lm: LanguageModel, requests: Sequence[Request], convention: Convention, control: bool
) -> _Forward | _Reverse:
    for request in requests:
        if not request.continuation:
            raise InputError(
                f"document {_named(request)} has an empty choice; remove the document or the choice"
            )
    kind = _Forward if lm.direction is Direction.FORWARD else _Reverse
    return kind(lm, requests, convention, control)


class _Scorer:
    """The base of both directions: encodes texts, and cuts those of a document the same way."""

    def __init__(
        self, lm: LanguageModel, requests: Sequence[Request], convention: Convention, control: bool
    ) -> None:
        self.lm, self.requests, self.convention, self.control = lm, requests, convention, control
        self.groups = defaultdict[Hashable, list[int]](list)
        for place, request in enumerate(requests):
            own = ("context", request.context) if request.group is None else request.group
            self.groups[own].append(place)
        self.spans: dict[tuple[tuple[int, ...], int, int], int] = {}
        """The token spans to score together, each once, with their places."""

    def add(self, ids: Sequence[int], start: int, end: int) -> int:
        """Add a span; returns the index of its values in the results of `score`."""
        return self.spans.setdefault((tuple(ids), start, end), len(self.spans))

    def score(self) -> tuple[list[NDArray[np.float32]], list[bool]]:
        """The log-probabilities of every span, and whether all of its tokens are greedy choices."""
        lm, targets = self.lm, [TokenSpan(*span) for span in self.spans]
        if lm.direction is Direction.FORWARD and lm.reports_hits:
            both = lm.logprobs_and_hits(targets)
            every, greedy = [values for values, _ in both], [bool(hits.all()) for _, hits in both]
        else:
            every, greedy = lm.logprobs(targets), [False] * len(targets)
        for values in every:
            check_finite(values, lm, "a text")
        return every, greedy

    def split(self, request: Request, kind: Kind) -> _Text:
        """A request's tokens. Spaces between context and continuation belong to the continuation,
        as in the harness, and so do tokens that straddle its start or its end."""
        known, text = request.context.rstrip(), request.context + request.continuation
        encoding = self.lm.tokenizer.encode(text + request.after)
        end = sum(start < len(text) for start, _ in encoding.offsets)
        ids = encoding.ids[:end] if request.after else encoding.ids
        boundary = sum(done <= len(known) for _, done in encoding.offsets) if known else 0
        # Some tokenizers drop the characters of a continuation.
        return _Text(ids, min(boundary, len(ids) - 1), kind, encoding.ids[len(ids) :])

    def texts(self) -> list[_Text]:
        """Every request's tokens and kind."""
        kinds = {place: self.kind(own) for own in self.groups.values() for place in own}
        return [
            self.split(request, kinds[place] if request.context.strip() else "no context")
            for place, request in enumerate(self.requests)
        ]

    def kind(self, places: Iterable[int]) -> Literal["one context", "many contexts"]:
        """Whether the choices of a document are its contexts or its continuations."""
        asked = [self.requests[place] for place in places if self.requests[place].context.strip()]
        contexts = {request.context for request in asked}
        continuations = {request.continuation for request in asked}
        return "many contexts" if len(contexts) > 1 and len(continuations) == 1 else "one context"

    def cut_alike(self, texts: Sequence[_Text]) -> list[_Text]:
        """Drop from all texts of a document as many tokens as its longest one must lose: first from
        the right of the text after the choices, then from the left of the contexts."""
        result, room = list(texts), self.lm.context + 1 - len(self.convention.prefix)
        for places in self.groups.values():
            excess = max(len(texts[p].ids) + len(texts[p].behind) for p in places) - room
            if excess <= 0:
                continue
            for place in places:
                self.check_choice(self.requests[place], texts[place], room)
            inside = [place for place in places if texts[place].boundary]
            behind = min((len(texts[place].behind) for place in inside), default=0)
            cut_behind = min(excess, behind)
            excess -= cut_behind
            if len({tuple(texts[place].ids[:excess]) for place in inside}) > 1:
                raise InputError(
                    f"document {_named(self.requests[inside[0]])} is too long for the model's "
                    f"context of {self.lm.context}, and its choices begin differently, so they "
                    "cannot be cut the same way; give fewer examples, or remove the document"
                )
            for place in inside:
                text = texts[place]
                result[place] = replace(
                    text,
                    ids=text.ids[excess:],
                    boundary=max(0, text.boundary - excess),
                    behind=text.behind[: len(text.behind) - cut_behind],
                    cut=excess,
                    cut_behind=cut_behind,
                )
        return result

    def check_choice(self, request: Request, text: _Text, room: int) -> None:
        """Raise `InputError` for a choice that alone fills the model's context."""
        length = len(text.ids) - text.boundary
        if length > room:
            raise InputError(
                f"document {_named(request)}: a choice of {length} tokens is longer than the "
                f"model's context of {self.lm.context}; remove the document"
            )


class _Forward(_Scorer):
    """A forward model reads the context first; it scores the same tokens as the harness."""

    def check(self) -> None:
        texts = self.texts()
        for request, text in zip(self.requests, self.as_asked(texts), strict=True):
            self.check_choice(request, text, self.lm.context)
        self.cut_wholes(texts)

    def as_asked(self, texts: Sequence[_Text]) -> list[_Text]:
        """The texts, each with the tokens that its context has alone, as the harness reads it."""
        asked = []
        for request, text in zip(self.requests, texts, strict=True):
            known = request.context.rstrip()
            context = self.lm.tokenizer.encode(known).ids[: len(text.ids) - 1] if known else []
            ids = [*context, *text.ids[len(context) :]]
            asked.append(replace(text, ids=ids, boundary=len(context)))
        return asked

    def run(self) -> list[Parts]:
        texts = self.texts()
        asked = self.as_asked(texts)
        places = [self.conditional(*pair) for pair in zip(self.requests, asked, strict=True)]
        fitted = self.cut_wholes(texts)
        wholes = [self.whole(text) for text in fitted]
        alone = [self.alone(*pair) for pair in zip(self.requests, texts, strict=True)]
        controls = [self.reversed_prompt(*pair) for pair in zip(self.requests, texts, strict=True)]
        values, greedy = self.score()
        return [
            Parts(
                continuation=_total(values[place]),
                alone=_maybe(values, single),
                whole=_maybe(values, whole),
                reversed_prompt=_maybe(values, control),
                greedy=greedy[place],
                cut=max(cut, fit.cut),
                kind=text.kind,
            )
            for (place, cut), single, whole, control, text, fit in zip(
                places, alone, wholes, controls, asked, fitted, strict=True
            )
        ]

    def cut_wholes(self, texts: list[_Text]) -> list[_Text]:
        """The texts that are scored whole, cut the same way; empty if contexts do not differ."""
        empty = _Text([], 0, "no context")
        wholes = [text if text.kind == "many contexts" else empty for text in texts]
        return self.cut_alike(wholes)

    def whole(self, text: _Text) -> int | None:
        """Add the span of a whole text; returns its index, or None for an empty text."""
        before = len(self.convention.prefix)
        ids = [*self.convention.prefix, *text.ids]
        return self.add(ids, before, len(ids)) if text.ids else None

    def conditional(self, request: Request, text: _Text) -> tuple[int, int]:
        """Add the span of a continuation after its context; returns its index, and how many tokens
        were cut from the left of the context."""
        ids, boundary = self.begun(text)
        self.check_choice(request, text, self.lm.context)
        cut = max(0, len(ids) - self.lm.context - 1)
        return self.add(ids[cut:], boundary - cut, len(ids) - cut), cut

    def alone(self, request: Request, text: _Text) -> int | None:
        """Add the span of a continuation without its context; returns its index."""
        if text.kind != "one context":
            return None
        ids, boundary = self.begun(self.split(Request("", request.continuation), "no context"))
        return self.add(ids, boundary, len(ids))

    def begun(self, text: _Text) -> tuple[list[int], int]:
        """The ids with the special tokens in front, and where the continuation starts."""
        prefix = self.convention.prefix
        first = self.convention.first if text.boundary else prefix
        start = text.boundary or len(prefix)
        # A text may already have the special tokens, as from a chat template.
        if prefix and tuple(text.ids[: len(prefix)]) == prefix:
            return text.ids, start
        return [*first, *text.ids], len(first) + text.boundary

    def reversed_prompt(self, request: Request, text: _Text) -> int | None:
        """Add the span of a context written after the continuation; returns its index."""
        if not self.control or text.kind != "many contexts":
            return None
        text = self.split(_swapped(request), "no context")
        ids = [*self.convention.first, *text.ids]
        boundary = len(self.convention.first) + text.boundary
        cut = max(0, len(ids) - self.lm.context - 1)
        return self.add(ids[cut:], max(1, boundary - cut), len(ids) - cut)


class _Reverse(_Scorer):
    """A reverse model reads the continuation first. The document-start token is not counted, just
    as the harness does not count the document end."""

    def check(self) -> None:
        self.cut_alike(self.texts())

    def run(self) -> list[Parts]:
        after = self.lm.direction.to_reading_order(list(self.convention.prefix))
        texts = self.cut_alike(self.texts())
        wholes = [self.add([*t.ids, *t.behind, *after], 0, len(t.ids)) for t in texts]
        alone = [self.alone(*pair, after) for pair in zip(self.requests, texts, strict=True)]
        controls = [self.reversed_prompt(*p, after) for p in zip(self.requests, texts, strict=True)]
        values, _ = self.score()
        return [
            Parts(
                continuation=_total(values[source][start:]),
                context=None
                if text.kind == "no context"
                else _total(values[whole][: text.boundary]),
                alone=_maybe(values, context),
                reversed_prompt=_maybe(values, control),
                cut=text.cut + text.cut_behind,
                kind=text.kind,
            )
            for (source, start), whole, context, control, text in zip(
                self.sources(wholes, texts), wholes, alone, controls, texts, strict=True
            )
        ]

    def sources(self, wholes: Sequence[int], texts: Sequence[_Text]) -> list[tuple[int, int]]:
        """For every request, the index of the span that gives log P(continuation), and its start.

        For a choice without a context, this is the span of the same choice with the context, so
        that the difference of the two is exactly the posterior.
        """
        result = [(whole, text.boundary) for whole, text in zip(wholes, texts, strict=True)]
        for places in self.groups.values():
            asked = {self.requests[p].continuation: result[p] for p in places if texts[p].boundary}
            for place in places:
                if not texts[place].boundary:
                    result[place] = asked.get(self.requests[place].continuation, result[place])
        return result

    def alone(self, request: Request, text: _Text, after: list[int]) -> int | None:
        """Add the span of the context without a continuation; returns its index."""
        if text.kind == "no context":
            return None
        whole = self.split(Request("", request.context.rstrip(), after=request.after), "no context")
        ids = whole.ids[text.cut :]
        behind = whole.behind[: len(whole.behind) - text.cut_behind]
        return self.add([*ids, *behind, *after], 0, len(ids))

    def reversed_prompt(self, request: Request, text: _Text, after: list[int]) -> int | None:
        """Add the span of a choice written in front of the context; returns its index."""
        if not self.control or text.kind != "one context":
            return None
        swapped = self.split(_swapped(request), "no context")
        room = self.lm.context + 1 - len(after)  # the end far from the choice is cut
        ids = [*swapped.ids, *swapped.behind][:room]
        return self.add([*ids, *after], 0, swapped.boundary)


def _swapped(request: Request) -> Request:
    """The request with its two texts exchanged, and the spaces between them kept."""
    text = request.continuation.lstrip()
    blank = request.continuation[: len(request.continuation) - len(text)]
    examples, context = request.context[: request.examples], request.context[request.examples :]
    return Request(examples + text, (blank or " ") + context.strip(), after=request.after)


def _total(values: NDArray[np.float32]) -> float:
    return float(values.sum(dtype=np.float64))


def _maybe(values: Sequence[NDArray[np.float32]], place: int | None) -> float | None:
    return None if place is None else _total(values[place])


def _named(request: Request) -> str:
    group, shown = request.group, (request.context.strip() or request.continuation.strip())[:60]
    if isinstance(group, tuple) and len(group) == 2:
        return f"{group[1]} of task {group[0]!r} ({shown!r})"
    return repr(shown)
