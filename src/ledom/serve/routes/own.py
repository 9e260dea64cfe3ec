"""Our own routes: everything that the models say of answers, health and metrics."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from ledom.core.records import Score
from ledom.report.words import question_words
from ledom.serve.judge import Judgement, Pair
from ledom.serve.refusals import describe
from ledom.serve.routes.shared import Body, ServiceOf

__all__ = ["router"]

router = APIRouter(tags=["ledom"])


class ScoreBody(Body):
    """A question and answers to it."""

    question: Annotated[str, Field(examples=["Ava has 3 pens and buys 4. How many?"])]
    answers: Annotated[
        list[str], Field(min_length=1, examples=[["3 + 4 = 7\n#### 7", "3 * 4 = 12\n#### 12"]])
    ]
    tokens: bool = True
    """Whether to send the log-probability of each token and word."""


@router.get("/healthz", responses=describe())
async def healthz(service: ServiceOf) -> dict[str, Any]:
    """Whether the server answers, and what it answers with."""
    return {"status": "ok", "models": {name: lm.name for name, lm in service.models.items()}}


@router.get("/metrics", responses=describe(), response_class=Response)
async def metrics(service: ServiceOf) -> Response:
    """Counts and times, in Prometheus' format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/ledom/models", responses=describe())
async def models(service: ServiceOf) -> dict[str, Any]:
    """The models, and how their scores become a reward."""
    judge = service.judge
    return {
        "strategy": judge.strategy,
        "weights": judge.strategy_weights,
        "models": {
            name: {
                "name": lm.name,
                "direction": str(lm.direction),
                "fingerprint": lm.fingerprint,
                "context": lm.context,
                "parameters": getattr(lm, "num_parameters", None),
                "template": lm.pair_format.template,
            }
            for name, lm in service.models.items()
        },
    }


@router.post("/ledom/score", responses=describe())
async def score(body: ScoreBody, service: ServiceOf) -> dict[str, Any]:
    """Every log-probability of answers to a question: in sum, per token and per word (nats).

    `y|x` is log P(answer | question) of the forward model, `x|y` log P(question | answer) and `y`
    log P(answer) of the reverse model. `rank` 1 has the largest reward.
    """
    start = time.perf_counter()
    judged = await service.judge_pairs([Pair(body.question, answer) for answer in body.answers])
    order = sorted(range(len(judged)), key=lambda i: -judged[i].reward)
    ranks = {index: rank for rank, index in enumerate(order, start=1)}
    return {
        "strategy": service.judge.strategy,
        "weights": service.judge.strategy_weights,
        "results": [
            {"index": index, "rank": ranks[index], **_details(body, index, judgement)}
            for index, judgement in enumerate(judged)
        ],
        "seconds": time.perf_counter() - start,
    }


def _details(body: ScoreBody, index: int, judgement: Judgement) -> dict[str, Any]:
    texts = {"x|y": body.question, "y|x": body.answers[index], "y": body.answers[index]}
    return {
        "reward": judgement.reward,
        "probability": judgement.probability,
        "features": judgement.features,
        "scores": {
            target: _score(score, texts[target], body.tokens)
            for target, score in judgement.scores.items()
        },
    }


def _score(score: Score, text: str, with_tokens: bool) -> dict[str, Any]:
    """A score; offsets count the characters of `text`, in which the model read the answer."""
    text = score.text or text
    found: dict[str, Any] = {
        "logprob": score.logprob,
        "num_tokens": score.num_tokens,
        "truncated": bool(score.extra.get("truncated")),
        "text": text,
    }
    if not with_tokens:
        return found
    values, spans = score.token_logprobs or [], score.token_spans or []
    tokens = [
        {"start": start, "end": end, "text": text[start:end], "logprob": value}
        for value, (start, end) in zip(values, spans, strict=True)
    ]
    words = question_words(text, tokens)
    return found | {
        "tokens": tokens,
        "words": [{"text": word.text, "logprob": word.logprob} for word in words],
    }
