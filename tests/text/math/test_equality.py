"""Answers are equal if both are fully understood and have one value; nothing raises or hangs."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equal_answers import EQUAL
from ledom.text.answers import equal_answers
from ledom.text.math.equality import is_number
from ledom.text.math.expressions import read
from ledom.text.math.notation import has_content
from unequal_answers import UNEQUAL

pytestmark = pytest.mark.slow

ALL = sorted({answer for one, other, _ in EQUAL + UNEQUAL for answer in (one, other)})
PIECES = [
    *("1", "23", "0.5", "x", "y", "+", "-", "*", "/", "^", "(", ")", "[", "]", ",", " ", "=", "<"),
    *("{", "}", r"\{", r"\}", r"\frac", r"\sqrt", r"\pi", r"\pm", r"\text{", "cm", "%", "$", "!"),
    *("_", ":", "and", "pm", "|", "&", r"\\", r"\begin{pmatrix}", r"\end{pmatrix}", "e", "i", "²"),
]


def test_equal_answers_are_equal() -> None:
    """In both orders; one test covers the whole table, at milliseconds per row."""
    wrong = [row for row in EQUAL if not equal_answers(*row[:2]) or not equal_answers(*row[1::-1])]
    assert not wrong


def test_unequal_answers_are_not_equal() -> None:
    wrong = [row for row in UNEQUAL if equal_answers(*row[:2]) or equal_answers(*row[1::-1])]
    assert not wrong


def test_the_table_is_large_and_has_each_pair_once() -> None:
    pairs = [frozenset(pair[:2]) for pair in EQUAL + UNEQUAL]
    assert len(pairs) >= 250
    assert len(set(pairs)) == len(pairs)


def test_each_answer_equals_itself() -> None:
    assert not [answer for answer in ALL if equal_answers(answer, answer) != has_content(answer)]


@pytest.mark.parametrize("answer", [None, "", "  \n", "___", "...", "$", "\x00", "-"])
def test_an_answer_without_content_equals_nothing(answer: str | None) -> None:
    assert not equal_answers(answer, answer)
    assert not equal_answers(answer, "5")


@pytest.mark.parametrize(
    "rest", [" rather than 5", r" \unknown", " then 7", " ?", " @", " 8", "(", "^", "^{"]
)
def test_text_after_a_number_is_never_ignored(rest: str) -> None:
    for start in ("6", r"\frac{1}{2}", r"\sqrt{2}", "(1, 2)", "x + 1", r"\{1, 2\}", "3 cm"):
        assert read(start) is not None
        assert read(start + rest) is None
        assert not equal_answers(start, start + rest)


@settings(max_examples=300)
@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
def test_fractions_are_exact(over: int, under: int) -> None:
    assert equal_answers(f"{over}/{under}", rf"\frac{{{3 * over}}}{{{3 * under}}}")
    assert not equal_answers(f"{over}/{under}", f"{over * 10**6 + 1}/{under * 10**6}")
    assert equal_answers(f"{over:,}", str(over))


@settings(max_examples=500)
@given(st.text(), st.text())
def test_any_texts_get_a_verdict_in_both_orders(one: str, other: str) -> None:
    assert equal_answers(one, other) == equal_answers(other, one)
    assert equal_answers(one, one) == has_content(one)
    is_number(one)


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_any_mixture_of_symbols_is_parsed_or_rejected(text: str) -> None:
    read(text)
    assert equal_answers(text, text) == has_content(text)


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "(",
            "[",
            r"\{",
            "{",
            "|",
            r"\sqrt",
            r"\sqrt{",
            r"\frac",
            r"\frac{",
            "sin ",
            "x",
            "x ",
            "-",
        ),
        *(
            "1",
            "1,",
            "1/",
            "1+",
            "2^",
            "9**",
            "!",
            "x!",
            "$",
            "\x00",
            "\ud800",
            "½",
            "²",
            "√",
            "a ",
            ".",
        ),
        *(
            r"\text{",
            r"\begin{pmatrix}",
            "1&",
            "1:",
            "1<",
            "x=",
            "1 or ",
            r"\pm",
            "_",
            r"\\",
            " ",
            "a'",
        ),
    ],
)
def test_hostile_texts_of_any_length_are_fast(unit: str) -> None:
    started = time.process_time()
    for size in (50, 399, 40_000):
        text = (unit * size)[:size]
        for answer in (text, "5" + text, "The answer is " + text):
            assert not equal_answers(answer, "7")
            assert equal_answers(answer, answer) == has_content(answer)
    assert time.process_time() - started < 5  # seconds; where it grows too fast it takes minutes


@pytest.mark.parametrize(
    "large", ["9**9**9", "9^{9^{9^{9}}}", "1e999999999", "(10^{9})!", "9999999!", "2^{-99999999}"]
)
def test_numbers_too_large_to_compute_are_compared_as_text(large: str) -> None:
    started = time.process_time()
    assert read(large) is None
    assert equal_answers(large, large)
    assert not equal_answers(large, "1")
    assert time.process_time() - started < 10  # seconds; where it grows too fast it takes hours


def test_plain_numbers_need_no_extra_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: str) -> bool:
        raise AssertionError("asked for algebra")

    monkeypatch.setattr("ledom.text.math.equality.same_value", forbidden)
    for number in range(20_000):
        assert not equal_answers(str(number), str(number + 1))
    for number in range(1_000):
        assert equal_answers(f"${number:,}.00", f"{number} dollars")


PLAIN = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.sampled_from(["0", "1", "10", "12", "120", "9" * 18]),
    st.sampled_from(["", ".0", ".00", ".5", ".50", ".05", ".2", ".20", f".{'0' * 17}1"]),
)


@settings(max_examples=500)
@given(PLAIN, PLAIN)
def test_plain_numbers_are_compared_as_by_the_parser(one: str, other: str) -> None:
    values = [node and node.value for node in (read(one), read(other))]
    assert None not in values
    assert equal_answers(one, other) == (values[0] == values[1])


def test_plain_numbers_need_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(answer: str) -> None:
        raise AssertionError(f"parsed {answer}")

    monkeypatch.setattr("ledom.text.math.equality.read", forbidden)
    assert equal_answers("12.50", "12.5")
    assert not equal_answers("-12.5", "12.5")
    with pytest.raises(AssertionError, match="parsed"):
        equal_answers("012.5", "12.5")  # leading zeros: perhaps a time or a code


def test_numbers_are_recognized() -> None:
    assert all(map(is_number, ["5", "$5", "x = 5", "5 cm", "1/2", "3 p.m.", "2^3"]))
    assert not any(map(is_number, ["x", "5x", "3, 5", "(1, 2)", "yes", "5 or so", r"\pi", ""]))
