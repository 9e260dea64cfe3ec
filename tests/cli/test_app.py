"""The program itself, without a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run, check_refused
from ledom.text.tokenizer import Tokenizer
from waiting import SECONDS


@pytest.mark.slow
def test_no_arguments_show_the_commands(run: Run) -> None:
    code, text = run()
    assert code == 0
    assert "rerank" in text
    assert "error" not in text


@pytest.mark.slow
def test_python_without_docstrings_is_refused_before_any_work() -> None:
    """transformers cannot be imported then; training would fail only once the data is prepared."""
    done = subprocess.run(
        [sys.executable, "-m", "ledom", "train", "tiny"],
        env=os.environ | {"PYTHONOPTIMIZE": "2"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    check_refused((done.returncode, done.stderr), "PYTHONOPTIMIZE=2", "use -O or no option")
    assert len(done.stderr.splitlines()) == 1


def test_a_removed_working_directory_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    check_refused(run("plan", "tiny"), "the working directory was removed; change to another")


@pytest.mark.slow
@pytest.mark.parametrize("safe", [[], ["-P"]])  # with -P as from the script `ledom`
def test_modules_in_the_working_directory_are_not_imported(
    tokenizer: Tokenizer, tmp_path: Path, safe: list[str]
) -> None:
    """Without -P, Python itself imports some of its own modules from there before ledom starts."""
    for name in ("typer", "tokenizers", "datatrove", *(["types", "random"] if safe else [])):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "corpus.jsonl").write_text('{"text": "a b a b"}\n')
    tokenizer.save(tmp_path / "t")
    command = "-m ledom tokenize corpus.jsonl --tokenizer t --workers 1 --out s"
    done = subprocess.run(
        [sys.executable, *safe, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
