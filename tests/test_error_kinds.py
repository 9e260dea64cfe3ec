"""Wrong solutions of every kind, written by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

MODULE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "error_kinds.py"))
ERROR_KINDS, error_kind = MODULE["ERROR_KINDS"], MODULE["error_kind"]

PENS = "Ava has 3 boxes of 4 pens and finds 5 more. How many pens has she?"
SHOP = "A coat of $1,200 is sold at 25% off, and a dozen buttons cost $2 each. What is the bill?"

CASES = [
    ("no equations", PENS, "She has twenty.\n#### 20"),
    ("no equations", PENS, "The answer is 20."),
    ("false equation", PENS, "3 * 4 = 13\n13 + 5 = 18\n#### 18"),
    ("false equation", PENS, "3 * 4 = 6 + 7 = 12\n12 + 5 = 17\n#### 18"),  # one intermediate side
    ("false equation", PENS, "3 / 4 = 0.74\n0.74 + 5 = 5.74\n#### 5.74"),
    ("wrong final line", PENS, "3 * 4 = 12\n12 + 5 = 17\n#### 12"),
    ("wrong final line", PENS, "3 * 4 = 12 and 12 + 5 = 17.\nThe answer is 27."),
    ("number left out", PENS, "3 * 4 = 12\n#### 12"),
    ("number left out", PENS, "3 + 5 = 8\n#### 8"),
    ("number misread", PENS, "3 * 4 = 12\n12 + 5 = 17\n17 + 9 = 26\n#### 26"),
    ("wrong step", PENS, "3 * 4 = 12\n12 - 5 = 7\n#### 7"),
    ("wrong step", PENS, "3 + 4 + 5 = 12\n#### 12"),
    # 2 / 3 is rounded correctly; 0.66 would not be.
    ("wrong step", PENS, "4 / 3 = 1.33\n1.33 + 5 = 6.33\n#### 6.33"),
    # A result may be a sum itself.
    ("wrong final line", PENS, "3 * 4 = 12\n12 - 5 = 7\n0 = 3 - 3\n#### 1"),
    ("number misread", PENS, "3 * 4 = 12\n12 + 5 = 17\n17 - 9 = 9 - 1\n#### 8"),
    # A percentage may be written as 25%, 0.25 or 75 (the remainder); a dozen is 12.
    ("wrong step", SHOP, "1200 * 0.25 = 300\n12 * 2 = 24\n300 + 24 = 324\n#### 324"),
    ("wrong step", SHOP, "1200 * 75 / 100 = 900\n12 * 2 = 24\n900 - 24 = 876\n#### 876"),
    ("number left out", SHOP, "12 * 2 = 24\n1200 + 24 = 1224\n#### 1224"),
]


@pytest.mark.parametrize(("kind", "question", "solution"), CASES)
def test_wrong_solutions_are_classified(kind: str, question: str, solution: str) -> None:
    assert error_kind(question, solution) == kind


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, _, _ in CASES} == set(ERROR_KINDS)


def test_a_percentage_may_be_the_result() -> None:
    question = "Of 20 children 12 dance. What percent is that?"
    assert error_kind(question, "12 / 20 * 100 = 60%\n#### 60") == "wrong step"
    assert error_kind(question, "12 / 20 = 60%\n#### 60%") == "wrong step"
    assert error_kind(question, "12 / 20 = 50%\n#### 50%") == "false equation"
