"""Ranks passages by how likely they make a query: log P(query | passage).

In the text, the query comes before the passage. A reverse model reads the passage first, so one
pass gives log P(query | passage) and log P(passage). By Bayes' rule, a forward model's
log P(passage | query) - log P(passage) equals log P(query | passage) up to a constant per query:

                 without the prior                             with the prior
    reverse      log P(query | passage)                        + log P(passage)
    forward      log P(passage | query) - log P(passage)       log P(passage | query)

See Samineni et al., Time-Reversal Provides Unsupervised Feedback to LLMs (NeurIPS 2024), for search
and citation by a reverse model.

    out/scores.jsonl    every pair of query and passage
    out/ranking.jsonl   the best passages of each query
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.records import (
    Candidate,
    Document,
    Key,
    Problem,
    Record,
    read_records,
    unique_ids,
    write_records,
)
from ledom.core.stage import Stage, Track, Work, at_once
from ledom.lm.language_model import LanguageModel
from ledom.rerank.score import score_candidates

__all__ = ["Query", "Ranked", "Relevance", "rank_passages", "read_passages", "read_queries"]

_TILE = (15, 16)  # queries and passages that are scored together; each is read once per tile
_PRIOR = ""  # id of the empty query, which gives a forward model's log P(passage)


@dataclass(kw_only=True)
class Query(Record):
    """A text to find passages for; `relevant` are the ids of the right passages, if known."""

    id: str
    text: str
    relevant: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty text, and an empty list of relevant passages."""
        if not self.text.strip():
            raise InputError(f"query {self.id!r} has an empty text; remove it")
        if self.relevant == []:
            raise InputError(f"query {self.id!r} has no relevant passages; leave the key out")


@dataclass(kw_only=True)
class Relevance(Record):
    """The scores of a query and a passage, in nats.

    `logprob` is log P(query | passage) of a reverse model, log P(passage | query) of a forward one;
    `prior` is log P(passage).
    """

    KEY = ("query_id", "passage_id")

    query_id: str
    passage_id: str
    logprob: float
    prior: float


@dataclass(kw_only=True)
class Ranked(Record):
    """A passage's rank for a query, from 1, and its score in nats.

    If the passage lost its end, the record has the extra key `truncated`.
    """

    KEY = ("query_id", "passage_id")

    query_id: str
    rank: int
    passage_id: str
    score: float


def read_passages(path: Path) -> list[Document]:
    """Read a JSONL file of passages; raises `InputError` with the line of a bad or repeated one.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    ...     _ = Path(file.name).write_text('{"id": "a", "text": " "}')
    ...     read_passages(Path(file.name))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: ...:1: passage 'a' has an empty text; remove it
    """
    check_id = unique_ids()

    def check(passage: Document) -> None:
        check_id(passage)
        if not passage.text.strip():
            raise InputError(f"passage {passage.id!r} has an empty text; remove it")

    return read_records(path, Document, check)


def read_queries(path: Path, passages: Sequence[Document]) -> list[Query]:
    """Read a JSONL file of queries; raises `InputError` with the line of one that is bad or
    repeated, or whose relevant passages are unknown.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    ...     _ = Path(file.name).write_text('{"id": "q", "text": "2 + 2?", "relevant": ["a"]}')
    ...     read_queries(Path(file.name), [Document(id="a", text="4")])[0].relevant
    ['a']
    """
    known = {passage.id for passage in passages}
    check_id = unique_ids()

    def check(query: Query) -> None:
        check_id(query)
        for passage_id in query.relevant or ():
            if passage_id not in known:
                raise InputError(
                    f"query {query.id!r} names the relevant passage {passage_id!r}, which is not "
                    f"among the {len(known)} passages"
                )

    return read_records(path, Query, check)


def rank_passages(
    lm: LanguageModel,
    queries: Sequence[Query],
    passages: Sequence[Document],
    out: Path,
    track: Track,
    prior: bool = False,
    top: int | None = None,
) -> list[Ranked]:
    """Score every pair, and rank the passages of each query, best first.

    Returns the whole ranking; ranking.jsonl gets only the `top` passages of each query. A passage
    that is too long loses its end (see `score_candidates`). Ties stay in the order given. Raises
    `InputError` for a query that leaves no room for a passage.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, query = FakeLanguageModel(direction="reverse"), Query(id="q", text="2 + 2?")
    >>> passages = [Document(id=text, text=text) for text in ("three", "four")]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     ranking = rank_passages(lm, [query], passages, Path(out), no_progress)
    >>> [(one.rank, one.passage_id) for one in ranking]
    [(1, 'three'), (2, 'four')]
    """
    _check_room(lm, queries)
    settings = {
        "model": lm.identity,
        "queries": fingerprint((query.id, query.text) for query in queries),
        "passages": fingerprint((passage.id, passage.text) for passage in passages),
    }
    scores = Stage(out / "scores.jsonl", Relevance, settings).fill(
        _work(lm, queries, passages), track, "scoring passages"
    )
    ranking = order_passages(lm.direction, queries, passages, scores, prior)
    write_records(out / "ranking.jsonl", (one for one in ranking if top is None or one.rank <= top))
    return ranking


def order_passages(
    direction: Direction,
    queries: Sequence[Query],
    passages: Sequence[Document],
    scores: Sequence[Relevance],
    prior: bool = False,
) -> list[Ranked]:
    """Rank the passages of each query, best first, from the scores of all pairs."""
    found = {one.key: one for one in scores}
    weight = int(prior) - (direction is Direction.FORWARD)  # see the table of the module
    ranking = []
    for query in queries:
        own = [found[query.id, passage.id] for passage in passages]
        values = [(one.logprob + weight * one.prior, one) for one in own]
        best = sorted(values, key=lambda pair: -pair[0])
        ranking += [
            Ranked(
                query_id=query.id,
                rank=rank,
                passage_id=one.passage_id,
                score=round(score, 5),
                extra=one.extra,
            )
            for rank, (score, one) in enumerate(best, start=1)
        ]
    return ranking


def _check_room(lm: LanguageModel, queries: Sequence[Query]) -> None:
    """Raise `InputError` for a query that alone fills the model's context."""
    pairs = lm.pair_format.encode(lm.tokenizer, [(q.text, "") for q in queries], *lm.special_ids)
    for query, pair in zip(queries, pairs, strict=True):
        if len(pair.ids) - 1 >= lm.context:
            raise InputError(
                f"{lm.name}: query {query.id!r} has {len(pair.ids) - 1} tokens, which leave no "
                f"room for a passage in the model's context of {lm.context}; shorten it"
            )


@dataclass(frozen=True)
class _Pair:
    """A query and a passage to score; pairs of one tile are scored together."""

    query: Query
    passage: Document
    tile: tuple[int, int]

    @property
    def key(self) -> Key:
        return self.query.id, self.passage.id


def _work(
    lm: LanguageModel, queries: Sequence[Query], passages: Sequence[Document]
) -> Work[_Pair, Relevance]:
    wide, high = _TILE
    high = high if len(queries) > 1 else high * wide
    pairs = [
        _Pair(query, passage, (i // wide, j // high))
        for i, query in enumerate(queries)
        for j, passage in enumerate(passages)
    ]
    return Work(
        items=sorted(pairs, key=lambda pair: pair.tile),
        make=at_once(lambda some: ([found] for found in _relevances(lm, some))),
        groups=lambda some: [[*tile] for _, tile in groupby(some, lambda pair: pair.tile)],
        together=lm.batches_requests,
    )


def _relevances(lm: LanguageModel, pairs: Sequence[_Pair]) -> Iterator[Relevance]:
    """Score some pairs together; equal passages are scored once.

    A forward model first scores each passage after an empty query, which gives log P(passage); if
    it is cut to fit after its query, it is cut there, too.
    """
    asked: dict[tuple[str, str], list[_Pair]] = {}
    read = [pair.passage.text for pair in pairs]
    if lm.direction is Direction.FORWARD:
        whole = [(p.query.text, lm.pair_format.restyle(p.passage.text)) for p in pairs]
        fitted = lm.pair_format.fit(lm.tokenizer, whole, *lm.special_ids, room=lm.context)
        for place, ((_, text), (_, beginning)) in enumerate(zip(whole, fitted, strict=True)):
            if beginning != text:
                read[place] = beginning
        asked = {(_PRIOR, text): [] for text in read}
    for pair, text in zip(pairs, read, strict=True):
        asked.setdefault((pair.query.id, text), []).append(pair)
    keys = [*asked]
    texts = {_PRIOR: ""} | {pair.query.id: pair.query.text for pair in pairs}
    problems = [Problem(id=query_id, question=text) for query_id, text in texts.items()]
    candidates = [
        Candidate(problem_id=query_id, index=index, text=text)
        for index, (query_id, text) in enumerate(keys)
    ]
    priors: dict[str, float] = {}
    for scores in score_candidates(problems, candidates, lm, with_thoughts=True):
        query_id, text = keys[scores[0].index]
        values = {score.target: score.logprob for score in scores}
        if lm.direction is Direction.FORWARD and query_id == _PRIOR:
            priors[text] = values["y|x"]
            continue
        prior = values["y"] if lm.direction is Direction.REVERSE else priors.get(text)
        if prior is None:  # the server failed on it; `score_candidates` raises that at its end
            continue
        logprob = values["x|y" if lm.direction is Direction.REVERSE else "y|x"]
        for pair in asked[query_id, text]:
            cut = scores[0].extra.get("truncated") or text != pair.passage.text
            yield Relevance(
                query_id=query_id,
                passage_id=pair.passage.id,
                logprob=logprob,
                prior=prior,
                extra={"truncated": True} if cut else {},
            )
