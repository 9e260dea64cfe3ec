"""OpenAI's chat and text completions as best of n: draws n candidates, returns the chosen one.

`usage` counts the tokens of all candidates, and `ledom` shows how the choice was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import ConfigDict, Field

from ledom.core.reading import JsonObject
from ledom.serve.batching import apart
from ledom.serve.chat_text import question_of
from ledom.serve.gateway import Chosen, Options, choose, is_gateway
from ledom.serve.refusals import Refusal
from ledom.serve.routes.completions import (
    CompletionBody,
    SampledBody,
    complete,
    completion_events,
    pieces,
    stream,
)
from ledom.serve.routes.shared import QUESTION, Body, Items, ServiceOf, head, usage
from ledom.serve.service import REWARD, Service

__all__ = ["complete_by_choice", "router"]

router = APIRouter(tags=["gateway"])


class Message(Body):
    """A message of a conversation; further keys of the protocol are kept."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | Items[JsonObject] | None = None


class ChatBody(SampledBody):
    """OpenAI's body."""

    model: Annotated[str, Field(examples=["ledom/auto"])]
    """`ledom/STRATEGY`, with options after commas: `ledom/vote-all-terms,n=8`."""
    messages: Annotated[
        Items[Message], Field(min_length=1, examples=[[{"role": "user", "content": QUESTION}]])
    ]
    max_tokens: Annotated[int | None, Field(ge=1, examples=[64])] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, service: ServiceOf) -> Any:
    """Answer with the best of n candidates."""
    if not is_gateway(body.model):
        raise Refusal(
            404, f"no model {body.model!r:.60} here; name {REWARD}/STRATEGY, such as {REWARD}/auto"
        )
    options = Options.read(body.model, body.ledom, body.n)
    if not service.upstream:
        body.refuse_unsupported()
        _check_text(body.messages)
    question = question_of([message.model_dump() for message in body.messages])
    sent = body.for_upstream()
    if not service.upstream and body.max_completion_tokens:
        sent["max_tokens"] = body.max_completion_tokens
    chosen = await choose(service, question, options, "chat/completions", sent)
    answer = {
        **head("chatcmpl", "chat.completion", body.model),
        "choices": [{**chosen.choice, "index": 0}],
        "usage": _usage(chosen),
        "ledom": chosen.details,
    }
    if body.stream:
        return stream(_chat_events(body.model, chosen), answer, body.stream_options)
    return answer


def _check_text(messages: Sequence[Message]) -> None:
    """Raise `Refusal` for a part of a message that is not text, such as an image."""
    parts = [part for m in messages if isinstance(m.content, list) for part in m.content]
    for part in parts:
        kind = part.get("type")
        if not isinstance(part.get("text"), str):
            raise Refusal(
                400,
                f"messages: a part of type {kind!r:.60}; this server's models read only text; "
                "leave it out",
            )


def _usage(chosen: Chosen) -> JsonObject | None:
    return usage(*chosen.tokens) if chosen.tokens else None


def _chat_events(model: str, chosen: Chosen) -> list[JsonObject]:
    """The chosen answer as the events of OpenAI's stream."""
    shared = head("chatcmpl", "chat.completion.chunk", model)

    def event(delta: JsonObject, reason: str | None = None) -> JsonObject:
        return shared | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    other, logprobs = _beside_text(chosen.choice), chosen.choice.get("logprobs")
    calls: JsonObject = {
        key: other.pop(key) for key in ("tool_calls", "function_call") if key in other
    }
    events = [event({"role": "assistant", "content": ""})]
    events += [event(other)] * bool(other)  # a thought, which clients show where it comes
    events += [event({"content": piece}) for piece in pieces(chosen.text)]
    if calls or logprobs:
        events.append(event(calls))
        events[-1]["choices"][0]["logprobs"] = logprobs
    reason = chosen.choice.get("finish_reason")
    events.append(event({}, reason if isinstance(reason, str) else "stop"))
    return events


def _beside_text(choice: JsonObject) -> JsonObject:
    """A message's keys other than role and text, such as tool calls, as in a stream."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return {}
    other = {k: v for k, v in message.items() if k not in ("role", "content") and v is not None}
    calls = other.get("tool_calls")
    if isinstance(calls, list):  # a client joins parts of a call by its index
        other["tool_calls"] = [
            {"index": index, **call} for index, call in enumerate(calls) if isinstance(call, dict)
        ]
    return other


async def complete_by_choice(body: CompletionBody, service: Service) -> JsonObject:
    """Complete one prompt, given as text, with the best of n candidates."""
    prompts = body.prompts()
    if len(prompts) != 1 or not isinstance(prompts[0], str):
        raise Refusal(400, "the gateway takes one prompt per request, as text")
    if body.echo or body.logprobs is not None:
        raise Refusal(400, "the gateway has no log-probabilities of tokens; see its key ledom")
    if not service.upstream:
        body.refuse_unsupported()
    options = Options.read(body.model, body.ledom, body.n)
    prompt = prompts[0]
    question = await apart(len(prompt), lambda: question_of(prompt))
    chosen = await choose(service, question, options, "completions", body.for_upstream())
    reason = chosen.choice.get("finish_reason")
    return {
        **head("cmpl", "text_completion", body.model),
        "choices": [{"index": 0, "text": chosen.text, "finish_reason": reason, "logprobs": None}],
        "usage": _usage(chosen),
        "ledom": chosen.details,
    }


@router.post("/v1/completions")
async def completions(body: CompletionBody, service: ServiceOf) -> Any:
    """Write a text, score a prompt (`echo` with `logprobs`), or choose among an upstream's texts.

    `model: reverse` writes what comes before the prompt. With `echo`, the log-probabilities of a
    continuation sum to log P(continuation | context), in both directions.
    """
    if body.max_tokens == 0 and not body.echo:
        raise Refusal(400, "max_tokens is 0; ask for at least 1, or score the prompt with echo")
    answer = await (complete_by_choice if is_gateway(body.model) else complete)(body, service)
    if body.stream:
        return stream(completion_events(answer), answer, body.stream_options)
    return answer
