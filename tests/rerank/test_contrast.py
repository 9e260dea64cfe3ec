"""The contrastive premise score: which copies it uses and what it computes from them."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import pytest

import ledom
from command_line import Run
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score, read_records
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import LanguageModel
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.contrast import change_numbers, changed_problems, fill_contrast
from ledom.rerank.pipeline import Job, rerank
from ledom.rerank.score import ScoreFiles, check_room, score_candidates
from ledom.rerank.weights import default_weights

QUESTION = "Ava has 3 pens and $1,200. She buys 2.5 kg at 40% off at 7:30. How many?"
PROBLEM = Problem(id="p", question="Ava has 24 pens, gives 6 away. Left?", answer="18")


def log_prob(lm: LanguageModel, question: str, solution: str) -> float:
    """log P(question | solution), by ordinary scoring."""
    problem = Problem(id="q", question=question)
    candidate = Candidate(problem_id="q", index=0, text=solution)
    ((given, _),) = score_candidates([problem], [candidate], lm)
    return given.logprob


def test_each_number_is_replaced_in_turn_by_one_of_its_kind() -> None:
    changes = change_numbers(QUESTION, 8)
    assert len(set(changes)) == len(changes) == 8
    places = [QUESTION[change.start : change.end] for change in changes]
    assert sorted(places) == sorted(["3", "1,200", "2.5", "40"] * 2)  # 7:30 is not a number
    for change in changes:
        copy = change.apply(QUESTION)
        assert copy != QUESTION
        assert copy.startswith(QUESTION[: change.start])
        assert copy.endswith(QUESTION[change.end :])
    decimals = {c.number for c, old in zip(changes, places, strict=True) if old == "2.5"}
    assert all(len(number.partition(".")[2]) == 1 for number in decimals)
    percents = {c.number for c, old in zip(changes, places, strict=True) if old == "40"}
    assert all(int(number) % 5 == 0 for number in percents)


@pytest.mark.parametrize("number", ["٣", "１２", "२५", "３,０００.５"])
def test_a_copy_keeps_the_script_of_the_digits(number: str) -> None:
    """Otherwise a copy might also, or only, differ in script: 3 for a full-width 3."""
    changes = change_numbers(f"Ava has {number} pens.", 5)
    assert len(changes) == 5
    zero = ord(number[0]) - unicodedata.decimal(number[0])
    script = {chr(zero + digit) for digit in range(10)} | set(",.")
    for change in changes:
        assert set(change.number) <= script
        assert float(change.number.replace(",", "")) != float(number.replace(",", ""))


@pytest.mark.parametrize("number", ["12 000", "1\u202f234\u202f567.5", "12\xa0000"])
def test_digits_grouped_by_spaces_are_one_number(number: str) -> None:
    """Otherwise a copy of 12 000 would be 12 3, which is not a number."""
    separator = number.strip("0123456789.")[0]
    changes = change_numbers(f"Ava earns {number} dollars.", 5)
    assert len(changes) == 5
    for change in changes:
        assert (change.start, change.end) == (10, 10 + len(number))
        whole = change.number.partition(".")[0]
        assert whole == f"{int(whole.replace(separator, '')):,}".replace(",", separator)


@pytest.mark.parametrize(
    ("question", "numbers"),
    [("In 2019 350 came.", ["2019", "350"]), ("12 0000 and 5 12", ["0000", "12", "12", "5"])],
)
def test_adjacent_numbers_stay_separate(question: str, numbers: list[str]) -> None:
    found = {(c.start, question[c.start : c.end]) for c in change_numbers(question, 40)}
    assert sorted(text for _, text in found) == numbers


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("小明有3支笔，又买了1,200支。12:30到。有多少支？", ["1,200", "3"]),
        ("๑๒:30 และ ๕ บาท", ["๕"]),
        ("철수는 사과 3개를 샀다.", ["3"]),
        ("りんごが２個あります。", ["２"]),
        ("Room B12, the 2nd door, 5kg", []),  # part of a name, an order, a unit
    ],
)
def test_numbers_between_letters_in_scripts_without_spaces_count(
    question: str, numbers: list[str]
) -> None:
    changes = change_numbers(question, 8)
    assert sorted({question[change.start : change.end] for change in changes}) == numbers


def test_copies_depend_only_on_the_question() -> None:
    assert change_numbers(QUESTION, 8) == change_numbers(QUESTION, 8)
    assert change_numbers(QUESTION, 8)[:3] == change_numbers(QUESTION, 3)
    assert change_numbers("How many are there?", 8) == []
    assert change_numbers("It is 7:30 on route A66.", 8) == []


@pytest.mark.slow
def test_the_mean_is_over_the_copies(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lm = ledom.load(checkpoints["reverse"])
    candidates = [
        Candidate(problem_id="p", index=i, text=text)
        for i, text in enumerate(["24 - 6 = 18\n#### 18", "24 + 6\n#### 30"])
    ]
    changes = change_numbers(PROBLEM.question, 3)
    made = fill_contrast(ScoreFiles(tmp_path, [PROBLEM], candidates, lm, no_progress), 3)
    for candidate, score in zip(candidates, made, strict=True):
        each = [log_prob(lm, c.apply(PROBLEM.question), candidate.text) for c in changes]
        assert [c["logprob"] for c in score.extra["copies"]] == pytest.approx(each, abs=1e-3)
        mean = math.log(sum(math.exp(value - each[0]) for value in each) / 3) + each[0]
        assert score.logprob == pytest.approx(mean, abs=1e-3)


@pytest.mark.slow
def test_the_feature_is_the_difference(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lm = ledom.load(checkpoints["reverse"])
    plain = Problem(id="n", question="Is it so?", answer="1")
    candidates = [Candidate(problem_id=id_, index=0, text="#### 1") for id_ in ("p", "n")]
    scores = [s for part in score_candidates([PROBLEM, plain], candidates, lm) for s in part]
    scores += fill_contrast(ScoreFiles(tmp_path, [PROBLEM, plain], candidates, lm, no_progress), 2)
    found = build_candidate_table([PROBLEM, plain], candidates, scores).features["contrast"]
    by_target = {s.target: s.logprob for s in scores if s.problem_id == "p"}
    assert found[0, 0] == pytest.approx(by_target["x|y"] - by_target["x'|y"])
    assert found[1, 0] == 0.0  # no number, no copies


def test_copies_that_leave_no_room_for_a_solution_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    """A question may fit where a copy with one more digit does not: a token per byte here."""
    problems = [Problem(id="short", question="?"), Problem(id="p", question="Ava has 9 pens.")]
    longest = max(len(copy.question) for copy in changed_problems(problems, 8))
    assert longest == len(problems[1].question) + 1
    drawn = [Candidate(problem_id=p.id, index=0, text="4") for p in problems]
    lm = FakeLanguageModel(direction="reverse", context=longest + 3)  # two line ends, and EOS
    check_room(problems, lm)
    job = Job(problems, tmp_path, None, lm, default_weights(), drawn, contrast=8)
    with pytest.raises(InputError, match=r"leave no room .* the first is that of problem 'p'"):
        rerank(job, no_progress)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("no_pictures", "embedded_once")
@pytest.mark.slow
def test_the_contrast_is_a_separate_stage(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path
) -> None:
    files = ("--problems", problem_file, "--candidates", candidate_file)
    command = ("rerank", *files, "--forward", "none", "--out", tmp_path)
    assert run(*command)[0] == 0
    scores = (tmp_path / "scores.reverse.jsonl").read_bytes()
    assert run(*command, "--contrast", "2")[0] == 0
    assert (tmp_path / "scores.reverse.jsonl").read_bytes() == scores
    made = read_records(tmp_path / "scores.contrast.jsonl", Score)
    assert {score.target for score in made} == {"x'|y"}
    assert "| contrast |" in (tmp_path / "report.md").read_text()
    code, text = run(*command, "--contrast", "3")
    assert code == 2
    assert "contrast: 2 there, 3 now" in " ".join(text.split())


def test_contrast_needs_a_reverse_model(run: Run, problem_file: Path, candidate_file: Path) -> None:
    files = ("--problems", problem_file, "--candidates", candidate_file)
    code, text = run("rerank", *files, "--reverse", "none", "--contrast", "2")
    assert code == 2
    assert "--contrast would have no effect: only a reverse model uses it" in " ".join(text.split())
