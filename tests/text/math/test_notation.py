"""The key under which answers are compared as texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledom.text.math.notation import text_key


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("5 MW", "5MW"),  # mega is not milli
        ("5 mW", "5mW"),
        ("5mb", "5mb"),
        ("5 Mb", "5Mb"),  # bits are not bytes
        ("5 KM", "5km"),
        ("5 MWx", "5mwx"),  # no unit
        ("MW", "mw"),  # of no number
        (r"\Delta", r"\Delta"),  # \delta is another letter
        ("ÉTÉ", "été"),
    ],
)
def test_case_counts_only_where_it_means_something(answer: str, key: str) -> None:
    assert text_key(answer) == key


@given(st.text("abcXYZ éÉ", max_size=30))
def test_words_are_compared_without_case(words: str) -> None:
    assert text_key(words) == text_key(words.upper()) == text_key(words.lower())
