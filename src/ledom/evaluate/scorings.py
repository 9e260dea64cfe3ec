"""Scorings: how the score of a benchmark's choice follows from log-probabilities.

    Request -> (likelihood.score) -> Parts -> SCORINGS -> a number per choice

This module only does arithmetic; it does not know about models or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

from ledom.core.direction import Direction

__all__ = ["DEFAULT_SCORING", "SCORINGS", "Kind", "Parts", "Request", "Scoring"]

Scoring = Literal[
    "conditional", "whole text", "mutual information", "Bayes", "posterior", "reversed prompt"
]
Kind = Literal["one context", "many contexts", "no context"]
"""Whether the choices of a document are continuations, are contexts, or have no context."""
DEFAULT_SCORING: dict[Direction, Scoring] = {
    Direction.FORWARD: "conditional",
    Direction.REVERSE: "Bayes",
}


@dataclass(frozen=True)
class Request:
    """A context and a continuation; `group` is the same for those of one document."""

    context: str
    continuation: str
    group: Hashable = None
    after: str = ""
    """For a reverse model: the solved examples, which it reads first."""
    examples: int = 0
    """How many characters at the start of the context are solved examples; 0 in reverse."""


@dataclass(frozen=True)
class Parts:
    """The log-probabilities of one request, in nats; None for those that no scoring needs.

    >>> parts = Parts(continuation=-2.0, context=-5.0, alone=-6.0)  # log P(a), P(c | a), P(c)
    >>> SCORINGS[Direction.REVERSE]["Bayes"](parts)  # log P(a | c)
    -1.0
    """

    continuation: float
    """Forward: log P(continuation | context). Reverse: log P(continuation)."""
    context: float | None = None
    """Reverse: log P(context | continuation)."""
    alone: float | None = None
    """Forward: log P(continuation) without a context. Reverse: log P(context) alone."""
    whole: float | None = None
    """Forward: log P(context + continuation)."""
    reversed_prompt: float | None = None
    """log P of the part that differs between the choices, written on the wrong side of the rest."""
    greedy: bool = False
    """Forward: whether the continuation is what greedy decoding writes."""
    cut: int = 0
    """Tokens that the context lost, at its far end, to fit the model's context."""
    kind: Kind = "one context"
    """Whether the choices of the document are continuations or contexts."""


def _bayes(parts: Parts) -> float | None:
    if parts.context is None:  # the request has no context
        return parts.continuation
    joint = parts.continuation + parts.context
    return joint if parts.kind == "many contexts" else joint - (parts.alone or 0.0)


def _reverse_information(parts: Parts) -> float | None:
    if parts.kind != "many contexts" or parts.context is None or parts.alone is None:
        return None
    return parts.context - parts.alone


SCORINGS: dict[Direction, dict[Scoring, Callable[[Parts], float | None]]] = {
    Direction.FORWARD: {
        "conditional": lambda of: of.continuation,
        "whole text": lambda of: of.whole,
        "mutual information": lambda of: None if of.alone is None else of.continuation - of.alone,
        "reversed prompt": lambda of: of.reversed_prompt,
    },
    Direction.REVERSE: {
        "Bayes": _bayes,
        "posterior": lambda of: of.continuation if of.kind == "no context" else of.context,
        "mutual information": _reverse_information,
        "reversed prompt": lambda of: of.reversed_prompt,
    },
}
"""The scorings of each direction. A score is None where the scoring does not apply.

conditional    log P(continuation | context): the harness's own score.
whole text     log P(context + continuation), for documents whose choices are contexts: the whole
               sentence counts, while the conditional counts only the part after the gap.
Bayes          log P(context + continuation) - log P(context alone). If the choices are
               continuations, the last term is the same for all of them: it removes a large constant
               and keeps their order. If the choices are contexts, it is left out.
posterior      log P(context | continuation): how well a choice explains the question.
mutual information   log P(choice | the rest) - log P(choice), so that choices that are likely
               anyway have no advantage. It applies to choices that the model predicts:
               continuations for a forward model, contexts for a reverse model.
reversed prompt   a control: the prompt in the order of the other direction, so that the model reads
               the choice last. Reverse: log P(choice | the question after it).
"""
