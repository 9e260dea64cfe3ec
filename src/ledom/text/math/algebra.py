"""Compares expressions with sympy; they are equal if their difference is proved to be zero.

Only the worker of `process` imports this module, because a comparison may take too long. Different
numeric values prove a difference; only simplification proves equality.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy

from ledom.text.math.equality import Comparison
from ledom.text.math.nodes import Node
from ledom.text.math.spelling import words

__all__ = ["Sympy"]

_DIGITS = 40
_POINTS = ((3, 7), (-5, 11), (17, 13))
"""Values (numerator, denominator) of the first variable; each further one has other values."""
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(sympy, name)
        for name in words(
            "sin cos tan cot sec csc sinh cosh tanh exp floor sqrt factorial binomial gcd lcm"
        )
    },
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "cis": lambda angle: sympy.cos(angle) + sympy.I * sympy.sin(angle),
    "ln": sympy.log,
    "abs": sympy.Abs,
    "ceil": sympy.ceiling,
    "max": sympy.Max,
    "min": sympy.Min,
}


class Sympy(Comparison):
    """Compares trees with any scalars."""

    def same_scalars(self, first: Node, second: Node) -> bool:
        """Whether two scalars have the same value at all points.

        >>> from ledom.text.math.expressions import read
        >>> Sympy().same_scalars(read("(x + 1)^2"), read("x^2 + 2x + 1"))
        True
        """
        one, other = _expression(first), _expression(second)
        if one.has(sympy.nan):  # in sympy, nan equals nan, whatever it came from
            return False
        return bool(one == other) or _is_zero(one - other)

    def proportional(self, first: Node, second: Node) -> bool:
        """Whether one scalar is a constant, other than 0, times the other.

        >>> from ledom.text.math.expressions import read
        >>> Sympy().proportional(read("2x + 2"), read("x + 1"))
        True
        """
        one, other = _expression(first), _expression(second)
        if other == 0 or one == 0:
            return bool(one == other)
        ratio = sympy.simplify(one / other)
        return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


def _expression(node: Node) -> Any:
    if node.value is not None:
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.kind == "symbol":
        return _CONSTANTS.get(node.name, sympy.Symbol(node.name))
    parts = [_expression(part) for part in node.parts]
    if node.kind == "call":
        return _call(node.name, parts)
    if node.kind == "/":
        return parts[0] / parts[1]
    return {"+": sympy.Add, "*": sympy.Mul, "^": sympy.Pow}[node.kind](*parts)


def _call(name: str, parts: list[Any]) -> Any:
    if name == "log":  # an unstated base may be 10 or e, so use a symbol that equals neither
        base = sympy.log(parts[1]) if len(parts) > 1 else sympy.Symbol("log base", positive=True)
        return sympy.log(parts[0]) / base
    if name == "root":
        inside, index = parts
        if inside.is_negative and index.is_odd:
            return -sympy.root(-inside, index)
        return sympy.root(inside, index)
    return _FUNCTIONS[name](*parts)


def _is_zero(difference: Any) -> bool:
    if difference.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return False
    if _differs(difference):
        return False
    if sympy.expand(difference) == 0 or sympy.simplify(difference) == 0:
        return True
    return difference.equals(0) is True


def _differs(difference: Any) -> bool:
    """Whether a difference is non-zero at one of the points."""
    symbols = sorted(difference.free_symbols, key=str)
    for over, under in _POINTS if symbols else _POINTS[:1]:
        values = {s: sympy.Rational(over + 2 * i, under) for i, s in enumerate(symbols)}
        value = sympy.N(difference.subs(values), _DIGITS)
        if value.is_number and value.is_finite and sympy.Abs(value) > sympy.Float("1e-25"):
            return True
    return False
