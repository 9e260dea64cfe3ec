"""Rewards for reinforcement learning, in the protocols of OpenRLHF, slime and verl.

These trainers send one sample per request; the service batches the samples of many requests.
"""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from ledom.core.errors import InputError
from ledom.core.reading import JsonObject
from ledom.serve.batching import apart
from ledom.serve.chat_text import answer_of, question_of, response_in, split_dialog
from ledom.serve.judge import Judgement, Pair
from ledom.serve.routes.shared import ANSWER, QUESTION, Body, Items, ServiceOf, listed, usage
from ledom.serve.routes.unsupported import ActivationBody, ReadingBody
from ledom.serve.service import REWARD, Service

__all__ = ["router"]

router = APIRouter(tags=["rewards"])


class OpenRLHFBody(Body):
    """The body that OpenRLHF's `--reward.remote_url` sends."""

    query: Annotated[Items[str], Field(examples=[[f"{QUESTION}\n\n{ANSWER}<|endoftext|>"]])]
    """Prompt and response in one text, with special tokens; the prompt's start may be cut off."""
    prompts: Annotated[Items[str], Field(examples=[[f"{QUESTION}\n\n"]])]


class SlimeBody(Body):
    """The body that slime's and miles' `--rm-url` sends."""

    prompt: Annotated[str | Items[JsonObject], Field(examples=[QUESTION])]
    response: Annotated[str, Field(examples=[ANSWER])]


class DialogBody(ReadingBody):
    """The body that verl's reward loop sends: one dialog or several, each as one text."""

    input: Annotated[str | Items[str], Field(examples=[f"{QUESTION}\n\n{ANSWER}"])]


class ClassifyBody(DialogBody, ActivationBody):
    """vLLM's body."""


class EmbeddingBody(DialogBody):
    """OpenAI's body, in sglang's form."""

    encoding_format: Literal["float", "base64"] | None = None
    """base64, the default of OpenAI's own client, encodes a little-endian fp32 number."""


@router.post("/get_reward")
async def openrlhf(body: OpenRLHFBody, service: ServiceOf) -> JsonObject:
    """OpenRLHF's remote reward. `scores` are from 0 to 1; `extra_logs` has log-probabilities."""
    if len(body.query) != len(body.prompts):
        raise InputError(
            f"{len(body.query)} queries for {len(body.prompts)} prompts; send the same number"
        )
    size = sum(map(len, [*body.query, *body.prompts]))
    pairs = await apart(
        size,
        lambda: [
            Pair(question_of(prompt), answer_of(response_in(query, prompt)))
            for query, prompt in zip(body.query, body.prompts, strict=True)
        ],
    )
    judged = await service.judge_pairs(pairs)
    logs = [judgement.logprobs for judgement in judged]
    return {
        "rewards": [judgement.reward for judgement in judged],
        "scores": [judgement.probability for judgement in judged],
        "extra_logs": {name: [log[name] for log in logs] for name in (logs[0] if logs else {})},
    }


@router.post("/reward")
async def slime(body: SlimeBody, service: ServiceOf) -> float:
    """slime's remote reward. The response is a bare number."""
    size = len(body.response) + len(body.prompt if isinstance(body.prompt, str) else "")
    pair = await apart(size, lambda: Pair(question_of(body.prompt), answer_of(body.response)))
    (judgement,) = await service.judge_pairs([pair])
    return judgement.reward


@router.post("/classify")
async def classify(body: ClassifyBody, service: ServiceOf) -> JsonObject:
    """vLLM's classification protocol for verl. The reward is the last entry of `probs`."""
    judged = await _judge_dialogs(body, service)
    data = (
        {"label": "reward", "probs": [one.value(body.use_activation)], "num_classes": 1}
        for one in judged
    )
    return listed("classify", body.model, judged, data)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, service: ServiceOf) -> JsonObject:
    """sglang's embeddings protocol for verl. The reward is the only number of each embedding."""
    judged = await _judge_dialogs(body, service)
    form = _base64 if body.encoding_format == "base64" else lambda reward: [reward]
    return {
        "object": "list",
        "model": body.model or REWARD,
        "data": [
            {"index": index, "object": "embedding", "embedding": form(judgement.reward)}
            for index, judgement in enumerate(judged)
        ],
        "usage": usage(sum(judgement.num_tokens for judgement in judged)),
    }


def _base64(number: float) -> str:
    return base64.b64encode(struct.pack("<f", number)).decode()


async def _judge_dialogs(body: DialogBody, service: Service) -> list[Judgement]:
    body.refuse_unsupported()
    between = service.judge.models[0].pair_format.literals[1]
    given = [body.input] if isinstance(body.input, str) else body.input
    size = sum(map(len, given))
    pairs = await apart(size, lambda: [Pair(*split_dialog(text, between)) for text in given])
    return await service.judge_pairs(pairs)
