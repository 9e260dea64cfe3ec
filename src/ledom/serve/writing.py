"""Token-by-token views of prompts and generated texts, with log-probabilities, in reading order.

Long work runs in steps, between which it can be stopped. This module does not know about requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.stage import even_groups
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
    "token_texts",
    "tokens_of",
    "write",
    "written_tokens",
]

_STEP_TOKENS = 2**14  # tokens to score in a step, on average: enough for several threads

Alternatives = list[tuple[int, float]]


@dataclass(frozen=True)
class Token:
    """A token with its log-probability."""

    id: int
    logprob: float | None
    """In nats; None for a token that is not predicted, such as the first one that is read."""
    text: str = ""
    """What it adds to the text: nothing if it is special. If tokens share a character, the last one
    has it and the others have nothing."""
    alternatives: Alternatives = field(default_factory=list)
    """The most likely tokens at this position, best first; see `LanguageModel.alternatives`."""


def token_texts(lm: LanguageModel, ids: Iterable[int]) -> dict[int, str]:
    """The texts of tokens as in a longer text, or the names of special tokens, by id.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> list(token_texts(lm, [lm.tokenizer.token_id("4"), lm.tokenizer.eos_id]).values())
    ['4', '<|end|>']
    """
    before = lm.tokenizer.neighbor
    return {
        i: lm.tokenizer.decode_after(before, [i]) or lm.tokenizer.backend.id_to_token(i) or ""
        for i in dict.fromkeys(ids)
    }


def prompt_text(lm: LanguageModel, prompt: str | Sequence[int]) -> str:
    """The text of a prompt; raises `InputError` if the tokenizer encodes it to other ids.

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
            "the tokenizer encodes the text of the prompt's ids differently; send the text"
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
    """Ids without the model's BOS tokens, if the ids start with them."""
    first = len(lm.bos_ids)
    return list(ids[first:] if list(ids[:first]) == lm.bos_ids else ids)


def sampling_of(body: Mapping[str, Any], temperature: float, max_tokens: int) -> Sampling:
    """The sampling settings of a body in OpenAI's form, with defaults for two of them.

    >>> body = {"top_k": -1, "seed": -3, "max_tokens": 8}
    >>> sampling_of(body, temperature=0.7, max_tokens=16) == Sampling(0.7, max_tokens=8, seed=3)
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
    """Write `count` texts for each prompt, in the model's own steps.

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
    >>> [token.text for token in written_tokens(lm, "2 + 2?", made, count=0)]
    ['4']
    """
    context, ids = lm.prompt_ids(prompt, max(1, len(generation.ids))), list(generation.ids)
    if not ids:
        return []
    if lm.direction is Direction.FORWARD:
        before = context
    else:  # further text may precede what a reverse model has written so far
        before = [] if generation.finish_reason == "stop" else lm.tokenizer.neighbor
    pieces = lm.tokenizer.pieces([*before, *ids])[len(before) :]
    whole = lm.direction.to_reading_order(context + lm.direction.to_model_order(ids))
    span = lm.direction.span_to_model_order(len(context), len(whole), len(whole))
    return _tokens(lm, TokenSpan(whole, *span), pieces, count)


def cut_at_stops(
    generation: Generation, stop: str | Sequence[str] | None, direction: Direction
) -> Generation:
    """Cut a generation at the first stop text, as in OpenAI's protocol; its ids are kept.

    A reverse model writes to the left, so its text is cut at the last occurrence of a stop text.

    >>> made = Generation("4 is. Yes. No", [], "length")
    >>> [cut_at_stops(made, ".", direction).text for direction in Direction]
    ['4 is', ' No']
    """
    text, stops = generation.text, [stop] if isinstance(stop, str) else stop or []
    find = text.find if direction is Direction.FORWARD else text.rfind
    found = [(start, start + len(one)) for one in stops if one and (start := find(one)) >= 0]
    if not found:
        return generation
    # The model completed this stop first; of several that it completed at once, it is the longest.
    if direction is Direction.FORWARD:
        kept = text[: min(found, key=lambda span: span[::-1])[0]]
    else:
        kept = text[max(found)[1] :]
    return replace(generation, text=kept, finish_reason="stop")


def tokens_of(tokens: Sequence[Token], text: str, direction: Direction) -> list[Token]:
    """The `tokens` of a generation that are at least partly in `text`, the part that was kept.

    >>> tokens = [Token(0, 0.0, "2"), Token(1, 0.0, " +"), Token(2, 0.0, " 2")]
    >>> [token.text for token in tokens_of(tokens, "2 ", Direction.FORWARD)]
    ['2', ' +']
    """
    if not text:
        return []
    starts = list(accumulate((len(token.text) for token in tokens), initial=0))
    if direction is Direction.FORWARD:
        return [token for token, start in zip(tokens, starts, strict=False) if start < len(text)]
    cut = starts[-1] - len(text)
    first = next(i for i, (start, end) in enumerate(pairwise(starts)) if start >= cut or end > cut)
    return list(tokens[first:])


def next_tokens(lm: LanguageModel, known: Sequence[int], count: int) -> Alternatives:
    """The most likely tokens after the ids `known` (model order); none if the context is full.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(context=2)
    >>> next_tokens(lm, [0, 1], count=5)
    []
    """
    if len(known) >= lm.context:
        return []
    whole = lm.direction.to_reading_order([*known, lm.tokenizer.eos_id])  # the last is not read
    place = lm.direction.span_to_model_order(len(known), len(known) + 1, len(whole))
    return lm.alternatives(TokenSpan(whole, *place), count)[0]


def _tokens(lm: LanguageModel, target: TokenSpan, texts: Sequence[str], count: int) -> list[Token]:
    """The tokens of a span, whose texts are given, each with `count` alternatives."""
    (values,) = lm.logprobs([target])
    ids = target.ids[target.start : target.end]
    alternatives = lm.alternatives(target, count) if count else [[] for _ in ids]
    return [
        # A token that is also an alternative gets the alternative's number: clients compare them.
        Token(i, dict(best).get(i, float(v)), text, best)
        for i, v, text, best in zip(ids, values, texts, alternatives, strict=True)
    ]


def score_ids(lm: LanguageModel, ids: Sequence[int], count: int) -> Steps[list[Token]]:
    """The tokens of a text, each with its log-probability given the tokens to its left.

    A forward model predicts these directly; the first token has no log-probability. For a reverse
    model they follow from Bayes' rule: that of token i is log P(t1 .. ti) - log P(t1 .. t(i-1)),
    where each is scored as a text that ends there, which takes one pass per prefix; a special token
    at the start has no log-probability. In either direction the values of a continuation sum to
    log P(continuation | context).

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> from ledom.serve.batching import finish
    >>> tokens = finish(score_ids(FakeLanguageModel(), [3, 1, 2], count=0))
    >>> [token.logprob and round(token.logprob, 3) for token in tokens]  # none for the first
    [None, -1.609, -1.386]
    """
    check_ids(lm, ids)
    texts = lm.tokenizer.pieces(ids)
    if lm.direction is Direction.FORWARD:
        if len(ids) < 2:
            return [Token(i, None, text) for i, text in zip(ids, texts, strict=True)]
        first = Token(ids[0], None, texts[0])
        return [first, *_tokens(lm, TokenSpan(list(ids), 1, len(ids)), texts[1:], count)]
    known = _strip_special(lm, ids)
    special = [Token(i, None) for i in ids[: len(ids) - len(known)]]
    ending = lm.special_ids[1]
    starts = [TokenSpan([*known[:n], *ending], 0, n) for n in range(1, len(known) + 1)]
    totals = [0.0]
    for group in even_groups(starts, max(1, 2 * _STEP_TOKENS // (len(ids) + 1))):
        totals += [float(values.sum(dtype=float)) for values in lm.logprobs(group)]
        yield
    values = [after - before for before, after in pairwise(totals)]
    own = zip(known, values, texts[len(special) :], strict=True)
    return [*special, *(Token(i, value, text) for i, value, text in own)]
