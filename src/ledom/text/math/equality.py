r"""Whether two answers are equal: both are parsed completely, or else compared as text.

    "6!" --read--> 720 = 720 <--read-- "\$720"

Units and names that only one answer has are ignored; those of both must agree: "5 cm" equals "5",
and so does "x = 5", but "5 cm" does not equal "5 m". So equality is symmetric, but not transitive.

Numbers are compared here, exactly. If algebra is needed, a process with a time limit compares the
two answers by the same rules (see `process`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

from ledom.text.math.expressions import read
from ledom.text.math.nodes import Node, number, product, total
from ledom.text.math.notation import text_key
from ledom.text.math.process import same_value

__all__ = [
    "Algebra",
    "AnswerClasses",
    "Comparison",
    "equal_answers",
    "has_content",
    "is_number",
]

_CONTENT = re.compile(r"[^\W_]|[^\x00-\x7f]|\\\{")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")
"""A number that is read in one way only: digits, perhaps with a decimal point between them."""
_CONSTANTS = frozenset(["pi", "e", "i", "oo"])


def equal_answers(first: str | None, second: str | None) -> bool:
    r"""Whether two answers are equal by value; False if either is None.

    >>> equal_answers("$1,200.00", "1200 dollars"), equal_answers("1,00,000", "100000")
    (True, True)
    >>> equal_answers(r"0.\overline{36}", r"\frac{4}{11}"), equal_answers("1/3", "0.333333")
    (True, False)
    >>> equal_answers("50%", "0.5"), equal_answers("3 p.m.", "3 a.m."), equal_answers("5 cm", "5 m")
    (True, False, False)
    >>> equal_answers(r"\sqrt{8}", r"2\sqrt{2}"), equal_answers(r"4\sqrt(2)", r"4\sqrt(3)")
    (True, False)

    Never raises, whatever the texts, and takes bounded time: undecided answers are not equal. See
    "When two answers are equal" in docs/concepts.md.
    """
    if first is None or second is None:
        return False
    if _PLAIN_NUMBER.fullmatch(first) and _PLAIN_NUMBER.fullmatch(second):
        return Decimal(first) == Decimal(second)  # most answers need no parsing
    if not (has_content(first) and has_content(second)):
        return False
    if first == second or text_key(first) == text_key(second):
        return True
    left, right = read(first), read(second)
    if left is None or right is None:
        return False
    try:
        return Comparison(_Exact()).same(left, right)
    except _NeedsAlgebra:
        return same_value(*sorted((first, second)))


def has_content(answer: str) -> bool:
    """Whether an answer has more than punctuation.

    >>> has_content("..."), has_content("x.")
    (False, True)
    """
    return bool(_CONTENT.search(answer))


def is_number(answer: str) -> bool:
    """Whether the whole answer is one number, perhaps with a unit or a name.

    >>> is_number("5 km"), is_number("x + 1")
    (True, False)
    """
    node = read(answer)
    while node is not None and node.kind in ("choice", "named", "quantity", "time"):
        node = node.parts[0]
    return node is not None and node.kind == "number"


class AnswerClasses:
    """Groups the equal answers to one problem, and numbers the groups.

    All answers of a class equal each other. Equality is not transitive ("5 cm" and "5 m" both equal
    "5"), so a new answer joins the first class whose members all equal it.

    >>> classes = AnswerClasses()
    >>> [classes.number(answer) for answer in ("1/2", "2", "0.5", None)]
    [0, 1, 0, -1]
    """

    def __init__(self) -> None:
        self._by_answer: dict[str, int] = {}
        self._members: list[list[str]] = []

    def number(self, answer: str | None) -> int:
        """The number of the answer's class; -1 without an answer."""
        if answer is None or not has_content(answer):
            return -1
        if answer not in self._by_answer:
            self._by_answer[answer] = self._class_of(answer)
        return self._by_answer[answer]

    def _class_of(self, answer: str) -> int:
        for known, members in enumerate(self._members):
            if all(equal_answers(member, answer) for member in members):
                members.append(answer)
                return known
        self._members.append([answer])
        return len(self._members) - 1


class Algebra(Protocol):
    """Compares expressions that are not plain numbers."""

    def same(self, first: Node, second: Node) -> bool:
        """Whether two scalars have the same value."""

    def proportional(self, first: Node, second: Node) -> bool:
        """Whether one scalar is a constant, other than 0, times the other."""


class _NeedsAlgebra(Exception):  # noqa: N818  (not an error: the comparison continues elsewhere)
    pass


class _Exact:
    """Compares plain numbers; raises `_NeedsAlgebra` for other expressions."""

    def same(self, first: Node, second: Node) -> bool:
        if first.value is None or second.value is None:
            raise _NeedsAlgebra
        return first.value == second.value

    def proportional(self, first: Node, second: Node) -> bool:
        raise _NeedsAlgebra


@dataclass(frozen=True)
class Comparison:
    """Compares trees, and their scalars by an `Algebra`."""

    algebra: Algebra

    def same(self, first: Node, second: Node) -> bool:
        """Whether two trees mean the same answer.

        >>> Comparison(_Exact()).same(read("x = 5"), read("5"))
        True
        """
        first, second = _exact_side(first), _exact_side(second)
        kinds = {first.kind, second.kind}
        if first == second:
            return True
        if "choice" in kinds:
            return self._same_choice(first, second)
        if "named" in kinds:
            return self._same_named(first, second)
        if "quantity" in kinds:
            return self._same_quantity(first, second)
        if "relation" in kinds:
            return self._same_relation(first, second)
        if first.is_scalar and second.is_scalar:
            return self.algebra.same(first, second)
        if kinds == {"list"}:
            return self._same_lists(first, second)
        if kinds <= {"list", "set"} or kinds == {"union"}:
            return self._same_members(self._members(first), self._members(second))
        return (
            first.kind == second.kind
            and first.name == second.name
            and self._same_parts(first, second)
        )

    def _same_parts(self, first: Node, second: Node) -> bool:
        if len(first.parts) != len(second.parts):
            return False
        return all(map(self.same, first.parts, second.parts))

    def _same_choice(self, first: Node, second: Node) -> bool:
        """The answer "(C) 15" equals the choice "C", and also "15"."""
        if first.kind != "choice":
            return self._same_choice(second, first)
        if second.kind == "choice":
            return first.name == second.name and self._same_parts(first, second)
        if second.kind == "symbol":
            return first.name == second.name.lower()
        return self.same(first.parts[0], second)

    def _same_lists(self, first: Node, second: Node) -> bool:
        """Order matters only if one list names its values: x = 5, y = 3 is 5, 3 but not 3, 5."""
        if first.name and second.name and first.name != second.name:
            return False
        names = [
            {part.name for part in node.parts if part.kind == "named"} for node in (first, second)
        ]
        if sorted(map(len, names)) in ([0, len(first.parts)], [0, len(second.parts)]):
            return self._same_parts(first, second)
        return self._same_members(first.parts, second.parts)

    def _same_named(self, first: Node, second: Node) -> bool:
        """x = 5 equals 5, and also x - 5 = 0, by comparing equations."""
        if first.kind != "named":
            return self._same_named(second, first)
        if second.kind == "named" and first.name == second.name:
            return self.same(first.parts[0], second.parts[0])
        if second.kind == "named" or (second.kind == "relation" and second.name == "="):
            return self._same_equations(first, second)
        return self.same(first.parts[0], second)

    def _same_equations(self, first: Node, second: Node) -> bool:
        sides = [_difference(equation) for equation in (first, second)]
        if sides[0] is None or sides[1] is None:
            return False
        return self.algebra.proportional(sides[0], sides[1])

    def _same_relation(self, first: Node, second: Node) -> bool:
        if first.kind == second.kind and first.name == second.name:
            if self._same_parts(first, second):
                return True
            if first.name == "=":
                return self._same_equations(first, second)
        names = {_variable(node) for node in (first, second)} - {""}
        intervals = [_interval(node) for node in (first, second)]
        if len(names) > 1 or intervals[0] is None or intervals[1] is None:
            return False
        return self.same(intervals[0], intervals[1])

    def _same_quantity(self, first: Node, second: Node) -> bool:
        if first.kind != "quantity":
            return self._same_quantity(second, first)
        value = first.parts[0]
        if second.kind == "quantity":
            return first.label.agrees_with(second.label) and self.same(value, second.parts[0])
        if not second.is_scalar:
            return False
        hundredth = product(value, number(Fraction(1, 100)))
        return self.same(value, second) or (first.label.is_percent and self.same(hundredth, second))

    def _members(self, node: Node) -> list[Node]:
        """The parts; those of a set without repeats."""
        members: list[Node] = []
        for part in node.parts:
            if node.kind != "set" or not any(self.same(part, member) for member in members):
                members.append(part)
        return members

    def _same_members(self, first: Sequence[Node], second: Sequence[Node]) -> bool:
        """Whether members can be paired off in some order (Kuhn's algorithm)."""
        if len(first) != len(second):
            return False
        partners = [[j for j, other in enumerate(second) if self.same(one, other)] for one in first]
        taken: dict[int, int] = {}

        def is_placed(one: int, tried: set[int]) -> bool:
            for other in partners[one]:
                if other not in tried:
                    tried.add(other)
                    if other not in taken or is_placed(taken[other], tried):
                        taken[other] = one
                        return True
            return False

        return all(is_placed(one, set()) for one in range(len(first)))


def _exact_side(node: Node) -> Node:
    r"""The left side of an approximation of a number, \pi/4 \approx 0.79, and the number of a true
    equation of numbers, 3 + 2 = 5; other nodes unchanged."""
    if node.kind == "relation" and {*node.name.split()} == {"="}:
        values = {part.value for part in node.parts}
        return node.parts[-1] if len(values) == 1 and None not in values else node
    if node.kind != "relation" or node.name != "~":
        return node
    exact = node.parts[0]
    return node if any(_is_variable(inner) for inner in exact.walk()) else exact


def _difference(equation: Node) -> Node | None:
    """The left side minus the right side, of an equation between scalars."""
    sides = equation.parts
    if equation.kind == "named":
        sides = (Node("symbol", equation.name), *sides)
    if not all(side.is_scalar for side in sides):
        return None
    return total(sides[0], product(number(-1), sides[1]))


def _variable(node: Node) -> str:
    """The variable of an inequality, such as x in 2 < x; "" if it names none."""
    parts = node.parts if node.kind == "relation" else ()
    return next((part.name for part in parts if _is_variable(part)), "")


def _is_variable(node: Node) -> bool:
    return node.kind == "symbol" and node.name not in _CONSTANTS


def _interval(node: Node) -> Node | None:
    """The interval that inequalities of one variable describe; other kinds of node unchanged.

    None for relations that describe no interval.
    """
    if node.kind != "relation":
        return node
    signs = node.name.split()
    places = [place for place, part in enumerate(node.parts) if _is_variable(part)]
    others = [part for place, part in enumerate(node.parts) if place not in places]
    has_names = any(_is_variable(inner) for part in others for inner in part.walk())
    if len(places) != 1 or has_names or not {"<", "<="}.issuperset(signs) or len(signs) > 2:
        return None
    if len(signs) == 2 and places != [1]:
        return None
    infinity = Node("symbol", "oo")
    ends = [product(number(-1), infinity), infinity]
    brackets = ["(", ")"]
    if places[0] > 0:
        ends[0], brackets[0] = others[0], "[" if signs[0] == "<=" else "("
    if places[0] < len(node.parts) - 1:
        ends[1], brackets[1] = others[-1], "]" if signs[-1] == "<=" else ")"
    return Node("bracket", "".join(brackets), tuple(ends))
