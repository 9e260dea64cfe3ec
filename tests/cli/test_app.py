"""The command line: the main job, and each kind of bad input in one clear line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from command_line import QUESTIONS, Run, check_refused
from ledom.core.records import Candidate, Problem, read_records, write_records
from ledom.data.store import write_store
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation, Sampling
from ledom.text.tokenizer import Tokenizer


@pytest.mark.usefixtures("no_pictures")
def test_rerank_from_problems_to_report(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("rerank", "--problems", problem_file, "--samples", 6, "--out", out)
    code, text = run(*arguments)
    assert code == 0, text
    assert "report.html" in text
    assert len(read_records(out / "candidates.jsonl", Candidate)) == 6 * 7  # the greedy one too
    report = json.loads((out / "report.json").read_text())
    names = [row["id"] for row in report["strategies"]]
    assert {"greedy", "random", "forward", "reverse_reward", "majority", "oracle"} <= set(names)
    selected = (out / "selected.jsonl").read_text().splitlines()
    assert [json.loads(row)["problem_id"] for row in selected] == [p.id for p in QUESTIONS]
    # A second run uses what is there.
    before = [model.num_scored for model in fakes.values()]
    assert run(*arguments)[0] == 0
    assert [model.num_scored for model in fakes.values()] == before
    # Other settings are not mixed with it.
    check_refused(run(*arguments, "--seed", 5), "candidates.jsonl", "seed: 0 there, 5 now")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_tune_then_rerank_on_other_problems(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    out, weights = tmp_path / "tuning", tmp_path / "weights.yaml"
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
    assert any("tuned on 6 other problems" in note for note in report["notes"])
    assert not any("another model" in note for note in report["notes"])

    # The same weights in another precision: not refused, since weights may suit another model.
    fakes["reverse"].fingerprint += "-bfloat16"
    again = ("--problems", fresh, "--weights", weights, "--out", tmp_path / "p")
    assert run("rerank", *again)[0] == 0
    notes = json.loads((tmp_path / "p" / "report.json").read_text())["notes"]
    (note,) = [note for note in notes if "another model" in note]
    assert note.startswith("the weights were fitted on scores of another model: reverse: ")
    assert note.endswith("(fake-reverse) there, fake (fake-reverse-bfloat16) now")


def judged(path: Path, problems: Sequence[Problem], **changes: object) -> Path:
    """Candidates with a verifier's scores, which are right but for the first problem's."""
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
    out, weights = tmp_path / "tuning", tmp_path / "weights.yaml"
    both = ("--problems", problem_file, "--candidates", given, "--score-field", "verifier")
    assert run("rerank", *both, "--out", out)[0] == 0
    rows = json.loads((out / "report.json").read_text())["strategies"]
    accuracy = {row["id"]: row["accuracy"]["mean"] for row in rows}
    assert (
        accuracy["external:verifier"] == accuracy["vote_external:verifier"] == pytest.approx(5 / 6)
    )
    code, text = run("tune", out, *both, "--out", weights)
    assert code == 0, text
    assert "external_scores:\n- verifier\n" in weights.read_text()

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

    # Candidates without what the weights need are refused before any work.
    before = [model.num_scored for model in fakes.values()]
    check_refused(run(*arguments), "will have no score field 'verifier'")
    given = judged(given, more, verifier=None)
    check_refused(
        run(*arguments, "--candidates", given), f"{given}:1: candidate 0 of problem 'n0' has no"
    )
    assert [model.num_scored for model in fakes.values()] == before


@pytest.mark.usefixtures("no_pictures")
def test_bad_score_fields(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    given = judged(tmp_path / "judged.jsonl", QUESTIONS, self_certainty=0.5, text_length="7")
    base = ("rerank", "--problems", problem_file, "--out", tmp_path / "out")
    arguments = (*base, "--candidates", given)
    check_refused(run(*arguments, "--score-field", "forward"), "cannot be called 'forward'")
    check_refused(
        run(*arguments, "--score-field", "text_length"), f"{given}:1: ", "'7', expected a"
    )
    check_refused(run(*arguments, "--early-stop"), f"the candidates come from {given}")
    check_refused(run(*base, "--score-field", "self_certainty"), "no score field 'self_certainty'")
    assert not (tmp_path / "out").exists()
    for more, expected in (((), True), (("--score-field", "none"), False)):
        assert run(*arguments, *more)[0] == 0
        rows = json.loads((tmp_path / "out" / "report.json").read_text())["strategies"]
        assert ("external:self_certainty" in {row["id"] for row in rows}) is expected


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_early_stop_draws_a_part_of_the_same_candidates(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    problem_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    assert len(part) == 1 + 10  # the settings, and each round of a problem that was drawn
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


@pytest.mark.usefixtures("no_pictures")
def test_given_candidates_need_no_forward_model(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    problem_file: Path,
    candidate_file: Path,
    tmp_path: Path,
) -> None:
    arguments = ("--problems", problem_file, "--candidates", candidate_file, "--forward", "none")
    code, text = run("rerank", *arguments, "--out", tmp_path / "out")
    assert code == 0, text
    assert not (tmp_path / "out" / "scores.forward.jsonl").exists()
    names = json.loads((tmp_path / "out" / "report.json").read_text())["strategies"]
    assert "forward" not in {row["id"] for row in names}


@pytest.mark.usefixtures("no_pictures")
def test_ctrl_c_keeps_finished_work(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    problem_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    assert len(again) == 3  # only those that were not finished
    assert not set(again) & set(sampled)
    kept = read_records(tmp_path / "out" / "candidates.jsonl", Candidate)
    assert [c.problem_id for c in kept] == [p.id for p in QUESTIONS for _ in range(5)]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("problems.jsonl", "no such file; give one, or a problem set: gsm_symbolic, gsm8k")),
        ("", ("problems.jsonl", "no Problem records")),
        ("{nonsense\n", ("problems.jsonl:1", "not JSON")),
        ('{"id": "a", "question": "q"}\n\n[1]\n', ("problems.jsonl:3", "expected a JSON object")),
        ('{"id": "a"}\n', ("problems.jsonl:1", "missing key 'question'")),
        (
            '{"id": "a", "question": 3}\n',
            ("problems.jsonl:1: key question: ", "string, found 3"),
        ),
        ('{"id": "a", "question": "q"}\n' * 2, ("problems.jsonl:2: the id 'a' occurs twice",)),
        (
            '{"id": "a", "question": "q", "k": NaN}\n',
            ("problems.jsonl:1: not JSON: NaN is not a num",),
        ),
    ],
)
def test_bad_problem_files(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    tmp_path: Path,
    content: str | None,
    parts: tuple[str, ...],
) -> None:
    path = tmp_path / "problems.jsonl"
    if content is not None:
        path.write_text(content)
    check_refused(run("rerank", "--problems", path, "--out", tmp_path / "out"), *parts)


def test_a_directory_is_no_problem_file(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    check_refused(run("rerank", "--problems", tmp_path), str(tmp_path), "directory")


@pytest.mark.usefixtures("no_pictures")
def test_a_refused_run_leaves_the_folder_as_it_was(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--problems", problem_file, "--samples", 2, "--out", out)
    assert run("rerank", *arguments)[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    # Problems of the same ids and number, but one asks another question.
    other = tmp_path / "other.jsonl"
    edited = [Problem(id="p0", question="What is 5 + 5?", answer="10"), *QUESTIONS[1:]]
    write_records(other, edited)
    refused = run("rerank", "--problems", other, *arguments[2:])
    check_refused(refused, "candidates.jsonl", "made with other settings (questions: ")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.usefixtures("no_pictures")
def test_scores_of_another_question_are_not_reused(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    problem_file: Path,
    candidate_file: Path,
    tmp_path: Path,
) -> None:
    arguments = ("--candidates", candidate_file, "--forward", "none", "--out", tmp_path / "out")
    assert run("rerank", "--problems", problem_file, *arguments)[0] == 0
    other = tmp_path / "other.jsonl"
    write_records(other, [Problem(id=p.id, question="What is 5 + 5?") for p in QUESTIONS])
    check_refused(
        run("rerank", "--problems", other, *arguments), "scores.reverse.jsonl", "questions: "
    )


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
    assert run(*arguments)[0] == 0  # the same model by another name
    fakes["reverse"].name, first = "other", fakes["reverse"].fingerprint
    fakes["reverse"].fingerprint = "abc123"
    check_refused(
        run(*arguments),
        "scores.reverse.jsonl",
        f"model: fake ({first}) there, other (abc123) now",
    )


def test_candidates_of_other_problems(
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
    check_refused(run(*arguments), "5 of 6 problems have no candidates, the first is 'p1'")


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
        (("--nonsense",), ("--nonsense", ". See: ledom --help")),
        (("--threads", "5000"), ("threads", "1024. See: ledom --help")),
    ],
)
def test_bad_options(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    tmp_path: Path,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    check_refused(run("rerank", *arguments, "--num-problems", 2, "--out", out), *parts)
    assert not out.exists()


def notes_of(run: Run, problems: Path, candidates: Path, out: Path) -> list[str]:
    """What the report of a rerank that succeeds has to say."""
    code, text = run("rerank", "--problems", problems, "--candidates", candidates, "--out", out)
    assert code == 0, text
    notes: list[str] = json.loads((out / "report.json").read_text())["notes"]
    return notes


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_answers_no_one_can_parse_are_counted_not_fatal(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "candidates.jsonl"
    texts = ["#### 2", "no idea", "", "\x00\x01", "\x1b[31m#### 2\u202e", "#### " + "9" * 10_000]
    rows = [
        Candidate(problem_id=p.id, index=i, text=text)
        for p in QUESTIONS
        for i, text in enumerate(texts)
    ]
    rows.append(Candidate(problem_id="p0", index=len(texts), text="1 + x" * 120_000))
    write_records(path, rows)
    notes = notes_of(run, problem_file, path, tmp_path / "out")
    assert any("give no answer that could be read" in note for note in notes)
    kept = (tmp_path / "out" / "report.html").read_text()
    assert "\x1b" not in kept
    assert len(kept) < 500_000


@pytest.mark.usefixtures("no_pictures")
def test_a_solution_longer_than_the_context_is_cut_and_said(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    for model in fakes.values():
        model.context = 100
    path = tmp_path / "candidates.jsonl"
    write_records(path, [Candidate(problem_id=p.id, index=0, text="7 " * 2000) for p in QUESTIONS])
    notes = notes_of(run, problem_file, path, tmp_path / "out")
    assert any("cut to the model's context" in note for note in notes)


def test_a_model_of_the_wrong_direction(
    run: Run, checkpoints: dict[str, Path], problem_file: Path, tmp_path: Path
) -> None:
    check_refused(
        run("rerank", "--problems", problem_file, "--forward", checkpoints["reverse"]),
        str(checkpoints["reverse"]),
        "this is a reverse model, asked for as forward",
    )


def test_a_truncated_model_file(
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
        "cannot be loaded",
    )


def test_an_unwritable_output_folder(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    check_refused(
        run("rerank", "--problems", problem_file, "--out", out), str(out.parent), "is a file"
    )


def test_generate_writes_before_or_after(run: Run, fakes: dict[str, FakeLanguageModel]) -> None:
    code, text = run("generate", "--before", "#### 2", "--samples", 2)
    assert code == 0
    assert text.startswith("1 + 1 = ")
    assert text.rstrip().endswith("#### 2")
    code, text = run("generate", "--after", "What is 1 + 1?")
    assert text.startswith("What is 1 + 1?")


def test_train_refuses_bad_recipes(run: Run, tmp_path: Path) -> None:
    check_refused(run("train", tmp_path / "none.yaml"), "none.yaml", "no such file")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodell: {}\n")
    check_refused(
        run("train", recipe), "unknown key modell", "valid here: name, seed, init_from, data"
    )
    check_refused(run("train", recipe, "--direction", "up"), "r.yaml")


@pytest.mark.parametrize("command", [("export", "MODEL"), ("train", "RECIPE")])
def test_an_unknown_direction(
    run: Run, checkpoints: dict[str, Path], command: tuple[str, str]
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
    named = {"MODEL": checkpoints["forward"], "RECIPE": recipe}
    check_refused(
        run(command[0], named.get(command[1], command[1]), "--direction", "up"),
        "direction is 'up'; give forward",
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


def test_a_refused_run_keeps_its_recipe(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\ndata: {num_documents: 60, num_valid: 1, vocab_size: 300}\n"
        "model: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,\n"
        "        num_attention_heads: 2, num_key_value_heads: 1}\n"
        "optim: {steps: 2}\ntrain: {batch_size: 2, seq_len: 64}\n"
    )
    arguments = ("train", recipe, "--direction", "forward", "--threads", 1, "--out", tmp_path)
    assert run(*arguments)[0] == 0
    saved = tmp_path / "r" / "recipe.yaml"
    before = saved.read_text()
    check_refused(run(*arguments, "optim.clip=2"), "optim.clip: 1.0 there, 2.0 now")
    assert saved.read_text() == before
    assert run(*arguments, "train.validate_every=7")[0] == 0  # which may change
    assert "validate_every: 7" in saved.read_text()


def test_no_arguments_show_the_commands(run: Run) -> None:
    code, text = run()
    assert code == 0
    assert "rerank" in text
    assert "error" not in text


def answered(path: Path, answers: Sequence[str | None]) -> Path:
    """A problem for each answer, None for one that nobody has labeled."""
    rows = [
        Problem(id=f"p{i}", question=f"What is {i} + 1?", answer=a) for i, a in enumerate(answers)
    ]
    write_records(path, rows)
    return path


@pytest.mark.usefixtures("no_pictures")
def test_only_labeled_problems_count(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    """All candidates say 2, so the two labeled problems are right and nothing else is known."""
    problems = answered(tmp_path / "problems.jsonl", ["2", None, "2", None, None])
    fakes["forward"].answers = ["1 + 1 = 2\n#### 2"]
    arguments = ("--problems", problems, "--samples", 3, "--lambda", 0.5, "--out", tmp_path / "out")
    code, text = run("rerank", *arguments)
    assert code == 0, text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["num_labeled"], report["num_problems"]) == (2, 5)
    assert {row["accuracy"]["mean"] for row in report["strategies"]} == {1.0}
    assert "2 of 5 labeled" in report["notes"][0]
    first = next(line for line in text.splitlines() if " is right on " in line)
    assert first.startswith("Voting weighted by Reverse Reward is right on 100.0%")
    assert len((tmp_path / "out" / "selected.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("answers", [["2"], ["2", "3"], [None], [None, None]])
def test_one_or_two_problems_make_a_report(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path, answers: list[str | None]
) -> None:
    """Warnings are errors here: no figure may be drawn on an axis without extent."""
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
        assert "Fewer than 30 problems" in page or "cannot tell them apart" in page


def test_explain_ranks_and_writes_a_page(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    code, output = run("explain", "What is 1 + 1?", "1 + 1 = 2", "none", "--out", tmp_path)
    assert code == 0
    assert output.count("log P(question | answer) = ") == 2
    assert output.count("What is 1 + 1?") == 2
    assert output.count("left unexplained: ") == 2
    case = json.loads((tmp_path / "report.json").read_text())["cases"][0]
    totals = [c["scores"]["reverse"] for c in case["candidates"]]
    assert totals == sorted(totals, reverse=True)
    assert {c["correct"] for c in case["candidates"]} == {None}  # nobody said what is right
    page = (tmp_path / "report.html").read_text()
    assert "1 + 1 = 2" in page
    assert "wrong" not in page


def test_explain_shows_no_control_characters(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    hostile = "\x1b[31m#### 2\x07\u202e\nnext" + "9" * 100_000
    code, output = run("explain", "What\x1b[2J?", hostile, "", "--out", tmp_path)
    assert code == 0
    assert not {"\x1b", "\x07", "\u202e"} & {*output}
    assert "\\x1b[31m#### 2\\x07\\u202e\nnext" in output
    assert "more characters)" in output
    assert len(output) < 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_what_is_shown_fits_80_columns(
    run: Run,
    fakes: dict[str, FakeLanguageModel],
    problem_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    shown = [
        run("rerank", "--problems", problem_file, "--samples", 8, "--out", out)[1],
        run("tune", out, "--out", tmp_path / "weights.yaml")[1],
        *(run(name, "--help")[1] for name in ("rerank", "search", "train", "explain")),
    ]
    for text in shown:
        assert "\u2026" not in text  # how rich marks what it cut
    tables = [line for line in shown[1].splitlines() if "+" in line]
    assert tables
    assert all(len(line) <= 80 for line in tables)


def test_explain_takes_a_file(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    file = tmp_path / "theirs.jsonl"
    texts = {"p0": ["one", "two", "one"], "p1": ["three"]}
    write_records(
        file,
        [
            Candidate(problem_id=name, index=i, text=text)
            for name, group in texts.items()
            for i, text in enumerate(group)
        ],
    )
    code, output = run("explain", "What?", file, "--id", "p0")
    assert (code, output.count("left unexplained")) == (0, 2)  # equal texts are one
    code, output = run("explain", "What?", file, "--id", "p9")
    check_refused((code, output), f"no candidates of problem 'p9' in {file}; give another --id")


def test_demonstrations_need_solutions(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    code, output = run(
        "rerank", "--problems", problem_file, "--demonstrations", problem_file, "--out", tmp_path
    )
    assert code == 2
    assert f"{problem_file}:1: problem 'p0' has no solution" in output


def test_too_many_folds(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    code, output = run("rerank", "--problems", problem_file, "--folds", 7, "--out", tmp_path)
    assert code == 2
    assert "7 folds of 6 problems; give at least 2 folds" in output
    assert not list(tmp_path.glob("*candidates*"))  # refused before any work


def test_plan_as_a_table_and_as_json(run: Run) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "7b.yaml"
    code, text = run("plan", recipe, "parallel.tokens_per_microbatch=null", "--gpus", 64)
    assert code == 0
    assert "7.79B: layers 7.4B" in text
    assert "give parallel.tokens_per_microbatch=" in text
    code, text = run("plan", recipe, "train.seq_len=2048", "--gpus", 64, "--json")
    assert code == 0
    needs = json.loads(text)
    assert needs["parameters"]["embedding"] == 64_000 * 3072
    assert needs["tokens"] == 103_750 * 512 * 2048
    check_refused(run("plan", recipe, "--gpu", "abacus"), "gpu is 'abacus'", "h100")


def test_export_a_model_and_the_card_of_data(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "released"
    code, text = run("export", checkpoints["reverse"], "--out", out)
    assert code == 0, text
    assert f"released: {out}; its card: {out / 'README.md'}" in text
    check_refused(run("export", checkpoints["reverse"], "--out", out), "exists already")
    check_refused(run("export", tmp_path), "no finished model here", "runs/NAME/reverse")
    tokenizer = Tokenizer.load(checkpoints["reverse"])
    write_store(tmp_path / "data" / "train", ["one text"], tokenizer, source="texts")
    code, text = run("export", tmp_path / "data")
    assert code == 0, text
    assert "| train | texts | 1 |" in (tmp_path / "data" / "README.md").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_compare_of_a_run(run: Run, tmp_path: Path) -> None:
    for way, loss in (("forward", 3.0), ("reverse", 3.25)):
        row = {"step": 1, "loss": 4.0, "tokens": 100, "valid_loss": loss, "valid_data": "ab"}
        row |= {"valid_loss_by_window": [loss, loss], "valid_tokens_by_window": [5, 5]}
        (tmp_path / "r" / way).mkdir(parents=True)
        (tmp_path / "r" / way / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    code, text = run("compare", tmp_path / "r", "--out", out)
    assert code == 0, text
    assert "+0.2500 [+0.2500, +0.2500], +8.33%; shown for this pair: the reverse" in text
    report = json.loads((out / "compare.json").read_text())
    assert report["command"].startswith("ledom compare ")
    check_refused(run("compare", tmp_path, "--out", out), "no metrics of a run", "runs/NAME")
    (tmp_path / "r" / "reverse" / "metrics.jsonl").write_text("{}\n")
    refused = run("compare", tmp_path / "r", "--out", out)
    check_refused(refused, "reverse/metrics.jsonl:1: not a row with the numbers")
