"""Passages by log P(query | passage): hand-computed scores, order, resuming, refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Run, check_refused
from evaluated import write_rows
from kills import contents, run_through_kills
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.records import Document, read_records, write_records
from ledom.core.stage import no_progress
from ledom.evaluate.retrieval import (
    Query,
    Relevance,
    order_passages,
    rank_passages,
)
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.text.tokenizer import Tokenizer

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE
QUERIES = [
    Query(id=f"q{i}", text=f"What is {i} + 3?", relevant=[f"p{i}"] if i < 18 else None)
    for i in range(20)
]
PASSAGES = [Document(id=f"p{i}", text=f"{i} + 3 = {i + 3}") for i in range(18)]
Fakes = dict[str, FakeLanguageModel]


def values(ids: Sequence[int]) -> list[float]:
    """The fake's log P of each id but the first, ids in the order fed."""
    return [-math.log1p((a + b) % 7) for a, b in pairwise(ids)]


def by_hand(
    tokenizer: Tokenizer, direction: Direction, query: str, passage: str
) -> tuple[float, float]:
    """logprob and prior, from the ids that the model is fed for this pair only.

    The tokens of a query and a passage do not straddle the empty line between them.
    """
    encode, eos = tokenizer.encode, tokenizer.eos_id
    passage_ids, literal = encode(passage).ids, encode(f"{query}\n\n{passage}").ids
    count = len(passage_ids)
    assert literal[-count:] == passage_ids
    if direction is FORWARD:
        alone = encode(f"\n\n{passage}").ids
        given = values([eos, *literal, eos])[-count - 1 :]
        return sum(given), sum(values([eos, *alone, eos])[-count - 1 :])
    query_count = len(encode(query).ids)
    fed = values([eos, *literal[::-1], eos])
    return sum(fed[-query_count - 1 :]), sum(fed[:count])


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
def test_the_scores_of_every_pair_equal_those_by_hand(
    tokenizer: Tokenizer, direction: Direction, tmp_path: Path
) -> None:
    """The pairs fill several tiles; here they are scored one at a time."""
    lm = FakeLanguageModel(tokenizer, direction)
    rank_passages(lm, QUERIES, PASSAGES, tmp_path, no_progress)
    scores = read_records(tmp_path / "scores.jsonl", Relevance)
    assert len(scores) == len(QUERIES) * len(PASSAGES)
    texts = {record.id: record.text for record in (*QUERIES, *PASSAGES)}
    for one in scores:
        expected = by_hand(tokenizer, direction, texts[one.query_id], texts[one.passage_id])
        assert (one.logprob, one.prior) == pytest.approx(expected, abs=1e-4)


SCORES = [
    Relevance(query_id="q", passage_id="a", logprob=-5.0, prior=-1.0),
    Relevance(query_id="q", passage_id="b", logprob=-4.0, prior=-3.0),
    Relevance(query_id="q", passage_id="c", logprob=-9.0, prior=-7.5),
]


@pytest.mark.parametrize(
    ("direction", "prior", "expected"),
    [
        (REVERSE, False, [("b", -4.0), ("a", -5.0), ("c", -9.0)]),
        (REVERSE, True, [("a", -6.0), ("b", -7.0), ("c", -16.5)]),
        (FORWARD, True, [("b", -4.0), ("a", -5.0), ("c", -9.0)]),
        (FORWARD, False, [("b", -1.0), ("c", -1.5), ("a", -4.0)]),
    ],
)
def test_the_prior_is_added_in_reverse_and_subtracted_forward(
    direction: Direction, prior: bool, expected: list[tuple[str, float]]
) -> None:
    passages = [Document(id=name, text=name) for name in "abc"]
    ranking = order_passages(direction, [Query(id="q", text="?")], passages, SCORES, prior)
    assert [(one.passage_id, one.score) for one in ranking] == expected
    assert [one.rank for one in ranking] == [1, 2, 3]


def test_equal_scores_keep_the_input_order() -> None:
    passages = [Document(id=name, text="same") for name in "cab"]
    scores = [Relevance(query_id="q", passage_id=name, logprob=-1.0, prior=0.0) for name in "abc"]
    ranking = order_passages(REVERSE, [Query(id="q", text="?")], passages, scores)
    assert [one.passage_id for one in ranking] == ["c", "a", "b"]


@pytest.mark.parametrize("direction", Direction)
def test_passages_with_the_same_text_share_their_scores(
    tokenizer: Tokenizer, direction: Direction, tmp_path: Path
) -> None:
    lm = FakeLanguageModel(tokenizer, direction)
    twins = [*PASSAGES[:2], Document(id="twin", text=PASSAGES[0].text)]
    ranking = rank_passages(lm, QUERIES[:1], twins, tmp_path, no_progress)
    score = {one.passage_id: one.score for one in ranking}
    assert score["twin"] == score["p0"]
    assert lm.num_scored == (2 if direction is REVERSE else 4)  # forward also scores the priors


def test_a_long_passage_loses_its_end_and_is_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = FakeLanguageModel(tokenizer, REVERSE, context=30)
    passages = [PASSAGES[0], Document(id="long", text="1 + 1 = 2\n" * 20)]
    rank_passages(lm, QUERIES[:1], passages, tmp_path, no_progress)
    scores = read_records(tmp_path / "scores.jsonl", Relevance)
    assert [one.extra for one in scores] == [{}, {"truncated": True}]


@pytest.mark.parametrize("long", ["1 + 1 = 2\n" * 20, "1 \U0001f600 " * 40])
def test_a_forward_model_reads_the_same_part_of_a_long_passage_for_the_prior(
    tokenizer: Tokenizer, tmp_path: Path, long: str
) -> None:
    """The fake sees only one token back, so a passage is as likely with as without a query."""
    lm = FakeLanguageModel(tokenizer, FORWARD, context=60)
    passages = [PASSAGES[0], Document(id="long", text=long)]
    ranking = rank_passages(lm, QUERIES[:2], passages, tmp_path, no_progress)
    assert [one.score for one in ranking] == pytest.approx([0.0] * 4, abs=1e-4)
    assert [one.extra for one in ranking] == [{}, {"truncated": True}] * 2
    of_long = [one for one in read_records(tmp_path / "scores.jsonl", Relevance) if one.extra]
    assert len(of_long) == 2
    assert all(one.logprob == pytest.approx(one.prior, abs=1e-4) for one in of_long)
    assert all(one.logprob < -15 for one in of_long)  # so its beginning was read


@pytest.mark.parametrize("direction", Direction)
def test_a_passage_is_read_from_its_beginning_whatever_tags_it_has(
    direction: Direction, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = FakeLanguageModel(direction=direction, tokenizer=tokenizer)
    for text in ("<think>1 + 3</think>1 + 3 = 4", "1 + 3 = 4<think>Or 5?"):
        out = tmp_path / text[-1]
        passages = [Document(id="p", text=text)]
        rank_passages(lm, [QUERIES[1]], passages, out, no_progress)
        (found,) = read_records(out / "scores.jsonl", Relevance)
        expected = by_hand(tokenizer, direction, QUERIES[1].text, text)
        assert (found.logprob, found.prior) == pytest.approx(expected, abs=1e-4)


def test_a_query_that_fills_the_context_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = FakeLanguageModel(tokenizer, REVERSE, context=30)
    long = Query(id="long", text="1 + 1 = 2 " * 20)
    with pytest.raises(InputError, match="query 'long' has .* tokens, which leave no room"):
        rank_passages(lm, [long], PASSAGES, tmp_path, no_progress)
    assert lm.num_scored == 0


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_bytes(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops in the second of four tiles; the first is not scored again."""
    lm = FakeLanguageModel(tokenizer, FORWARD)
    monkeypatch.setattr(FakeLanguageModel, "batches_requests", True)
    rank_passages(lm, QUERIES, PASSAGES, tmp_path / "whole", no_progress)
    whole, logprobs = lm.num_scored, FakeLanguageModel.logprobs
    calls = []

    def stops(self: FakeLanguageModel, targets: Sequence[Any]) -> list[Any]:
        calls.append(len(targets))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return logprobs(self, targets)

    monkeypatch.setattr(FakeLanguageModel, "logprobs", stops)
    with pytest.raises(KeyboardInterrupt):
        rank_passages(lm, QUERIES, PASSAGES, tmp_path / "cut", no_progress)
    rank_passages(lm, QUERIES, PASSAGES, tmp_path / "cut", no_progress)
    assert calls[0] == 16 * 15 + 16  # plus the priors of 16 passages
    assert sum(calls) - calls[1] == whole
    for name in ("scores.jsonl", "ranking.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_kills_at_any_time_leave_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def work(out: Path) -> None:
        rank_passages(FakeLanguageModel(tokenizer, REVERSE), QUERIES, PASSAGES, out, no_progress)

    assert run_through_kills(work, tmp_path / "whole", tmp_path / "killed", seed=2) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.fixture
def passage_file(tmp_path: Path) -> Path:
    write_records(tmp_path / "passages.jsonl", PASSAGES)
    return tmp_path / "passages.jsonl"


def test_the_command_ranks_for_one_query(run: Run, fakes: Fakes, passage_file: Path) -> None:
    """The printed passages are the best three, computed by hand."""
    code, text = run("rank", "What is 2 + 3?", passage_file, "--top", 3)
    assert code == 0, text
    scores = {
        p.id: by_hand(fakes["reverse"].tokenizer, REVERSE, "What is 2 + 3?", p.text)[0]
        for p in PASSAGES
    }
    best = sorted(scores, key=lambda name: -scores[name])[:3]
    for place, name in enumerate(best, start=1):
        assert f"{place}. {name}  {scores[name]:.1f}" in text
    assert "4. " not in text
    assert "MRR" not in text


@pytest.mark.slow
def test_a_file_of_queries_with_relevant_passages_is_ranked(
    run: Run, fakes: Fakes, passage_file: Path, tmp_path: Path
) -> None:
    write_records(tmp_path / "queries.jsonl", QUERIES)
    out = tmp_path / "out"
    code, text = run("rank", tmp_path / "queries.jsonl", passage_file, "--top", 2, "--out", out)
    assert code == 0, text
    rows = [json.loads(line) for line in (out / "ranking.jsonl").read_text().splitlines()]
    assert [(row["query_id"], row["rank"]) for row in rows] == [
        (query.id, rank) for query in QUERIES for rank in (1, 2)
    ]
    places = []
    for i, query in enumerate(QUERIES[:18]):
        encoder = fakes["reverse"].tokenizer
        scores = np.array([by_hand(encoder, REVERSE, query.text, p.text)[0] for p in PASSAGES])
        scores = scores.round(4)
        first, ties = 1 + (scores > scores[i]).sum(), (scores == scores[i]).sum()
        places.append(np.arange(first, first + ties))  # equal scores have no order
    mrr = np.mean([np.mean(1 / own) for own in places])
    assert f"MRR {mrr:.3f} [" in text
    assert "18 of 20 queries have relevant passages" in text
    summary = json.loads((out / "retrieval.json").read_text())
    assert (summary["num_queries"], summary["num_known"]) == (20, 18)
    assert summary["mrr"]["mean"] == pytest.approx(mrr)
    first_share = np.mean([np.mean(own == 1) for own in places])
    assert summary["right_first"]["mean"] == pytest.approx(first_share)


@pytest.mark.parametrize(
    ("queries", "passages", "parts"),
    [
        ([{"id": "q", "text": " "}], None, ["queries.jsonl:1", "query 'q' has an empty text"]),
        ([{"id": "q", "text": "a"}] * 2, None, ["queries.jsonl:2", "'q' occurs twice"]),
        ([{"id": "q", "text": "a", "relevant": ["z"]}], None, ["passage 'z'", "18 passages"]),
        ([{"id": "q", "text": "a", "relevant": []}], None, ["has no relevant passages"]),
        ([{"id": "", "text": "a"}], None, ["queries.jsonl:1", "the id is empty"]),
        ([{"id": "Q"}], None, ["queries.jsonl:1", "missing key 'text'"]),
        (None, [{"id": "P", "text": ""}], ["passages.jsonl:1", "passage 'P' has an empty text"]),
        (None, [{"id": "P", "text": "a"}] * 2, ["passages.jsonl:2", "'P' occurs twice"]),
        (None, [], ["passages.jsonl", "no Document records"]),
    ],
)
def test_the_error_for_a_bad_file_names_the_line(
    run: Run,
    fakes: Fakes,
    passage_file: Path,
    tmp_path: Path,
    queries: list[dict[str, Any]] | None,
    passages: list[dict[str, Any]] | None,
    parts: list[str],
) -> None:
    asked = tmp_path / "queries.jsonl"
    write_records(asked, QUERIES)
    for path, rows in ((asked, queries), (passage_file, passages)):
        if rows is not None:
            write_rows(path, rows)
    check_refused(run("rank", asked, passage_file, "--out", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_passages_that_lose_their_end_are_counted(
    run: Run, fakes: Fakes, passage_file: Path
) -> None:
    write_records(passage_file, [*PASSAGES, Document(id="long", text="1 + 1 = 2\n" * 900)])
    code, text = run("rank", "How many?", passage_file)
    assert code == 0, text
    assert f"note: 1 of {len(PASSAGES) + 1} passages were cut" in text


@pytest.mark.slow
def test_a_models_own_direction_counts(
    run: Run, checkpoints: dict[str, Path], passage_file: Path, tmp_path: Path
) -> None:
    """A foreign model, which records none, is not taken for a reverse one."""
    foreign = shutil.copytree(checkpoints["forward"], tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    del config["ledom_direction"]
    (foreign / "config.json").write_text(json.dumps(config))
    ranking = ["rank", "What is 2 + 3?", passage_file, "--model"]
    check_refused(run(*ranking, foreign), "records no direction")
    assert run(*ranking, checkpoints["forward"]) == run(*ranking, foreign, "--direction", "forward")


def test_other_input_is_refused(run: Run, fakes: Fakes, passage_file: Path, tmp_path: Path) -> None:
    asked = tmp_path / "queries.jsonl"
    write_records(asked, QUERIES)
    check_refused(run("rank", asked, passage_file), "give --out FOLDER")
    check_refused(run("rank", " ", passage_file), "the query is empty")
    check_refused(run("rank", "a", tmp_path / "none.jsonl"), "no such file")
    check_refused(run("rank", "a", passage_file, "--model", "none"), "needs a reverse model")
    code, text = run("rank", "a", passage_file, "--out", tmp_path / "out")
    assert code == 0, text
    check_refused(
        run("rank", "b", passage_file, "--out", tmp_path / "out"), "was made with other settings"
    )
