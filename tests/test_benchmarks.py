"""Every benchmark starts; one that needs what is not here runs in small, to be right when it is."""

from __future__ import annotations

import importlib
import math
import re
import runpy
import sys
from pathlib import Path

import pytest

from started import PROCESSES

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


@pytest.mark.slow
def test_the_benchmark_of_importing_runs_on_a_small_shape(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All weights are 0, so every token of the vocabulary has the same probability."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: PROCESSES)  # start faster
    monkeypatch.setattr(sys, "argv", ["importing.py", "--folder", str(tmp_path / "import")])
    importing = importlib.import_module("importing")
    size = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 2048}
    size |= {f"num_{name}": 2 for name in ("hidden_layers", "attention_heads", "key_value_heads")}
    monkeypatch.setattr(importing, "CONFIG", importing.CONFIG | size)
    importing.main()
    printed = capfd.readouterr().out
    assert f"loss {math.log(2048):.3f} nats" in printed
    assert re.findall(r"^(\w+): peak", printed, re.MULTILINE) == ["start", "import", "check"]
