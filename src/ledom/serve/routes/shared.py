"""Base class, service parameter and response parts that the routes share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from ledom.core.reading import JsonObject
from ledom.serve.judge import Judgement
from ledom.serve.service import REWARD, Service

__all__ = [
    "ANSWER",
    "QUESTION",
    "WRONG",
    "Body",
    "Items",
    "ServiceOf",
    "head",
    "listed",
    "new_id",
    "usage",
]

# Examples for the API's page: problems of the kind that the embedded pair was trained on.
QUESTION = (
    "A pizza has 24 pieces. If Ava can eat 4 pieces a day while Noah can eat 2 times as much, "
    "how many days will the pizza last?"
)
ANSWER = """Noah can eat 4 * 2 = 8 pieces a day.
Together, Ava and Noah can eat 4 + 8 = 12 pieces a day.
So, a pizza will last for 24 / 12 = 2 days.
#### 2"""
WRONG = """Noah can eat 4 + 2 = 6 pieces a day.
Together, Ava and Noah can eat 4 + 6 = 10 pieces a day.
So, a pizza will last for 30 / 10 = 3 days.
#### 3"""


_T = TypeVar("_T")
Items = Annotated[list[_T], Field(fail_fast=True, max_length=100_000)]
"""A list in a body. It is read only up to its first mistake, as other requests wait meanwhile."""


class Body(BaseModel):
    """Base of request bodies. Unknown keys are ignored; protocols have many that do not matter."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
"""The service, as a route's parameter."""


def new_id(kind: str) -> str:
    """An id for an answer, such as `score-...`.

    >>> new_id("score").partition("-")[0], len(new_id("score"))
    ('score', 38)
    """
    return f"{kind}-{uuid.uuid4().hex}"


def head(kind: str, described: str, model: str) -> JsonObject:
    """The keys that OpenAI's answers begin with; `described` is the answer's `object`.

    >>> head("score", "list", "reward")["model"]
    'reward'
    """
    now = int(time.time())
    return {"id": new_id(kind), "object": described, "created": now, "model": model}


def listed(
    kind: str, model: str | None, judged: Sequence[Judgement | None], data: Iterable[JsonObject]
) -> JsonObject:
    """The response of vLLM's pooling routes, with one item of `data` per judgement.

    >>> answer = listed("score", "reward", [], [{"score": 0.5}])
    >>> answer["model"], answer["data"]
    ('reward', [{'index': 0, 'score': 0.5}])
    """
    return {
        **head(kind, "list", model or REWARD),
        "data": [{"index": index, **item} for index, item in enumerate(data)],
        "usage": usage(sum(judgement.num_tokens for judgement in judged if judgement)),
    }


def usage(num_tokens: int, written: int = 0) -> JsonObject:
    """Token counts as OpenAI's clients read them.

    >>> usage(5, written=2)["total_tokens"]
    7
    """
    return {
        "prompt_tokens": num_tokens,
        "completion_tokens": written,
        "total_tokens": num_tokens + written,
    }
