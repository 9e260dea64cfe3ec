"""Loads benchmark problems by name.

They come from the hub, or from a local folder with the same records in JSONL files, at the paths in
`BENCHMARKS`. The folder is given as a path or in the environment variable LEDOM_DATA. This module
does not know about tokens or models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledom.core.errors import HubError, InputError, in_one_line, needs_extra
from ledom.core.reading import JsonObject
from ledom.core.records import Problem, read_records, unique_ids

__all__ = ["BENCHMARKS", "load_benchmark"]

FOLDER_VARIABLE = "LEDOM_DATA"
"""The environment variable that names the local folder."""


@dataclass(frozen=True)
class Benchmark:
    """Where to find a benchmark's problems."""

    file: str
    """The JSONL file in a local folder."""
    hub: tuple[str, ...]
    """Arguments of `datasets.load_dataset`: the name, and the configuration if there is one."""
    split: str
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """Converts a hub row to question, answer, solution, and `aliases` (other right answers)."""


def _gsm8k(row: Mapping[str, Any]) -> dict[str, str]:
    solution, _, answer = row["answer"].rpartition("####")
    return {"question": row["question"], "solution": solution.strip(), "answer": answer.strip()}


def _math(row: Mapping[str, Any]) -> dict[str, str]:
    known = {"question": row["problem"], "answer": str(row["answer"])}
    return known | ({"solution": row["solution"]} if row.get("solution") else {})


def _amc(row: Mapping[str, Any]) -> dict[str, str]:
    return {"question": row["question"], "answer": str(row["answer"]).removesuffix(".0")}


def _trivia(row: Mapping[str, Any]) -> JsonObject:
    answer = row["answer"]
    return {"question": row["question"], "answer": answer["value"], "aliases": answer["aliases"]}


def _nq_open(row: Mapping[str, Any]) -> JsonObject:
    answer, *others = row["answer"]
    return {"question": f"{row['question']}?", "answer": answer, "aliases": others}


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("gsm8k/test.jsonl", ("openai/gsm8k", "main"), "test", _gsm8k),
    "math500": Benchmark("math/math500.jsonl", ("HuggingFaceH4/MATH-500",), "test", _math),
    "aime2024": Benchmark("math/aime2024.jsonl", ("HuggingFaceH4/aime_2024",), "train", _math),
    "triviaqa": Benchmark(
        "triviaqa.jsonl", ("mandarjoshi/trivia_qa", "rc.nocontext"), "validation", _trivia
    ),
    "nq_open": Benchmark(
        "nq_open.jsonl", ("google-research-datasets/nq_open",), "validation", _nq_open
    ),
    "amc2023": Benchmark("math/amc2023.jsonl", ("math-ai/amc23",), "test", _amc),
}
"""Every benchmark by its name."""


def load_benchmark(name: str) -> list[Problem]:
    """Load the problems of a benchmark; those from the hub get the ids `<name>-<number>`.

    Raises `InputError` for an unknown name or a folder without the file, and `HubError` if the hub
    cannot be reached.

    >>> load_benchmark("gsm9k")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: unknown benchmark 'gsm9k'; known: gsm8k, math500, ...
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if folder := os.environ.get(FOLDER_VARIABLE):
        return read_records(Path(folder) / benchmark.file, Problem, unique_ids())
    problems = []
    for number, row in enumerate(_from_hub(name, benchmark)):
        problems.append(Problem(id=f"{name}-{number}", **benchmark.read(row)))
    return problems


def _from_hub(name: str, benchmark: Benchmark) -> Iterable[Any]:
    otherwise = f"or set {FOLDER_VARIABLE} to a folder with these problems in {benchmark.file}"
    with needs_extra("datasets", "hub", f"benchmark {name!r}", otherwise):
        from datasets import load_dataset
    try:
        rows: Iterable[Any] = load_dataset(*benchmark.hub, split=benchmark.split)
    except Exception as error:  # without a network, the hub's client raises many error types
        raise HubError(
            f"benchmark {name!r} could not be loaded from the hub ({benchmark.hub[0]}): "
            f"{in_one_line(error)}; {otherwise}"
        ) from error
    return rows
