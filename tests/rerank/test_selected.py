"""selected.jsonl: one answer per problem, for pools with little to choose from.

The fake models' scores depend only on the tokens, so equal texts tie and every text has a score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ledom.core.records import Candidate, Problem, read_records, write_records
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.rerank.fit import tune_folder
from ledom.rerank.pipeline import Job, rerank
from ledom.rerank.weights import Selection, default_weights
from ledom.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_pictures")


def select(
    tokenizer: Tokenizer, out: Path, *pools: Sequence[str], reverse: bool = True
) -> list[Selection]:
    """Rerank these texts; `pools` contains those of each problem."""
    problems = [
        Problem(id=f"p{i}", question=f"What is {i} + 1?", answer="2") for i in range(len(pools))
    ]
    candidates = [
        Candidate(problem_id=p.id, index=i, text=text)
        for p, pool in zip(problems, pools, strict=True)
        for i, text in enumerate(pool)
    ]
    models = [FakeLanguageModel(tokenizer, d) for d in ("forward", "reverse")]
    last = models[1] if reverse else None
    rerank(Job(problems, out, models[0], last, default_weights(), candidates), no_progress)
    return read_records(out / "selected.jsonl", Selection)


def notes(out: Path) -> list[str]:
    found: list[str] = json.loads((out / "report.json").read_text())["notes"]
    return found


def test_without_readable_answers_a_text_is_chosen(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """One of the texts is chosen, without an answer or confidence."""
    found = select(tokenizer, tmp_path, ["no idea", "who knows"], ["so\n#### 2", "so\n#### 2."])
    assert [s.problem_id for s in found] == ["p0", "p1"]
    assert (found[0].answer, found[1].answer) == (None, "2")
    assert found[0].text == ["no idea", "who knows"][found[0].index]
    assert found[0].confidence == 0
    assert found[1].confidence == 1
    assert "candidates without a readable answer: 2 (50.0%)" in notes(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "selected.jsonl").read_text().splitlines()]
    assert "answer" not in rows[0]  # like every key that is None


def test_problems_with_the_same_question_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = FakeLanguageModel(tokenizer, "reverse")
    problems = [Problem(id=i, question=f"1 + {i[0]}?", answer="2") for i in ("1", "1b", "2")]
    drawn = [Candidate(problem_id=p.id, index=0, text="#### 2") for p in problems]
    rerank(Job(problems, tmp_path, None, lm, default_weights(), drawn), no_progress)
    counted = "some problems have the same question: intervals are over 2 questions, not 3 problems"
    assert counted in notes(tmp_path)


def test_empty_texts_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    select(tokenizer, tmp_path, ["", " \n", "so\n#### 2"], ["#### 3", "#### 2", ""])
    found = notes(tmp_path)
    assert "candidates without a readable answer: 3 (50.0%)" in found
    assert "empty candidates: 3" in found


@pytest.mark.parametrize(
    ("count", "how"), [(20, "taken relative to"), (19, "not relative (one wrote too few) to")]
)
def test_a_model_that_wrote_few_candidates_is_named_in_a_note(
    tokenizer: Tokenizer, tmp_path: Path, count: int, how: str
) -> None:
    problem, lm = Problem(id="p", question="1 + 1?"), FakeLanguageModel(tokenizer, "reverse")
    candidates = [
        Candidate(problem_id="p", index=i, text=str(i), model="one" if i < count else "other")
        for i in range(40)
    ]
    rerank(Job([problem], tmp_path, None, lm, default_weights(), candidates), no_progress)
    note = f"the candidates come from several models; scores are {how} the mean of the model that "
    assert f"{note}wrote them" in notes(tmp_path)


def test_a_pool_may_have_only_empty_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (found,) = select(tokenizer, tmp_path, ["", ""])
    assert (found.answer, found.text, found.index, found.confidence) == (None, "", 0, 0)


def test_the_first_of_equal_texts_is_chosen(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (found,) = select(tokenizer, tmp_path, ["so it is\n#### 2"] * 3)
    assert (found.index, found.answer, found.confidence) == (0, "2", 1)


@pytest.mark.slow
def test_a_tied_vote_is_decided_by_score(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two answers have one vote each: the more likely text wins, wherever it is in the pool."""
    texts = ["so it is\n#### 2", "but no\n#### 3"]
    (found,) = select(tokenizer, tmp_path / "a", texts)
    (turned,) = select(tokenizer, tmp_path / "b", texts[::-1])
    assert found.text == turned.text
    assert found.index == 1 - turned.index
    assert found.confidence == turned.confidence


@pytest.mark.parametrize("reverse", [True, False])
def test_a_problem_may_have_a_single_candidate(
    tokenizer: Tokenizer, tmp_path: Path, reverse: bool
) -> None:
    (found,) = select(tokenizer, tmp_path, ["so it is\n#### 2"], reverse=reverse)
    assert (found.problem_id, found.index, found.text) == ("p0", 0, "so it is\n#### 2")
    assert (found.answer, found.confidence) == ("2", 1)


@pytest.mark.slow
def test_with_folds_the_chosen_answers_are_the_measured_ones(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Weights that had seen a problem's own label would choose better than the report says."""
    rng = np.random.default_rng(0)
    problems = [Problem(id=f"p{i}", question=f"What is {i} + 1?", answer="2") for i in range(12)]
    drawn = [
        Candidate(
            problem_id=p.id, index=i, text=f"{rng.integers(10**9)}\n#### {rng.integers(2, 5)}"
        )
        for p in problems
        for i in range(5)
    ]
    models = [FakeLanguageModel(tokenizer, d) for d in ("forward", "reverse")]
    job = Job(problems, tmp_path, *models, default_weights(), drawn, folds=6)
    made = rerank(job, no_progress)
    assert made is not None
    measured = {s.id: s.accuracy.mean for s in made[0].strategies}
    found = read_records(tmp_path / "selected.jsonl", Selection)
    assert np.mean([s.answer == "2" for s in found]) == pytest.approx(measured[made[0].chosen])


def test_given_candidates_save_the_problems_they_are_measured_on(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A label was corrected after an earlier run in the folder."""
    old = Problem(id="p0", question="What is 0 + 1?", answer="1")
    write_records(tmp_path / "problems.jsonl", [old])
    select(tokenizer, tmp_path, ["#### 2"])
    assert read_records(tmp_path / "problems.jsonl", Problem) == [replace(old, answer="2")]


def test_weights_are_fitted_on_the_labels_of_the_last_run(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The candidates were sampled first, then given again with labels."""
    texts = ["#### 1", "#### 2"]
    kept = [Candidate(problem_id="p0", index=i, text=text) for i, text in enumerate(texts)]
    write_records(tmp_path / "candidates.jsonl", [replace(c, correct=False) for c in kept])
    forward = FakeLanguageModel(tokenizer)
    problem = Problem(id="p0", question="What is 0 + 1?")
    given = [replace(c, correct=c.index == 1) for c in kept]
    rerank(Job([problem], tmp_path, forward, None, default_weights(), given), no_progress)
    assert tune_folder(tmp_path).num_problems == 1  # a right and a wrong candidate
    assert read_records(tmp_path / "candidates.given.jsonl", Candidate) == given
