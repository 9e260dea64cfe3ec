"""Benchmarks that need what is not here are run in small, so that they are right when it is."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the peers
def test_the_gpu_benchmark_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--device", "cpu"])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    printed = capsys.readouterr().out
    tables = re.findall(r"^\| (\w+).*\n\|---.*\n\| ledom \| [\d,]+ \| 1.00x", printed, re.MULTILINE)
    assert tables == ["scoring", "sampling", "training"]
    difference = re.search(r"from transformers': (\S+) nats", printed)
    assert difference is not None
    assert float(difference[1]) < 1e-3
