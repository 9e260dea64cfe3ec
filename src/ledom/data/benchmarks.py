"""Problem sets: the generator, a JSONL file, or a benchmark by name, from a folder or the hub.

A local folder holds the same records as JSONL files, at the paths that `BENCHMARKS` names; it is
given as a path or in the environment variable LEDOM_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledom.core.errors import InputError, MissingExtraError
from ledom.core.records import Problem, read_records, unique_ids
from ledom.data.problems import GENERATOR, generate_problems

__all__ = ["BENCHMARKS", "FOLDER_VARIABLE", "Benchmark", "load_benchmark", "load_problems"]

FOLDER_VARIABLE = "LEDOM_DATA"
"""Environment variable that names the local folder."""


@dataclass(frozen=True)
class Benchmark:
    """Where a problem set lies."""

    file: str
    """Its JSONL file in a local folder."""
    hub: tuple[str, ...]
    """What `datasets.load_dataset` takes: name, and configuration where there is one."""
    split: str
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """A hub row's question, answer and solution, and other right answers as `aliases`."""


def _gsm8k(row: Mapping[str, Any]) -> dict[str, str]:
    solution, _, answer = row["answer"].rpartition("####")
    return {"question": row["question"], "solution": solution.strip(), "answer": answer.strip()}


def _math(row: Mapping[str, Any]) -> dict[str, str]:
    known = {"question": row["problem"], "answer": str(row["answer"])}
    return known | ({"solution": row["solution"]} if row.get("solution") else {})


def _amc(row: Mapping[str, Any]) -> dict[str, str]:
    return {"question": row["question"], "answer": str(row["answer"]).removesuffix(".0")}


def _trivia(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = row["answer"]
    return {"question": row["question"], "answer": answer["value"], "aliases": answer["aliases"]}


def _nq_open(row: Mapping[str, Any]) -> dict[str, Any]:
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
"""Every problem set that is known by name, besides the generator."""


_NUM_GENERATED = 40  # where nobody says how many: the generator never ends


def load_problems(
    source: str, count: int | None, split: str = "test", seed: int = 0, held_out: bool = False
) -> list[Problem]:
    """The first `count` problems of the generator, a benchmark by name, or a JSONL file.

    Split, seed and held-out templates are the generator's: see `generate_problems`.
    """
    if source == GENERATOR:
        return list(generate_problems(split, count or _NUM_GENERATED, seed, held_out))
    if source in BENCHMARKS:
        return load_benchmark(source)[:count]
    return read_records(source, Problem, unique_ids())[:count]


def load_benchmark(name: str, folder: str | Path | None = None) -> list[Problem]:
    """The problems of a benchmark; ids are `<name>-<number>` where the source has none.

    Raises `InputError` for an unknown name, a folder without the file, or a hub out of reach.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    if folder:
        return read_records(Path(folder) / benchmark.file, Problem)
    rows = _from_hub(name, benchmark)
    return [_problem(name, number, benchmark.read(row)) for number, row in enumerate(rows)]


def _problem(name: str, number: int, fields: Mapping[str, Any]) -> Problem:
    aliases = fields.get("aliases")
    return Problem(
        extra={"aliases": [*aliases]} if aliases else {},
        id=f"{name}-{number}",
        question=fields["question"],
        answer=fields["answer"],
        solution=fields.get("solution"),
    )


def _from_hub(name: str, benchmark: Benchmark) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingExtraError(
            "datasets", "hub", f"benchmark {name!r}", f"or name a local folder in {FOLDER_VARIABLE}"
        ) from None
    try:
        rows: Iterable[Any] = load_dataset(*benchmark.hub, split=benchmark.split)
    except Exception as error:  # whatever the hub's client raises when it is out of reach
        raise InputError(
            f"benchmark {name!r} could not be loaded from the hub ({benchmark.hub[0]}): "
            f"{' '.join(str(error).split())[:200]}; or name a local folder in {FOLDER_VARIABLE}"
        ) from error
    return rows
