import re

import pytest

from ledom.data import problems
from ledom.data.problems import equations, generate_problems, is_true, normalize_solution, show_work


@pytest.mark.parametrize(
    ("equation", "worked"),
    [
        # One place at a time, unless the digits overlap in a single place.
        ("57 + 48 = 105", "57 + 48 = 97 + 8 = 105"),
        ("104 + 52 = 156", "104 + 52 = 156"),
        ("75 + 770 + 819 = 1664", "75 + 770 + 819 = 845 + 819 = 1645 + 19 = 1655 + 9 = 1664"),
        ("1000 - 138 = 862", "1000 - 138 = 900 - 38 = 870 - 8 = 862"),
        ("89.50 - 33.50 = 56", "89.50 - 33.50 = 59.5 - 3.5 = 56.5 - 0.5 = 56"),
        ("5 - 5 = 0", "5 - 5 = 0"),
        # Every digit times every digit.
        ("40 * 700 = 28000", "40 * 700 = 28000"),
        ("39 * 5 = 195", "39 * 5 = 150 + 45 = 195"),
        ("5 * 39 = 195", "5 * 39 = 150 + 45 = 195"),
        ("57 * 34 = 1938", "57 * 34 = 1500 + 210 + 200 + 28 = 1710 + 200 + 28 = 1910 + 28 = 1938"),
        ("230 * 0.5 = 115", "230 * 0.5 = 100 + 15 = 115"),
        ("3 * 0 = 0", "3 * 0 = 0"),
        # Every place of the quotient.
        ("400 / 80 = 5", "400 / 80 = 5"),
        ("136 / 2 = 68", "136 / 2 = 120 / 2 + 16 / 2 = 60 + 8 = 68"),
        # Products first, each as its own equation.
        ("2 * 14 - 5 = 23", "2 * 14 = 20 + 8 = 28, 28 - 5 = 23"),
        ("5 + 2 * 14 = 33", "2 * 14 = 20 + 8 = 28, 5 + 28 = 33"),
        ("1 / 2 * 222 = 111", "1 / 2 = 0.5, 0.5 * 222 = 100 + 10 + 1 = 110 + 1 = 111"),
    ],
)
def test_equations_are_written_out_place_by_place(equation, worked):
    assert show_work(*equation.split(" = ")) == worked


@pytest.mark.parametrize(
    "equation",
    [
        "12 * 12 = 145",  # wrong
        "2 + 3 = 5.0",  # not our notation
        "38 / 51 * 51 = 38",  # no finite decimal in between
        "5 - 8 + 10 = 7",  # negative in between
        "50% * 46 = 23",
        "6 / 0 = 0",
    ],
)
def test_equations_that_cannot_be_written_out_stay_unchanged(equation):
    assert show_work(*equation.split(" = ")) == equation


@pytest.mark.slow
def test_every_step_is_true_and_both_ends_are_kept():
    for first in (1, 7, 10, 38, 99, 105, 640, 999, 1208):
        for second in (1, 4, 12, 57, 99, 100, 350, 781):
            high, low = max(first, second), min(first, second)
            pairs = {
                f"{first} + {second}": first + second,
                f"{first} * {second}": first * second,
                f"{first * second} / {second}": first,
                f"{high} - {low}": high - low,
                f"{first} * {second} + {second} - {first}": first * second + second - first,
            }
            for expression, value in pairs.items():
                work = show_work(expression, str(value))
                assert all(is_true(part) for part in work.split(", ")), work
                assert work.endswith(f" = {value}")
                assert re.fullmatch(r"[-+*/=.,\d ]+", work)
                if not re.search("[*/].*[-+]", expression):
                    assert work.startswith(f"{expression} = ")


@pytest.mark.parametrize(
    ("equation", "truth"),
    [
        ("2 + 3 * 4 = 14", True),
        ("10 - 4 - 3 = 4 - 1 = 3", True),
        ("10 - 4 - 3 = 5 - 1 = 3", False),
        ("12 / 2 / 3 * 5 = 10", True),
        ("2 * 1 / 3 = 2/3", True),
        ("50% * 30 = 15", True),
        ("0.1 + 0.2 = 0.3", True),  # exact, not floating point
        ("5 / 0 = 1", False),
        ("2x + 3 = 5", False),
    ],
)
def test_equations_are_checked_exactly(equation, truth):
    assert is_true(equation) is truth


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("so $57/hour * 7 hours = $399", "so 57 * 7 = 399"),
        ("He has 62*8 = 496 plants", "He has 62 * 8 = 496 plants"),
        ("36 girls x 2 boys/girl = 72 boys", "36 * 2 = 72 boys"),
        ("85 × 3 = 255 plum", "85 * 3 = 255 plum"),
        ("He paid 20 x £7.50 = £150.0.", "He paid 20 * 7.50 = 150."),
        ("12 ÷ 4 = 3 times", "12 / 4 = 3 times"),
        ("36 years * 2= 72 years old", "36 * 2 = 72 years old"),
        ("$290,000 + $17,400 = $307,400.", "290000 + 17400 = 307400."),
        ("360 / 1440 * 100% = 25%", "360 / 1440 * 100% = 25%"),
        ("14 skeins per hat + 8 skeins per pair of gloves = 22", "14 + 8 = 22"),
        ("89 orders/day * 7 days/week = 623 orders", "89 * 7 = 623 orders"),
        # Text that is not an equation stays unchanged.
        ("She is 2 years from 30, or 1/3 of 90.", "She is 2 years from 30, or 1/3 of 90."),
        ("It costs $3 and €4.50", "It costs $3 and €4.50"),
        ("a 12-sided die", "a 12-sided die"),
        ("2x + 40 = 94", "2x + 40 = 94"),
        ("a box of 3 axes", "a box of 3 axes"),
        # One step per line, without blank lines, bullets and numbering.
        (
            "1. Sum:\n\n   • Total: 3 + 4 = 7\n- so 7\n#### 7",
            "Sum:\nTotal: 3 + 4 = 7\nso 7\n#### 7",
        ),
        ("#### 38.0", "#### 38"),
        ("#### 1903.50", "#### 1903.50"),
        ("#### 10.05", "#### 10.05"),
        ("#### 1,234,567", "#### 1234567"),
    ],
)
def test_solutions_are_normalized(monkeypatch, raw, expected):
    monkeypatch.setattr(problems, "show_work", lambda left, right: f"{left} = {right}")
    assert normalize_solution(raw) == expected


def test_equations_in_a_solution_are_written_out():
    raw = "so $2 x 14 - $5 = $23 for 12÷2/3 = 18 pens\n#### 23"
    worked = (
        "so 2 * 14 = 20 + 8 = 28, 28 - 5 = 23 for 12 * 3 = 30 + 6 = 36, 36 / 2 = 20 / 2 + 16 / 2"
    )
    assert normalize_solution(raw) == f"{worked} = 10 + 8 = 18 pens\n#### 23"


@pytest.mark.parametrize("equation", ["12 * 12 = 145", "2x + 40 + 17 = 94", "50% * 46 = 23"])
def test_false_or_complex_equations_are_left_unchanged(equation):
    assert normalize_solution(f"so {equation} pens\n#### 1") == f"so {equation} pens\n#### 1"


@pytest.mark.slow
def test_normalizing_again_changes_nothing():
    for problem in generate_problems("train", 300, seed=8):
        assert normalize_solution(problem.solution) == problem.solution


def test_equations_are_found_in_order():
    solution = "Ava has 3 * 4 = 12 pens, 12 + 5 = 17 in all\n50% * 2 = 1 of 17 boys\n#### 17"
    assert equations(solution) == ["3 * 4 = 12", "12 + 5 = 17", "50% * 2 = 1"]
