"""Problems with worked solutions: the embedded generator and JSONL files.

The generator is reasoning-gym's `gsm_symbolic` (templates of grade-school problems with numbers,
names and things drawn afresh), its formats normalized. It is endless, so splits are made by a hash
of the question: a question belongs to exactly one split, whatever seed produced it. Ten templates
are held out of training altogether, to measure what happens on kinds of problem never seen.
This module knows nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from random import Random
from typing import Any, Literal

from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.text.arithmetic import is_true
from ledom.text.solution_style import ANSWER_MARK, equations, normalize_numbers, normalize_solution

__all__ = [
    "GENERATOR",
    "HELD_OUT_TEMPLATES",
    "SPLITS",
    "generate_problems",
    "split_of",
]

Split = Literal["train", "valid", "tune", "test"]

SPLITS: dict[str, float] = {"train": 0.90, "valid": 0.92, "tune": 0.96, "test": 1.0}
"""Upper end of each split's share of the hash range, in order."""

GENERATOR = "gsm_symbolic"
"""The name that stands for the embedded generator where a file of problems could stand."""

HELD_OUT_TEMPLATES = (5, 14, 22, 30, 41, 56, 67, 72, 81, 95)
"""Templates of `gsm_symbolic` that no training document comes from."""

_LONG_DECIMAL = re.compile(r"\.\d{4,}")


def split_of(question: str) -> str:
    """The split that a question belongs to, from the hash of its text alone."""
    share = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    return next(split for split, upper in SPLITS.items() if share < upper)


def generate_problems(
    split: str, count: int, seed: int = 0, held_out: bool = False
) -> Iterator[Problem]:
    """Yield `count` distinct problems of one split, deterministic in `seed`.

    `held_out` draws from the templates that no model was trained on instead of the trained ones.
    Ids are `<split>-<seed>-<number>`; the template's number is kept under the key `template`.
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
        solution = normalize_solution(made["metadata"]["answer_cot"])
        if (
            split_of(question) != split
            or question in seen
            or _LONG_DECIMAL.search(question + solution)
            or not all(is_true(equation) for equation in equations(solution))  # rounded in silence
        ):
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
