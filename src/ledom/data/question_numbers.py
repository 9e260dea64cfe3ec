"""Tells which numbers of a question may be changed, and which a solution may use.

A number in a solution may be one of the question's or mean something else: a 12 may be a dozen.
This module looks only at the numbers of problems and solutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain

from ledom.text.math.in_text import ORDINALS, SPELLED

__all__ = ["IN_QUESTION", "NUMBER", "changeable"]

NUMBER = re.compile(r"\d+(?:\.\d+)?")
IN_QUESTION = re.compile(r"(?<![\w.:/^])\d+(?:\.\d+)?(?![\w:/]|\.\d)")
"""A number that stands alone: not part of 3/4, 4:3, 5th or 2.50/pound."""
_ALONE_OR_EXPONENT = re.compile(rf"{IN_QUESTION.pattern}|\^\d+")

# Numbers that a word of the question may mean, besides the number that it spells.
_MEANINGS = {
    "0.25": r"quarters?|fourths?",
    "0.5": r"half|halves",
    "0.75": r"quarters|fourths",
    "1": r"a|an|each|once|next|last|first|himself|herself|penny|pennies",
    "1.5": r"half",
    "2": r"twice|doubl\w+|half|halves|halved|pairs?|couples?|both|twins?|second|yards?|quarts?"
    r"|weekends?|parents|husband|wife|back|way|round|perimeters?|rectang\w+",
    "3": r"tripl\w+|thrice|yards?|feet|foot",
    "4": r"quadrupl\w+|quarters?|weeks?|months?|gallons?|seasons?",
    "5": r"nickels?|weekdays?",
    "7": r"weeks?|weekly|days?|daily",
    "8": r"gallons?|pints?|cups?",
    "10": r"dimes?|decades?",
    "12": r"dozens?|years?|yearly|months?|monthly|foot|feet|inches|noon|midnight",
    "14": r"fortnights?",
    "15": r"quarters?",
    "16": r"ounces?|pounds?|gallons?|cups?",
    "20": r"scores?",
    "24": r"hours?|days?",
    "25": r"quarters?",
    "30": r"days?|months?|half",
    "31": r"january|march|may|july|august|october|december",
    "36": r"yards?|inches",
    "50": r"half",
    "52": r"years?|weeks?|weekly",
    "60": r"hours?|minutes?|seconds?",
    "100": r"percent|cents?|meters?|dollars?|century|centuries",
    "128": r"gallons?|ounces?",
    "180": r"degrees?|triangles?",
    "360": r"degrees?|circles?",
    "365": r"years?|days?",
    "1000": r"kilo\w+|k[mg]|m[lgm]|milli\w+|grams?|liters?|meters?|tons?",
    "2000": r"tons?|pounds?",
    "5280": r"miles?|feet",
}
_SPELLED = SPELLED | ORDINALS
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
_WORD = rf"(?:{'|'.join([*_SPELLED, *_SCALES])})s?"
_SPELLED_OUT = re.compile(rf"\b{_WORD}(?:(?:[ -]| and ){_WORD})*\b", re.IGNORECASE)


def numbers_in_words(question: str) -> set[str]:
    """The numbers that words of the question may mean: a dozen, twice, forty-two."""
    meant = {
        number
        for number, words in _MEANINGS.items()
        if re.search(rf"\b(?:{words})\b", question, re.IGNORECASE)
    }
    spelled = chain.from_iterable(_spelled(run[0]) for run in _SPELLED_OUT.finditer(question))
    return meant | set(map(str, spelled)) | ({"100"} if "%" in question else set())


def _spelled(words: str) -> Iterator[int]:
    """The numbers that single words spell, and the number that they spell together."""
    total = last = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        word = word if word in _SPELLED or word in _SCALES else word.removesuffix("s")
        if word in _SPELLED:
            last += _SPELLED[word]
            yield _SPELLED[word]
        elif word in _SCALES:
            scaled = max(last, 1) * _SCALES[word]
            total, last = (total, scaled) if word == "hundred" else (total + scaled, 0)
            yield _SCALES[word]
    yield total + last


def changeable(question: str, used: Iterable[str]) -> list[str] | None:
    """The numbers of a question that may be changed if a solution uses the numbers `used`.

    `used` does not include the solution's own results. None if one of them is neither in the
    question nor the meaning of a word in it: then the writer computed it mentally, and it would
    have to change along with the numbers behind it.

    >>> changeable("Ava has 3 pens and buys 4. How many has she?", ["3", "4"])
    ['3', '4']
    >>> changeable("Ava has 3 boxes of a dozen, and 12 pens.", ["3", "12", "12"])
    ['3']
    >>> changeable("Ava reads 8 books, 3 of them twice.", ["5", "3"]) is None
    True
    """
    used = {*used}
    written, numbers = set(NUMBER.findall(question)), set(IN_QUESTION.findall(question))
    meant = numbers_in_words(question)
    values = set(map(Fraction, meant))
    fixed = NUMBER.findall(_ALONE_OR_EXPONENT.sub("", question))  # such as the 3 of 3/4
    kept = meant.union(fixed)
    for number in used - written:
        value = Fraction(number)
        sources = {n for n in written if value in _forms(n, question)}
        if not sources and value not in values:
            return None
        kept |= sources
    return sorted((numbers & used) - kept)


def _forms(number: str, question: str) -> set[Fraction]:
    """A solution's possible forms of a question's number: 8.5 for 8.50; 0.2 or 80 for 20%."""
    value = Fraction(number)
    if not re.search(rf"(?<![\d.]){re.escape(number)}(?:%| ?percent)", question, re.IGNORECASE):
        return {value}
    share = value / 100
    return {value, share, 1 - share, 1 + share, 100 - value, 100 + value}
