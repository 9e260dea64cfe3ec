"""Answers compared by value: math in a worker process that nothing can block."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from kills import in_a_child
from ledom.core.errors import LedomError
from ledom.core.processes import lower_limit
from ledom.text.answers import equal_answers, extract_answer
from ledom.text.math import process
from ledom.text.math.process import MathChecker, same_value
from waiting import SECONDS


@pytest.mark.slow
def test_a_nested_box_is_extracted_from_a_solution() -> None:
    found = extract_answer(r"so \boxed{\frac{\sqrt{2}}{\sqrt{4}}}, as \(3 > 2\)")
    assert equal_answers(found, r"\frac{1}{\sqrt 2}")
    assert not equal_answers(found, r"\frac{\sqrt{3}}{2}")
    assert not equal_answers(extract_answer("I cannot tell."), r"\frac{1}{2}")


@pytest.fixture
def checker() -> Iterator[MathChecker]:
    checker = MathChecker(seconds=1.0)
    assert checker.equal(r"\frac{1}{2}", "0.5")  # sympy is loaded
    yield checker
    checker.close()


@pytest.mark.parametrize(
    "hostile",
    [
        r"(x+y+z+1)^{9999}",
        r"(\sqrt{2}+\pi)^{9999999999}",
        r"x^{x^{x^{x^{x}}}}",
        r"\sqrt{2}^{\sqrt{3}^{\sqrt{5}^{\sqrt{7}^{999}}}}",
        r"\sqrt{x}!!",
        "(" * 250,
        "\\frac{" * 40,
    ],
)
@pytest.mark.slow
def test_a_hostile_expression_is_unequal_and_blocks_nothing(
    checker: MathChecker, hostile: str
) -> None:
    assert not checker.equal(hostile, r"1+\sqrt{3}")  # within the time limit of a test
    assert checker.equal(r"\sqrt{8}", r"2\sqrt{2}")  # by a new worker if the old one was killed


@pytest.mark.slow
def test_the_worker_imports_no_files_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a module that sympy does not mean')")
    monkeypatch.chdir(tmp_path)
    checker = MathChecker()
    assert checker.equal(r"\sqrt{8}", r"2\sqrt{2}")
    checker.close()


@pytest.mark.slow
def test_a_lower_memory_limit_of_the_user_stays() -> None:
    code = (
        r"from ledom.text.math.process import same_value; print(same_value('\sqrt{8}', '2\sqrt2'))"
    )
    found = subprocess.check_output(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: lower_limit("AS", 3 * 10**9),  # as the shell's ulimit does
        text=True,
    )
    assert found == "True\n"


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(checker: MathChecker) -> None:
    assert checker._worker is not None
    checker._worker.kill()  # as the system does when memory is short
    assert checker.equal(r"\sqrt{4}", "2")


def test_a_worker_that_cannot_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # killed during its imports
    with pytest.raises(LedomError, match=r"did not start; check .* limits .*, and run the same"):
        MathChecker().equal("1", "1")


def test_a_pair_that_kills_each_worker_is_unequal(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(self: MathChecker) -> subprocess.Popen[str]:
        code = "input(); import os; os.abort()"
        self._worker = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(self._worker)
        return self._worker

    monkeypatch.setattr(MathChecker, "_start", start)
    assert not MathChecker().equal("1", "1")
    assert [worker.returncode for worker in started] == [-signal.SIGABRT] * 2


@pytest.mark.slow
def test_a_pause_of_both_processes_is_no_verdict(
    checker: MathChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z stops both; when they continue, a wait that began before has ended."""
    waits = iter([([], [], [])])
    wait = select.select
    paused = SimpleNamespace(select=lambda *given: next(waits, None) or wait(*given))
    monkeypatch.setattr(process, "select", paused)
    assert checker.equal(r"\sqrt{12}", r"2\sqrt{3}")


@pytest.mark.slow
def test_a_verdict_depends_on_the_work_and_not_on_the_clock(
    checker: MathChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that gets no CPU for longer than the limit (on a busy machine) still answers."""
    assert checker._worker is not None
    worker = checker._worker.pid
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(checker.equal, r"\sqrt{12}", r"2\sqrt{3}")
        with pytest.raises(TimeoutError):
            verdict.result(timeout=1.5)  # its limit is 1 second
        os.kill(worker, signal.SIGCONT)
        assert verdict.result(timeout=SECONDS)


@pytest.mark.slow
def test_a_worker_ends_when_its_parent_is_gone() -> None:
    """It ends by its own limit, here far less than the first use of sympy takes."""
    code = "from ledom.text.math.process import serve; serve(0.01)"
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pair = [r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", "1"]
    try:
        said, _ = worker.communicate(json.dumps(pair) + "\n", timeout=SECONDS)
    finally:
        worker.kill()
    assert (said, worker.returncode) == ("ready\n", -signal.SIGPROF)


@pytest.mark.slow
def test_threads_and_forks_do_not_read_each_others_answers() -> None:
    pairs = [(rf"\sqrt{{{n * n * 3}}}", rf"{n + n % 2}\sqrt{{3}}") for n in range(20, 60)]
    expected = [n % 2 == 0 for n in range(20, 60)]

    def ask() -> None:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda pair: same_value(*pair), pairs)) == expected

    assert same_value(r"\sqrt{8}", r"2\sqrt{2}")  # the parent's worker is running
    assert in_a_child(ask) == 0
    assert same_value(r"\sqrt{18}", r"3\sqrt{2}")  # it is still running
    ask()
