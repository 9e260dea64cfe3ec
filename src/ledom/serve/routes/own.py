"""ledom's own routes: detailed scores, token-by-token generation, health and metrics."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from ledom.core.files import LARGEST_SEED
from ledom.core.reading import JsonObject
from ledom.core.records import Score
from ledom.lm import unfamiliar, unfamiliar_texts
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.report.results import QuestionToken
from ledom.report.words import question_words
from ledom.serve import writing
from ledom.serve.batching import Steps, apart
from ledom.serve.judge import Judgement, Pair, best_first
from ledom.serve.routes.shared import ANSWER, QUESTION, WRONG, Body, Items, ServiceOf
from ledom.serve.routes.unsupported import WritingBody
from ledom.serve.writing import Token

__all__ = ["router"]

router = APIRouter(tags=["ledom"])

_CHARACTERS = 10  # work per token of an answer, in the unit of `apart`


class AnswersBody(Body):
    """A question, and answers to it. Other keys are refused: no other program has this protocol."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, Field(examples=[QUESTION])]
    answers: Annotated[Items[str], Field(min_length=1, examples=[[ANSWER, WRONG]])]
    tokens: bool = True
    """Whether to send the log-probability of each token and word."""


@router.get("/healthz")
async def healthz(service: ServiceOf) -> JsonObject:
    """Whether the server is up, and which models it has."""
    return {"status": "ok", "models": list(service.models)}


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceOf) -> Response:
    """Counts and times, in Prometheus' format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/ledom/models")
def models(service: ServiceOf) -> JsonObject:
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
                "parameters": lm.num_parameters,
                "template": lm.pair_format.template,
            }
            for name, lm in service.models.items()
        },
    }


@router.post("/ledom/score")
async def score(body: AnswersBody, service: ServiceOf) -> JsonObject:
    """The log-probabilities of answers to a question: sums, per token and per word (nats).

    `y|x` is log P(answer | question) by the forward model. `x|y` is log P(question | answer) and
    `y` is log P(answer), both by the reverse model. `rank` 1 has the largest reward. `warning` is
    set if the embedded models do not know this kind of text.
    """
    start = time.perf_counter()
    judged = await service.judge_pairs([Pair(body.question, answer) for answer in body.answers])
    ranks = {index: rank for rank, index in enumerate(best_first(judged), start=1)}
    results = await apart(
        sum(judgement.num_tokens for judgement in judged) * _CHARACTERS,
        lambda: [
            {"index": index, "rank": ranks[index], **_details(body, index, judgement)}
            for index, judgement in enumerate(judged)
        ],
    )
    return {
        "strategy": service.judge.strategy,
        "weights": service.judge.strategy_weights,
        "warning": unfamiliar(
            service.judge.reverse, [j.scores["x|y"] for j in judged if "x|y" in j.scores]
        ),
        "results": results,
        "seconds": time.perf_counter() - start,
    }


class GenerateBody(WritingBody):
    """A prompt to continue, by one token or many."""

    model: Annotated[str, Field(examples=["reverse"])]
    """`reverse` writes what comes before the prompt, `forward` what follows it."""
    prompt: Annotated[str, Field(examples=[f"\n\n{ANSWER}"])]
    max_tokens: Annotated[int, Field(ge=0)] = 1
    """0 returns only the most likely next tokens."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    alternatives: Annotated[int, Field(ge=1, le=50)] = 5
    """How many of the most likely tokens to show at each position."""


@router.post("/ledom/generate")
async def generate(body: GenerateBody, service: ServiceOf) -> JsonObject:
    """Continue a text, with the log-probability of each token and its alternatives (nats).

    `tokens` are in reading order; if several share a character, the last one has it as its text,
    and the others have none. `next` lists the most likely next tokens; the end token (`end`) among
    them means that the text may be complete. To take an alternative, add its text to the prompt, at
    the start (reverse) or at the end (forward), and send it again. `warning` is set if the embedded
    models do not know this kind of text.
    """
    lm = service.model(body.model)
    body.refuse_unsupported()
    service.check_writing(1, max(1, body.max_tokens))
    service.check_prompts(lm, [body.prompt])
    return await service.compute(lambda: _generate(lm, body))


def _generate(lm: LanguageModel, body: GenerateBody) -> Steps[JsonObject]:
    made = Generation("", [], "length")
    if body.max_tokens:
        sampling = Sampling(body.temperature, body.top_k, body.top_p, body.max_tokens, body.seed)
        ((made,),) = yield from writing.write(lm, [body.prompt], sampling)
    tokens = writing.written_tokens(lm, body.prompt, made, body.alternatives)
    read = lm.prompt_ids(body.prompt, max(1, len(made.ids)))
    known = read + lm.direction.to_model_order(made.ids)
    following = writing.next_tokens(lm, known, body.alternatives)
    return {
        "text": "".join(token.text for token in tokens),
        "finish_reason": made.finish_reason,
        "tokens": [
            {
                "id": token.id,
                "text": token.text,
                "logprob": token.logprob,
                "alternatives": _named(lm, token.alternatives, token),
            }
            for token in tokens
        ],
        "next": _named(lm, following),
        "end": lm.tokenizer.eos_token,
        "warning": unfamiliar_texts(lm, [body.prompt]),
    }


def _named(
    lm: LanguageModel, alternatives: list[tuple[int, float]], chosen: Token | None = None
) -> list[JsonObject]:
    """Alternatives as JSON; the one that was chosen has the text that it got."""
    texts = writing.token_texts(lm, [token_id for token_id, _ in alternatives])
    if chosen:
        texts[chosen.id] = chosen.text
    return [
        {"id": token_id, "text": texts[token_id], "logprob": logprob}
        for token_id, logprob in alternatives
    ]


def _details(body: AnswersBody, index: int, judgement: Judgement) -> JsonObject:
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


def _score(score: Score, text: str, with_tokens: bool) -> JsonObject:
    """A score as JSON. Offsets count characters of its `text`, the form that the model read."""
    text = score.solution(text)
    found: JsonObject = {
        "logprob": score.logprob,
        "num_tokens": score.num_tokens,
        "truncated": bool(score.extra.get("truncated")),
        "text": text,
    }
    if not with_tokens:
        return found
    tokens = [
        QuestionToken(start=start, end=end, logprob=value)
        for value, (start, end) in score.tokens() or []
    ]
    words = question_words(text, tokens)
    return found | {
        "tokens": [vars(token) | {"text": text[token.start : token.end]} for token in tokens],
        "words": [{"text": word.text, "logprob": word.logprob} for word in words],
    }
