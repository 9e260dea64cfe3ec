"""Behavior common to all commands: one-line errors, exit codes and failing streams."""

from __future__ import annotations

import os
import py_compile
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Run, check_refused
from ledom.cli import app
from ledom.train import estimate as plan
from waiting import SECONDS

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "7b.yaml"


def fails(error: BaseException) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise error

    return call


class Panic(BaseException):
    """Like a panic in Rust code, this is not an `Exception`."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ZeroDivisionError("division\nby zero"), "ZeroDivisionError: division by zero"),
        (RecursionError("maximum recursion depth exceeded"), "internal error: RecursionError"),
        (AssertionError(), "internal error: AssertionError"),
        (Panic("capacity overflow"), "internal error: Panic: capacity overflow"),
        (KeyError("x" * 5000), "internal error: KeyError"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "error: out of"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of"),
        (
            RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"),
            "error: out of memory",
        ),
        (ImportError("libtorch.so: failed to map segment from shared object"), "error: out of mem"),
        (OSError(12, "Cannot allocate memory"), "error: out of memory"),
        (RuntimeError("can't start new thread"), "no further process or thread can start; raise"),
        (OSError(11, "Resource temporarily unavailable"), "no further process or thread can start"),
        (
            UnicodeEncodeError("utf-8", "a\udcffb", 1, 2, "surrogates not allowed"),
            "an argument or a file name is not UTF-8 (it contains '\\udcff'); convert it first",
        ),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "error: no folder for temporary files can be written; set TMPDIR to one that can",
        ),
        (OSError(28, "No space left on device", "out/x"), "out/x: No space left on device"),
        (OSError(28, "No space left on device"), "error: No space left on device; finished res"),
    ],
)
def test_an_unexpected_error_gives_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    monkeypatch.setattr(plan, "make_plan", fails(error))
    code, text = run("plan", RECIPE)
    check_refused((code, text), says)
    assert len(text.splitlines()) == 1
    assert len(text) < 500
    assert ("ledom --debug" in text) is ("internal error" in text)
    monkeypatch.setenv("LEDOM_DEBUG", "0")
    assert run("plan", RECIPE) == (code, text)
    for arguments, variable in ((["--debug"], ""), ([], "1")):
        monkeypatch.setenv("LEDOM_DEBUG", variable)
        code, text = run(*arguments, "plan", RECIPE)
        assert code == 2
        assert "Traceback (most recent call last)" in text
        assert "in call\n" in text
        assert says in text.splitlines()[-1]


@pytest.mark.parametrize("kept", [20, -1])
def test_a_compiled_file_cut_short_is_named_instead_of_ctrl_c(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: int
) -> None:
    """Python itself leaves such a file if the disk is full while it writes it."""
    source = tmp_path / f"cut_short_{abs(kept)}.py"
    source.write_text("numbers = [1, 2, 3]\n")
    compiled = Path(py_compile.compile(str(source), doraise=True))
    compiled.write_bytes(compiled.read_bytes()[:kept])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plan, "make_plan", lambda *_: import_module(source.stem))
    check_refused(run("plan", RECIPE), f"{compiled}: this compiled file of Python is damaged")


def test_an_end_of_file_is_not_taken_for_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "make_plan", fails(EOFError("no more")))
    check_refused(run("plan", RECIPE), "internal error: EOFError: no more")


def test_the_working_directory_may_be_one_that_this_user_cannot_enter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as root's home folder after `sudo -u`; `python -m` puts it first on its path."""
    monkeypatch.setattr(app, "prepare_process", lambda: None)
    monkeypatch.setattr(Path, "samefile", fails(PermissionError(13, "Permission denied", ".")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ledom", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ledom", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("ledom ")


def test_ctrl_c_before_the_commands_are_ready_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "prepare_process", lambda: None)
    monkeypatch.setattr(app, "all_commands", fails(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; work saved in --out is kept: run the same command again to resume"
    ]


def test_ctrl_c_during_imports_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")  # the first slow import
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", "from ledom.__main__ import main; main()", "docs"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_error_of_many_lines_is_shown_in_one_line(run: Run, tmp_path: Path) -> None:
    named = tmp_path / "two\nlines.yaml"
    check_refused(run("plan", named), "two lines.yaml")


@pytest.mark.parametrize("command", ["docs", "rerank --num-problems 2"])
def test_an_error_is_one_line_where_no_launcher_answers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Some platforms set WORLD_SIZE and RANK for every program."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.chdir(tmp_path)
    code, text = run(*command.split())
    assert code == 2
    assert "error: " in text.splitlines()[-1]
    assert "torchrun" in text.splitlines()[-1]


def test_version_and_help_are_printed(run: Run) -> None:
    import ledom

    assert run("--version") == (0, f"ledom {ledom.__version__}\n")
    for arguments in ([], ["--help"]):
        code, text = run(*arguments)
        assert code == 0
        for command in ("rerank", "train", "generate", "--version", "--install-completion"):
            assert command in text


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ledom", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def test_shell_completion_works() -> None:
    environment = os.environ | {"_LEDOM_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "ledom re", "COMP_CWORD": "1"}
    with start(stdout=subprocess.PIPE, env=environment) as process:
        assert process.communicate(timeout=SECONDS)[0].split() == [b"rerank"]


def test_a_full_disk_behind_standard_output_gives_one_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full, start("docs", "formats", stdout=full) as process:
        said = process.communicate(timeout=SECONDS)[1].decode()
    assert process.returncode == 2
    assert said.splitlines() == [
        "error: cannot write to standard output: No space left on device; finished results are on "
        "disk"
    ]


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start("docs", "formats", stdout=writer) as process:
        os.close(writer)
        said = process.communicate(timeout=SECONDS)[1]
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("redirection", [">&- 2>&- <&-", "2>/dev/full"])
def test_closed_streams_do_no_harm(redirection: str, tmp_path: Path) -> None:
    """Output meant for a stream must not end up in a file that got the stream's number."""
    out = tmp_path / "out"
    for way, loss in (("forward", 3.0), ("reverse", 3.25)):
        folder = tmp_path / "r" / way
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}, "tokens": 10}}\n')
    command = f'"{sys.executable}" -m ledom compare r --out out {redirection}'
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert (out / "compare.md").read_text().startswith("#")
    assert b"report: " not in (out / "compare.json").read_bytes()


def test_text_that_cannot_be_encoded_is_escaped() -> None:
    code = "import sys; from ledom.cli import run; run.prepare_process(); print('é±')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=SECONDS
    )
    assert (done.returncode, done.stdout) == (0, b"\\xe9\\xb1\n"), done.stderr


def test_an_unknown_window_system_does_not_prevent_figures() -> None:
    """matplotlib reads the variable when it is imported, which is after the longest work."""
    code = (
        "from ledom.cli import run; run.prepare_process();"
        "from ledom.report.figures import draw_svg; print(draw_svg('a', (2, 1), print)[:4])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MPLBACKEND": "nonsense"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "<svg" in done.stdout


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """This is what nohup and background shells expect, and what Python does."""
    code = (
        "import signal, sys; from ledom.cli import app as cli, run; cli.prepare_process();"
        "signal.raise_signal(signal.SIGINT); print('alive')"
    )
    for disposition, alive in ((signal.SIG_IGN, True), (signal.SIG_DFL, False)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            preexec_fn=lambda chosen=disposition: signal.signal(signal.SIGINT, chosen),
        )
        assert ("alive" in done.stdout) is alive
