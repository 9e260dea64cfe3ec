r"""Tells whether two answers mean the same; they are unequal unless both parse completely.

    "6!" --read--> 720 = 720 <--read-- "\$720"

Numbers are compared here, exactly. If algebra is needed, a process with a time limit compares the
answers by the same rules (see `process`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ledom.text.math.expressions import read
from ledom.text.math.nodes import Node, number, product, total
from ledom.text.math.process import same_value
from ledom.text.math.spelling import text_key

__all__ = ["Comparison", "is_number", "same_meaning"]

_CONSTANTS = frozenset(["pi", "e", "i", "oo"])


def same_meaning(first: str, second: str) -> bool:
    r"""Whether two answers have the same value; one that cannot be parsed is only its text.

    >>> same_meaning("0.25", r"\frac{1}{4}"), same_meaning("(A) Rome", "Rome")
    (True, True)
    """
    left, right = (read(answer) or Node("text", text_key(answer)) for answer in (first, second))
    try:
        return Comparison().same(left, right)
    except NeedsAlgebra:
        return same_value(*sorted((first, second)))


def is_number(answer: str) -> bool:
    """Whether the whole answer is one number, perhaps with a unit or a name.

    >>> is_number("5 km"), is_number("x + 1")
    (True, False)
    """
    node = read(answer)
    while node is not None and node.kind in ("choice", "named", "quantity", "time"):
        node = node.parts[0]
    return node is not None and node.kind == "number"


class NeedsAlgebra(Exception):  # noqa: N818  (not an error: the comparison continues elsewhere)
    """Raised for expressions that are not plain numbers."""


class Comparison:
    """Compares trees whose scalars are plain numbers; others raise `NeedsAlgebra`."""

    def same_scalars(self, first: Node, second: Node) -> bool:
        """Whether two scalars have the same value."""
        if first.value is None or second.value is None:
            raise NeedsAlgebra
        return first.value == second.value

    def proportional(self, first: Node, second: Node) -> bool:
        """Whether one scalar is a constant, other than 0, times the other."""
        raise NeedsAlgebra

    def same(self, first: Node, second: Node) -> bool:
        """Whether two trees mean the same answer.

        >>> Comparison().same(read("x = 5"), read("5"))
        True
        """
        first, second = self._exact_side(first), self._exact_side(second)
        kinds = {first.kind, second.kind}
        if first == second:
            return True
        for kind, compare in (
            ("choice", self._same_choice),
            ("named", self._same_named),
            ("quantity", self._same_quantity),
            ("relation", self._same_relation),
            ("time", self._same_time),
        ):
            if kind in kinds:
                return compare(*((first, second) if first.kind == kind else (second, first)))
        if first.is_scalar and second.is_scalar:
            return self.same_scalars(first, second)
        if kinds == {"list"}:
            return self._same_lists(first, second)
        for one, other in ((first, second), (second, first)):
            if one.kind == "set" and other.kind not in ("set", "list", "union"):
                return len(one.parts) == 1 and self.same(one.parts[0], other)
        first, second = (
            _point(one) if other.kind == "bracket" else _union(one)
            for one, other in ((first, second), (second, first))
        )
        kinds = {first.kind, second.kind}
        if kinds <= {"list", "set"} or kinds == {"union"}:
            return self._same_members(self._members(first), self._members(second))
        return (
            first.kind == second.kind
            and first.name == second.name
            and self._same_parts(first, second)
        )

    def _exact_side(self, node: Node) -> Node:
        r"""The last of equal constants, before any approximation of them: 2\pi of
        \pi + \pi = 2\pi \approx 6.28; other nodes unchanged."""
        signs = node.name.split() if node.kind == "relation" else []
        if not signs or {"=", "~"} < {*signs, "="} or any(map(_is_variable, node.walk())):
            return node
        *others, last = node.parts[: [*signs, "~"].index("~") + 1]
        return last if all(self.same(other, last) for other in others) else node

    def _same_parts(self, first: Node, second: Node) -> bool:
        if len(first.parts) != len(second.parts):
            return False
        return all(map(self.same, first.parts, second.parts))

    def _same_choice(self, first: Node, second: Node) -> bool:
        """The answer "(C) 15" equals both the choice "C" and "15"."""
        if second.kind == "choice":
            return first.name == second.name and self._same_parts(first, second)
        if second.kind == "symbol" and second.name.lower() == first.name:
            return True
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
        """x = 5 equals 5 and also, by comparing equations, x - 5 = 0."""
        if second.kind == "named" and first.name == second.name:
            return self.same(first.parts[0], second.parts[0])
        if second.kind == "named" or (second.kind == "relation" and second.name == "="):
            return self._same_equations(first, second)
        return self.same(first.parts[0], second)

    def _same_equations(self, first: Node, second: Node) -> bool:
        sides = [_difference(equation) for equation in (first, second)]
        if sides[0] is None or sides[1] is None:
            return False
        return self.proportional(sides[0], sides[1])

    def _same_relation(self, first: Node, second: Node) -> bool:
        if first.name == "=" and second.value is not None and _is_of_letters(first.parts[0]):
            return self.same(first.parts[1], second)
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
        value = first.parts[0]
        if second.kind == "quantity":
            return first.label.agrees_with(second.label) and self.same(value, second.parts[0])
        if not second.is_scalar:
            return False
        if len(first.parts) > 1 and any(map(_is_variable, second.walk())):  # 5m equals 2m + 3m
            return self.same(first.parts[1], second)
        hundredth = product(value, number(Fraction(1, 100)))
        return self.same(value, second) or (first.label.is_percent and self.same(hundredth, second))

    def _same_time(self, first: Node, second: Node) -> bool:
        """3:30 p.m. equals 3:30, but 3 p.m. is not the number 3."""
        if second.kind == "time":
            return first.name == second.name and self._same_parts(first, second)
        if second.kind != "ratio":
            return False
        is_full_hour = all(part.value == 0 for part in second.parts[1:])
        return self.same(first.parts[0], second.parts[0] if is_full_hour else second)

    def _members(self, node: Node) -> list[Node]:
        """The parts; for a set, without repeats."""
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


def _is_of_letters(node: Node) -> bool:
    """Whether a node is a sum of different letters: m + n, but not 2m + n."""
    names = [inner.name for inner in node.walk() if _is_variable(inner)]
    return {inner.kind for inner in node.walk()} == {"symbol", "+"} and len({*names}) == len(names)


def _difference(equation: Node) -> Node | None:
    """The left side minus the right side of an equation between scalars."""
    sides = equation.parts
    if equation.kind == "named":
        sides = (Node("symbol", equation.name), *sides)
    if not all(side.is_scalar for side in sides):
        return None
    return total(sides[0], product(number(-1), sides[1]))


def _union(node: Node) -> Node:
    """The union that inequalities of one variable, joined by "or", describe; or the node."""
    if node.kind != "list" or node.name != "or" or len(set(map(_variable, node.parts))) > 1:
        return node
    intervals = [part for part in map(_interval, node.parts) if part is not None]
    return Node("union", parts=tuple(intervals)) if len(intervals) == len(node.parts) else node


def _point(node: Node) -> Node:
    """The point of a list that names each coordinate by a letter: y = 2, x = 1; or the node."""
    values = {part.name: part.parts[0] for part in node.parts if part.kind == "named"}
    are_letters = all(len(name) == 1 or name[1] == "_" for name in values)
    if node.kind != "list" or len(values) < len(node.parts) or not are_letters:
        return node
    return Node("bracket", "()", tuple(values[name] for name in sorted(values)))


def _variable(node: Node) -> str:
    """The variable of an inequality, such as x in 2 < x; "" if it names none."""
    parts = node.parts if node.kind == "relation" else ()
    return next((part.name for part in parts if _is_variable(part)), "")


def _is_variable(node: Node) -> bool:
    return node.kind == "symbol" and node.name not in _CONSTANTS


def _interval(node: Node) -> Node | None:
    """The interval that inequalities in one variable describe; other nodes are unchanged.

    None for relations that do not describe an interval.
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
