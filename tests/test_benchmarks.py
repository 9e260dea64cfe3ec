"""Every benchmark starts; one that needs other hardware runs in a small size."""

from __future__ import annotations

import importlib
import math
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kills import in_a_child

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_starts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their imports still exist; helper modules end at once."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [file.name, "--help"])
    for other in BENCHMARKS.glob("*.py"):  # tests/ also has a module `serving`
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
@pytest.mark.filterwarnings("ignore")  # from other programs
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
def test_the_import_benchmark_runs_on_a_small_shape(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All weights are 0, so every token of the vocabulary has the same probability.

    Its steps are forks that have already imported what they need.
    """
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["importing.py", "--folder", str(tmp_path / "import")])
    importing = importlib.import_module("importing")
    size = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 2048}
    size |= {f"num_{name}": 2 for name in ("hidden_layers", "attention_heads", "key_value_heads")}
    monkeypatch.setattr(importing, "CONFIG", importing.CONFIG | size)

    def fork(step: Callable[..., None], *arguments: object) -> None:
        assert in_a_child(lambda: step(*arguments)) == 0

    monkeypatch.setattr(importing, "in_process", fork)
    importing.main()
    printed = capfd.readouterr().out
    assert f"loss {math.log(2048):.3f} nats" in printed
    assert re.findall(r"^(\w+): peak", printed, re.MULTILINE) == ["start", "import", "check"]


@pytest.mark.slow
def test_a_benchmark_step_runs_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    in_process = importlib.import_module("common").in_process
    assert in_process(os.getpid) != os.getpid()
    assert in_process(sorted, [2, 3, 1], reverse=True) == [3, 2, 1]
