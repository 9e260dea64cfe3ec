"""Parses the words after a number: "12 eggs", "$3 million", "60 km/h", "3 p.m.", "50 %".

A label consists of units, which this module lists, and other words. Two labels agree unless both
have units that differ, or they count different things. A word that would change the value ("5
thirds", "5 or so") is not a label and raises `NotUnderstood`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ledom.text.math.in_text import DENOMINATORS, SPELLED
from ledom.text.math.spelling import NotUnderstood, fold_case, words

__all__ = [
    "MONEY_SCALES",
    "NOT_UNITS",
    "ONE_LETTER_UNITS",
    "UNIT_SYMBOLS",
    "Label",
    "is_unit",
    "read_label",
]

ONE_LETTER_UNITS = frozenset("ghlLms")
"""All other single letters are variables: 4 x, 2 n."""
_SYMBOL_NAMES = "newton joule watt volt ampere kelvin coulomb tesla farad henry"
UNIT_SYMBOLS = dict(zip("NJWVAKCTFH", _SYMBOL_NAMES.split(), strict=True))
r"""Letters that are units only inside \text: 5\text{ N}."""

NOT_UNITS = words(  # a number followed by one of these is not the whole value
    "am pm pi sqrt sin cos tan log ln exp mod and or to plus minus times over squared cubed "
    "factorial inverse reciprocal repeating recurring modulo choose base than least score gross "
    "tens half halves third thirds fourths fifths sixths sevenths eighths ninths tenths "
    "elevenths twelfths twentieths hundredths thousandths millionths doubled tripled "
    "right most below above under except if not negative past noon midnight january "
    "february march april may june july august september october november december "
    "grand mil mille tausend millones milhões millionen milyon mio juta ribu "
    "drittel viertel fünftel sechstel achtel zehntel cinquièmes dixièmes tercios quintos "
    "milliard milliards milliarde milliarden milliardi mrd тыс тысяча тысячи тысяч миллион "
    "миллиона миллионов млн миллиард миллиарда миллиардов млрд"
)
_SCALE_OR_LIMIT = re.compile(
    "[万萬亿億兆千百十半成折月日号號만억천백십]|以|左右|多|余|分之|이상|이하"
)
"""Chinese, Japanese and Korean, whose words are not separated: 5万人, 5个以上."""
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "lac": 10**5,
    "million": 10**6,
    "mln": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "bln": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
}
MONEY_SCALES = {"k": 10**3, "b": 10**9, "bn": 10**9, "tn": 10**12, "cr": 10**7}
MONEY_SCALES |= dict.fromkeys(["m", "mm", "mn"], 10**6)
"""The factors of letters after an amount of money: $5k."""
_STOP_WORDS = words(
    "of the a an in on at by for from with is are was total altogether left remaining "
    "each every per his her their its all"
)
_PER = words("/ per a an each every")
_AFTER_TIMES = ("", "per", "each", "every")  # 5 times, 5 times per day; 5 times a is a product
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_NAMES = """
% percent pct, dozen, unit, ordinal th
dollar $ us$ usd buck, cent ¢, euro € eur, pound-sterling £ gbp quid, yen ¥ jpy, rupee ₹ rs inr
won ₩ krw, peso ₱, brazilian-real r$ reais, ruble ₽ руб рублей рубля рубль, lira ₺, naira ₦
shekel ₪, hryvnia ₴, baht ฿, dong ₫
bit, byte, kilobit Kb, megabit Mb, gigabit Gb, kilobyte kb, megabyte mb, gigabyte gb, terabyte tb
milliwatt mW, kilowatt kw, megawatt MW, gigawatt gw, newton, joule, watt, volt, ampere amp, kelvin
coulomb, tesla, farad, henry, ohm, pascal, mole mol, millivolt mV, kilovolt kv, megavolt MV
milliamp mA milliampere, hertz hz, kilohertz khz, megahertz MHz mhz, gigahertz ghz
degree ° deg, celsius °c, fahrenheit °f, radian rad
meter m metre, kilometer km kilometre, decimeter dm decimetre, centimeter cm centimetre
millimeter mm millimetre, inch in inches, foot ft feet, yard yd, mile mi
gram g gm gramme, kilogram kg kilo kilogramme, milligram mg, pound, pound-weight lb, ounce oz
ton tonne
liter l litre, milliliter ml millilitre, tablespoon tbsp, teaspoon tsp, gallon gal, quart qt
pint pt
second s sec, minute min, hour h hr, day, week wk, month, year yr
"""
"""Units with their other names, by what they measure."""
_UNIT_OF = {name: unit.split()[0] for unit in re.split("[,\n]", _NAMES) for name in unit.split()}
_COMPOUND = {
    "mph": {"mile": 1, "hour": -1},
    "kmh": {"kilometer": 1, "hour": -1},
    "kph": {"kilometer": 1, "hour": -1},
    "kmph": {"kilometer": 1, "hour": -1},
    "mps": {"meter": 1, "second": -1},
}
_EXPONENT = re.compile(r"\^(-?\d)")
_POWERS_AFTER = {"squared": "^2", "cubed": "^3"}


@dataclass(frozen=True, slots=True)
class Label:
    """The units and words written with a number.

    >>> Label(frozenset({("pm", 1)})).half_of_day, Label(frozenset({("%", 1)})).is_percent
    ('pm', True)
    """

    units: frozenset[tuple[str, int]] = frozenset()
    """Units with their powers: km/h is kilometer 1, hour -1."""
    words: frozenset[str] = frozenset()
    head: str = ""
    """The word that names what is counted: 5 red *bags* of apples."""

    def agrees_with(self, other: Label) -> bool:
        """Whether both can describe the same quantity.

        >>> meters, hours = (Label(frozenset({(unit, 1)})) for unit in ("meter", "hour"))
        >>> meters.agrees_with(Label()), meters.agrees_with(hours)
        (True, False)
        """
        if not _same_units(self.units, other.units):
            return not (self.units | self.words and other.units | other.words)
        if not (self.words and other.words):
            return True
        is_detailed = self.words <= other.words or self.words >= other.words
        return self.head == other.head and is_detailed

    @property
    def half_of_day(self) -> str:
        """The unit "am" or "pm"; "" if there is neither."""
        return next((name for name, _ in self.units if name in ("am", "pm")), "")

    @property
    def is_percent(self) -> bool:
        """Whether the only unit is percent."""
        return self.units == frozenset({("%", 1)})


def _same_units(one: frozenset[tuple[str, int]], other: frozenset[tuple[str, int]]) -> bool:
    """Whether units are the same; a pound may be money or a weight."""
    if any(name == "pound" for name, _ in one | other):
        one, other = (
            frozenset((name.partition("-")[0], power) for name, power in each)
            for each in (one, other)
        )
    return one == other


def is_unit(word: str) -> bool:
    """Whether a word is the name of a unit, a scale, or half of a day.

    >>> is_unit("km"), is_unit("apples")
    (True, False)
    """
    word, lower = fold_case(word), word.lower()
    if len(word) > 1 and word != lower:  # MJ
        return True
    return bool(_unit(word)) or bool(_scale(word)) or word in _POWERS or word in ("am", "pm")


def _unit(word: str) -> dict[str, int]:
    if word in _COMPOUND:
        return _COMPOUND[word]
    name = _UNIT_OF.get(word) or _UNIT_OF.get(word.removesuffix("s"))
    return {name: 1} if name else {}


def _scale(word: str) -> int | None:
    return _SCALES.get(word) or _SCALES.get(word.removesuffix("s"))


def read_label(pieces: Sequence[str], currency: str = "") -> tuple[int, Label]:
    """Read the factor and the label from the words after a number and the currency before it.

    Raises `NotUnderstood` for words that are not a label.

    >>> read_label(["km"])[1].units
    frozenset({('kilometer', 1)})
    """
    rest = [fold_case(piece.strip(".'’")) or piece for piece in pieces]
    scale = 1
    if rest and currency and rest[0].lower() in MONEY_SCALES:
        scale = MONEY_SCALES[rest.pop(0).lower()]
    while rest and (factor := _scale(rest[0])):
        scale *= factor
        rest.pop(0)
    if rest and rest[0] in ("am", "pm"):
        if rest[1:] or currency or scale != 1:
            raise NotUnderstood(rest[-1])
        return 1, Label(frozenset({(rest[0], 1)}))
    units = Counter(_unit(currency.lower()))
    reader = _LabelReader(units)
    for word, following in zip_longest(rest, rest[1:], fillvalue=""):
        reader.add(word, following)
    if currency and units[_UNIT_OF[currency.lower()]] > 1:  # "$5 dollars"
        units[_UNIT_OF[currency.lower()]] = 1
    if units["celsius"] or units["fahrenheit"]:
        units["degree"] = 0
    known = frozenset((name, count) for name, count in units.items() if count)
    return scale, Label(known, frozenset(reader.words), reader.head)


class _LabelReader:
    """Adds the units among the words of a label to `units`, and collects its other words."""

    def __init__(self, units: Counter[str]) -> None:
        self.units = units
        self.words: set[str] = set()
        self.head = ""
        self._has_head = False
        self._sign, self._power, self._last = 1, 1, ""

    def add(self, word: str, following: str) -> None:
        """The next word, and the one after it."""
        if self._last:  # meters per second squared
            word = _POWERS_AFTER.get(word, word)
        if word == "in" and following and not following.startswith("^"):
            self._has_head = bool(self.words)
        elif word in _PER and (self.units or word in ("/", "per")):
            self._sign = -1
        elif word in _POWERS:
            self._power = _POWERS[word]
        elif exponent := _EXPONENT.fullmatch(word):
            if not self._last:
                raise NotUnderstood(word)
            self.units[self._last] *= int(exponent[1])
        elif not self._add_unit(word):
            self._add_word(word, following)

    def _add_unit(self, word: str) -> bool:
        found = _unit("°" + word if self._last == "degree" and word in "cf" else word)
        for name, count in found.items():
            self.units[name] += self._sign * self._power * count
            self._last = name
        if found:
            self._power = 1
        return bool(found)

    def _add_word(self, word: str, following: str) -> None:
        if word in _STOP_WORDS:
            self._has_head = bool(self.words)  # "5 bags of"
        elif _changes_value(word, following):
            raise NotUnderstood(word)
        else:
            plain = word if len(word) < 4 else word.removesuffix("s")
            self.words.add(plain)
            self.head = self.head if self._has_head else plain


def _changes_value(word: str, following: str) -> bool:
    """Whether a word after a number may make it another number, as variables and fractions do."""
    is_variable = len(word) == 1 and word.isascii() and word not in ONE_LETTER_UNITS
    return (
        is_variable
        or not word[:1].isalpha()
        or not SPELLED.keys().isdisjoint(word.split("-"))
        or (word in NOT_UNITS and not (word == "times" and following in _AFTER_TIMES))
        or _scale(word) is not None
        or bool(_SCALE_OR_LIMIT.search(word))
        or _is_denominator(word, following)
    )


def _is_denominator(word: str, following: str) -> bool:
    """Whether a word makes a fraction of the number before it: 3 sixteenths, but 5 fourth graders.

    A quarter is a coin.
    """
    name = word.rpartition("-")[2]
    part = name.removesuffix("s")
    return part in DENOMINATORS.keys() - {"quarter"} and (part != name or following in ("", "of"))
