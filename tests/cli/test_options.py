"""Options: bounds, options without effect, and --out, refused if it is of the wrong kind."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import pytest
import typer.main

import ledom.lm
from command_line import Run, check_refused
from ledom.cli.app import app
from ledom.cli.options import command_line, results_folder
from ledom.core import processes
from ledom.core.errors import OutputError
from ledom.lm.backends.fake import FakeLanguageModel

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OUT = {name: p for name, command in COMMANDS.items() for p in command.params if p.name == "out"}
WRITES_FILE = {"tune", "gallery"}
HUGE = str(10**20)
IGNORED = [
    ("rerank --candidates C --samples 4", "--samples would have no effect: the candidates come"),
    ("rerank --candidates C --early-stop", "--early-stop would have no effect"),
    ("rerank --candidates C --temperature 0.5", "--temperature would have no effect"),
    ("rerank --candidates C --top-k 5", "--top-k would have no effect"),
    ("rerank --candidates C --top-p 0.5", "--top-p would have no effect"),
    ("rerank --candidates C --max-tokens 9", "--max-tokens would have no effect"),
    ("rerank --problems P --candidates C --seed 0", "--seed would have no effect: the problems"),
    ("rerank --problems P --temperature 0 --seed 1", "--seed would have no effect"),
    ("rerank --problems P --split test", "--split would have no effect: the problems come from"),
    ("rerank --problems P --held-out", "--held-out would have no effect"),
    ("rerank --folds 2 --lambda 0.5", "--lambda would have no effect: --folds"),
    ("rerank --folds 2 --weights W", "--weights would have no effect: --folds"),
    ("rerank --weights W --lambda 0.5", "--lambda would have no effect: the weights come from"),
    ("rerank --candidates C --forward none --lambda 1", "--lambda would have no effect: it weighs"),
    ("rerank --reverse none --lambda 1", "--lambda would have no effect: it weighs"),
    ("rerank --temperature 0 --top-k 5", "--top-k would have no effect: at temperature 0"),
    ("rerank --temperature 0 --top-p 0.5", "--top-p would have no effect: at temperature 0"),
    ("rerank --forward openai:a --reverse openai:b --device cpu", "no model runs in this process"),
    ("rerank --forward openai:a --reverse none --dtype float32", "--dtype would have no effect"),
    ("rerank --forward vllm:a --reverse vllm:b --device cpu", "vLLM chooses its devices itself"),
    ("search --problems P --split tune", "--split would have no effect"),
    ("search --problems P --temperature 0 --seed 3", "--seed would have no effect"),
    ("search --forward openai:a --reverse none --device cpu", "--device would have no effect"),
    ("explain Q S --id p0", "--id would have no effect: it selects candidates from files"),
    ("explain Q S --reverse openai:a --dtype bfloat16", "--dtype would have no effect"),
    ("generate --before Q --temperature 0 --samples 2", "--samples would have no effect"),
    ("generate --before Q --proposals 2", "--proposals would have no effect"),
    ("generate --before Q --forward x", "--forward would have no effect"),
    ("generate --after Q --reverse x", "--reverse would have no effect"),
    ("generate --before Q --temperature 0 --seed 2", "--seed would have no effect"),
    ("generate --before Q --temperature 0 --top-k 2", "--top-k would have no effect"),
    ("generate --before Q --reverse openai:a --device cpu", "--device would have no effect"),
]
ABSURD = [
    (f"rerank --samples {HUGE}", "'--samples'", "100000"),
    (f"rerank --num-problems {HUGE}", "'--num-problems'", "100000000"),
    (f"rerank --max-tokens {HUGE}", "'--max-tokens'", "10000000"),
    (f"rerank --top-k {HUGE}", "'--top-k'", "10000000"),
    (f"rerank --seed {HUGE}", "'--seed'", "4611686018427387904"),
    ("search --seed -1", "'--seed'", "than or equal to 0"),
    ("generate --before Q --seed x", "'--seed'", "a valid int"),
    (f"demo --problems {HUGE}", "'--problems'", "100000000"),
    (f"demo --samples {HUGE}", "'--samples'", "100000"),
    (f"search --width {HUGE}", "'--width'", "1000"),
    (f"search --expansions {HUGE}", "'--expansions'", "1000"),
    (f"search --max-steps {HUGE}", "'--max-steps'", "100000"),
    (f"generate --before Q --samples {HUGE}", "'--samples'", "100000"),
    ("generate --before Q --temperature inf", "temperature is inf", "0, or from 0.001 to 1000"),
    ("generate --before Q --temperature nan", "temperature is nan", "0, or from 0.001 to 1000"),
    ("generate --before Q --temperature 1e-30", "temperature is 1e-30", "0, or from 0.001 to 1000"),
    ("search --temperature inf", "temperature is inf", "0, or from 0.001 to 1000"),
    ("rerank --temperature nan", "temperature is nan", "0, or from 0.001 to 1000"),
    ("search --lambda nan", "lambda is nan", "[0, 1]"),
    ("generate --before Q --top-p nan", "top_p is nan", "(0, 1]"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "says"), IGNORED)
@pytest.mark.usefixtures("fakes")
def test_an_option_without_effect_is_refused_before_any_work(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path, command: str, says: str
) -> None:
    named = {"P": problem_file, "C": candidate_file, "W": tmp_path / "weights.json"}
    out = tmp_path / "out"
    arguments = [named.get(word, word) for word in command.split()]
    if arguments[0] != "generate":
        arguments += ["--out", out]
    check_refused(run(*arguments), says, "leave it out")
    assert not out.exists()


def test_a_second_file_is_not_silently_ignored(run: Run, candidate_file: Path) -> None:
    twice = "--candidates", candidate_file, "--candidates", "others.jsonl"
    check_refused(run("rerank", *twice), "--candidates is given 2 times but takes one value")
    check_refused(run("tune", "--score-field", "a", "--score-field", "b", "none"), "none: no score")
    check_refused(run("rank", "q", "none.jsonl", "--no-prior", "--prior"), "none.jsonl: no such")


@pytest.mark.parametrize(("command", "option", "bound"), ABSURD)
def test_absurd_values_are_refused_with_the_bound(
    run: Run, fakes: dict[str, FakeLanguageModel], command: str, option: str, bound: str
) -> None:
    check_refused(run(*command.split()), option, bound)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_defaults_are_never_refused(
    run: Run, problem_file: Path, candidate_file: Path, tmp_path: Path
) -> None:
    given = ("--problems", problem_file, "--candidates", candidate_file, "--num-problems", 6)
    code, text = run("rerank", *given, "--out", tmp_path / "out")
    assert code == 0, text
    assert run("generate", "--before", "#### 2", "--temperature", 0)[0] == 0


def test_the_recorded_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "explain", "Ava's 3 pens", os.fsdecode(b"\xff")])
    assert command_line() == """ledom explain 'Ava'"'"'s 3 pens' '\\udcff'"""


def arguments(command: click.Command) -> list[str]:
    """A dummy text for every required argument; none of them is read."""
    return ["x" for p in command.params if isinstance(p, click.Argument) and p.required]


def test_threads_are_set_before_a_command_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may import torch, which reads only then how its idle threads wait."""
    found: list[int | None] = []
    monkeypatch.setattr(processes, "set_threads", found.append)
    uses = [name for name in OUT if any(p.name == "threads" for p in COMMANDS[name].params)]
    for name in uses:
        check_refused(run(name, "--threads", 3, *arguments(COMMANDS[name]), "--out", ""), "--out")
    assert found == [3] * len(uses)
    assert len(uses) > 10


@pytest.mark.parametrize("name", OUT)
def test_a_path_of_the_wrong_kind_is_refused_first(run: Run, tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    given = name, *arguments(COMMANDS[name]), "--out"
    if name in WRITES_FILE:
        check_refused(run(*given, tmp_path), f"{tmp_path}: this is a folder, but --out needs a")
    else:
        check_refused(run(*given, file), f"{file}: not a folder, but --out needs one")
    check_refused(run(*given, file / "inside"), f"{file}: not a folder, but --out needs one")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", OUT)
def test_a_folder_that_cannot_be_written_is_refused_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The tests may run as root, who can write everywhere."""
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != locked)
    given = name, *arguments(COMMANDS[name]), "--out", locked / "new"
    check_refused(run(*given), f"{locked}: this folder cannot be written; give another --out")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("augment train.jsonl", "train.jsonl"),
        ("synthesize problems.jsonl", "problems.jsonl"),
        ("synthesize seeds.jsonl --known removed.jsonl", "removed.jsonl"),
        ("rank ranking.jsonl passages.jsonl", "ranking.jsonl"),
        ("rank queries.jsonl ranking.jsonl", "ranking.jsonl"),
        ("invert ranking.jsonl", "ranking.jsonl"),
        ("rerank --problems problems.jsonl --num-problems 2", "problems.jsonl"),
        ("rerank --candidates candidates.given.jsonl --num-problems 2", "candidates.given.jsonl"),
        ("search --problems problems.jsonl --num-problems 2", "problems.jsonl"),
    ],
)
def test_a_file_that_is_read_is_not_replaced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("mine")
    check_refused(run(*command.split(), "--out", tmp_path), f"would replace {name}; give another")
    assert [*tmp_path.iterdir()] == [tmp_path / name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((f"{name} --out", "Invalid value for '--out': it is empty; give a path") for name in OUT),
        ("tokenize x --tokenizer", "Invalid value for '--tokenizer': it is empty"),
        ("tokenize --tokenizer x", "the name of a file or folder is empty"),
        ("train-tokenizer", "the name of a file or folder is empty"),
        ("compare", "it is empty; give a path"),
        ("export", "it is empty; give a path"),
        ("tune", "it is empty; give a path"),
        ("gallery", "it is empty; give a path"),
        ("serve --reports", "Invalid value for '--reports': it is empty"),
        ("rerank --candidates", "Invalid value for '--candidates': it is empty"),
        ("rerank --weights", "Invalid value for '--weights': it is empty"),
        ("rerank --demonstrations", "Invalid value for '--demonstrations': it is empty"),
        ("tune x --problems", "Invalid value for '--problems': it is empty"),
        ("synthesize --known", "Invalid value for '--known': it is empty"),
        ("train", "it is empty; give a path"),
        ("plan", "it is empty; give a path"),
        ("rank x", "it is empty; give a path"),
        ("augment", "it is empty; give a path"),
        ("generate --before x --reverse", "the model's name in '' is empty"),
    ],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_not_the_current_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str, empty: str
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(run(*given.split(), empty), said.replace("''", repr(empty)))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("demo", "report.json"),
        ("rerank --forward none --candidates problems.jsonl", "scores.reverse.jsonl"),
        ("rerank", "report.html"),
        ("search", "search.json"),
        ("eval", "results.json"),
        ("eval --suite reversal", "reversal.json"),
        ("rank query problems.jsonl", "retrieval.json"),
        ("invert output", "inversion.json"),
        ("synthesize", "synthesis.json"),
        ("generate --before 3 --after 4", "middles.jsonl"),
        ("explain question solution", "report.html"),
        ("compare runs", "compare.md"),
        ("augment problems.jsonl", "valid.jsonl"),
    ],
)
def test_a_folder_in_the_place_of_a_result_is_refused_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.setattr(ledom.lm, "load", Mock(side_effect=AssertionError("a model is loaded")))
    (tmp_path / "out" / name).mkdir(parents=True)
    result = run(*command.split(), "--out", tmp_path / "out")
    check_refused(result, f"out/{name}: cannot be written: not a regular file; remove it, or give")
    assert [*(tmp_path / "out").iterdir()] == [tmp_path / "out" / name]


def test_only_results_without_a_folder_need_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with results_folder(tmp_path) as named:
        assert named == tmp_path
    with pytest.raises(OutputError, match="set TMPDIR"), results_folder(None):
        pass


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    "command", ["augment problems.jsonl", "rank query passages.jsonl", "invert output"]
)
def test_a_second_run_into_the_same_folder_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (
        {"id": f"{i}", "question": f"{i} + 2?", "solution": f"{i} + 2 = {i + 2}\n#### {i + 2}"}
        for i in range(40)
    )
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("passages.jsonl").write_text(json.dumps({"id": "p", "text": "a"}))
    with results_folder(Path("out")):
        result = run(*command.split(), "--out", "out")
        assert os.listdir("out")  # the first run's lock
    check_refused(result, "out: in use by process", "which writes its results there; stop it, or")
    assert os.listdir("out") == []
