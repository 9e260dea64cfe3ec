"""Every benchmark starts; one that needs what is not here runs in small, to be right when it is."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_starts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they import is still there; modules that others import end at once."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [file.name, "--help"])
    for other in BENCHMARKS.glob("*.py"):  # tests/ has a module `serving` as well
        monkeypatch.delitem(sys.modules, other.stem, raising=False)
    code: int | str | None = 0
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] not in ("bm25s", "ctranslate2"):
            raise
        pytest.skip(f"{missing.name} is not installed (ledom[bench])")
    assert code == 0


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
