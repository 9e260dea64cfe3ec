"""Token-by-token views of prompts and generated texts, with log-probabilities, in reading order.

Work that takes long is in steps, between which it can be ended. It knows nothing of requests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.serve.batching import Steps

__all__ = [
    "Token",
    "cut_at_stops",
    "next_tokens",
    "num_written",
    "prompt_text",
    "sampling_of",
    "score_ids",
    "token_text",
    "tokens_of",
    "write",
    "written_tokens",
]

_STEP_TOKENS = 2**14  # most tokens to score in a step: enough for several threads

Alternatives = list[tuple[int, float]]


@dataclass(frozen=True)
class Token:
    """A token with its log-probability."""

    id: int
    logprob: float | None
    """In nats; None for a token that is not predicted, such as the first one that is read."""
    alternatives: Alternatives = field(default_factory=list)
    """The most likely tokens at this position, best first; see `LanguageModel.alternatives`."""


def token_text(lm: LanguageModel, token_id: int) -> str:
    """A token's text, or the name of a special token. A partial character appears as U+FFFD.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> token_text(lm, lm.tokenizer.token_id("4")), token_text(lm, lm.tokenizer.eos_id)
    ('4', '<|end|>')
    """
    text = lm.tokenizer.decode([token_id])
    return text or lm.tokenizer.backend.id_to_token(token_id) or ""


def prompt_text(lm: LanguageModel, prompt: str | Sequence[int]) -> str:
    """A prompt, given as text or ids, as text.

    Raises `InputError` for ids that the tokenizer would not produce from their text.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> prompt_text(lm, [lm.tokenizer.eos_id, *lm.tokenizer.encode("2 + 2?").ids])
    '2 + 2?'
    """
    if isinstance(prompt, str):
        return prompt
    check_ids(lm, prompt)
    known = _strip_special(lm, prompt)
    text = lm.tokenizer.decode(known)
    if lm.tokenizer.encode(text).ids != known:
        raise InputError(
            "the tokenizer encodes the text of the prompt's ids to other ids; send the text"
        )
    return text


def check_ids(lm: LanguageModel, ids: Sequence[int]) -> None:
    """Raise `InputError` for an id outside of the vocabulary.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> check_ids(lm, [1, 300])
    Traceback (most recent call last):
    ledom.core.errors.InputError: no token has the id 300; there are 257
    """
    bad = next((i for i in ids if not 0 <= i < lm.tokenizer.vocab_size), None)
    if bad is not None:
        raise InputError(f"no token has the id {bad}; there are {lm.tokenizer.vocab_size}")


def _strip_special(lm: LanguageModel, ids: Sequence[int]) -> list[int]:
    """Ids without the model's BOS tokens, if the ids start with them.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> _strip_special(lm, [*lm.bos_ids, 5, 6])
    [5, 6]
    """
    first = len(lm.bos_ids)
    return list(ids[first:] if list(ids[:first]) == lm.bos_ids else ids)


def sampling_of(body: Mapping[str, Any], temperature: float, max_tokens: int) -> Sampling:
    """The sampling settings of a body in OpenAI's form, with defaults for two of them.

    >>> sampling_of({"top_k": -1, "seed": -3}, 0.7, 16) == Sampling(0.7, max_tokens=16, seed=3)
    True
    """
    given = body.get("temperature")
    return Sampling(
        temperature=temperature if given is None else given,
        top_k=max(0, body.get("top_k") or 0),
        top_p=body.get("top_p") or 1.0,
        max_tokens=body.get("max_tokens") or max_tokens,
        seed=abs(body.get("seed") or 0),
    )


def write(
    lm: LanguageModel, prompts: Sequence[str], sampling: Sampling, count: int = 1
) -> Steps[list[list[Generation]]]:
    """The `count` texts that the model writes for each prompt, in its own steps.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> from ledom.serve.batching import finish
    >>> ((made,),) = finish(write(FakeLanguageModel(answers=["4"]), ["2 + 2?"], Sampling()))
    >>> made.text
    '4'
    """
    texts: dict[int, list[Generation]] = {}
    for completed in lm.generate_in_steps(prompts, sampling, count):
        texts.update(completed)
        yield
    return [texts[place] for place in range(len(prompts))]


def num_written(generations: Iterable[Generation]) -> int:
    """The number of tokens that the model wrote, EOS included."""
    return sum(len(made.ids) + (made.finish_reason == "stop") for made in generations)


def written_tokens(
    lm: LanguageModel, prompt: str, generation: Generation, count: int
) -> list[Token]:
    """The tokens of a generation, each with `count` alternatives.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> made = Generation("4", lm.tokenizer.encode("4").ids, "stop")
    >>> [token_text(lm, token.id) for token in written_tokens(lm, "2 + 2?", made, count=0)]
    ['4']
    """
    context, ids = _all_ids(lm, prompt, generation)
    if not ids:
        return []
    whole = lm.direction.to_reading_order(context + lm.direction.to_model_order(ids))
    span = lm.direction.span_to_model_order(len(context), len(whole), len(whole))
    return _tokens(lm, TokenSpan(whole, *span), count)


def cut_at_stops(
    generation: Generation, stop: str | Sequence[str] | None, direction: Direction
) -> Generation:
    """What was written before the first of the stop texts, in OpenAI's form; its ids are kept.

    A reverse model writes to the left, so its text is cut at the last place of a stop.

    >>> made = Generation("4 is. Yes. No", [], "length")
    >>> [cut_at_stops(made, ".", direction).text for direction in Direction]
    ['4 is', ' No']
    """
    kept = generation.text
    for text in filter(None, [stop] if isinstance(stop, str) else stop or []):
        if direction is Direction.FORWARD:
            kept = kept.partition(text)[0]
        else:
            kept = kept.rpartition(text)[2]
    if kept == generation.text:
        return generation
    return replace(generation, text=kept, finish_reason="stop")


def tokens_of(lm: LanguageModel, tokens: Sequence[Token], text: str) -> list[Token]:
    """The tokens of `text`, the part of a generation that was kept; `tokens` are all of its tokens.

    A token that is only in part in the text is one of them.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> tokens = [Token(i, 0.0) for i in lm.tokenizer.encode("2 + 2").ids]
    >>> "".join(token_text(lm, token.id) for token in tokens_of(lm, tokens, "2 +"))
    '2 +'
    """
    ids, forward = [token.id for token in tokens], lm.direction is Direction.FORWARD

    def holds_text(count: int) -> bool:
        part = lm.tokenizer.decode(ids[:count] if forward else ids[len(ids) - count :])
        return part.startswith(text) if forward else part.endswith(text)

    count = bisect_left(range(len(ids)), True, key=holds_text)
    return list(tokens[:count] if forward else tokens[len(ids) - count :])


def next_tokens(lm: LanguageModel, prompt: str, generation: Generation, count: int) -> Alternatives:
    """The most likely next tokens: to the right (forward model) or to the left (reverse model).

    At most `count`, best first; none if the model's context is full.
    """
    context, ids = _all_ids(lm, prompt, generation)
    known = context + lm.direction.to_model_order(ids)
    if len(known) >= lm.context:
        return []
    whole = lm.direction.to_reading_order([*known, lm.tokenizer.eos_id])  # the last is not read
    place = lm.direction.span_to_model_order(len(known), len(known) + 1, len(whole))
    return lm.alternatives(TokenSpan(whole, *place), count)[0]


def _all_ids(lm: LanguageModel, prompt: str, generation: Generation) -> tuple[list[int], list[int]]:
    """Ids that the model read, in model order, and ids that it wrote, in reading order."""
    return lm.prompt_ids(prompt, max(1, len(generation.ids))), list(generation.ids)


def _tokens(lm: LanguageModel, target: TokenSpan, count: int) -> list[Token]:
    (values,) = lm.logprobs([target])
    ids = list(target.ids[target.start : target.end])
    if not count:
        return [Token(i, float(v)) for i, v in zip(ids, values, strict=True)]
    alternatives = lm.alternatives(target, count)
    return [
        # A token that is also an alternative gets the alternative's number: clients compare them.
        Token(i, dict(best).get(i, float(v)), best)
        for i, v, best in zip(ids, values, alternatives, strict=True)
    ]


def score_ids(lm: LanguageModel, ids: Sequence[int], count: int) -> Steps[list[Token]]:
    """The tokens of a text, each with its log-probability given the tokens to its left.

    A forward model predicts these directly; the first token has no log-probability. A reverse
    model predicts each token from those to its right, so the values follow from Bayes' rule: that
    of token i is log P(t1 .. ti) - log P(t1 .. t(i-1)), where each is scored as a text that ends
    there. This takes one pass per prefix of the text, and a special token at its start has no
    log-probability. In either direction the values of a continuation sum to
    log P(continuation | context).

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> from ledom.serve.batching import finish
    >>> tokens = finish(score_ids(FakeLanguageModel(), [3, 1, 2], count=0))
    >>> [token.logprob and round(token.logprob, 3) for token in tokens]  # none for the first
    [None, -1.609, -1.386]
    """
    check_ids(lm, ids)
    if lm.direction is Direction.FORWARD:
        if len(ids) < 2:
            return [Token(i, None) for i in ids]
        first = Token(ids[0], None)
        return [first, *_tokens(lm, TokenSpan(list(ids), 1, len(ids)), count)]
    known = _strip_special(lm, ids)
    special = [Token(i, None) for i in ids[: len(ids) - len(known)]]
    ending = lm.special_ids[1]
    starts = [TokenSpan([*known[:n], *ending], 0, n) for n in range(1, len(known) + 1)]
    totals = [0.0]
    for group in _groups(starts):
        totals += [float(values.sum(dtype=float)) for values in lm.logprobs(group)]
        yield
    values = [after - before for before, after in pairwise(totals)]
    return [*special, *(Token(i, v) for i, v in zip(known, values, strict=True))]


def _groups(spans: Sequence[TokenSpan]) -> Iterator[list[TokenSpan]]:
    """The spans in groups of at most `_STEP_TOKENS` tokens, and of at least one span."""
    group: list[TokenSpan] = []
    size = 0
    for span in spans:
        if group and size + len(span.ids) > _STEP_TOKENS:
            yield group
            group, size = [], 0
        group.append(span)
        size += len(span.ids)
    if group:
        yield group
