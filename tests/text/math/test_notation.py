"""The key by which answers are compared as texts."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledom.text.math.notation import keyboard
from ledom.text.math.spelling import text_key

GENES = re.compile(r"\b(?:([a-z])\1)+\b", re.IGNORECASE)  # Rr is not rr


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("5 MW", "5MW"),  # mega is not milli
        ("5 mW", "5mW"),
        ("5mb", "5mb"),
        ("5 Mb", "5Mb"),  # bits are not bytes
        ("5 KM", "5km"),
        ("5 MWx", "5mwx"),  # not a unit
        ("MW", "mw"),  # without a number
        (r"\Delta", r"\Delta"),  # \delta is another letter
        ("ÉTÉ", "été"),
    ],
)
def test_case_counts_only_where_it_has_meaning(answer: str, key: str) -> None:
    assert text_key(answer) == key


@pytest.mark.slow
@given(st.text("abcXYZ éÉ", max_size=30).filter(lambda text: not GENES.search(text)))
def test_words_are_compared_without_case(words: str) -> None:
    assert text_key(words) == text_key(words.upper()) == text_key(words.lower())


@pytest.mark.slow
def test_all_digits_are_read_and_format_characters_ignored() -> None:
    """This follows Unicode's own categories."""
    for character in map(chr, range(sys.maxunicode + 1)):
        value = unicodedata.decimal(character, None)
        if value is not None:
            assert keyboard(character) == str(value)
        elif unicodedata.category(character) == "Cf" and "\x7f" < character < "\u0600":
            assert keyboard(character) == ""
    assert keyboard("".join(map(chr, range(0x200B, 0x2010))) + "\u2066\u2069\ufeff") == ""
