"""Problem sets: the embedded generator, a benchmark by name, or a JSONL file.

The generator is reasoning-gym's `gsm_symbolic` (templates of grade-school problems with random
numbers, names and things), with normalized formats. It never ends, so a hash of the question makes
the splits: a question belongs to exactly one split, whatever seed produced it. Ten templates are
held out of training, to measure models on unseen kinds of problem.

A benchmark comes from the hub, or from a local folder with the same records in JSONL files, at the
paths in `BENCHMARKS`; the folder is given as a path or in the environment variable LEDOM_DATA. This
module knows nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Literal

from ledom.core.errors import HubError, InputError, MissingExtraError
from ledom.core.reading import JsonObject, exists
from ledom.core.records import Problem, read_records, unique_ids
from ledom.text.solution_style import (
    ANSWER_MARK,
    equations,
    is_true,
    normalize_numbers,
    normalize_solution,
)

__all__ = [
    "BENCHMARKS",
    "FOLDER_VARIABLE",
    "GENERATOR",
    "HELD_OUT_TEMPLATES",
    "SPLITS",
    "Benchmark",
    "check_file",
    "generate_problems",
    "load_benchmark",
    "load_problems",
    "split_of",
]

Split = Literal["train", "valid", "tune", "test"]

SPLITS: dict[str, float] = {"train": 0.90, "valid": 0.92, "tune": 0.96, "test": 1.0}
"""Upper end of each split's share of the hash range, in order."""

GENERATOR = "gsm_symbolic"
"""The name of the embedded generator, which is accepted in place of a file of problems."""

HELD_OUT_TEMPLATES = (5, 14, 22, 30, 41, 56, 67, 72, 81, 95)
"""Templates of `gsm_symbolic` that no training document comes from."""

_LONG_DECIMAL = re.compile(r"\.\d{4,}")


def split_of(question: str) -> str:
    """The split that a question belongs to, from the hash of its text alone.

    >>> split_of("How many apples?") in SPLITS
    True
    """
    share = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    return next(split for split, upper in SPLITS.items() if share < upper)


def generate_problems(
    split: str, count: int, seed: int = 0, held_out: bool = False
) -> Iterator[Problem]:
    """Yield `count` distinct problems of one split, deterministic in `seed`.

    `held_out` draws from the templates held out of training, and from no others. Ids are
    `<split>-<seed>-<number>`, or `<split>-held-out-<seed>-<number>`; the extra key `template` is
    the template's number.

    >>> [problem.id for problem in generate_problems("test", 2)]
    ['test-0-0', 'test-0-1']
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    generators = _generators()
    templates = [t for t in generators if (t in HELD_OUT_TEMPLATES) == held_out]
    rng = Random(f"ledom-{seed}")
    seen: set[str] = set()
    prefix = f"{split}-held-out" if held_out else split
    while len(seen) < count:
        template = rng.choice(templates)
        made = generators[template](Random(rng.getrandbits(64)), 1.0)
        question = normalize_numbers(made["question"])
        if split_of(question) != split or question in seen:
            continue
        solution = normalize_solution(made["metadata"]["answer_cot"])
        if _LONG_DECIMAL.search(question + solution):
            continue
        if not all(map(is_true, equations(solution))):  # the template rounds a result
            continue
        answer = solution.rsplit(ANSWER_MARK, 1)[1].strip()
        problem = Problem(
            id=f"{prefix}-{seed}-{len(seen)}", question=question, answer=answer, solution=solution
        )
        problem.extra["template"] = template
        seen.add(question)
        yield problem


@lru_cache(maxsize=1)
def _generators() -> dict[int, Any]:
    """The usable template functions of `gsm_symbolic` by number, without building its data set."""
    package = "reasoning_gym.arithmetic.gsm_symbolic"
    modules = [import_module(f"{package}.generators_{r}") for r in ("00_49", "50_99")]
    usable = import_module(f"{package}.gsm_symbolic").tasks_ok
    return {n: getattr(modules[n // 50], f"generate_{n}") for n in sorted(usable)}


FOLDER_VARIABLE = "LEDOM_DATA"
"""Environment variable that names the local folder."""


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's problems are.

    >>> BENCHMARKS["gsm8k"].file, BENCHMARKS["gsm8k"].split
    ('gsm8k/test.jsonl', 'test')
    """

    file: str
    """Its JSONL file in a local folder."""
    hub: tuple[str, ...]
    """Arguments of `datasets.load_dataset`: the name, and the configuration if there is one."""
    split: str
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """Converts a hub row to question, answer, solution, and `aliases`: other right answers."""


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
"""Every problem set with a name, besides the generator."""


_NUM_GENERATED = 40  # if no count is given, since the generator never ends


def load_problems(
    source: str, count: int | None, split: str = "test", seed: int = 0, held_out: bool = False
) -> list[Problem]:
    """The first `count` problems of the generator, a benchmark by name, or a JSONL file.

    `split`, `seed` and `held_out` are for the generator: see `generate_problems`.

    >>> len(load_problems("gsm_symbolic", 2))
    2
    """
    if source == GENERATOR:
        return list(generate_problems(split, count or _NUM_GENERATED, seed, held_out))
    if source in BENCHMARKS:
        return load_benchmark(source)[:count]
    check_file(source)
    return read_records(source, Problem, unique_ids())[:count]


def check_file(source: str) -> None:
    """Raise `InputError` if there is no such file; the message lists the problem sets by name.

    >>> check_file("gsm9k")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: gsm9k: no such file; give one, or a problem set: gsm_symbolic, ...
    """
    if not exists(source):
        names = ", ".join([GENERATOR, *BENCHMARKS])
        raise InputError(f"no such file; give one, or a problem set: {names}", path=source)


def load_benchmark(name: str) -> list[Problem]:
    """The problems of a benchmark; those from the hub get the ids `<name>-<number>`.

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
    except Exception as error:  # the hub's client raises many types without a network
        raise HubError(
            f"benchmark {name!r} could not be loaded from the hub ({benchmark.hub[0]}): "
            f"{' '.join(str(error).split())[:200]}; or name a local folder in {FOLDER_VARIABLE}"
        ) from error
    return rows
