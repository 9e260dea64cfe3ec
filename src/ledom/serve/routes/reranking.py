"""The score and rerank protocols of vLLM, Jina, Cohere and TEI."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AliasChoices, Field

from ledom.serve.judge import Judgement, Pair
from ledom.serve.refusals import Refusal, describe
from ledom.serve.routes.shared import Body, ServiceOf, new_id, now, usage
from ledom.serve.service import REWARD

__all__ = ["router"]

router = APIRouter(tags=["reranking"])


class ScoreBody(Body):
    """One question for all answers, or one each."""

    model: str | None = None
    queries: Annotated[
        str | list[str],
        Field(
            validation_alias=AliasChoices("queries", "text_1", "data_1"),
            examples=["Ava has 3 pens and buys 4. How many?"],
        ),
    ]
    documents: Annotated[
        str | list[str],
        Field(
            validation_alias=AliasChoices("documents", "items", "text_2", "data_2"),
            examples=[["3 + 4 = 7\n#### 7", "3 * 4 = 12\n#### 12"]],
        ),
    ]
    use_activation: bool = True
    """False for the reward itself; else from 0 to 1."""

    def pairs(self) -> list[Pair]:
        """Each question with its answer."""
        queries = [self.queries] if isinstance(self.queries, str) else self.queries
        documents = [self.documents] if isinstance(self.documents, str) else self.documents
        if len(queries) == 1:
            queries = queries * len(documents)
        if len(queries) != len(documents):
            raise Refusal(
                400, f"{len(queries)} queries for {len(documents)} documents; send one, or as many"
            )
        return [Pair(query, document) for query, document in zip(queries, documents, strict=True)]


def score_of(judgement: Judgement, use_activation: bool) -> float:
    """The number that a client asked for."""
    return judgement.probability if use_activation else judgement.reward


@router.post("/score", responses=describe())
@router.post("/v1/score", responses=describe())
async def score(body: ScoreBody, service: ServiceOf) -> dict[str, Any]:
    """vLLM's score: how good each document is as an answer to its query."""
    judged = await service.judge_pairs(body.pairs())
    return {
        "id": new_id("score"),
        "object": "list",
        "created": now(),
        "model": body.model or REWARD,
        "data": [
            {
                "index": index,
                "object": "score",
                "score": score_of(judgement, body.use_activation),
            }
            for index, judgement in enumerate(judged)
        ],
        "usage": usage(sum(judgement.num_tokens for judgement in judged)),
    }
