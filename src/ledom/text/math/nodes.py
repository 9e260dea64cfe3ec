r"""The tree of a parsed answer, with exact numbers.

Nodes are built by the functions below, which evaluate immediately: an expression of only numbers is
a number. They raise `NotUnderstood` for a value that is too large to write out or undefined (1/0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from ledom.text.math.spelling import NotUnderstood
from ledom.text.math.units import Label

__all__ = [
    "NO_LABEL",
    "Node",
    "both_signs",
    "call",
    "number",
    "numeral",
    "power",
    "product",
    "quotient",
    "total",
    "with_sign",
    "without_repeats",
]

MAX_BITS = 20_000
"""Numerators and denominators beyond this limit are not computed."""

MAX_FACTORIAL = 1_000
"""Factorials of numbers beyond this limit are not computed."""

_NUMERAL = re.compile(
    r"(?P<whole>[0-9,‚]*)(?:\.(?P<decimals>[0-9]*))?"
    r"(?:(?:\\(?:overline|bar)\s?\{|\()(?P<repeating>[0-9]+)[)}])?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+))?"
)

_MAYBE_E = re.compile(r"(?!1e)[0-9]+e[+-](?!0)[0-9]+")
"""2e-1 may be 0.2, or 2 times e minus 1; 2e-05 is a number."""

NO_LABEL = Label()


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an answer.

    >>> Node("+", parts=(Node("symbol", "x"), number(1))).parts[1].value
    Fraction(1, 1)
    """

    kind: str
    """number, symbol, +, *, /, ^, pm, call; quantity, named, relation, ratio; list, set, union,
    bracket, matrix, row, time, choice, or the text of a choice."""
    name: str = ""
    """A symbol's or function's name, a relation's signs, a bracket's two brackets, a text, a
    choice's letter, "and" or "or" of a list where it makes a difference."""
    parts: tuple[Node, ...] = ()
    value: Fraction | None = None
    """The value of a number."""
    label: Label = NO_LABEL
    """The label of a quantity."""

    def walk(self) -> Iterator[Node]:
        """This node and all nodes below it.

        >>> [node.kind for node in total(number(2), Node("symbol", "x")).walk()]
        ['+', 'number', 'symbol']
        """
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def is_scalar(self) -> bool:
        """Whether the node is a number or an expression.

        >>> number(2).is_scalar, Node("set", parts=(number(2),)).is_scalar
        (True, False)
        """
        return self.kind in ("number", "symbol", "+", "*", "/", "^", "pm", "call")


def number(value: Fraction | int) -> Node:
    """An exact number.

    >>> number(2).value
    Fraction(2, 1)
    """
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotUnderstood("a number too large")
    return Node("number", value=value)


def numeral(text: str) -> Node:
    r"""The number in a numeral such as 1,200.5, 0.\overline{36}, 2e-3 or 4210_{5}.

    >>> numeral("1,200.5").value
    Fraction(2401, 2)
    """
    digits, _, base = text.partition("_")
    if base:
        whole, _, decimals = digits.strip().replace("‚", "").partition(".")
        try:
            radix = int(base.strip(" {}"))
            return number(Fraction(int(whole + decimals, radix), radix ** len(decimals)))
        except (ValueError, ZeroDivisionError) as error:
            raise NotUnderstood(text) from error
    match = _NUMERAL.fullmatch(text)
    if match is None or _MAYBE_E.fullmatch(text):
        raise NotUnderstood(text)
    whole, decimals = re.sub("[,‚]", "", match["whole"]), match["decimals"] or ""
    value = Fraction(int((whole + decimals) or "0"), 10 ** len(decimals))
    if repeating := match["repeating"]:
        value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10 ** len(decimals))
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > MAX_BITS // 4:
        raise NotUnderstood(text)
    return number(value * Fraction(10) ** exponent)


def _operands(parts: tuple[Node, ...]) -> list[Fraction] | None:
    """The values of parts if all are numbers, else None; raises an error for a non-scalar."""
    for part in parts:
        if not part.is_scalar:
            raise NotUnderstood(part.kind)
    values = [part.value for part in parts if part.value is not None]
    return values if len(values) == len(parts) else None


def total(*parts: Node) -> Node:
    """A sum.

    >>> total(number(1), number(2)).value
    Fraction(3, 1)
    """
    values = _operands(parts)
    return Node("+", parts=parts) if values is None else number(sum(values, Fraction(0)))


def product(*parts: Node) -> Node:
    """A product of scalars, or of a scalar and a matrix.

    >>> product(number(2), number(3)).value
    Fraction(6, 1)
    """
    last = parts[-1]
    if last.kind == "row" or (last.kind == "matrix" and last.name == "()"):
        return replace(last, parts=tuple(product(*parts[:-1], cell) for cell in last.parts))
    values = _operands(parts)
    if values is not None:
        return number(math.prod(values))
    first = parts[0].parts if parts[0].kind == "*" else parts[:1]  # keeps long products flat
    return Node("*", parts=(*first, *parts[1:]))


def with_sign(sign: str, node: Node) -> Node:
    r"""A scalar or matrix after +, -, \pm or \mp.

    >>> with_sign("-", number(2)).value
    Fraction(-2, 1)
    """
    if sign == "+":
        return node
    if sign == "-":
        return product(number(-1), node)
    return product(number(1 if sign == r"\pm" else -1), Node("pm"), node)


def quotient(over: Node, under: Node) -> Node:
    """A fraction.

    >>> quotient(number(1), number(2)).value
    Fraction(1, 2)
    """
    if under.value == 0:
        raise NotUnderstood("a division by zero")
    if under.kind == "*" and _begins_with_d(under) and _begins_with_d(over):
        raise NotUnderstood("a derivative")
    values = _operands((over, under))
    return Node("/", parts=(over, under)) if values is None else number(values[0] / values[1])


def _begins_with_d(node: Node) -> bool:
    """Whether it may be the numerator or denominator of a derivative: d, dy, d^2y."""
    while node.kind in ("*", "^"):
        node = node.parts[0]
    return node.kind == "symbol" and node.name == "d"


def power(base: Node, exponent: Node) -> Node:
    """A power; a number's power is computed if the exponent is whole.

    >>> power(number(2), number(10)).value
    Fraction(1024, 1)
    """
    values = _operands((base, exponent))
    if values is None or exponent.value is None or exponent.value.denominator != 1:
        return Node("^", parts=(base, exponent))
    value, times = values[0], int(values[1])
    if value == 0 and times <= 0:
        raise NotUnderstood("a power of zero")
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if abs(value) not in (0, 1) and abs(times) * (bits - 1) > MAX_BITS:
        raise NotUnderstood("a power too large")
    if abs(value) == 1:
        times %= 2
    return number(value**times)


_BUILDERS: dict[str, Callable[..., Node]] = {"+": total, "*": product, "/": quotient, "^": power}


_EXACT: dict[str, Callable[[Fraction], Fraction | int]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
}


def call(name: str, *parts: Node) -> Node:
    """A function of its arguments; computed for numbers if the value is an exact number.

    >>> call("sqrt", number(9)).value
    Fraction(3, 1)
    """
    values = _operands(parts)
    if values is None:
        return Node("call", name, parts)
    value = values[0]
    if name == "factorial":
        if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
            raise NotUnderstood("a factorial")
        return number(math.factorial(int(value)))
    if name in _EXACT:
        return number(_EXACT[name](value))
    if name == "sqrt" and len(parts) == 1 and value >= 0:
        root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
        if root * root == value:
            return number(root)
    return Node("call", name, parts)


def both_signs(node: Node) -> list[Node]:
    r"""The two values of a tree with \pm: with + everywhere, and with - everywhere.

    >>> [signed.value for signed in both_signs(product(Node("pm"), number(3)))]
    [Fraction(3, 1), Fraction(-3, 1)]
    """
    has_both = any(part.kind == "pm" for part in node.walk())
    return [_signed(node, sign) for sign in (1, -1)] if has_both else [node]


def _signed(node: Node, sign: int) -> Node:
    if node.kind == "pm":
        return number(sign)
    parts = tuple(_signed(part, sign) for part in node.parts)
    build = _BUILDERS.get(node.kind)
    return build(*parts) if build else replace(node, parts=parts)


def without_repeats(items: list[Node]) -> list[Node]:
    """The alternatives, each value once: 1/2 or 0.5, or 50%.

    >>> without_repeats([number(2), number(2)])[0].value
    Fraction(2, 1)
    """
    found: dict[Node, Node] = {}
    for item in items:
        is_percent = item.kind == "quantity" and item.label.is_percent
        value = product(number(Fraction(1, 100)), item.parts[0]) if is_percent else item
        found[value] = item if is_percent else found.get(value, item)  # 50% equals more than 0.5
    return [*found.values()]
