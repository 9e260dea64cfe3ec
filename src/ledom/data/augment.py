"""Augments worked problems with variants that have other numbers, and with wrong solutions.

A solution in the `equations` style is a small program: each equation uses numbers of the question,
constants and earlier results. `renumber` gives the question other numbers and runs the program
again. `corrupt` makes one common mistake in it, `miscalculate` makes one result false; both compute
the wrong answer. Only the given problems are used. This module knows neither tokens nor models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from random import Random

from ledom.core.records import Candidate, Problem
from ledom.data.problems import is_true, value_of
from ledom.data.question_numbers import IN_QUESTION, NUMBER, changeable
from ledom.text.math.notation import normalize_numbers
from ledom.text.pair_format import ANSWER_MARK, STYLES

__all__ = ["augment", "other_number"]

_TRIES = 40
_OPERATOR = re.compile(r" ([-+*/]) ")
_PERCENT = re.compile(r"^(\d+) / 100 \* |^(\d+)% \* ")
_Equations = list[tuple[str, ...]]  # an equation is a tuple of its sides


@dataclass(frozen=True)
class _Program:
    """A solution: its equations and its answer."""

    equations: _Equations
    answer: str

    @classmethod
    @lru_cache(maxsize=1)  # all wrong solutions of a problem start from the same program
    def read(cls, solution: str | None, answer: str | None) -> _Program | None:
        """The program of a solution; None unless its equations are true and lead to the answer."""
        styled = STYLES["equations"](solution or "", answer)
        *lines, last = styled.splitlines()
        equations = [tuple(line.split(" = ")) for line in lines]
        answer = last.removeprefix(f"{ANSWER_MARK} ")
        if not equations or not all(map(_is_equation, equations)):
            return None
        return cls(equations, answer) if answer in equations[-1] else None

    def given(self) -> set[str]:
        """The numbers that the program uses but does not compute."""
        given: set[str] = set()
        known: set[str] = set()
        for first, *_, result in self.equations:
            given |= {*NUMBER.findall(first)} - known
            known.add(result)
        return given

    def wrong_text(self, equations: _Equations, rng: Random) -> str | None:
        """Build a solution from these equations; None if they lead to the right answer."""
        answer = equations[-1][-1]
        is_right = answer == _written(value_of(self.answer), exact=False)  # 7.50 is 7.5
        return None if is_right else _Program(_rewrite(equations, rng), answer).text()

    def text(self) -> str:
        """The solution, in the `equations` style."""
        lines = [" = ".join(sides) for sides in self.equations]
        return "\n".join([*lines, f"{ANSWER_MARK} {self.answer}"])


def _is_equation(sides: tuple[str, ...]) -> bool:
    return len(sides) > 1 and is_true("=".join(sides)) and bool(NUMBER.fullmatch(sides[-1]))


def augment(
    problems: Sequence[Problem],
    num_variants: int,
    num_wrong: int,
    num_false: int = 0,
    seed: int = 0,
    track: Callable[[Sequence[Problem]], Iterable[Problem]] = iter,
) -> tuple[list[Problem], list[Candidate]]:
    """Return each problem with up to `num_variants` different variants, each of these with up to
    `num_wrong` wrong solutions.

    Up to `num_false` more solutions have one false equation. Variants have other numbers; they and
    the wrong solutions are in the `equations` style. There are fewer if a solution is not a chain
    of true equations, or if no suitable numbers are found. Ids stay unique.

    >>> text = "Ava has 3 pens and buys 4. How many has she?"
    >>> solved = Problem(id="a", question=text, answer="7", solution="3 + 4 = 7\\n#### 7")
    >>> varied, wrong = augment([solved], num_variants=2, num_wrong=1)
    >>> [problem.id for problem in varied], {candidate.correct for candidate in wrong}
    (['a', 'a-0', 'a-1'], {False})
    """
    varied: list[Problem] = []
    wrong: list[Candidate] = []
    ids = {problem.id for problem in problems}
    for problem in track(problems):
        rng = Random(f"{seed} {problem.id}")
        versions = [problem]
        for number in range(num_variants):
            variant = renumber(problem, rng, {known.question for known in versions})
            if variant is None:
                continue
            variant.id = f"{problem.id}-{number}"
            while variant.id in ids:
                variant.id += "-0"
            ids.add(variant.id)
            versions.append(variant)
        for version in versions:
            varied.append(version)
            texts = {text for _ in range(num_wrong) if (text := corrupt(version, rng))}
            own = Random(f"{seed} false {version.id}")  # otherwise the rest would change
            false = {text for _ in range(num_false) if (text := miscalculate(version, own))}
            wrong += [
                Candidate(problem_id=version.id, index=index, text=text, correct=False)
                for index, text in enumerate([*sorted(texts), *sorted(false)])
            ]
    return varied, wrong


def renumber(problem: Problem, rng: Random, known: Collection[str] = frozenset()) -> Problem | None:
    """The problem with other numbers in its question, and the solution computed from them.

    The question is not in `known`. Results stay positive, and whole numbers stay whole. None if no
    such numbers are found, or if the solution uses a number that nothing in the question explains.
    """
    if (program := _Program.read(problem.solution, problem.answer)) is None:
        return None
    question = normalize_numbers(problem.question)
    numbers = set(IN_QUESTION.findall(question))
    free = changeable(question, program.given()) or []
    for _ in range(_TRIES if free else 0):
        changed = {n: other_number(n, question, rng) for n in free if rng.random() < 0.7}
        start = {n: n for n in numbers} | changed
        text = _replace(question, start, IN_QUESTION)
        done = _compute(program.equations, start, strict=True)
        if done is None or text == question or text in known:
            continue
        equations, values = done
        answer = values[program.answer]
        return Problem(
            id=problem.id,
            question=text,
            answer=answer,
            solution=_Program(_rewrite(equations, rng), answer).text(),
        )
    return None


def corrupt(problem: Problem, rng: Random) -> str | None:
    """A solution of the problem with one mistake, and all later results computed from it.

    Its answer differs from the right one. None if no such mistake is found.
    """
    if (program := _Program.read(problem.solution, problem.answer)) is None:
        return None
    numbers = IN_QUESTION.findall(normalize_numbers(problem.question))
    for _ in range(_TRIES):
        changed = rng.choice(_FAULTS)(program.equations, numbers, rng)
        done = changed and _compute(changed[0], changed[1], strict=False)
        if done and done[0] and (text := program.wrong_text(done[0], rng)):
            return text
    return None


def miscalculate(problem: Problem, rng: Random) -> str | None:
    """A solution with one false equation, later results computed from it, and a wrong answer.

    None if none is found.
    """
    if (program := _Program.read(problem.solution, problem.answer)) is None:
        return None
    for _ in range(_TRIES):
        at = rng.randrange(len(program.equations))
        first, *_, right = program.equations[at]
        if (result := _other_result(right, rng)) is None:
            continue
        done = _compute(program.equations[at + 1 :], {right: result}, strict=False)
        before = [*program.equations[:at], (first, result)]
        if done and (text := program.wrong_text([*before, *done[0]], rng)):
            return text
    return None


def _other_result(result: str, rng: Random) -> str | None:
    """A wrong digit, a nearby number, or a misplaced decimal point; None if equal."""
    value, how = value_of(result), rng.random()
    if how < 0.5:
        at = rng.choice([place for place, digit in enumerate(result) if digit.isdigit()])
        other = value_of(f"{result[:at]}{rng.randrange(10)}{result[at + 1 :]}")
    elif how < 0.8:
        other = value + rng.choice((-10, -2, -1, 1, 2, 10))
    else:
        other = value * rng.choice((10, Fraction(1, 10)))
    written = _written(other, exact=False)
    return None if written == _written(value, exact=False) else written


_Changed = tuple[_Equations, dict[str, str]] | None


def _with_part(equations: _Equations, at: int, span: tuple[int, int], part: str) -> _Changed:
    """Replace a part of one equation's first side."""
    first, *_, result = equations[at]
    changed = f"{first[: span[0]]}{part}{first[span[1] :]}"
    return [*equations[:at], (changed, result), *equations[at + 1 :]], {}


def _other_operator(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    at = rng.randrange(len(equations))
    found = list(_OPERATOR.finditer(equations[at][0]))
    if not found:
        return None
    match = rng.choice(found)
    new = rng.choice([o for o in "+-*/" if o != match[1]])
    return _with_part(equations, at, match.span(1), new)


def _other_operand(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    at = rng.randrange(len(equations))
    match = rng.choice(list(NUMBER.finditer(equations[at][0])))
    choices = sorted({*numbers, *(sides[-1] for sides in equations[:at])} - {match[0]})
    return _with_part(equations, at, match.span(), rng.choice(choices)) if choices else None


def _skipped_step(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    if len(equations) < 2:
        return None
    at = rng.randrange(len(equations) - 1)
    stand_in = rng.choice(NUMBER.findall(equations[at][0]))
    return equations[:at] + equations[at + 1 :], {equations[at][-1]: stand_in}


def _stopped_early(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    return equations[: rng.randrange(1, len(equations))] if len(equations) > 1 else [], {}


def _step_too_many(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    choices = [*numbers, *(sides[-1] for sides in equations[:-1])]
    if not choices:
        return None
    operand = rng.choice(choices)
    return [*equations, (f"{equations[-1][-1]} {rng.choice('+-*/')} {operand}", "-")], {}


def _misread_number(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    if not numbers:
        return None
    number = rng.choice(numbers)
    return equations, {number: other_number(number, "", rng)}


def _exchanged_numbers(equations: _Equations, numbers: list[str], rng: Random) -> _Changed:
    distinct = sorted(set(numbers))
    if len(distinct) < 2:
        return None
    one, other = rng.sample(distinct, 2)
    return equations, {one: other, other: one}


_FAULTS = (  # common ones are listed twice
    _other_operator,
    _other_operator,
    _other_operand,
    _other_operand,
    _skipped_step,
    _skipped_step,
    _stopped_early,
    _step_too_many,
    _misread_number,
    _exchanged_numbers,
)


def _compute(
    equations: _Equations, values: dict[str, str], strict: bool
) -> tuple[_Equations, dict[str, str]] | None:
    """Compute equations with some numbers replaced; also returns the new value of each number.

    With `strict`, a number must not get two different values, and whole results must stay whole;
    without it, results are rounded. None if this rule or `_written` rejects a result.
    """
    values = dict(values)
    done: _Equations = []
    for first, *rest in equations:
        for number in NUMBER.findall(first):
            values.setdefault(number, number)
        sides = [_replace(first, values)]
        try:
            result = value_of(sides[0])
            text = _written(result, exact=strict)
            if text is None or (strict and "." in text and "." not in rest[-1]):
                return None
            for side in rest[:-1] if strict else ():
                sides.append(_replace(side, values))
                if value_of(sides[-1]) != result:
                    return None
        except (ValueError, ZeroDivisionError, KeyError):
            return None
        if strict and values.get(rest[-1], text) != text:
            return None
        values[rest[-1]] = text
        done.append((*sides, text))
    return done, values


def _replace(text: str, values: dict[str, str], numbers: re.Pattern[str] = NUMBER) -> str:
    return numbers.sub(lambda match: values.get(match[0], match[0]), text)


def _written(value: Fraction, exact: bool) -> str | None:
    """A number as text; None unless positive, below a billion and with at most two decimals.

    Unless `exact`, it is rounded to two decimals first.
    """
    if not exact:
        value = Fraction(round(value * 100), 100)
    if not 0 < value < 10**9 or (value * 100).denominator != 1:
        return None
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.2f}".rstrip("0")


def other_number(number: str, question: str, rng: Random) -> str:
    """A similar random number: as round, as many decimals, at most about twice as large.

    >>> number = other_number("12.5", "Ava has 12.5 liters.", Random(0))
    >>> number != "12.5", len(number.partition(".")[2])  # as many decimals
    (True, 1)
    """
    whole, _, decimals = number.partition(".")
    if f"{number}%" in question and not decimals:
        return str(5 * rng.randrange(1, 20))
    scaled = int(whole + decimals)
    step = next((s for s in (1000, 100, 10) if scaled % s == 0 and scaled > s), 1)
    units = scaled // step
    new = max(1 if scaled == 1 else 2, rng.randint(units // 2, 2 * units + 3)) * step
    text = str(new).rjust(len(decimals) + 1, "0")
    return f"{text[: -len(decimals)]}.{text[-len(decimals) :]}" if decimals else text


def _rewrite(equations: _Equations, rng: Random) -> _Equations:
    """The same equations, with some percentages in another form and some operands swapped."""
    done: _Equations = []
    for first, *rest in equations:
        share = _PERCENT.match(first)
        if share and rng.random() < 0.5:
            number = int(share[1] or share[2])
            form = rng.choice((f"{number}%", f"{_written(Fraction(number, 100), True)}"))
            first = f"{form} * {first[share.end() :]}"
        operators = _OPERATOR.findall(first)
        if operators in (["+"], ["*"]) and rng.random() < 0.4:
            first = f" {operators[0]} ".join(reversed(first.split(f" {operators[0]} ")))
        done.append((first, *rest))
    return done
