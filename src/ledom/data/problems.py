"""Problems with worked solutions: the embedded generator and JSONL files.

The generator is reasoning-gym's `gsm_symbolic` (templates of grade-school problems with numbers,
names and things drawn afresh), its formats normalised. It is endless, so splits are made by a hash
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

from ledom.errors import InputError
from ledom.records import Problem

__all__ = [
    "GENERATOR",
    "HELD_OUT_TEMPLATES",
    "SPLITS",
    "equations",
    "generate_problems",
    "normalise_solution",
    "split_of",
]

Split = Literal["train", "valid", "tune", "test"]

SPLITS: dict[str, float] = {"train": 0.90, "valid": 0.92, "tune": 0.96, "test": 1.0}
"""Upper end of each split's share of the hash range, in order."""

GENERATOR = "gsm_symbolic"
"""The name that stands for the embedded generator where a file of problems could stand."""

HELD_OUT_TEMPLATES = (5, 14, 22, 30, 41, 56, 67, 72, 81, 95)
"""Templates of `gsm_symbolic` that no training document comes from."""

_ANSWER_MARK = "####"
_PRODUCT = re.compile(r"(?<![\d.])(?<![-+*/] )(\d+) \* (\d+) = (\d+)(?!\.?\d| [-+*/=])")
_STEP = re.compile(r"\d+(?:\.\d+)?%?(?: [-+*/] \d+(?:\.\d+)?%?)+(?: = [-+*/\d. %]*\d%?)+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(\d)\.0+(?!\d)")
_LONG_DECIMAL = re.compile(r"\.\d{4,}")
_TIMES = re.compile(r"(?<=[\d%]) ?[x×] ?(?=[$€£]?\d)|(?<=\w) x (?=[$€£]?\d)|×")
_SYMBOLS = str.maketrans({"÷": "/", "•": "-"})
_NUMBER = r"[$€£]?\d+(?:\.\d+)?%?"
_UNIT = r"(?:[ /][A-Za-z][A-Za-z'/]*(?:[ -][A-Za-z][A-Za-z'/]*){0,5})?"
_EQUATION = re.compile(rf"{_NUMBER}{_UNIT}(?: ?[-+*/] ?{_NUMBER}{_UNIT})+ ?= ?{_NUMBER}")
_EQUATION_PART = re.compile(rf"({_NUMBER}){_UNIT}( ?[-+*/=] ?|$)")


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
        question = _normalise_text(made["question"])
        solution = normalise_solution(made["metadata"]["answer_cot"])
        if (
            split_of(question) != split
            or question in seen
            or _LONG_DECIMAL.search(question + solution)
        ):
            continue
        answer = solution.rsplit(_ANSWER_MARK, 1)[1].strip()
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


def _normalise_text(text: str) -> str:
    """One way to write numbers: 350,000 -> 350000, 38.0 -> 38."""
    return _TRAILING_ZEROS.sub(r"\1", _THOUSANDS.sub("", text)).translate(_SYMBOLS)


def normalise_solution(solution: str) -> str:
    """One way to write a worked solution: a step a line, bare equations, `#### answer` at the end.

    "$57/hour * 7 hours = $399" becomes "57 * 7 = 399": every template then states its arithmetic
    alike, so a small model learns it from all of them.
    """
    text = re.sub(r" +", " ", _TIMES.sub(" * ", _normalise_text(solution)))
    lines = (re.sub(r"^ ?(?:- |\d+\. )", "", line).strip() for line in text.splitlines())
    steps = (_EQUATION.sub(_bare_equation, line) for line in lines if line)
    return _PRODUCT.sub(_show_work, "\n".join(steps))


def equations(solution: str) -> list[str]:
    """The bare equations of a normalised solution, in order."""
    return _STEP.findall(solution)


def _show_work(match: re.Match[str]) -> str:
    """A product of longer numbers in two parts: 57 * 34 = 57 * 30 + 57 * 4 = 1710 + 228 = 1938.

    A number of up to two digits times one digit (and zeros) stays as it is: such facts are few
    enough to be learned by heart.
    """
    first, second, result = (int(number) for number in match.groups())
    digits = [len(str(number).rstrip("0")) for number in (first, second)]
    if min(digits) * max(digits) <= 2 or first * second != result:
        return match.group()
    split_first = digits[0] > digits[1]
    longer, other = (first, second) if split_first else (second, first)
    head = int(str(longer)[0]) * 10 ** (len(str(longer)) - 1)
    parts = (head, longer - head)
    products = " + ".join(f"{p} * {other}" if split_first else f"{other} * {p}" for p in parts)
    sums = " + ".join(str(part * other) for part in parts)
    return f"{first} * {second} = {products} = {sums} = {result}"


def _bare_equation(match: re.Match[str]) -> str:
    """An equation without its units and currency signs, operators between single spaces."""
    parts = _EQUATION_PART.findall(match.group())
    return "".join(
        number.lstrip("$€£") + (f" {operator.strip()} " if operator.strip() else "")
        for number, operator in parts
    )
