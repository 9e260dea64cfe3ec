r"""Parses an answer: the whole text becomes a tree, or None.

    "x = 3 \text{ or } x = -3" --read--> list(named x: 3, named x: -3)

    answer    [(C)] listing                         a choice's letter and its text
    listing   item ((, | ; | and | or) item)*
    item      [name =] quantity (relation quantity)*
    quantity  [currency] sum (: sum)* [label]       numbers, with units; ratios and times
    sum       term ((+ | - | \pm) term)*
    term      factor ((* | / | nothing) factor)*
    factor    [-] atom [!] [^ factor]
    atom      number, 2 1/2, name, ( ... ), \{ ... \}, ... (see `atoms`)

Parsing takes time linear in the text's length, and the size of numbers is bounded (see `nodes`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from ledom.text.math.atoms import Atoms
from ledom.text.math.nodes import (
    NO_LABEL,
    Node,
    both_signs,
    call,
    number,
    power,
    product,
    quotient,
    total,
    with_sign,
    without_repeats,
)
from ledom.text.math.spelling import GREEK, MAX_CHARS, NotUnderstood, plain_text, text_key
from ledom.text.math.tokens import Token, refuse_dashes, tokens
from ledom.text.math.units import (
    MONEY_SCALES,
    NOT_UNITS,
    ONE_LETTER_UNITS,
    UNIT_SYMBOLS,
    is_unit,
    read_label,
)

__all__ = ["read"]

_SAYS = r"-\s(?=[A-Z][a-z]|the\s|[a-z]{4,}(?:\s|\Z))"  # A - Paris; A - 5 is a difference
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s?\{)?\s?"
    rf"(?:\(?([A-Ja-j])\)|([A-J])(?:[.:](?=\s)|(?=\s{_SAYS})))\s?\}}?[\s:]*(?:{_SAYS})?"
    r"(?!(?<!\s)[-+]|[-+](?!\d)|[*/^_=(<>\s]|(?:and|or)\b)(.+)"
)
_ZERO_AND_DIGIT = re.compile("0[0-9]")
_RELATIONS = {sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=")} | {
    r"\leq": "<=",
    r"\geq": ">=",
    r"\neq": "!=",
    **dict.fromkeys([r"\approx", r"\sim", r"\simeq", r"\cong"], "~"),
    r"\equiv": "==",
    r"\in": "in",
    r"\lt": "<",
    r"\gt": ">",
}
_SEPARATORS = frozenset([",", ";", "and", "or"])
_LABEL_SIGNS = frozenset(["%", "°", "/", "^", "¢"])
_LABEL_WORDS = _LABEL_SIGNS | ONE_LETTER_UNITS | frozenset("23")
_VARIABLES = frozenset("abcxyz")
_SIGNS = frozenset(["+", "-", r"\pm", r"\mp"])
_TIMES = frozenset(["*", r"\cdot", r"\times", r"\ast"])
_OVER = frozenset(["/", r"\div"])


@lru_cache(maxsize=2**16)
def read(answer: str) -> Node | None:
    """Parse an answer into a tree; None unless all of it can be parsed.

    >>> read("1/2").value, read("1/")
    (Fraction(1, 2), None)
    """
    if len(answer) > MAX_CHARS:
        return None
    text = plain_text(answer)
    if choice := _CHOICE.fullmatch(text):  # "(C) 15"
        letter, said = choice[1] or choice[2], choice[3]
        if said.count("}") > said.count("{"):  # \text{(C) 15}
            said = said.removesuffix("}")
        meaning = _read(plain_text(said)) or Node("text", text_key(said))
        if meaning.kind != "symbol" or meaning.name not in "abcdefghij":
            return Node("choice", letter.lower(), (meaning,))
    return _read(text)


def _read(text: str) -> Node | None:
    try:
        reader = _Reader(tokens(text))
        node = reader.listing()
    except NotUnderstood:
        return None
    return None if reader.peek().text else node


class _Reader(Atoms):
    """Parses tokens from left to right; each method consumes the tokens that it parses."""

    def listing(self, *, splits: bool = True) -> Node:
        r"""Items and their separators. One item is not a list; with `splits`, \pm makes two."""
        items, links = [self._item()], set()
        while (separator := self.peek().text) in _SEPARATORS or self._is_compound(items[-1]):
            if separator in _SEPARATORS:
                self.take()
            if separator in (",", ";") and self.peek().text in ("and", "or"):
                separator = self.take().text
            links.add(separator)
            items.append(self._item())
        link = _link(items, links & {"and", "or"})
        if "or" in links:
            items = without_repeats(items)
        if splits:
            items = [signed for item in items for signed in both_signs(item)]
        return items[0] if len(items) == 1 else Node("list", link, tuple(items))

    def _is_compound(self, item: Node) -> bool:
        """Whether a quantity continues with a smaller unit: 5 hours 30 minutes."""
        has_unit = item.kind == "quantity" and bool(item.label.units)
        return has_unit and self.peek().kind == "number" and self.peek(1).kind in ("word", "name")

    def _item(self) -> Node:
        start = self.place
        name = self._subject()
        signs, parts = [], []
        if not name and self.peek().text in _RELATIONS:  # "> 5"
            signs.append(_RELATIONS[self.take().text])
            parts.append(Node("symbol", ""))
        try:
            parts.append(self._quantity())
        except NotUnderstood:
            if name or signs or not (name := self._other_subject(start)):
                raise
            parts.append(self._quantity())
        while self.peek().text in _RELATIONS:
            signs.append(_RELATIONS[self.take().text])
            parts.append(self._quantity())
        if [token.text for token in self.tokens[start : self.place]].count(r"\pm") > 1:
            raise NotUnderstood("two or four values")
        node = _relation(signs, parts) if signs else parts[0]
        return Node("named", name, (node,)) if name else node

    def _subject(self) -> str:
        r"""The name that an item begins with: "x =", "x \in", "f(x) =", "Total area ="; or ""."""
        place, words = self.place, []
        while place < len(self.tokens) and self.tokens[place].kind in ("word", "name"):
            words.append(self.tokens[place].text)
            place += 1
        if not words or (len(words) > 1 and min(map(len, words)) == 1):
            return ""
        if len(words) == 1 and 1 < len(words[0]) < 4 and not words[0].isupper():
            return ""
        rest = [token.text for token in self.tokens[place : place + 3]]
        if len(words[0]) == 1 and rest[:1] == ["("] and rest[2:] == [")"]:
            words[0] += f"({rest[1]})"
            place += 3
        elif len(words[0]) == 1 and rest[:1] == ["_"] and len(rest) > 1 and rest[1] != "{":
            words[0] += f"_{rest[1]}"
            place += 2
        if place >= len(self.tokens) or self.tokens[place].text not in ("=", r"\in"):
            return ""
        self.place = place + 1
        return " ".join(map(self.fold, words))

    def _other_subject(self, start: int) -> str:
        r"""What stands before "=" and is no expression: \angle ABC, f'(2); "" for calculations and
        sentences."""
        depth = 0
        texts: list[str] = []
        for place, token in enumerate(self.tokens[start:], start + 1):
            depth += (token.text == "{") - (token.text == "}")
            is_prose = token.kind == "word" and token.text.isalpha() and token.text[0].islower()
            if is_prose or token.kind == "currency" or (token.kind == "number" and not texts):
                return ""
            if token.text == "=" and depth == 0:
                self.place = place
                return " ".join(texts)
            texts.append(token.text)
        return ""

    def _quantity(self) -> Node:
        sign = ""
        if self.peek().text in ("-", "+") and self.peek(1).kind == "currency":
            sign = self.take().text
        currency = self.take().text if self.peek().kind == "currency" else ""
        self.is_money = bool(currency)
        start = self.place
        parts = [self.union()]
        refuse_dashes(self.tokens[start : self.place])
        while self.accept(":"):
            parts.append(self.union())
        kinds = {"Greek" if t.text in GREEK else t.kind for t in self.tokens[start : self.place]}
        only_letters = {"number", "command"}.isdisjoint(kinds)
        around = {self.peek(start - self.place - 1).text, self.peek().text}
        is_listed = self.place > start + 1 and around <= _SEPARATORS | {""}
        if kinds <= {"name", "word"} and is_listed and self.tokens[start].text.isupper():
            raise NotUnderstood("a sequence or words, not a product: T F T")
        minutes = [token.text for token in self.tokens[start + 1 : self.place]]
        name = "clock" if any(map(_ZERO_AND_DIGIT.fullmatch, minutes)) else ""  # 3:05 is not 3:5
        node = parts[0] if len(parts) == 1 else Node("ratio", name, tuple(parts))
        letter = self.peek()
        pieces = self._label_pieces()
        if not currency and not pieces:
            return node
        scale, label = read_label(pieces, currency)
        if only_letters and (label.words or not label.units):
            raise NotUnderstood("words, not letters: the left side, go right")
        if label.half_of_day:
            is_full_hour = node.kind == "ratio" and all(part.value == 0 for part in node.parts[1:])
            return Node("time", label.half_of_day, (node.parts[0] if is_full_hour else node,))
        if not node.is_scalar:
            raise NotUnderstood("a label")
        factor = number(-scale if sign == "-" else scale)
        node = node if factor.value == 1 else product(factor, node)
        if label == NO_LABEL:
            return node
        as_product = []
        if pieces == [letter.text] and letter.kind == "name" and not letter.spaced:
            # The m of 5m may also be a variable.
            as_product = [product(node, Node("symbol", self.fold(letter.text)))]
        return Node("quantity", parts=(node, *as_product), label=label)

    def _label_pieces(self) -> list[str]:
        pieces: list[str] = []
        while (token := self.peek()).text and not self._ends_label(token):
            self.take()
            if token.text == r"\cdot":
                continue
            if token.text == "^":
                is_braced = self.accept("{")
                sign = "-" if self.accept("-") else ""
                pieces.append(f"^{sign}{self.take().text}")
                if is_braced:
                    self.expect("}")
            else:
                is_symbol = token.quoted and token.text in UNIT_SYMBOLS
                pieces.append(UNIT_SYMBOLS[token.text] if is_symbol else token.text)
        return pieces

    def _ends_label(self, token: Token) -> bool:
        if token.text == r"\cdot":  # kg m
            return not is_unit(self.peek(1).text)
        if token.kind in ("word", "name", "currency"):
            return token.text.lower() in ("and", "or") or token.text in _RELATIONS
        return token.text not in _LABEL_SIGNS or (token.text == "^" and not self.peek(1).text)

    def sum(self) -> Node:
        """Terms joined by signs. Two signs in a row raise `NotUnderstood`, except in 3 + -4i."""
        terms = [self._term()]
        while self.peek().text in _SIGNS:
            sign, following = self.take().text, self.peek().text
            if following in _SIGNS and (sign, following) != ("+", "-"):
                raise NotUnderstood("two signs")
            terms.append(with_sign(sign, self._term()))
        return terms[0] if len(terms) == 1 else total(*terms)

    def _term(self) -> Node:
        node = self.factor()
        divided = False
        while True:
            text = self.peek().text
            if text in _TIMES or self._is_cross():
                self.take()
                node = product(node, self.factor())
            elif text in _OVER and not (self.peek(1).kind == "word" and is_unit(self.peek(1).text)):
                if divided:  # 1/2/3: a date
                    raise NotUnderstood("two divisions")
                self.take()
                node, divided = quotient(node, self.factor()), True
            elif self.starts_atom() and not self._starts_label():
                if divided:  # 1/2x can be read in two ways
                    raise NotUnderstood("a product after a division")
                spaced = text == "(" and self.tokens[self.place].spaced
                following = self.power()
                if spaced and node.value is not None and following.value is not None:
                    raise NotUnderstood("a product or a remark: 7 (3 + 4)")
                node = product(node, following)
            else:
                return node

    def _is_cross(self) -> bool:
        """Whether an "x" multiplies two numbers: 3 x 10^5."""
        before, token, after = map(self.peek, (-1, 0, 1))
        is_spaced = token.spaced and after.spaced
        return token.text == "x" and is_spaced and before.kind == after.kind == "number"

    def _starts_label(self) -> bool:
        """Whether the next token begins a label, although it could begin a factor."""
        token = self.tokens[self.place]
        before = self.tokens[self.place - 1]
        if self.is_money and token.text.lower() in MONEY_SCALES:
            return True
        if token.kind == "name":
            is_letter_unit = (
                token.text in ONE_LETTER_UNITS
                and (token.spaced or self._is_whole_item())
                and self._rest_is_label()
            )
            return before.kind != "name" and (is_letter_unit or token.quoted)
        if token.kind != "word":
            return False
        word = token.text.lower()
        if token.quoted or is_unit(token.text) or word in NOT_UNITS or word == "of":
            return True
        if len(word) > 3 or not word.isascii():  # no product of variables
            return True
        if not token.spaced or not self._rest_is_label():
            return False
        if len(word) == 3:
            return not _VARIABLES.issuperset(word)
        return not (token.text.islower() or token.text.isupper())  # 5 kJ

    def _is_whole_item(self) -> bool:
        """Whether an item is only a number and the next token: 5m, but not y = 5m or 5m + 2."""
        around = {self.peek(-2).text, self.peek(1).text}
        return self.peek(-1).kind == "number" and around <= _SEPARATORS | {""}

    def _rest_is_label(self) -> bool:
        before = ""
        is_power = False  # inside the braces of m^{2}
        for token in self.tokens[self.place + 1 :]:
            text, last, before = token.text, before, token.text
            if text in _SEPARATORS or text in _RELATIONS:
                return True
            if text == "{" and last == "^":
                is_power = True
            elif text == "}" and is_power:
                is_power = False
            elif (text == "-" and last in ("^", "{")) or (text == "1" and last == "-"):
                pass  # s^{-1}
            elif token.kind != "word" and text not in _LABEL_WORDS:
                return text in (")", "]", r"\}", "}")
        return True

    def factor(self) -> Node:
        """A power, with or without a sign."""
        sign = self.take().text if self.peek().text in _SIGNS else "+"
        return with_sign(sign, self.power())

    def power(self) -> Node:
        """An atom with a factorial or an exponent after it."""
        base = self.atom()
        while self.accept("!"):
            if self.peek().text == "!":
                raise NotUnderstood("!!")
            base = call("factorial", base)
        if not self.accept("^"):
            return base
        exponent = self.group() if self.peek().text == "{" else self.factor()
        if self.peek().text in ("^", "!"):
            raise NotUnderstood("two exponents")
        if exponent.value == -1 and base.kind == "symbol" and self.peek().text == "(":
            raise NotUnderstood("an inverse function or a quotient: f^{-1}(3)")
        return power(base, exponent)


def _link(items: list[Node], links: set[str]) -> str:
    """The word between items, "and" or "or"; "" between values, where it makes no difference."""
    if all(item.kind not in ("relation", "symbol") for item in items):
        return ""
    if len(links) > 1:
        raise NotUnderstood("and beside or")
    return "".join(links)


def _relation(signs: list[str], parts: list[Node]) -> Node:
    """A chain of relations, ordered from smaller to larger; "5 = x" names x."""
    if signs == ["="] and parts[1].kind == "symbol" and parts[0].kind != "symbol":
        return Node("named", parts[1].name, (parts[0],))
    is_value = signs == ["="] or (signs == ["~"] and parts[1].kind in ("number", "quantity"))
    if is_value and parts[0].kind == "symbol" and parts[0].name != "pi":
        return Node("named", parts[0].name, (parts[1],)) if parts[0].name else parts[1]
    is_point = parts[0].kind == "bracket" and all(p.kind == "symbol" for p in parts[0].parts)
    if signs == ["="] and parts[1].kind == "bracket" and is_point:  # (x, y) = (1, 2)
        return Node("named", " ".join(part.name for part in parts[0].parts), (parts[1],))
    flips = {">": "<", ">=": "<="}
    if signs[0] in flips:
        signs = [flips.get(sign, sign) for sign in reversed(signs)]
        parts = parts[::-1]
    return Node("relation", " ".join(signs), tuple(parts))
