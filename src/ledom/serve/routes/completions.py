"""OpenAI's completions by this server's models, in either direction, and their tokenizers.

A reverse model writes what precedes the prompt. Texts and tokens are in reading order.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from ledom.core.direction import Direction
from ledom.core.reading import JsonObject
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.serve import writing
from ledom.serve.batching import Steps
from ledom.serve.refusals import Refusal
from ledom.serve.routes.shared import ANSWER, Body, Items, ServiceOf, head, usage
from ledom.serve.routes.unsupported import ReadingBody, WritingBody
from ledom.serve.service import Service
from ledom.serve.writing import Token, token_texts

__all__ = [
    "CompletionBody",
    "SampledBody",
    "complete",
    "completion_events",
    "pieces",
    "router",
    "stream",
]

router = APIRouter(tags=["completions"])

_MOST_LOGPROBS = 20
_OURS = {"model", "n", "stream", "stream_options", "ledom"}  # keys not sent to an upstream
Ids = Annotated[list[int], Field(min_length=1, fail_fast=True)]


class StreamOptions(Body):
    """OpenAI's options for a stream; others are ignored."""

    include_usage: bool | None = None


class SampledBody(WritingBody):
    """The settings that OpenAI's completions and chat share.

    The gateway sends keys that no field names to the upstream unchanged.
    """

    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    """Texts per prompt; for the gateway, candidates to draw, one of which is returned (1: its
    default, 8)."""
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | Items[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ledom: JsonObject | None = None
    """Options of the gateway (strategy, n, lambda, model), which override those in the name."""

    def for_upstream(self) -> JsonObject:
        """The keys that were given, without those that the gateway itself handles."""
        return self.model_dump(exclude_unset=True, exclude=_OURS)


class CompletionBody(SampledBody):
    """OpenAI's body; `model` is forward, reverse or ledom/STRATEGY."""

    model: Annotated[str, Field(examples=["reverse"])]
    prompt: Annotated[str | Ids | Items[str] | Items[Ids], Field(examples=[f"\n\n{ANSWER}"])]
    max_tokens: Annotated[int | None, Field(ge=0, examples=[32])] = None
    logprobs: Annotated[int | None, Field(ge=0, le=_MOST_LOGPROBS)] = None
    echo: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0] if self.prompt else "", int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    def sampling(self) -> Sampling:
        """The sampling settings, with OpenAI's defaults."""
        return writing.sampling_of(self.model_dump(), temperature=1.0, max_tokens=16)


class TokenizeBody(ReadingBody):
    """vLLM's body."""

    prompt: Annotated[str, Field(examples=["3 + 4 = 7"])]
    add_special_tokens: bool = False


class DetokenizeBody(ReadingBody):
    """vLLM's body."""

    tokens: Annotated[list[int], Field(fail_fast=True, examples=[[10, 11]])]


async def complete(body: CompletionBody, service: Service) -> JsonObject:
    """Complete with a model of this server, or score the prompt (`echo`)."""
    lm = service.model(body.model)
    body.refuse_unsupported()
    if body.ledom:
        raise Refusal(400, "the key ledom is for the gateway; name a model such as ledom/auto")
    prompts, count = body.prompts(), body.n or 1
    if not prompts:
        raise Refusal(422, "prompt is an empty list; send at least one")
    service.check_writing(len(prompts) * count, body.sampling().max_tokens)
    service.check_prompts(lm, prompts)
    if body.echo:
        choices, counts = await service.compute(lambda: _echo(lm, body, prompts, service))
    else:
        choices, counts = await service.compute(lambda: _write(lm, body, prompts))
    service.metrics.tokens("generated", counts[1])
    return {
        **head("cmpl", "text_completion", body.model),
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        "usage": usage(*counts),
        "ledom": {"direction": str(lm.direction)},
    }


Choices = tuple[list[JsonObject], tuple[int, int]]


def _write(
    lm: LanguageModel, body: CompletionBody, prompts: Sequence[str | list[int]]
) -> Steps[Choices]:
    """Choices, and how many tokens were read and written."""
    texts = [writing.prompt_text(lm, prompt) for prompt in prompts]
    made = yield from writing.write(lm, texts, body.sampling(), body.n or 1)
    choices = []
    for text, generations in zip(texts, made, strict=True):
        for generation in generations:
            choices.append(_choice(lm, body, text, generation))
            yield
    read = sum(len(lm.prompt_ids(text, 1)) for text in texts)
    return choices, (read, sum(map(writing.num_written, made)))


def _choice(lm: LanguageModel, body: CompletionBody, prompt: str, made: Generation) -> JsonObject:
    kept, logprobs = writing.cut_at_stops(made, body.stop, lm.direction), None
    if body.logprobs is not None:
        tokens = writing.written_tokens(lm, prompt, made, body.logprobs)
        if kept is not made:
            tokens = writing.tokens_of(tokens, kept.text, lm.direction)
        logprobs = _logprobs(lm, tokens)
    return {"text": kept.text, "finish_reason": kept.finish_reason, "logprobs": logprobs}


def _echo(
    lm: LanguageModel, body: CompletionBody, prompts: Sequence[str | list[int]], service: Service
) -> Steps[Choices]:
    """The tokens of the prompts with their log-probabilities; see `writing.score_ids`.

    If `max_tokens` is 1, one token is appended, because clients then drop the last one.
    """
    if (body.max_tokens or 0) > 1 or (body.n or 1) > 1:
        raise Refusal(400, "echo scores the prompt: ask for max_tokens of 0 or 1, and n of 1")
    count = body.logprobs or 0
    choices, read, written = [], 0, 0
    all_ids = [
        [*lm.bos_ids, *lm.tokenizer.encode(prompt).ids] if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    service.check_scoring(lm, [len(ids) for ids in all_ids])
    for prompt, ids in zip(prompts, all_ids, strict=True):
        tokens = yield from writing.score_ids(lm, ids, count)
        if body.max_tokens:
            tokens.append(_following(lm, ids, count))
            written += 1
        read += len(ids)
        shown = tokens[len(lm.bos_ids) :] if isinstance(prompt, str) else tokens
        choices.append(
            {
                "text": prompt if isinstance(prompt, str) else lm.tokenizer.decode(prompt),
                "finish_reason": "length",
                "logprobs": None if body.logprobs is None else _logprobs(lm, shown),
            }
        )
    return choices, (read, written)


def _following(lm: LanguageModel, ids: Sequence[int], count: int) -> Token:
    """The likeliest token after a scored prompt; for a reverse model EOS, which it reads first."""
    if lm.direction is Direction.REVERSE:
        return Token(lm.tokenizer.eos_id, 0.0)
    best = writing.next_tokens(lm, ids, max(1, count))
    if not best:
        return Token(lm.tokenizer.eos_id, None)
    text = lm.tokenizer.decode_after(ids, [best[0][0]])
    return Token(best[0][0], best[0][1], text, best)


def _logprobs(lm: LanguageModel, tokens: Sequence[Token]) -> JsonObject:
    """OpenAI's `logprobs`. Its `top_logprobs` hold the alternatives and the token itself.

    A special token, or one of several that share a character, is named as in the vocabulary.
    """

    def name(token_id: int, text: str) -> str:
        whole = text and "\ufffd" not in text
        return text if whole else lm.tokenizer.backend.id_to_token(token_id) or ""

    texts = token_texts(lm, [i for token in tokens for i, _ in token.alternatives])
    others = {token_id: name(token_id, text) for token_id, text in texts.items()}
    names = [name(token.id, token.text) for token in tokens]
    tops = []
    for token, own in zip(tokens, names, strict=True):
        top: dict[str, float] = {}
        for token_id, value in token.alternatives:  # for equal names, the more likely token
            top.setdefault(own if token_id == token.id else others[token_id], value)
        if token.logprob is not None:
            top.setdefault(own, token.logprob)
        tops.append(top or None)
    lengths = (len(token.text) for token in tokens)
    return {
        "tokens": names,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops,
        "text_offset": list(accumulate(lengths, initial=0))[:-1],
    }


def stream(
    events: list[JsonObject], answer: JsonObject, options: StreamOptions | None
) -> StreamingResponse:
    """The events as server-sent events, ended by `[DONE]`; the last one has the key `ledom`.

    As in OpenAI's protocol, `include_usage` adds an event with the usage.
    """
    if "ledom" in answer:
        events[-1]["ledom"] = answer["ledom"]
    if options is not None and options.include_usage:
        for event in events:
            event["usage"] = None
        events.append({**events[-1], "choices": [], "usage": answer["usage"]})
        events[-1].pop("ledom", None)

    async def lines() -> AsyncIterator[bytes]:
        for event in events:
            await asyncio.sleep(0)  # let other requests run
            yield b"data: " + json.dumps(event).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def completion_events(answer: JsonObject) -> list[JsonObject]:
    """A completion as the events of OpenAI's stream."""
    shared = {key: answer[key] for key in ("id", "object", "created", "model")}
    events: list[JsonObject] = []
    for choice in answer["choices"]:
        for piece in pieces(choice["text"]):
            part = {"index": choice["index"], "text": piece, "finish_reason": None}
            events.append(shared | {"choices": [part | {"logprobs": None}]})
        events.append(shared | {"choices": [choice | {"text": ""}]})
    return events


def pieces(text: str) -> list[str]:
    """A text split into words, each with the spaces before it.

    >>> pieces("What is  it?")
    ['What', ' is', '  it?']
    """
    return re.findall(r"\s*\S+|\s+", text)


@router.post("/tokenize")
def tokenize(body: TokenizeBody, service: ServiceOf) -> JsonObject:
    """The ids of a text. A prompt that is just a special token's name is encoded as that token."""
    body.refuse_unsupported()
    lm = service.model(body.model)
    special = lm.tokenizer.backend.token_to_id(body.prompt)
    if special is not None and not lm.tokenizer.decode([special]):
        ids = [special]
    else:
        ids = lm.tokenizer.encode(body.prompt).ids
        ids = [*lm.bos_ids, *ids] if body.add_special_tokens else ids
    return {"count": len(ids), "max_model_len": lm.context, "tokens": ids}


@router.post("/detokenize")
def detokenize(body: DetokenizeBody, service: ServiceOf) -> JsonObject:
    """The text of ids in reading order; special tokens are left out."""
    body.refuse_unsupported()
    lm = service.model(body.model)
    writing.check_ids(lm, body.tokens)
    return {"prompt": lm.tokenizer.decode(body.tokens)}


@router.get("/tokenizer_info")
async def tokenizer_info(service: ServiceOf, model: str | None = None) -> JsonObject:
    """The special tokens and sizes of a model's tokenizer."""
    lm = service.model(model)
    tokenizer = lm.tokenizer
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "bos_token": tokenizer.bos_tokens[0] if tokenizer.bos_tokens else None,
        "pad_token": tokenizer.eos_token,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": lm.context,
    }


@router.get("/v1/models")
async def models(service: ServiceOf) -> JsonObject:
    """The names that `model` accepts."""
    return {"object": "list", "data": [_model(name, service) for name in service.model_names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, service: ServiceOf) -> JsonObject:
    """The model of that name."""
    if name not in service.model_names:
        raise Refusal(404, f"no model {name!r:.60}; GET /v1/models lists them")
    return _model(name, service)


def _model(name: str, service: Service) -> JsonObject:
    gateway = [] if service.upstream else service.judge.models  # an upstream's limit is unknown
    used = [service.models[name]] if name in service.models else gateway
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "ledom",
        "max_model_len": min((lm.context for lm in used), default=None),
    }
