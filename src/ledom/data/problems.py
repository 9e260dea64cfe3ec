"""Loads problem sets: the embedded generator, a benchmark by name, or a JSONL file.

The generator is reasoning-gym's `gsm_symbolic` (templates of grade-school problems with random
numbers, names and things), with normalized formats. It never ends, so a hash of the question
defines the splits: a question belongs to exactly one split, whatever seed produced it. Ten
templates are held out of training, to test models on unseen kinds of problems.

Its solutions write arithmetic out in small steps: `57 + 48 = 105` becomes `57 + 48 = 97 + 8 = 105`.
Every step changes few digits, with at most one carry. A model with a few million parameters learns
such steps from tens of thousands of equations, but does not learn the bare results from ten times
as many (docs/log.md). Only equations that are exactly true are written out. This module does not
know about tokens or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from random import Random
from typing import Any

from ledom.core.errors import InputError
from ledom.core.files import digest
from ledom.core.reading import exists
from ledom.core.records import Problem, read_records, unique_ids
from ledom.data.benchmarks import BENCHMARKS, load_benchmark
from ledom.text.math.notation import normalize_numbers
from ledom.text.pair_format import ANSWER_MARK, bare_steps

__all__ = [
    "GENERATOR",
    "check_file",
    "equations",
    "generate_problems",
    "is_true",
    "load_problems",
    "normalize_solution",
    "value_of",
]

SPLITS: dict[str, float] = {"train": 0.90, "valid": 0.92, "tune": 0.96, "test": 1.0}
"""The upper end of each split's share of the hash range, in order."""

GENERATOR = "gsm_symbolic"
"""The name of the embedded generator, which is accepted instead of a file of problems."""

HELD_OUT_TEMPLATES = (5, 14, 22, 30, 41, 56, 67, 72, 81, 95)
"""Templates of `gsm_symbolic` that are never used for training documents."""

_NUM_GENERATED = 40  # if no count is given, because the generator never ends
_LONG_DECIMAL = re.compile(r"\.\d{4,}")
_STATED = re.compile(
    r"(?<![\w.%)(])(?<![-+*/=] )(\d{1,15}(?:\.\d{1,9})?(?: [-+*/] \d{1,15}(?:\.\d{1,9})?){1,20}) = "
    r"(\d{1,15}(?:\.\d{1,9})?)"
    r"(?!\.?\d|[%/]| [-+*/=])"
)
_STEP = re.compile(
    r"(?<![\d.])\d{1,15}(?:\.\d{1,9})?%?(?: [-+*/] \d{1,15}(?:\.\d{1,9})?%?){1,20}"
    r"(?: = [-+*/\d. %]*\d%?)+"
)
_TERM = re.compile(r"(\d+(?:\.\d+)?)(%?)")
_OPERATOR = re.compile(r" ?([-+*/]) ?")


def split_of(question: str) -> str:
    """The split that a question belongs to, from the hash of its text alone.

    >>> split_of("How many apples?") in SPLITS
    True
    """
    share = digest(question) / 2**64
    return next(split for split, upper in SPLITS.items() if share < upper)


def generate_problems(
    split: str, count: int, seed: int = 0, held_out: bool = False
) -> Iterator[Problem]:
    """Yield `count` distinct problems of one split, deterministic in `seed`.

    `held_out` draws only from the templates held out of training. Ids are
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
    """The usable template functions of `gsm_symbolic` by number, without building its dataset."""
    package = "reasoning_gym.arithmetic.gsm_symbolic"
    modules = [import_module(f"{package}.generators_{r}") for r in ("00_49", "50_99")]
    usable = import_module(f"{package}.gsm_symbolic").tasks_ok
    return {n: getattr(modules[n // 50], f"generate_{n}") for n in sorted(usable)}


def load_problems(
    source: str, count: int | None, split: str = "test", seed: int = 0, held_out: bool = False
) -> list[Problem]:
    """Load the first `count` problems of the generator, a benchmark by name, or a JSONL file.

    `split`, `seed` and `held_out` are for the generator; see `generate_problems`.

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
    """Raise `InputError` if there is no such file; the message lists the named problem sets.

    >>> check_file("gsm9k")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: gsm9k: no such file; give one, or a problem set: gsm_symbolic, ...
    """
    if not exists(source):
        names = ", ".join([GENERATOR, *BENCHMARKS])
        raise InputError(f"no such file; give one, or a problem set: {names}", path=source)


# --- arithmetic in small steps ---


def normalize_solution(solution: str) -> str:
    """Rewrite a generated solution with one step per line and bare equations with their steps.

    "$57/hour * 7 hours = $399" becomes "57 * 7 = 350 + 49 = 399". All templates then write
    arithmetic in the same way, so a small model learns it from all of them.

    >>> normalize_solution("$57/hour * 7 hours = $399")
    '57 * 7 = 350 + 49 = 399'
    """
    return _STATED.sub(lambda match: show_work(match[1], match[2]), bare_steps(solution))


def equations(solution: str) -> list[str]:
    """The bare equations of a normalized solution, in order.

    >>> equations("2 + 3 = 5, so 5 * 2 = 10")
    ['2 + 3 = 5', '5 * 2 = 10']
    """
    return _STEP.findall(solution)


def is_true(equation: str) -> bool:
    """Whether all sides of `a + b = c + d = e` have exactly the same value.

    >>> is_true("2 + 3 = 5"), is_true("2 + 3 = 6")
    (True, False)
    """
    try:
        first, *others = (value_of(side) for side in equation.split("="))
    except (ValueError, ZeroDivisionError):
        return False
    return all(side == first for side in others)


@lru_cache(maxsize=2**14)  # the same few numbers and sides are read again and again
def value_of(side: str) -> Fraction:
    """The exact value of numbers joined by + - * /; * and / come first, from left to right.

    Raises `ValueError` for anything else, and `ZeroDivisionError`.

    >>> value_of("2 * 3 + 1 / 2")
    Fraction(13, 2)
    """
    total, product, sign = Fraction(0), Fraction(1), 1
    operator = "+"
    for index, part in enumerate(_OPERATOR.split(side.strip())):
        if index % 2:
            operator = part
            continue
        match = _TERM.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a number")
        number = Fraction(match[1]) / (100 if match[2] else 1)
        if operator == "*":
            product *= number
        elif operator == "/":
            product /= number
        else:
            total += sign * product if index else 0
            product, sign = number, 1 if operator == "+" else -1
    return total + sign * product


def show_work(expression: str, result: str) -> str:
    """Insert the steps into `expression = result`, one operation each.

    A mixed expression is split: `2 * 14 - 5` becomes `2 * 14 = 28, 28 - 5 = 23`. The equation is
    returned unchanged if it is false, has percentages or negative steps, or needs more than three
    decimals.

    >>> show_work("57 + 48", "105")
    '57 + 48 = 97 + 8 = 105'
    """
    plain = f"{expression} = {result}"
    if "%" in plain or not is_true(plain):
        return plain
    parts = _OPERATOR.split(expression)
    texts, operators = parts[::2], parts[1::2]
    numbers = [Fraction(text) for text in texts]
    steps: list[str] = []
    while any(operator in "*/" for operator in operators):
        at = next(i for i, operator in enumerate(operators) if operator in "*/")
        first, second = numbers[at : at + 2]
        product = operators[at] == "*"
        value = first * second if product else first / second
        sides = _products(first, second) if product else _quotients(first, second)
        steps.append(" = ".join([f"{texts[at]} {operators[at]} {texts[at + 1]}", *sides]))
        numbers[at : at + 2], texts[at : at + 2] = [value], [_text(value)]
        del operators[at]
    if operators:
        steps.append(" = ".join([_chain(texts, operators), *_sums(numbers, operators)]))
    work = ", ".join(steps)
    if "-" in work.replace(" - ", "") or not all(
        len(number.partition(".")[2]) <= 3 for number in re.findall(r"[\d.]+", work)
    ):
        return plain
    return work if work.endswith(f" {result}") else plain


def _sums(numbers: list[Fraction], operators: list[str]) -> list[str]:
    """The sides that follow `a + b - c`: each adds or subtracts one digit of one number."""
    total, rest = numbers[0], list(zip(operators, numbers[1:], strict=True))
    sides = []
    while rest:
        operator, number = rest[0]
        head = number if _easy(total, operator, number) else _places(number)[0]
        total = total + head if operator == "+" else total - head
        rest[:1] = [(operator, number - head)] if number > head else []
        terms = [total, *(term for _, term in rest)]
        sides.append(_chain([_text(term) for term in terms], [sign for sign, _ in rest]))
    return sides


def _easy(total: Fraction, operator: str, number: Fraction) -> bool:
    """Whether to add or subtract `number` in one step.

    It must have one non-zero digit, or be added and share at most one digit place with `total`.
    """
    places = _places(number)
    if operator == "-" or len(places) < 2:
        return len(places) < 2
    return len({_place(part) for part in places} & {_place(part) for part in _places(total)}) < 2


def _products(first: Fraction, second: Fraction) -> list[str]:
    """The sides that follow `57 * 34`: every digit times every digit, then their running sum."""
    parts = [a * b for b in _places(second) for a in _places(first)]
    if len(parts) < 2:
        return [_text(first * second)]
    signs = ["+"] * (len(parts) - 1)
    return [_chain([_text(part) for part in parts], signs), *_sums(parts, signs)]


def _quotients(first: Fraction, second: Fraction) -> list[str]:
    """The sides that follow `136 / 2`: `120 / 2 + 16 / 2`, `60 + 8`, `68`."""
    places = _places(first / second)
    if len(places) < 2:
        return [_text(first / second)]
    shares = [f"{_text(place * second)} / {_text(second)}" for place in places]
    return [" + ".join(shares), " + ".join(map(_text, places)), _text(first / second)]


def _places(number: Fraction) -> list[Fraction]:
    """The non-zero digits of a number with their place values: 1705 -> 1000, 700, 5."""
    digits, _, decimals = _text(number).partition(".")
    scale = 10 ** len(decimals)
    written = digits + decimals
    return [
        Fraction(int(digit) * 10 ** (len(written) - 1 - i), scale)
        for i, digit in enumerate(written)
        if digit in "123456789"
    ]


def _place(part: Fraction) -> int:
    """The power of ten of a number's first digit."""
    return len(str(int(part * 1000))) - 4


def _text(number: Fraction) -> str:
    """A number as an exact decimal; if three decimals are too few, with nine (too many to show)."""
    if number.denominator == 1:
        return str(number.numerator)
    scaled = number * 1000
    if scaled.denominator != 1:
        return f"{float(number):.9f}"
    return f"{float(number):.3f}".rstrip("0")


def _chain(terms: list[str], operators: list[str]) -> str:
    return terms[0] + "".join(f" {o} {t}" for o, t in zip(operators, terms[1:], strict=True))
