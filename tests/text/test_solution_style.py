import time

import pytest

from ledom.data.problems import generate_problems
from ledom.text import solution_style as solutions
from ledom.text.solution_style import STYLES, equations, normalize_solution, restyle


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
        # What is no equation stays as it is.
        ("She is 2 years from 30, or 1/3 of 90.", "She is 2 years from 30, or 1/3 of 90."),
        ("It costs $3 and €4.50", "It costs $3 and €4.50"),
        ("a 12-sided die", "a 12-sided die"),
        ("2x + 40 = 94", "2x + 40 = 94"),
        ("a box of 3 axes", "a box of 3 axes"),
        # One step a line, without blank lines, bullets and numbers.
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
def test_normalization_by_hand(monkeypatch, raw, expected):
    monkeypatch.setattr(solutions, "show_work", lambda left, right: f"{left} = {right}")
    assert normalize_solution(raw) == expected


def test_equations_are_written_out():
    raw = "so $2 x 14 - $5 = $23 for 12÷2/3 = 18 pens\n#### 23"
    worked = (
        "so 2 * 14 = 20 + 8 = 28, 28 - 5 = 23 for 12 * 3 = 30 + 6 = 36, 36 / 2 = 20 / 2 + 16 / 2"
    )
    assert normalize_solution(raw) == f"{worked} = 10 + 8 = 18 pens\n#### 23"


@pytest.mark.parametrize("equation", ["12 * 12 = 145", "2x + 40 + 17 = 94", "50% * 46 = 23"])
def test_what_is_false_or_no_plain_equation_is_left(equation):
    assert normalize_solution(f"so {equation} pens\n#### 1") == f"so {equation} pens\n#### 1"


@pytest.mark.slow
def test_normalizing_again_changes_nothing():
    for problem in generate_problems("train", 300, seed=8):
        assert normalize_solution(problem.solution) == problem.solution


def test_equations_are_found_in_order():
    solution = "Ava has 3 * 4 = 12 pens, 12 + 5 = 17 in all\n50% * 2 = 1 of 17 boys\n#### 17"
    assert equations(solution) == ["3 * 4 = 12", "12 + 5 = 17", "50% * 2 = 1"]


GSM8K = (
    "He pays 35 x $20 = $<<35*20=700>>700 a week.\nThat is $700 + $1,050 = $<<700+1050=1750>>1,750"
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            GSM8K + "\nA: 1750",
            "He pays 35 * 20 = 700 a week.\nThat is 700 + 1050 = 1750\n#### 1750",
        ),
        ("She has 3 + 4 = 7 pens. The answer is $7.00.", "She has 3 + 4 = 7 pens.\n#### 7"),
        (
            r"**Pay:** \(35 \times \$20 = \$700\)" + "\nThe answer is 700",
            "Pay: 35 * 20 = 700\n#### 700",
        ),
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7\n#### 7"),
        ("The answer is 8", "#### 8"),
        ("I do not know.", "I do not know."),
        ("", ""),
    ],
)
def test_plain_style(text, plain):
    assert restyle(text, "plain") == plain
    assert restyle(plain, "plain") == plain


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        (GSM8K, "35 * 20 = 700\n700 + 1050 = 1750\n#### 1750"),
        (
            "So it is (50 * 35 * $20) + (50 * 15 * $30) = $21,500. The answer is $21,500.",
            "50 * 35 * 20 + 50 * 15 * 30 = 21500\n#### 21500",
        ),
        (r"\frac{1}{2} \times 8 = 4 apples", "1 / 2 * 8 = 4\n#### 4"),
        ("Of 12,000 minutes 40% is $4800. Now,\nit is so.", "12000 40% 4800\n#### 4800"),
        ("I do not know.", ""),
    ],
)
def test_numbers_style(text, bare):
    assert restyle(text, "numbers") == bare
    assert restyle(bare, "numbers") == bare


def test_a_known_answer_takes_the_place_of_the_stated_one():
    for style in ("plain", "numbers"):
        assert restyle("3 + 4 = 7 pens", style, "9") == restyle("3 + 4 = 7 pens\n#### 9", style)
    assert restyle("3 + 4 = 7 pens", "as written", "9") == "3 + 4 = 7 pens"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text", ["(" * 9999, "1 + " * 9999, "\\frac{" * 999, "1 a" * 9999, "<<" * 9999, "9" * 30000]
)
def test_hostile_texts_take_no_time(style, text):
    started = time.process_time()
    restyle(text, style)
    assert time.process_time() - started < 20  # a pattern that backtracks takes minutes
