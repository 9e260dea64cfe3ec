import hashlib
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from ledom.data import problems
from ledom.data.problems import (
    HELD_OUT_TEMPLATES,
    SPLITS,
    equations,
    generate_problems,
    normalise_solution,
    split_of,
)
from ledom.errors import InputError

SEEDS = (0, 1, 77)
COUNTS = {"train": 1000, "valid": 30, "tune": 60, "test": 60}


@pytest.fixture(scope="module")
def by_split():
    """Problems of every split, from several seeds."""
    return {
        split: [p for seed in SEEDS for p in generate_problems(split, count, seed)]
        for split, count in COUNTS.items()
    }


def test_splits_share_no_question(by_split):
    questions = {split: {p.question for p in found} for split, found in by_split.items()}
    assert len(set.union(*questions.values())) == sum(map(len, questions.values()))


def test_a_question_belongs_to_the_split_of_its_hash(by_split):
    shares = {"train": (0, 0.9), "valid": (0.9, 0.92), "tune": (0.92, 0.96), "test": (0.96, 1)}
    for split, found in by_split.items():
        low, high = shares[split]
        for problem in found:
            digest = hashlib.sha256(problem.question.encode("utf-8")).hexdigest()
            assert low <= int(digest[:16], 16) / 16**16 < high
            assert split_of(problem.question) == split


def test_shares_of_the_splits():
    found = [split_of(f"question {number}") for number in range(5000)]
    shares = {split: found.count(split) / len(found) for split in SPLITS}
    expected = {"train": 0.90, "valid": 0.02, "tune": 0.04, "test": 0.04}
    for split, share in expected.items():  # four standard deviations
        assert abs(shares[split] - share) < 4 * (share * (1 - share) / len(found)) ** 0.5


def test_held_out_templates_are_never_trained_on(by_split):
    used = {p.extra["template"] for found in by_split.values() for p in found}
    assert len(used) == 75  # of the 85 usable ones
    assert not used & set(HELD_OUT_TEMPLATES)
    held_out = list(generate_problems("test", 40, held_out=True))
    assert {p.extra["template"] for p in held_out} <= set(HELD_OUT_TEMPLATES)
    assert {split_of(p.question) for p in held_out} == {"test"}
    assert held_out[3].id == "test-held-out-0-3"


def test_the_seed_alone_decides():
    first = list(generate_problems("train", 50, seed=4))
    assert first == list(generate_problems("train", 50, seed=4))
    assert first[:20] == list(generate_problems("train", 20, seed=4))
    others = {p.question for p in generate_problems("train", 50, seed=5)}
    assert len(others & {p.question for p in first}) < 5
    assert [p.id for p in first[:2]] == ["train-4-0", "train-4-1"]
    assert len({p.question for p in first}) == 50


def test_a_question_drawn_twice_is_given_once(monkeypatch):
    def add(rng, _):
        number = rng.randint(1, 12)
        return {"question": f"{number}?", "metadata": {"answer_cot": f"#### {number}"}}

    monkeypatch.setattr(problems, "_generators", lambda: {0: add})
    possible = [f"{number}?" for number in range(1, 13) if split_of(f"{number}?") == "train"]
    drawn = list(generate_problems("train", len(possible)))
    assert sorted(p.question for p in drawn) == sorted(possible)


def test_another_process_draws_the_same_problems():
    """Hash randomisation must not reach the generator through the order of a set."""
    code = (
        "import hashlib; from ledom.data.problems import generate_problems;"
        "print(hashlib.sha256(repr(list(generate_problems('train', 150, 9))).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(list(generate_problems("train", 150, 9))).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == here


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="unknown split 'dev'; the splits are train, valid, tune"):
        next(generate_problems("dev", 1))


def test_every_solution_ends_in_its_answer(by_split):
    for problem in by_split["train"]:
        assert problem.solution.endswith(f"\n#### {problem.answer}")
        assert problem.solution.count("####") == 1
        assert re.fullmatch(r"-?\d+(\.\d+)?", problem.answer), problem.answer


def test_numbers_are_short_and_written_one_way(by_split):
    for problem in by_split["train"]:
        text = problem.question + problem.solution
        assert not re.search(r"\.\d{4}", text), text  # a float that was not rounded
        assert not re.search(r"\d,\d{3}\b", text), text
        assert not re.search(r"\d\.0\b", text), text


NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(
    rf"(?<![\w.%)])(?<![-+*/] )({NUMBER}(?: [-+*/] {NUMBER})+) = ({NUMBER}(?:/\d+)?)"
    r"(?![\d%/(])(?!\.\d)(?! [-+*/])"
)


def exact_value(expression: str) -> Fraction:
    """A sum of products, by hand: * and / from left to right, before + and -."""
    total, product, sign = Fraction(0), None, 1
    parts = expression.split()
    for operator, number in zip(["+", *parts[1::2]], parts[::2], strict=True):
        if operator == "*":
            product *= Fraction(number)
        elif operator == "/":
            product /= Fraction(number)
        else:
            total += sign * (product or 0)
            product, sign = Fraction(number), 1 if operator == "+" else -1
    return total + sign * product


def test_the_evaluator_of_this_file():
    assert exact_value("2 + 3 * 4") == 14
    assert exact_value("10 - 4 - 3") == 3
    assert exact_value("12 / 2 / 3 * 5") == 10
    assert exact_value("0.5 * 322 + 17") == 178


def test_stated_arithmetic_is_true(by_split):
    """Some templates round down in silence; all the others must state what is so."""
    found = [
        (problem.extra["template"], expression, result)
        for problem in by_split["train"]
        for expression, result in EQUATION.findall(problem.solution)
    ]
    assert len(found) > 3 * len(by_split["train"])
    false = {(t, e, r) for t, e, r in found if exact_value(e) != Fraction(r)}
    assert len(false) / len(found) < 0.02
    # 2, 3, 4, 49, 75 and 99 round down; 60 divides by a fraction written without parentheses.
    assert {template for template, _, _ in false} <= {2, 3, 4, 49, 60, 75, 99}


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
def test_normalisation_by_hand(raw, expected):
    assert normalise_solution(raw) == expected


@pytest.mark.parametrize(
    ("equation", "worked"),
    [
        ("57 * 34 = 1938", "57 * 34 = 57 * 30 + 57 * 4 = 1710 + 228 = 1938"),
        ("126 * 7 = 882", "126 * 7 = 100 * 7 + 26 * 7 = 700 + 182 = 882"),
        ("7 * 126 = 882", "7 * 126 = 7 * 100 + 7 * 26 = 700 + 182 = 882"),
        ("57 * 7 = 399", "57 * 7 = 399"),  # two digits times one: a fact to know by heart
        ("80 * 700 = 56000", "80 * 700 = 56000"),  # zeros are no digits to work on
        ("12 * 12 = 145", "12 * 12 = 145"),  # what is wrong is left as it is
        ("2 + 12 * 66 = 794", "2 + 12 * 66 = 794"),
        ("12 * 66 / 2 = 396", "12 * 66 / 2 = 396"),
        ("0.35 * 84 = 29.4", "0.35 * 84 = 29.4"),
    ],
)
def test_products_are_worked_in_parts(equation, worked):
    assert normalise_solution(f"so {equation} pens\n#### 1") == f"so {worked} pens\n#### 1"


def test_normalising_again_changes_nothing():
    for problem in generate_problems("valid", 300, seed=8):
        assert normalise_solution(problem.solution) == problem.solution


def test_equations_are_found_in_order():
    solution = "Ava has 3 * 4 = 12 pens, 12 + 5 = 17 in all\n50% * 2 = 1 of 17 boys\n#### 17"
    assert equations(solution) == ["3 * 4 = 12", "12 + 5 = 17", "50% * 2 = 1"]
