"""rerank and tune: from problems to a report, and resuming from existing files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from command_line import QUESTIONS, Run, check_refused
from ledom.core.records import Candidate, Problem, read_records, write_records
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation, Sampling


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_rerank_from_problems_to_report(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("rerank", "--problems", problem_file, "--samples", 6, "--out", out)
    code, text = run(*arguments)
    assert code == 0, text
    assert "report.html" in text
    assert len(read_records(out / "candidates.jsonl", Candidate)) == 6 * 7  # with the greedy one
    report = json.loads((out / "report.json").read_text())
    names = [row["id"] for row in report["strategies"]]
    assert {"greedy", "random", "forward", "reverse_reward", "majority", "oracle"} <= set(names)
    selected = (out / "selected.jsonl").read_text().splitlines()
    assert [json.loads(row)["problem_id"] for row in selected] == [p.id for p in QUESTIONS]
    # A second run reuses the existing files.
    before = [model.num_scored for model in fakes.values()]
    assert run(*arguments)[0] == 0
    assert [model.num_scored for model in fakes.values()] == before
    # Files made with other settings are not mixed in.
    check_refused(run(*arguments, "--seed", 5), "candidates.jsonl", "seed: 0 there, 5 now")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_tune_then_rerank_on_other_problems(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    out, weights = tmp_path / "tuning", tmp_path / "weights.json"
    assert run("rerank", "--problems", problem_file, "--samples", 8, "--out", out)[0] == 0
    code, text = run("tune", out, "--out", weights)
    assert code == 0, text
    check_refused(
        run("rerank", "--problems", problem_file, "--weights", weights, "--out", tmp_path / "o"),
        "'p0' is one of those that the weights were tuned on",
    )
    fresh = tmp_path / "fresh.jsonl"
    write_records(fresh, [Problem(id="n", question="What is 9 + 1?", answer="2")])
    code, text = run("rerank", "--problems", fresh, "--weights", weights, "--out", tmp_path / "o")
    assert code == 0, text
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert any("tuned on other problems (6)" in note for note in report["notes"])
    assert not any("another model" in note for note in report["notes"])

    # The same model in another precision is not refused, since weights may suit another model.
    fakes["reverse"].fingerprint += "-bfloat16"
    again = ("--problems", fresh, "--weights", weights, "--out", tmp_path / "p")
    assert run("rerank", *again)[0] == 0
    notes = json.loads((tmp_path / "p" / "report.json").read_text())["notes"]
    (note,) = [note for note in notes if "another model" in note]
    assert note.startswith("the weights were fitted on scores of another model: reverse: ")
    assert note.endswith("(fake-reverse) there, fake (fake-reverse-bfloat16) now")


def judged(path: Path, problems: Sequence[Problem], **changes: object) -> Path:
    """Candidates with a verifier's scores, which are right except for the first problem."""
    rows = [
        Candidate(
            problem_id=problem.id,
            index=i,
            text=f"so it is {i}\n#### {i % 3}",
            extra={"verifier": float((i % 3 == 2) is (problem.id != "p0")), **changes},
        )
        for problem in problems
        for i in range(7)
    ]
    write_records(path, rows)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_external_score_is_tuned_on_some_problems_and_used_on_others(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    given = judged(tmp_path / "judged.jsonl", QUESTIONS)
    out, weights = tmp_path / "tuning", tmp_path / "weights.json"
    both = ("--problems", problem_file, "--candidates", given, "--score-field", "verifier")
    assert run("rerank", *both, "--out", out)[0] == 0
    rows = json.loads((out / "report.json").read_text())["strategies"]
    accuracy = {row["id"]: row["accuracy"]["mean"] for row in rows}
    assert (
        accuracy["external:verifier"] == accuracy["vote_external:verifier"] == pytest.approx(5 / 6)
    )
    code, text = run("tune", out, *both, "--out", weights)
    assert code == 0, text
    assert json.loads(weights.read_text())["external_scores"] == ["verifier"]

    fresh, out = tmp_path / "fresh.jsonl", tmp_path / "o"
    more = [Problem(id=f"n{i}", question=f"What is 9{i} + 1?", answer="2") for i in range(2)]
    write_records(fresh, more)
    given = judged(tmp_path / "fresh-judged.jsonl", more)
    arguments = ("rerank", "--problems", fresh, "--weights", weights, "--out", out)
    code, text = run(*arguments, "--candidates", given)
    assert code == 0, text
    rows = json.loads((out / "report.json").read_text())["strategies"]
    accuracy = {row["id"]: row["accuracy"]["mean"] for row in rows}
    assert accuracy["all_external"] == accuracy["vote_reverse_external"] == 1.0
    chosen = json.loads((out / "selected.jsonl").read_text().splitlines()[0])
    assert chosen["strategy"] == "vote_all_external"

    # Candidates without the scores that the weights need are refused before any work.
    before = [model.num_scored for model in fakes.values()]
    check_refused(run(*arguments), "will have no score field 'verifier'")
    given = judged(given, more, verifier=None)
    check_refused(
        run(*arguments, "--candidates", given), f"{given}:1: candidate 0 of problem 'n0' has no"
    )
    assert [model.num_scored for model in fakes.values()] == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_bad_score_fields_are_refused(run: Run, problem_file: Path, tmp_path: Path) -> None:
    given = judged(tmp_path / "judged.jsonl", QUESTIONS, self_certainty=0.5, text_length="7")
    base = ("rerank", "--problems", problem_file, "--out", tmp_path / "out")
    arguments = (*base, "--candidates", given)
    check_refused(run(*arguments, "--score-field", "forward"), "cannot be called 'forward'")
    check_refused(
        run(*arguments, "--score-field", "text_length"), f"{given}:1: ", "'7', expected a"
    )
    check_refused(run(*arguments, "--early-stop"), f"the candidates come from {given}")
    check_refused(run(*base, "--score-field", "self_certainty"), "no score field 'self_certainty'")
    result = run(*base, "--score-field", "confidence_mean")
    check_refused(result, "no score field 'confidence_mean'; give --confidence, or leave out")
    assert not (tmp_path / "out").exists()
    for more, expected in (((), True), (("--score-field", "none"), False)):
        assert run(*arguments, *more)[0] == 0
        rows = json.loads((tmp_path / "out" / "report.json").read_text())["strategies"]
        assert ("external:self_certainty" in {row["id"] for row in rows}) is expected


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_an_early_stop_samples_a_part_of_the_same_candidates(
    run: Run, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("rerank", "--problems", problem_file, "--samples", 12, "--out")
    assert run(*arguments, tmp_path / "full")[0] == 0
    calls: list[int] = []
    real = FakeLanguageModel.generate

    def interrupted(
        self: FakeLanguageModel,
        prompts: Sequence[str],
        sampling: Sampling,
        num_samples: int = 1,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Generation]]]:
        for made in real(self, prompts, sampling, num_samples, first_sample):
            if len(calls) == 10:
                raise KeyboardInterrupt
            calls.append(num_samples)
            yield made

    out = tmp_path / "early"
    monkeypatch.setattr(FakeLanguageModel, "generate", interrupted)
    assert run(*arguments, out, "--early-stop")[0] == 130
    part = (out / "candidates.jsonl.part").read_text().splitlines()
    assert len(part) == 1 + 10  # the settings, and each sampled round of a problem
    monkeypatch.setattr(FakeLanguageModel, "generate", real)
    code, text = run(*arguments, out, "--early-stop")
    assert code == 0, text

    full, early = (
        read_records(tmp_path / name / "candidates.jsonl", Candidate) for name in ("full", "early")
    )
    texts = {(c.problem_id, c.index): c.text for c in full}
    assert all(texts[c.problem_id, c.index] == c.text for c in early)
    assert [c.problem_id for c in early if c.greedy] == [p.id for p in QUESTIONS]
    drawn = len(early) - len(QUESTIONS)
    assert 6 * 7 <= drawn < 6 * 12

    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("full", "early")]
    needed, accuracy = zip(
        *(
            next(
                (row["needed"]["candidates"]["mean"], row["accuracy"]["mean"])
                for row in report["strategies"]
                if row["id"] == "majority_stopped"
            )
            for report in reports
        ),
        strict=True,
    )
    assert needed[0] == needed[1] <= drawn / 6
    assert accuracy[0] == accuracy[1]
    assert any(f"{drawn} of 72 candidates were drawn" in note for note in reports[1]["notes"])
    check_refused(run(*arguments, out), "early_stop: True there, None now")


@pytest.mark.usefixtures("no_pictures", "fakes")
def test_given_candidates_need_no_forward_model(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path
) -> None:
    arguments = ("--problems", problem_file, "--candidates", candidate_file, "--forward", "none")
    code, text = run("rerank", *arguments, "--out", tmp_path / "out")
    assert code == 0, text
    assert not (tmp_path / "out" / "scores.forward.jsonl").exists()
    names = json.loads((tmp_path / "out" / "report.json").read_text())["strategies"]
    assert "forward" not in {row["id"] for row in names}


@pytest.mark.usefixtures("no_pictures", "fakes")
@pytest.mark.slow
def test_questions_written_backwards_are_sampled_with_the_seed(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path
) -> None:
    """This holds even if problems and candidates come from files."""
    given = ("--problems", problem_file, "--candidates", candidate_file, "--forward", "none")
    out = ("--out", tmp_path / "out")
    assert run("rerank", *given, "--flip", 1, "--seed", 1, *out)[0] == 0
    check_refused(run("rerank", *given, "--flip", 1, "--seed", 2, *out), "seed: 1 there, 2 now")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_ctrl_c_keeps_finished_work(
    run: Run, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[str] = []
    real = FakeLanguageModel.generate

    def interrupted(
        self: FakeLanguageModel, prompts: Sequence[str], sampling: Sampling, num_samples: int = 1
    ) -> Iterator[tuple[int, list[Generation]]]:
        for place, texts in real(self, prompts, sampling, num_samples):
            if sampling.temperature > 0:
                if len(sampled) == 3:
                    raise KeyboardInterrupt
                sampled.append(prompts[place])
            yield place, texts

    monkeypatch.setattr(FakeLanguageModel, "generate", interrupted)
    arguments = ("rerank", "--problems", problem_file, "--samples", 4, "--out", tmp_path / "out")
    code, text = run(*arguments)
    assert code == 130
    assert "run the same command again" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "candidates.jsonl").exists()
    again: list[str] = []

    def watched(
        self: FakeLanguageModel, prompts: Sequence[str], sampling: Sampling, num_samples: int = 1
    ) -> Iterator[tuple[int, list[Generation]]]:
        again.extend(prompts if sampling.temperature > 0 else [])
        return real(self, prompts, sampling, num_samples)

    monkeypatch.setattr(FakeLanguageModel, "generate", watched)
    assert run(*arguments)[0] == 0
    assert len(again) == 3  # only the unfinished ones
    assert not set(again) & set(sampled)
    kept = read_records(tmp_path / "out" / "candidates.jsonl", Candidate)
    assert [c.problem_id for c in kept] == [p.id for p in QUESTIONS for _ in range(5)]


def notes_of(run: Run, problems: Path, candidates: Path, out: Path) -> list[str]:
    """Run rerank successfully and return the notes of its report."""
    code, text = run("rerank", "--problems", problems, "--candidates", candidates, "--out", out)
    assert code == 0, text
    notes: list[str] = json.loads((out / "report.json").read_text())["notes"]
    return notes


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_unparseable_answers_are_counted_and_not_fatal(
    run: Run, problem_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "candidates.jsonl"
    texts = ["#### 2", "no idea", "", "\x00\x01", "\x1b[31m#### 2\u202e", "#### " + "9" * 10_000]
    rows = [
        Candidate(problem_id=p.id, index=i, text=text)
        for p in QUESTIONS
        for i, text in enumerate(texts)
    ]
    rows.append(Candidate(problem_id="p0", index=len(texts), text="1 + x" * 30_000))
    write_records(path, rows)
    notes = notes_of(run, problem_file, path, tmp_path / "out")
    assert any("without a readable answer" in note for note in notes)
    kept = (tmp_path / "out" / "report.html").read_text()
    assert "\x1b" not in kept
    assert len(kept) < 500_000


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_solution_longer_than_the_context_is_cut_and_reported(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    for model in fakes.values():
        model.context = 100
    path = tmp_path / "candidates.jsonl"
    write_records(path, [Candidate(problem_id=p.id, index=0, text="7 " * 2000) for p in QUESTIONS])
    notes = notes_of(run, problem_file, path, tmp_path / "out")
    assert any("cut to the model's context" in note for note in notes)


def answered(path: Path, answers: Sequence[str | None]) -> Path:
    """Write a problem for each answer; None means an unlabeled problem."""
    rows = [
        Problem(id=f"p{i}", question=f"What is {i} + 1?", answer=a) for i, a in enumerate(answers)
    ]
    write_records(path, rows)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_only_labeled_problems_count(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    """All candidates say 2, so the two labeled problems are right; the others are unknown."""
    problems = answered(tmp_path / "problems.jsonl", ["2", None, "2", None, None])
    fakes["forward"].answers = ["1 + 1 = 2\n#### 2"]
    arguments = ("--problems", problems, "--samples", 3, "--lambda", 0.5, "--out", tmp_path / "out")
    code, text = run("rerank", *arguments)
    assert code == 0, text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["num_labeled"], report["num_problems"]) == (2, 5)
    assert {row["accuracy"]["mean"] for row in report["strategies"]} == {1.0}
    assert "2 of 5 problems are labeled" in report["notes"][0]
    first = next(line for line in text.splitlines() if " is right on " in line)
    assert first.startswith("Voting weighted by Reverse Reward is right on 100.0%")
    assert len((tmp_path / "out" / "selected.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("answers", [["2"], ["2", "3"], [None], [None, None]])
def test_one_or_two_problems_are_enough_for_a_report(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path, answers: list[str | None]
) -> None:
    """Warnings are errors here, so no figure may be drawn on an axis without extent."""
    problems = answered(tmp_path / "problems.jsonl", answers)
    arguments = ("--problems", problems, "--samples", 2, "--lambda", 0.5, "--out", tmp_path / "out")
    code, text = run("rerank", *arguments)
    assert code == 0, text
    page = (tmp_path / "out" / "report.html").read_text()
    if answers[0] is None:
        assert "nothing was measured" in text
        assert "Chosen answers" in page
        assert all(f"What is {i} + 1?" in page for i in range(len(answers)))
    else:
        assert "right on" in text
        assert "Fewer than 30 problems" in page
