"""Programs that a model wrote: right ones, wrong ones, and those that would never end."""

from __future__ import annotations

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


def test_what_a_program_starts_and_writes_is_gone(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(1); open({str(mark)!r}, 'w')"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])"
    assert runs_to_its_end(program)
    time.sleep(1.5)
    assert not mark.exists()
