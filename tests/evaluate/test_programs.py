"""Programs written by a model: right ones, wrong ones, and ones that would never end."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ledom.core.errors import LedomError
from ledom.core.processes import lower_limit
from ledom.evaluate.programs import runs_to_its_end
from waiting import SECONDS, until


def runs_in_time(program: str) -> bool:
    """Whether a program runs to its end; it gets more time than it needs on any machine."""
    return runs_to_its_end(program, seconds=int(SECONDS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "ends"),
    [
        ("def f(x):\n    return x + 1\nassert f(1) == 2", True),
        ("def f(x):\n    return x\nassert f(1) == 2", False),
        ("this is no Python", False),
        ("import sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("x = bytearray(2**31)", False),
        ("open('big', 'wb').write(b'0' * 2**22)", False),
        ("print('\\ud800')", False),
        ("import os\n[os.remove(name) for name in os.listdir()]", True),
    ],
)
def test_a_program_counts_if_it_runs_to_its_end(program: str, ends: bool) -> None:
    assert runs_in_time(program) is ends


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("AS", 9 * 10**8), ("FSIZE", 10**5), ("NPROC", 250)])
def test_lower_limits_of_the_user_stay(name: str, limit: int) -> None:
    code = "from ledom.evaluate.programs import *; print(*map(runs_to_its_end, ('', '1 / 0')))"
    found = subprocess.check_output(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: lower_limit(name, limit),  # as the shell's ulimit does
        text=True,
    )
    assert found == "True False\n"


@pytest.mark.parametrize(
    ("executable", "reason"), [("/bin/false", "exit code 1"), ("/dev/null", ".*Errno 13.*")]
)
def test_an_interpreter_that_does_not_start_is_no_failed_program(
    monkeypatch: pytest.MonkeyPatch, executable: str, reason: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(LedomError, match=rf"Python did not start to run a program \({reason}\); c"):
        runs_to_its_end("1 + 1")


def test_no_folder_for_a_program_is_no_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no-folder")
    message = r"Python did not start to run a program \(.*No such file or directory.*TMPDIR"
    with pytest.raises(LedomError, match=message):
        runs_to_its_end("1 + 1")


@pytest.mark.parametrize("program", ["while True: pass", "import signal\nsignal.pause()"])
@pytest.mark.slow
def test_a_program_that_does_not_end_is_killed(program: str) -> None:
    assert not runs_to_its_end(program, seconds=1)


@pytest.fixture(scope="module")
def apart() -> None:
    """Skip if Linux cannot give a program its own process and network namespaces."""
    if not runs_in_time("import os\nassert os.getpid() == 1"):
        pytest.skip("no unprivileged namespaces here")


def starts_another(held: Path, session: bool) -> str:
    """A program that starts another one, which locks a file until it is killed."""
    child = (
        f"import fcntl, signal; file = open({str(held)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    )
    child += "; print('held', flush=True); signal.pause()"
    started = f"[sys.executable, '-c', {child!r}], start_new_session={session}"
    return (
        f"import subprocess, sys\nother = subprocess.Popen({started}, stdout=subprocess.PIPE)\n"
        "assert other.stdout.readline() == b'held\\n'"
    )


def is_free(held: Path) -> bool:
    """Whether the lock is free; the system releases it when the holder dies."""
    with held.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_processes_started_by_a_program_are_killed(tmp_path: Path) -> None:
    assert runs_in_time(starts_another(tmp_path / "held", session=False))
    until(lambda: is_free(tmp_path / "held"))


@pytest.mark.usefixtures("apart")
def test_processes_started_in_a_new_session_are_killed(tmp_path: Path) -> None:
    assert runs_in_time(starts_another(tmp_path / "held", session=True))
    until(lambda: is_free(tmp_path / "held"))


@pytest.mark.usefixtures("apart")
@pytest.mark.slow
def test_a_program_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = f"import socket\nsocket.create_connection({server.getsockname()}, 5)"
        assert not runs_in_time(asked)
        refused = f"try:\n    {asked.replace(chr(10), '; ')}\nexcept OSError: pass\nelse: 1 / 0"
        assert runs_in_time(refused)


@pytest.mark.usefixtures("apart")
def test_a_program_cannot_read_our_environment() -> None:
    """Our environment may contain keys; the program's contains only the path."""
    file = f"/proc/{os.getpid()}/environ"
    assert Path(file).read_bytes()
    assert runs_in_time(f"try: open({file!r})\nexcept OSError: pass\nelse: 1 / 0")
    assert runs_in_time("import os\nassert {*os.environ} <= {'PATH', 'LC_CTYPE'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may start as many processes as it likes")
def test_a_program_can_start_only_a_few_processes() -> None:
    program = "import os, signal\nfor _ in range(300):\n    if not os.fork(): signal.pause()"
    assert not runs_in_time(program)


@pytest.mark.slow
def test_a_pause_of_all_processes_does_not_fail_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a paused container continues, a wait that began before has ended."""
    wait, first = subprocess.Popen.wait, iter([True])

    def ends_once(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is not None and next(first, False):
            raise subprocess.TimeoutExpired("program", timeout)
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", ends_once)
    assert runs_in_time("pass")
