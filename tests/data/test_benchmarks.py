"""Problem sets by name, from a folder and from a mock of the hub."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ledom.core.errors import InputError, MissingExtraError
from ledom.core.records import Problem, write_records
from ledom.data.benchmarks import BENCHMARKS, FOLDER_VARIABLE, load_benchmark
from ledom.data.problems import load_problems

ROWS = {
    "gsm8k": {"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "math500": {"problem": "Half?", "answer": r"\frac{1}{2}", "solution": "It is half."},
    "aime2024": {"problem": "How many?", "answer": 73, "solution": ""},
    "amc2023": {"question": "How many?", "answer": 27.0},
    "triviaqa": {
        "question": "Who?",
        "answer": {"value": "Bach", "aliases": ["Bach", "J. S. Bach"]},
    },
    "nq_open": {"question": "who wrote it", "answer": ["Bach", "Johann Bach"]},
}
EXPECTED = {
    "gsm8k": ("1 + 1?", "2", "1 + 1 = <<1+1=2>>2"),
    "math500": ("Half?", r"\frac{1}{2}", "It is half."),
    "aime2024": ("How many?", "73", None),
    "amc2023": ("How many?", "27", None),
    "triviaqa": ("Who?", "Bach", None),
    "nq_open": ("who wrote it?", "Bach", None),
}
ALIASES = {"triviaqa": ["Bach", "J. S. Bach"], "nq_open": ["Johann Bach"]}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_from_the_hub_are_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[Any] = []
    hub = types.ModuleType("datasets")
    hub.load_dataset = lambda *names, split: asked.append((names, split)) or [ROWS[name]]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    (problem,) = load_benchmark(name)
    assert (problem.question, problem.answer, problem.solution) == EXPECTED[name]
    assert problem.aliases == ALIASES.get(name)
    assert problem.id == f"{name}-0"
    assert asked == [(BENCHMARKS[name].hub, BENCHMARKS[name].split)]


def test_a_local_folder_takes_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "math" / "amc2023.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps({"id": "a", "question": "q", "answer": "3"}))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert [(p.id, p.answer) for p in load_benchmark("amc2023")] == [("a", "3")]
    with pytest.raises(InputError, match=r"gsm8k/test\.jsonl: no such file"):
        load_benchmark("gsm8k")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="unknown benchmark 'gsm9k'; known: gsm8k, math500"):
        load_benchmark("gsm9k")


def test_an_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    hub = types.ModuleType("datasets")

    def fail(*names: str, split: str) -> None:
        raise ConnectionError("no\nroute")

    hub.load_dataset = fail
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(
        InputError, match=rf"from the hub \(openai/gsm8k\): no route.*{FOLDER_VARIABLE}"
    ):
        load_benchmark("gsm8k")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtraError, match=rf"pip install 'ledom\[hub\]'; .*{FOLDER_VARIABLE}"
    ):
        load_benchmark("gsm8k")


def test_problems_come_from_any_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "gsm8k" / "test.jsonl"
    write_records(file, [Problem(id=str(i), question=f"{i} + 1?") for i in range(3)])
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert load_problems(str(file), 2) == load_problems("gsm8k", 2) == load_problems("gsm8k", 9)[:2]
    (made,) = load_problems("gsm_symbolic", 1, "tune", seed=3)
    assert made.id == "tune-3-0"
