"""Bad input to rerank and search: one clear line for each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import QUESTIONS, Run, check_refused
from ledom.core.records import Candidate, Problem, write_records
from ledom.lm.backends.fake import FakeLanguageModel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("problems.jsonl", "no such file; give one, or a problem set: gsm_symbolic, gsm8k")),
        ("", ("problems.jsonl", "no Problem records")),
        ("{nonsense\n", ("problems.jsonl:1", "not JSON")),
        ('{"id": "a", "question": "q"}\n\n[1]\n', ("problems.jsonl:3", "expected a JSON object")),
        ('{"id": "a"}\n', ("problems.jsonl:1", "missing key 'question'")),
        ('{"id": "a", "question": 3}\n', ("problems.jsonl:1: key question: ", "string, found 3")),
        ('{"id": "a", "question": "q"}\n' * 2, ("problems.jsonl:2: the id 'a' occurs twice",)),
        (
            '{"id": "a", "question": "q", "k": NaN}\n',
            ("problems.jsonl:1: not JSON: NaN is not a num",),
        ),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_bad_problem_files_are_refused(
    run: Run, tmp_path: Path, content: str | None, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "problems.jsonl"
    if content is not None:
        path.write_text(content)
    check_refused(run("rerank", "--problems", path, "--out", tmp_path / "out"), *parts)


def test_a_directory_is_refused_as_a_problem_file(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    check_refused(run("rerank", "--problems", tmp_path), str(tmp_path), "directory")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_a_refused_run_leaves_the_folder_unchanged(
    run: Run, problem_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--problems", problem_file, "--samples", 2, "--out", out)
    assert run("rerank", *arguments)[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    # The same number of problems with the same ids, but one asks a different question.
    other = tmp_path / "other.jsonl"
    edited = [Problem(id="p0", question="What is 5 + 5?", answer="10"), *QUESTIONS[1:]]
    write_records(other, edited)
    refused = run("rerank", "--problems", other, *arguments[2:])
    check_refused(refused, "candidates.jsonl", "made with other settings (questions: ")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.usefixtures("no_pictures", "fakes")
@pytest.mark.slow
def test_scores_of_a_different_question_are_not_reused(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path
) -> None:
    arguments = ("--candidates", candidate_file, "--forward", "none", "--out", tmp_path / "out")
    assert run("rerank", "--problems", problem_file, *arguments)[0] == 0
    other = tmp_path / "other.jsonl"
    write_records(other, [Problem(id=p.id, question="What is 5 + 5?") for p in QUESTIONS])
    check_refused(
        run("rerank", "--problems", other, *arguments), "scores.reverse.jsonl", "questions: "
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_scores_of_another_model_are_refused_by_name_and_hash(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    problem_file: Path,
    candidate_file: Path,
    tmp_path: Path,
) -> None:
    arguments = (
        *("rerank", "--problems", problem_file, "--candidates", candidate_file),
        *("--forward", "none", "--out", tmp_path / "out"),
    )
    assert run(*arguments)[0] == 0
    fakes["reverse"].name = "moved"
    assert run(*arguments)[0] == 0  # the same model under another name
    fakes["reverse"].name, first = "other", fakes["reverse"].fingerprint
    fakes["reverse"].fingerprint = "abc123"
    check_refused(
        run(*arguments), "scores.reverse.jsonl", f"model: fake ({first}) there, other (abc123) now"
    )


def test_candidates_of_other_problems_are_refused(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "candidates.jsonl"
    arguments = (
        "rerank",
        "--problems",
        problem_file,
        "--candidates",
        path,
        "--out",
        tmp_path / "out",
    )
    write_records(path, [Candidate(problem_id="zz", index=0, text="#### 1")])
    check_refused(run(*arguments), f"{path}:1: ", "problem 'zz'", "not among the 6 problems")
    write_records(path, [Candidate(problem_id="p0", index=0, text=text) for text in "ab"])
    check_refused(run(*arguments), f"{path}:2: problem 'p0' has two candidates with index 0")
    assert not (tmp_path / "out").exists()
    write_records(path, [Candidate(problem_id="p0", index=0, text="#### 1")])
    check_refused(
        run(*arguments), "5 of 6 problems have no candidates to choose from, the first is"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--lambda", "nan"), ("lambda is nan",)),
        (("--lambda", "-0.5"), ("lambda is -0.5", "[0, 1]")),
        (("--lambda", "1.5"), ("lambda is 1.5",)),
        (("--samples", "0"), ("'--samples'", "1")),
        (("--samples", "many"), ("samples",)),
        (("--temperature", "-1"), ("temperature is -1",)),
        (("--top-p", "0"), ("top_p is 0",)),
        (("--split", "exam"), ("unknown split 'exam'", "train, valid, tune, test")),
        (("--forward", "none", "--reverse", "none"), ("no candidates, and no forward model",)),
        (("--weights", "nowhere.yaml"), ("nowhere.yaml", "no such file")),
        (("--weights", "w.yaml", "--lambda", "0.5"), ("--lambda would", "come from w.yaml")),
        (("--nonsense",), ("--nonsense", ". See: ledom rerank --help")),
        (("--threads", "5000"), ("threads", "1024. See: ledom rerank --help")),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_bad_options_are_refused(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    check_refused(run("rerank", *arguments, "--num-problems", 2, "--out", out), *parts)
    assert not out.exists()


@pytest.mark.slow
def test_a_model_of_the_wrong_direction_is_refused(
    run: Run, checkpoints: dict[str, Path], problem_file: Path, tmp_path: Path
) -> None:
    check_refused(
        run("rerank", "--problems", problem_file, "--forward", checkpoints["reverse"]),
        str(checkpoints["reverse"]),
        "this is a reverse model, used as forward",
    )


def test_a_truncated_model_file_is_refused(
    run: Run, checkpoints: dict[str, Path], problem_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoints["forward"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    check_refused(
        run("rerank", "--problems", problem_file, "--forward", broken),
        str(broken),
        "model.safetensors: damaged",
    )


def test_an_unwritable_output_folder_is_refused(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    check_refused(
        run("rerank", "--problems", problem_file, "--out", out), str(out.parent), "not a folder"
    )


def test_search_refuses_before_it_writes(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("search", "--out", out, "--problems")
    check_refused(
        run(*arguments, problem_file, "--reverse", "none"), "lambda is 0.5 without a reverse model"
    )
    twice = tmp_path / "twice.jsonl"
    write_records(twice, [QUESTIONS[0], QUESTIONS[0]])
    check_refused(run(*arguments, twice), "the id 'p0' occurs twice")
    assert not out.exists()


def test_demonstrations_need_solutions(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    code, output = run(
        "rerank", "--problems", problem_file, "--demonstrations", problem_file, "--out", tmp_path
    )
    assert code == 2
    assert f"{problem_file}:1: problem 'p0' has no solution" in output


def test_too_many_folds_are_refused(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    code, output = run("rerank", "--problems", problem_file, "--folds", 7, "--out", tmp_path)
    assert code == 2
    assert "7 folds of 6 problems; give at least 2 folds" in output
    assert not list(tmp_path.glob("*candidates*"))  # refused before any work
