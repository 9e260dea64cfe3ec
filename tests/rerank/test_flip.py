"""FLIP: the overlap, the questions written backwards, and its stage."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import ledom
from command_line import Run
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score, read_records
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.rerank.flip import FlipSettings, fill_flip, word_overlap
from ledom.rerank.pipeline import Job, rerank
from ledom.rerank.score import ScoreFiles
from ledom.rerank.weights import default_weights
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

QUESTION = "Ava has 3 pens. How many has Ava?"  # 8 words; "ava" and "has" occur twice


@pytest.mark.parametrize(
    ("written", "overlap"),
    [
        (QUESTION, 1.0),
        ("ava HAS 3 pens how many has ava", 1.0),
        ("Ava has pens", 6 / 11),  # 3 words, all shared: 2 * 3 / (3 + 8)
        ("Ava Ava Ava Ava", 4 / 12),  # two of four are shared
        ("Bo sold 4 hats", 0.0),
        ("", 0.0),
    ],
)
def test_overlap_is_the_f1_score_of_words(written: str, overlap: float) -> None:
    assert word_overlap(written, QUESTION) == pytest.approx(overlap)


def test_without_spaces_a_character_is_a_word() -> None:
    """Otherwise a sentence would be one word, and different sentences would never overlap."""
    real = "小明有12支red笔"  # 小 明 有 12 支 red 笔
    assert word_overlap("小明有3支笔", real) == pytest.approx(2 * 5 / (6 + 7))  # all but the 3


def test_the_score_is_the_log_of_the_mean_overlap(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A model that writes one of two texts: an overlap of 1 or 6 / 11, or none."""
    lm = FakeLanguageModel(tokenizer, "reverse", [QUESTION, "Ava has pens", "Bo sold 4 hats"])
    problem = Problem(id="p", question=QUESTION)
    candidates = [Candidate(problem_id="p", index=i, text=f"{i} + 1\n#### {i}") for i in range(9)]
    files = ScoreFiles(tmp_path, [problem], candidates, lm, no_progress)
    made = fill_flip(files, FlipSettings(4))
    known = {QUESTION: 1.0, "Ava has pens": 6 / 11, "Bo sold 4 hats": 0.0}
    assert [score.index for score in made] == list(range(9))
    for score in made:
        questions = score.extra["questions"]
        assert len(questions) == 4
        mean = sum(known[one["text"]] for one in questions) / 4
        assert score.logprob == pytest.approx(math.log(max(mean, 0.01)), abs=1e-4)
        lengths = [len(tokenizer.encode(one["text"]).ids) + 1 for one in questions]
        assert score.num_tokens == sum(lengths)
    assert len({score.logprob for score in made}) > 1


@pytest.mark.slow
def test_questions_are_generated_before_the_solution(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """A text may be 16 tokens longer than the longest question."""
    lm = ledom.load(checkpoints["reverse"])
    problem = Problem(id="p", question=QUESTION)
    candidate = Candidate(problem_id="p", index=0, text="3 + 0 = 3\n#### 3")
    longest = len(lm.tokenizer.encode(QUESTION).ids) + 16
    files = ScoreFiles(tmp_path, [problem], [candidate], lm, no_progress)
    (score,) = fill_flip(files, FlipSettings(2, seed=5))
    prompt = lm.pair_format.after_question(candidate.text)
    ((_, texts),) = lm.generate([prompt], Sampling(1.0, max_tokens=longest, seed=5), 2)
    assert [one["text"] for one in score.extra["questions"]] == [one.text for one in texts]


def test_the_formats_own_words_are_not_part_of_a_question(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """`Question:` precedes every question that the model writes."""
    lm = FakeLanguageModel(tokenizer, "reverse", [f"Question: {QUESTION}"])
    lm.pair_format = PairFormat("Question: {question}\nAnswer: {solution}")
    problem = Problem(id="p", question=QUESTION)
    candidate = Candidate(problem_id="p", index=0, text="#### 3")
    (score,) = fill_flip(
        ScoreFiles(tmp_path, [problem], [candidate], lm, no_progress), FlipSettings(1)
    )
    assert score.extra["questions"] == [{"text": QUESTION, "overlap": 1.0}]


def test_a_solution_without_room_loses_its_end(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    lm = ledom.load(checkpoints["reverse"])
    problem = Problem(id="p", question=QUESTION)
    candidate = Candidate(problem_id="p", index=0, text="1 + 1 = 2\n" * lm.context)
    (score,) = fill_flip(
        ScoreFiles(tmp_path, [problem], [candidate], lm, no_progress), FlipSettings(1)
    )
    assert score.extra["truncated"] is True


def test_questions_that_leave_no_room_for_a_solution_are_refused_before_any_work(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = FakeLanguageModel(tokenizer, "reverse", context=len(tokenizer.encode(QUESTION).ids) + 17)
    problems = [Problem(id="short", question="?"), Problem(id="long", question=QUESTION)]
    drawn = [Candidate(problem_id=problem.id, index=0, text="#### 3") for problem in problems]
    job = Job(problems, tmp_path, None, lm, default_weights(), drawn, flip=FlipSettings(1))
    with pytest.raises(InputError, match=r"question of problem 'long' has .*FLIP \(--flip 0\)"):
        rerank(job, no_progress)
    assert [*tmp_path.iterdir()] == []
    lm.context += 1
    fill_flip(ScoreFiles(tmp_path, problems, drawn, lm, no_progress), FlipSettings(1))


@pytest.mark.usefixtures("no_pictures", "embedded_once")
@pytest.mark.slow
def test_flip_is_a_separate_stage(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path
) -> None:
    files = ("--problems", problem_file, "--candidates", candidate_file)
    command = ("rerank", *files, "--forward", "none", "--out", tmp_path)
    assert run(*command, "--flip", "2")[0] == 0
    made = read_records(tmp_path / "scores.flip.jsonl", Score)
    assert {score.target for score in made} == {"x~|y"}
    assert "| FLIP |" in (tmp_path / "report.md").read_text()
    code, text = run(*command, "--flip", "3")
    assert code == 2
    assert "flip.questions: 2 there, 3 now" in " ".join(text.split())
