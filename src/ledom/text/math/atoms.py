r"""Parses atoms: numbers, names, brackets, fractions, roots, functions, matrices.

The lower half of the grammar in `expressions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from ledom.text.math.nodes import Node, call, number, numeral, power, product, quotient, total
from ledom.text.math.spelling import GREEK, NotUnderstood, words
from ledom.text.math.tokens import FUNCTIONS, Token
from ledom.text.math.units import NOT_UNITS, is_unit

__all__ = ["Atoms"]

MAX_DEPTH = 30
"""The deepest nesting of brackets that is parsed."""

_CONSTANTS = {r"\pi": "pi", r"\infty": "oo", r"\imath": "i"}
_BRACKETS = {"(": ")", "[": "]"}
_BETWEEN_ITEMS = frozenset(["", ",", ";", "and", "or", "(", ")", "[", "]", r"\{", r"\}"])
_FENCES = {
    r"\lfloor": (r"\rfloor", "floor"),
    r"\lceil": (r"\rceil", "ceil"),
    r"\lvert": (r"\rvert", "abs"),
    "|": ("|", "abs"),
}
_FONTS = frozenset([r"\vec", r"\hat", r"\mathcal"])
_NO_TOKEN = Token("", "")
_FUNCTIONS = FUNCTIONS - {"sqrt"}
_STARTS = _FUNCTIONS | _FONTS | words(r"( \frac \binom \sqrt sqrt \pi \lfloor \lceil \lvert \begin")
_INVERTED = frozenset(["sin", "cos", "tan"])  # \sin^{-1} x is the arcsine, never 1 / \sin x
_MAYBE_FUNCTIONS = words("f g h phi varphi sigma tau mu psi zeta Gamma Phi Psi Lambda")
_MATRICES = {
    **dict.fromkeys(["pmatrix", "bmatrix", "matrix", "smallmatrix"], "()"),
    "vmatrix": "||",
    "Bmatrix": "{}",
}


class Atoms(ABC):
    """A parser's position in the tokens, with the methods that parse atoms."""

    def __init__(self, found: list[Token]) -> None:
        self.tokens = found
        self.place = 0
        self.is_money = False
        self._depth = 0
        named = [t.text for t in found if t.kind in ("name", "word")]
        letters = {c for text in named if text not in ("and", "or") for c in text}
        self._has_both_cases = any(c.isupper() and c.lower() in letters for c in letters)

    @abstractmethod
    def listing(self, *, splits: bool = True) -> Node:
        """Items and their separators."""

    @abstractmethod
    def sum(self) -> Node:
        """Terms joined by signs."""

    @abstractmethod
    def power(self) -> Node:
        """An atom with its exponent."""

    def peek(self, ahead: int = 0) -> Token:
        """The token `ahead` positions after the next one; an empty token outside the text."""
        place = self.place + ahead
        return self.tokens[place] if 0 <= place < len(self.tokens) else _NO_TOKEN

    def take(self) -> Token:
        """Consume the next token."""
        token = self.peek()
        if token is _NO_TOKEN:
            raise NotUnderstood("the end")
        self.place += 1
        return token

    def accept(self, text: str) -> bool:
        """Consume the next token if it has this text; returns whether it does."""
        found = self.peek().text == text
        self.place += found
        return found

    def expect(self, text: str) -> None:
        """Consume the next token, which must have this text."""
        if self.take().text != text:
            raise NotUnderstood(f"no {text}")

    def fold(self, name: str) -> str:
        """A variable's name in lower case; unchanged if the answer has a letter in both cases, or
        if it is E, I or a Greek letter."""
        keeps_case = self._has_both_cases or name in ("E", "I") or name in GREEK
        return name if keeps_case else name.lower()

    def starts_atom(self) -> bool:
        """Whether the next token can begin a factor without a multiplication sign before it."""
        token = self.peek()
        if token.kind == "number":  # 3!7!
            return self.peek(-1).text == "!" and not token.spaced
        return token.text not in ("and", "or") and (
            token.kind in ("name", "word") or token.text in _STARTS
        )

    # ---- containers ----

    def union(self) -> Node:
        r"""A sum, or sets joined by \cup."""
        parts = [self.sum()]
        while self.accept(r"\cup"):
            parts.append(self.sum())
        if len(parts) == 1:
            return parts[0]
        if not all(part.kind in ("bracket", "set") for part in parts):
            raise NotUnderstood("a union of values that are not sets")
        return Node("union", parts=tuple(parts))

    def _bracket(self, opening: str) -> Node:
        inside = self.listing(splits=False)
        closing = self.take().text
        if closing not in _BRACKETS.values():
            raise NotUnderstood("no closing bracket")
        brackets = opening + closing
        if inside.kind != "list":
            if brackets not in ("()", "[]") or (brackets == "()" and inside.kind == "relation"):
                raise NotUnderstood("one value in brackets")
            return inside if brackets == "()" else Node("bracket", brackets, (inside,))
        return Node("bracket", brackets, inside.parts)

    def _matrix(self) -> Node:
        name = self._braced().text
        if name not in _MATRICES:
            raise NotUnderstood(name)
        rows: list[Node] = []
        while not (rows and self.accept(r"\end")):
            cells = [self.sum()]
            while self.accept("&"):
                cells.append(self.sum())
            rows.append(Node("row", parts=tuple(cells)))
            if not self.accept(r"\\") and self.peek().text != r"\end":
                raise NotUnderstood("a matrix")
        if self._braced().text != name:
            raise NotUnderstood("a matrix")
        return Node("matrix", _MATRICES[name], tuple(rows))

    def _braced(self) -> Token:
        self.expect("{")
        token = self.take()
        self.expect("}")
        return token

    # ---- scalars ----

    def group(self) -> Node:
        r"""An argument of a command: {...}, or the atom after it."""
        if not self.accept("{"):
            return self.atom()
        node = self.sum()
        self.expect("}")
        return node

    def atom(self) -> Node:
        """The smallest part that has a value."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotUnderstood("too deep")
        node = self._atom(self.take())
        self._depth -= 1
        return node

    def _atom(self, token: Token) -> Node:
        if token.kind == "number":
            return self._number(token)
        if token.kind == "name":
            return self._name(token)
        if token.kind == "word":
            return self._letters(token)
        if token.text in _BRACKETS:
            return self._bracket(token.text)
        if token.text == r"\{":
            inside = self.listing()
            self.expect(r"\}")
            return Node("set", parts=inside.parts if inside.kind == "list" else (inside,))
        if token.text == "{":
            inside = self.listing(splits=False)
            self.expect("}")
            return inside
        if token.text in _FENCES:
            closing, name = _FENCES[token.text]
            inside = self.sum()
            self.expect(closing)
            return call(name, inside)
        return self._command(token.text)

    def _command(self, name: str) -> Node:
        if name in _CONSTANTS:
            return Node("symbol", _CONSTANTS[name])
        if name in _FUNCTIONS:
            return self._function(name)
        if name in _FONTS:
            return self._styled(name)
        if name not in _COMMANDS:
            raise NotUnderstood(name)
        return _COMMANDS[name](self)

    def _fraction(self) -> Node:
        return quotient(self._digit_or_group(), self._digit_or_group())

    def _binomial(self) -> Node:
        return call("binomial", self._digit_or_group(), self._digit_or_group())

    def _reals(self) -> Node:
        if self._braced().text != "R":
            raise NotUnderstood("other numbers than the reals")
        infinity = Node("symbol", "oo")
        return Node("bracket", "()", (product(number(-1), infinity), infinity))

    def _styled(self, font: str) -> Node:
        """A letter in a font that tells it from others: a vector is not its length."""
        letter = self._braced()
        if letter.kind != "name":
            raise NotUnderstood(font)
        return Node("symbol", f"{font} {letter.text}")

    def _number(self, token: Token) -> Node:
        node = numeral(token.text)
        if not token.text.isdigit() or self._is_argument():
            return node
        fraction = self._proper_fraction()
        return total(node, fraction) if fraction else node

    def _is_argument(self) -> bool:
        r"""Whether the number just consumed belongs to the preceding text: x^2\frac{1}{2}."""
        signed = self.peek(-2).text in ("+", "-")
        return self.peek(-2 - signed).text in ("^", r"\sqrt", "sqrt")

    def _proper_fraction(self) -> Node | None:
        r"""The fraction of a mixed number, 2 1/2 or 2\frac{1}{2}; None without one."""
        start = self.place
        over, slash, under = map(self.peek, range(3))
        if over.kind == under.kind == "number" and slash.text == "/":
            digits = over.text, under.text
            self.place += 3
        elif self.accept(r"\frac"):
            digits = self._digit_text(), self._digit_text()
        else:
            return None
        if not all(text.isdigit() for text in digits):
            self.place = start
            return None
        if int(digits[0]) >= int(digits[1]):
            raise NotUnderstood("a mixed number whose fraction is improper")
        return quotient(number(int(digits[0])), number(int(digits[1])))

    def _digit_text(self) -> str:
        """The digits of an argument that is a plain number; "" for other arguments."""
        try:
            if not self.accept("{"):
                return self._digit().text
            text = self.take().text
            return text if self.take().text == "}" else ""
        except NotUnderstood:
            return ""

    def _digit(self) -> Token:
        r"""Consume only the first digit of the next number: \frac12 is 1/2."""
        token = self.take()
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self.place -= 1
            rest = replace(token, text=token.text[1:], spaced=False)
            self.tokens[self.place : self.place + 1] = [replace(token, text=token.text[0]), rest]
            return self.take()
        return token

    def _digit_or_group(self) -> Node:
        if self.peek().kind == "number":
            return numeral(self._digit().text)
        return self.group()

    def _name(self, token: Token) -> Node:
        name = self.fold(token.text)
        if self.accept("_"):
            name += f"_{self._subscript()}"
        if self.peek().text == "(" and (token.text in _MAYBE_FUNCTIONS or token.text.isupper()):
            raise NotUnderstood("a function or a product: f(2), P(A)")
        return Node("symbol", name)

    def _subscript(self) -> str:
        token = self.take()
        if token.text != "{":
            if token.kind not in ("number", "name"):
                raise NotUnderstood("a subscript")
            return token.text
        texts = []
        while (token := self.take()).text != "}":
            if token.kind == "command" or token.text in ("{", "_", "^"):
                raise NotUnderstood("a subscript")
            texts.append(token.text)
        return "".join(texts)

    def _letters(self, token: Token) -> Node:
        """A product of adjacent variables, as in 2xy; words are not understood."""
        word = token.text
        is_short = len(word) <= 3 and word.isalpha() and word.isascii()
        is_alone = {self.peek(-2).text, self.peek().text} <= _BETWEEN_ITEMS
        if token.quoted or is_alone or not is_short or word.lower() in NOT_UNITS or is_unit(word):
            raise NotUnderstood(word)
        letters = [Node("symbol", self.fold(letter)) for letter in word]
        if self.peek().text == "^":  # ab^2
            self.tokens.insert(self.place, replace(token, kind="name", text=word[-1]))
            letters[-1] = self.power()
        return product(*letters)

    def _root(self) -> Node:
        if not self.accept("["):
            return call("sqrt", self.group())
        index = self.sum()
        self.expect("]")
        return call("root", self.group(), index)

    def _function(self, name: str) -> Node:
        exponent, base = None, None
        if name == "log" and self.accept("_"):
            base = self._digit_or_group()
        if self.accept("^"):
            exponent = self.group()
            if exponent.value == -1 and name in _INVERTED:
                name, exponent = f"arc{name}", None
            elif exponent.value is None or exponent.value <= 0:
                raise NotUnderstood("an exponent of a function")
        is_bracketed = self.peek().text == "("
        value = call(name, *self._arguments(), *([base] if base else []))
        if self.peek().text == ("^" if is_bracketed else "/"):  # sin(x)^2, sin x/2
            raise NotUnderstood("a function's value or its argument, read in two ways")
        return power(value, exponent) if exponent else value

    def _arguments(self) -> tuple[Node, ...]:
        if self.peek().text == "(":
            node = self.atom()
            arguments = node.parts if node.kind == "bracket" else (node,)
        else:
            node = self.power()
            while self.starts_atom() and self.peek().text not in _FUNCTIONS:
                node = product(node, self.power())
            arguments = (node,)
        return (_degrees(node),) if self.accept("°") else tuple(map(_radians, arguments))


_COMMANDS: dict[str, Callable[[Atoms], Node]] = {
    r"\frac": Atoms._fraction,
    r"\binom": Atoms._binomial,
    r"\sqrt": Atoms._root,
    "sqrt": Atoms._root,
    r"\emptyset": lambda _: Node("set"),
    r"\begin": Atoms._matrix,
    r"\mathbb": Atoms._reals,
}


def _degrees(angle: Node) -> Node:
    """Convert an angle from degrees to radians."""
    return quotient(product(angle, Node("symbol", "pi")), number(180))


def _radians(argument: Node) -> Node:
    """Convert an argument to radians if its unit is the degree; others are unchanged."""
    in_degrees = argument.kind == "quantity" and argument.label.units == {("degree", 1)}
    return _degrees(argument.parts[0]) if in_degrees else argument
