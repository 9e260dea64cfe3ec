"""The score and rerank protocols of vLLM, Jina, Cohere and TEI."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, Field

from ledom.core.reading import JsonObject
from ledom.serve.batching import apart
from ledom.serve.judge import Pair, best_first
from ledom.serve.refusals import Refusal, refusal_of
from ledom.serve.routes.shared import (
    ANSWER,
    QUESTION,
    WRONG,
    Body,
    Items,
    ServiceOf,
    listed,
    new_id,
    usage,
)
from ledom.serve.routes.unsupported import ActivationBody
from ledom.serve.service import REWARD, Service

__all__ = ["router"]

router = APIRouter(tags=["reranking"])


_OF_DOCUMENTS = {"max_tokens_per_doc"}
_OF_TEXTS = {"raw_scores", "return_text", "truncate"}


class Document(Body):
    """A document as an object, which Jina's and Cohere's older clients send."""

    text: str


class RerankBody(ActivationBody):
    """Jina's, Cohere's and vLLM's body, or TEI's, which has `texts`."""

    query: Annotated[str, Field(examples=[QUESTION])]
    documents: Annotated[Items[str | Document] | None, Field(examples=[[ANSWER, WRONG]])] = None
    top_n: Annotated[int | None, Field(ge=0)] = None
    """How many of the best to return; 0 or None returns all."""
    max_tokens_per_doc: Annotated[int | None, Field(ge=1)] = None
    """Documents are cut after this many tokens."""
    return_documents: bool = True
    texts: Items[str] | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = True
    """False refuses a text that is longer than the model's context."""

    def answers(self) -> list[str]:
        """The texts to rank."""
        if (self.texts is None) == (self.documents is None):
            raise Refusal(422, "send documents (Jina, Cohere), or texts (TEI)")
        if self.texts is not None:
            return self.texts
        given = self.documents or []
        return [doc if isinstance(doc, str) else doc.text for doc in given]

    def _ignored(self) -> JsonObject:
        other = _OF_TEXTS if self.texts is None else _OF_DOCUMENTS
        return super()._ignored() | {name: getattr(self, name) for name in other}


class ScoreBody(ActivationBody):
    """One question for all answers, or one question per answer."""

    queries: Annotated[
        str | Items[str],
        Field(validation_alias=AliasChoices("queries", "text_1", "data_1"), examples=[QUESTION]),
    ]
    documents: Annotated[
        str | Items[str],
        Field(
            validation_alias=AliasChoices("documents", "items", "text_2", "data_2"),
            examples=[[ANSWER, WRONG]],
        ),
    ]

    def pairs(self) -> list[Pair]:
        """Each question with its answer."""
        queries = [self.queries] if isinstance(self.queries, str) else self.queries
        documents = [self.documents] if isinstance(self.documents, str) else self.documents
        if len(queries) == 1:
            queries = queries * len(documents)
        if len(queries) != len(documents):
            raise Refusal(
                400,
                f"{len(queries)} queries for {len(documents)} documents; send one query, or one "
                "per document",
            )
        return [Pair(query, document) for query, document in zip(queries, documents, strict=True)]


@router.post("/score")
@router.post("/v1/score")
async def score(body: ScoreBody, service: ServiceOf) -> JsonObject:
    """vLLM's score: how good each document is as an answer to its query."""
    body.refuse_unsupported()
    judged = await service.judge_pairs(body.pairs())
    data = ({"object": "score", "score": one.value(body.use_activation)} for one in judged)
    return listed("score", body.model, judged, data)


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(body: RerankBody, service: ServiceOf) -> Any:
    """Rank answers to a question, best first."""
    answers = body.answers()
    if body.texts is not None:
        try:
            body.refuse_unsupported()
            return await _tei(body, body.texts, service)
        except Exception as error:
            if (refusal := refusal_of(error)) is None:
                raise
            return _tei_refusal(refusal)
    body.refuse_unsupported()
    if body.max_tokens_per_doc is not None:
        size, most = sum(map(len, answers)), body.max_tokens_per_doc
        answers = await apart(size, lambda: _cut(answers, most, service))
    judged = await service.judge_pairs([Pair(body.query, answer) for answer in answers])
    results = [
        {"index": i, "relevance_score": judged[i].value(body.use_activation)}
        | ({"document": {"text": answers[i]}} if body.return_documents else {})
        for i in best_first(judged)[: body.top_n or None]
    ]
    return {
        "id": new_id("rerank"),
        "model": body.model or REWARD,
        "usage": usage(sum(judgement.num_tokens for judgement in judged)),
        "results": results,
    }


async def _tei(body: RerankBody, texts: list[str], service: Service) -> list[JsonObject]:
    judged = await service.judge_pairs([Pair(body.query, text) for text in texts])
    if not body.truncate and any(judgement.is_truncated for judgement in judged):
        raise Refusal(
            413, "a text is longer than the model's context; shorten it, or send truncate: true"
        )
    return [
        {"index": i, "score": judged[i].value(body.use_activation and not body.raw_scores)}
        | ({"text": texts[i]} if body.return_text else {})
        for i in best_first(judged)[: body.top_n or None]
    ]


def _tei_refusal(refusal: Refusal) -> JSONResponse:
    kind = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}.get(refusal.status, "Validation")
    body = {"error": refusal.message, "error_type": kind}
    return JSONResponse(body, refusal.status, refusal.headers)


def _cut(texts: list[str], num_tokens: int, service: Service) -> list[str]:
    encodings = service.judge.models[0].tokenizer.encode_batch(texts)
    return [
        text if len(offsets) <= num_tokens else text[: offsets[num_tokens - 1][1]]
        for text, offsets in zip(texts, (e.offsets for e in encodings), strict=True)
    ]
