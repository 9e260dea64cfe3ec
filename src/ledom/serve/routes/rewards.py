"""Rewards for reinforcement learning, in the protocols of OpenRLHF, slime and verl."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from ledom.core.errors import InputError
from ledom.core.reading import JsonObject
from ledom.serve.batching import apart
from ledom.serve.chat_text import response_in, split_dialog
from ledom.serve.judge import Judgement
from ledom.serve.routes.shared import ANSWER, QUESTION, Body, Items, ServiceOf, listed
from ledom.serve.routes.unsupported import ActivationBody, ReadingBody
from ledom.serve.service import Service

__all__ = ["router"]

router = APIRouter(tags=["rewards"])

_NO_REWARD = 0.0
"""For a sample that cannot be judged; these protocols need a number. See `Judge.read_sample`."""


class OpenRLHFBody(Body):
    """The body that OpenRLHF's `--reward.remote_url` sends."""

    query: Annotated[Items[str], Field(examples=[[f"{QUESTION}\n\n{ANSWER}<|endoftext|>"]])]
    """Prompt and response in one text, with special tokens; the prompt's start may be cut off."""
    prompts: Annotated[Items[str], Field(examples=[[f"{QUESTION}\n\n"]])]


class SlimeBody(Body):
    """The body that slime's and miles' `--rm-url` sends."""

    prompt: Annotated[str | Items[JsonObject], Field(examples=[QUESTION])]
    response: Annotated[str | Items[JsonObject], Field(examples=[ANSWER])]


class DialogBody(ReadingBody):
    """One dialog or several, each as one text. verl's reward loop sends this to its own servers."""

    input: Annotated[str | Items[str], Field(examples=[f"{QUESTION}\n\n{ANSWER}"])]


class ClassifyBody(DialogBody, ActivationBody):
    """vLLM's body."""


class EmbeddingBody(DialogBody):
    """OpenAI's body, in sglang's form."""

    encoding_format: Literal["float", "base64"] | None = None
    """base64, the default of OpenAI's own client, encodes a little-endian fp32 number."""

    def encoded(self, number: float) -> list[float] | str:
        """A vector with one number, in the form that the client wants."""
        if self.encoding_format != "base64":
            return [number]
        return base64.b64encode(struct.pack("<f", number)).decode()


class PoolingBody(EmbeddingBody, ActivationBody):
    """vLLM's body for reward models."""

    task: Literal["classify"] | None = None
    """One number for the whole text."""


@router.post("/get_reward")
async def openrlhf(body: OpenRLHFBody, service: ServiceOf) -> JsonObject:
    """OpenRLHF's remote reward. `scores` are from 0 to 1; `extra_logs` has log-probabilities."""
    if len(body.query) != len(body.prompts):
        raise InputError(
            f"{len(body.query)} queries for {len(body.prompts)} prompts; send the same number"
        )
    size = sum(map(len, [*body.query, *body.prompts]))
    read = service.judge.read_sample
    pairs = await apart(
        size,
        lambda: [
            read(prompt, response_in(query, prompt))
            for query, prompt in zip(body.query, body.prompts, strict=True)
        ],
    )
    judged = await service.judge_samples(pairs)
    logs = [judgement.logprobs if judgement else {} for judgement in judged]
    names = service.judge.log_names if judged else []
    return {
        "rewards": _values(judged),
        "scores": _values(judged, use_activation=True),
        "extra_logs": {name: [log.get(name, _NO_REWARD) for log in logs] for name in names},
    }


@router.post("/reward")
async def slime(body: SlimeBody, service: ServiceOf) -> float:
    """slime's remote reward. The response is a bare number."""
    size = sum(len(text) for text in (body.prompt, body.response) if isinstance(text, str))
    pair = await apart(size, lambda: service.judge.read_sample(body.prompt, body.response))
    (value,) = _values(await service.judge_samples([pair]))
    return value


@router.post("/classify")
async def classify(body: ClassifyBody, service: ServiceOf) -> JsonObject:
    """vLLM's classification protocol. The reward is the last entry of `probs`."""
    judged = await _judge_dialogs(body, service)
    values = _values(judged, body.use_activation)
    data = ({"label": "reward", "probs": [value], "num_classes": 1} for value in values)
    return listed("classify", body.model, judged, data)


@router.post("/pooling")
async def pooling(body: PoolingBody, service: ServiceOf) -> JsonObject:
    """vLLM's protocol for reward models. The reward is the only number of each `data`."""
    judged = await _judge_dialogs(body, service)
    values = _values(judged, body.use_activation)
    data = ({"object": "pooling", "data": body.encoded(value)} for value in values)
    return listed("pool", body.model, judged, data)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, service: ServiceOf) -> JsonObject:
    """sglang's embeddings protocol. The reward is the only number of each embedding."""
    judged = await _judge_dialogs(body, service)
    values = _values(judged)
    data = ({"object": "embedding", "embedding": body.encoded(value)} for value in values)
    return listed("embd", body.model, judged, data)


def _values(judged: Sequence[Judgement | None], use_activation: bool = False) -> list[float]:
    """The value of each judgement, see `Judgement.value`; `_NO_REWARD` for None."""
    return [one.value(use_activation) if one else _NO_REWARD for one in judged]


async def _judge_dialogs(body: DialogBody, service: Service) -> list[Judgement | None]:
    body.refuse_unsupported()
    between = service.judge.models[0].pair_format.literals[1]
    given = [body.input] if isinstance(body.input, str) else body.input
    size = sum(map(len, given))
    read = service.judge.read_sample
    pairs = await apart(size, lambda: [read(*split_dialog(text, between)) for text in given])
    return await service.judge_samples(pairs)
