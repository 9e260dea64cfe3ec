"""Programs that a model wrote: right ones, wrong ones, and those that would never end."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from ledom.evaluate.programs import runs_to_its_end


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
    ],
)
def test_a_program_counts_if_it_reaches_its_end(program: str, ends: bool) -> None:
    assert runs_to_its_end(program) is ends


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
@pytest.mark.slow
def test_a_program_that_does_not_end_is_ended(program: str) -> None:
    start = time.monotonic()
    assert not runs_to_its_end(program, seconds=1)
    assert time.monotonic() - start < 30


@pytest.fixture(scope="module")
def apart() -> None:
    """Skips where Linux gives a program no processes and network of its own."""
    if not runs_to_its_end("import os\nassert os.getpid() == 1"):
        pytest.skip("no unprivileged namespaces here")


def leaves_a_mark(mark: Path, session: bool) -> str:
    """A program that starts another one, which writes a file a second later."""
    child = f"import time; time.sleep(1); open({str(mark)!r}, 'w')"
    started = f"[sys.executable, '-c', {child!r}], start_new_session={session}"
    return f"import subprocess, sys\nsubprocess.Popen({started})"


def test_what_a_program_starts_and_writes_is_gone(tmp_path: Path) -> None:
    assert runs_to_its_end(leaves_a_mark(tmp_path / "mark", session=False))
    time.sleep(1.5)
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("apart")
def test_what_a_program_starts_in_a_session_of_its_own_is_gone(tmp_path: Path) -> None:
    assert runs_to_its_end(leaves_a_mark(tmp_path / "mark", session=True))
    time.sleep(1.5)
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("apart")
def test_a_program_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = f"import socket\nsocket.create_connection({server.getsockname()}, 5)"
        assert not runs_to_its_end(asked)
        refused = f"try:\n    {asked.replace(chr(10), '; ')}\nexcept OSError: pass\nelse: 1 / 0"
        assert runs_to_its_end(refused)


@pytest.mark.usefixtures("apart")
def test_a_program_cannot_read_what_we_were_started_with() -> None:
    """Our environment holds keys; its own holds the path alone."""
    file = f"/proc/{os.getpid()}/environ"
    assert Path(file).read_bytes()
    assert runs_to_its_end(f"try: open({file!r})\nexcept OSError: pass\nelse: 1 / 0")
    assert runs_to_its_end("import os\nassert {*os.environ} <= {'PATH', 'LC_CTYPE'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may start as many processes as it likes")
def test_a_program_starts_few_others() -> None:
    program = "import os, time\nfor _ in range(300):\n    if not os.fork(): time.sleep(60)"
    assert not runs_to_its_end(program)
