"""Search as a job: its files, its measurement, and an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, read_records
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.report.formatting import to_json
from ledom.rerank.search_pipeline import SearchJob, _equal_cost, search_job
from ledom.rerank.step_search import SearchConfig
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?", answer="2") for i in range(40)]


def job(tokenizer: Tokenizer, out: Path, **changes: Any) -> SearchJob:
    answers = ("1 + 1 = 2\n#### 2", "1 + 1 = 3\n#### 3")
    models = [FakeLanguageModel(tokenizer, d, answers) for d in ("forward", "reverse")]
    return SearchJob(PROBLEMS, out, models[0], models[1], SearchConfig(**changes))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_search_writes_files_and_a_measurement(tokenizer: Tokenizer, tmp_path: Path) -> None:
    report = search_job(job(tokenizer, tmp_path), no_progress)
    assert json.loads((tmp_path / "search.json").read_text()) == to_json(report)
    searched = read_records(tmp_path / "searched.jsonl", Candidate)
    assert [c.problem_id for c in searched] == [p.id for p in PROBLEMS]
    assert all(c.extra["generated"] > 0 for c in searched)
    assert report.unfinished == 0
    assert set(report.search_against) == {"best of N, same score", "majority of N", "random"}
    share = sum("#### 2" in c.text for c in searched) / len(searched)
    assert report.accuracy["step-level search"].mean == pytest.approx(share)
    # The candidates of every rival cost at most as much as the search.
    for problem, found in zip(PROBLEMS, searched, strict=True):
        pool = [
            c
            for c in read_records(tmp_path / "candidates.jsonl", Candidate)
            if c.problem_id == problem.id
        ]
        costs = [len(tokenizer.encode(c.text).ids) + 1 for c in pool]
        assert len(pool) == 1 or sum(costs) <= found.extra["generated"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_an_interrupted_search_resumes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def stop_after(count: int) -> Any:
        def track(chunks: Iterable[Any], *_: Any) -> Iterator[Any]:
            for number, chunk in enumerate(chunks):
                if number == count:
                    raise KeyboardInterrupt
                yield chunk

        return track

    with pytest.raises(KeyboardInterrupt):
        search_job(job(tokenizer, tmp_path / "a"), stop_after(33))
    second = job(tokenizer, tmp_path / "a")
    search_job(second, no_progress)
    search_job(job(tokenizer, tmp_path / "b"), no_progress)
    assert (tmp_path / "a" / "searched.jsonl").read_text() == (
        tmp_path / "b" / "searched.jsonl"
    ).read_text()


@pytest.mark.usefixtures("no_pictures")
def test_without_answers_nothing_is_measured(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = job(tokenizer, tmp_path)
    made.problems = [Problem(id="a", question="What?")]
    report = search_job(made, no_progress)
    assert not report.accuracy
    assert (tmp_path / "searched.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_only_labeled_problems_are_measured(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = job(tokenizer, tmp_path)
    asked = [Problem(id=p.id, question=p.question) for p in PROBLEMS[:30]]
    made.problems = [*asked, *PROBLEMS[30:]]
    report = search_job(made, no_progress)
    assert report is not None
    assert (report.num_problems, report.num_labeled) == (40, 10)
    assert report.note == "10 of 40 problems are labeled; only these are measured"
    searched = read_records(tmp_path / "searched.jsonl", Candidate)[30:]
    share = sum("#### 2" in c.text for c in searched) / 10
    assert report.accuracy["step-level search"].mean == pytest.approx(share)
    drawn = read_records(tmp_path / "candidates.jsonl", Candidate)
    pools = [[c for c in drawn if c.problem_id == p.id] for p in PROBLEMS[30:]]
    random = sum(sum("#### 2" in c.text for c in pool) / len(pool) for pool in pools) / 10
    assert report.accuracy["random"].mean == pytest.approx(random)
    count = sum(map(len, pools)) / 10
    assert report.candidates_at_equal_cost == pytest.approx(count, abs=0.005)


@pytest.mark.usefixtures("no_pictures")
def test_equal_questions_are_resampled_together(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """All ten answers are right, but only to two questions, of which 0.025^(1/2) is the bound."""
    made = job(tokenizer, tmp_path, width=1, expansions=1)
    made.forward = FakeLanguageModel(tokenizer, answers=["1 + 1 = 2\n#### 2"])
    made.problems = [replace(PROBLEMS[i % 2], id=f"p{i}") for i in range(10)]
    report = search_job(made, no_progress)
    assert report is not None
    found = report.accuracy["step-level search"]
    assert (found.low, found.high) == (pytest.approx(0.025**0.5), 1.0)
    assert report.search_against["random"].low == pytest.approx(0.025**0.5 - 1)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_search_works_without_a_reverse_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = job(tokenizer, tmp_path, lam=0.0)
    made.reverse = None
    assert search_job(made, no_progress).accuracy["random"].mean > 0


@pytest.mark.slow
def test_best_of_n_is_sampled_until_it_costs_as_much_as_the_search(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The search costs far more than its k * n * 2 candidates would."""
    made = job(tokenizer, tmp_path, width=1, expansions=1)
    budget = 500
    searched = [
        Candidate(problem_id=p.id, index=0, text="", extra={"generated": budget}) for p in PROBLEMS
    ]
    for candidates in _by_problem(_equal_cost(made, searched, no_progress)).values():
        costs = [len(tokenizer.encode(c.text).ids) + 1 for c in candidates]
        assert budget - max(costs) < sum(costs) <= budget
        assert [c.index for c in candidates] == list(range(len(candidates)))


@pytest.mark.slow
def test_the_formats_ending_also_costs_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Best of N pays for everything that the model wrote, as the search does."""
    made = job(tokenizer, tmp_path, width=1, expansions=1)
    assert isinstance(made.forward, FakeLanguageModel)
    made.forward.answers = [f"{text}</a>" for text in made.forward.answers]
    made.forward.pair_format = PairFormat("{question}\n{solution}</a>")
    searched = [
        Candidate(problem_id=p.id, index=0, text="", extra={"generated": 500}) for p in PROBLEMS
    ]
    for candidates in _by_problem(_equal_cost(made, searched, no_progress)).values():
        costs = [len(tokenizer.encode(f"{c.text}</a>").ids) + 1 for c in candidates]
        assert 500 - max(costs) < sum(costs) <= 500


def _by_problem(candidates: list[Candidate]) -> dict[str, list[Candidate]]:
    return {p.id: [c for c in candidates if c.problem_id == p.id] for p in PROBLEMS}


def test_rivals_sampled_for_other_budgets_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The budgets are equal in total, but not problem by problem."""
    two = replace(job(tokenizer, tmp_path), problems=PROBLEMS[:2])
    for budgets in ((60, 90), (60, 90)):  # equal budgets are reused
        _equal_cost(two, searched(budgets), no_progress)
    with pytest.raises(InputError, match="budgets"):
        _equal_cost(two, searched((90, 60)), no_progress)


def searched(budgets: Sequence[int]) -> list[Candidate]:
    return [
        Candidate(problem_id=problem.id, index=0, text="", extra={"generated": budget})
        for problem, budget in zip(PROBLEMS, budgets, strict=False)
    ]
