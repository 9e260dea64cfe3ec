from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest

from ledom.core.records import Problem, read_records, write_records
from ledom.data.augment import augment, corrupt, miscalculate, other_number, renumber
from ledom.data.problems import is_true
from ledom.text.answers import extract_answer
from ledom.text.pair_format import STYLES

CLIPS = Problem(
    id="clips",
    question="Natalia sold 48 clips in April, and half as many in May. How many in all?",
    answer="72",
    solution="She sold 48/2 = <<48/2=24>>24 in May.\nThat is 48+24 = <<48+24=72>>72 in all.",
)
WEEK = Problem(
    id="week",
    question="Tom runs 5 miles on 4 days a week. How many miles in 6 weeks, if 25% are uphill?",
    answer="30",
    solution="5*4=20\n20*6=120\n25/100*120=30",
)


def lines(problem):
    return STYLES["equations"](problem.solution, problem.answer).splitlines()


@pytest.mark.parametrize(
    ("text", "styled"),
    [
        ("He has 15 pens and 4 boxes. 15 * 4 = 60, so 60.\nA: 60", "15 * 4 = 60\n#### 60"),
        (r"First \(2 \times 3 = 6\), then 6 + 4. #### 10", "2 * 3 = 6\n6 + 4\n#### 10"),
        ("25% of 80 is 20.\n#### 20", "25% 80 20\n#### 20"),  # nothing is computed
        ("no numbers", ""),
    ],
)
def test_equations_style(text, styled):
    assert STYLES["equations"](text, None) == styled
    assert STYLES["equations"](styled, None) == styled


@pytest.mark.parametrize("problem", [CLIPS, WEEK], ids=lambda p: p.id)
def test_a_variant_computes_its_own_answer(problem):
    rng = Random(0)
    seen = set()
    for _ in range(30):
        variant = renumber(problem, rng)
        *equations, last = lines(variant)
        assert all(is_true(equation) for equation in equations)
        assert equations[-1].endswith(f" = {variant.answer}")
        assert last == f"#### {variant.answer}"
        assert variant.question != problem.question
        assert "." not in variant.answer  # still a whole number
        seen.add(variant.question)
    assert len(seen) > 10


def test_the_question_and_the_solution_change_together():
    variant = renumber(CLIPS, Random(1))
    number = variant.question.split()[2]
    assert variant.question == CLIPS.question.replace("48", number)
    half = str(int(number) // 2)
    assert lines(variant)[0] == f"{number} / 2 = {half}"
    assert variant.answer == str(int(number) + int(half))


def test_a_number_that_a_word_implies_is_kept():
    """`4` might be the weeks in a month, and `week` means seven days; 5 and 6 are free."""
    questions = [renumber(WEEK, Random(seed)).question for seed in range(20)]
    assert all(" 4 days" in question for question in questions)
    assert len({question.split()[2] for question in questions}) > 3


def test_an_exponent_is_kept():
    """It may equal a number in the solution, and a box of cm^3 would become one of cm^7."""
    box = Problem(
        id="a",
        question="A box of 8 cm^3 is filled 3 times. How much is that?",
        answer="24",
        solution="8 * 3 = 24\n#### 24",
    )
    questions = [renumber(box, Random(seed)).question for seed in range(20)]
    assert all("cm^3" in question for question in questions)
    assert len({question.split()[7] for question in questions}) > 3


def test_wrong_solutions_have_a_wrong_answer():
    rng = Random(0)
    wrong = {corrupt(CLIPS, rng) for _ in range(60)}
    assert len(wrong) > 15
    assert all(extract_answer(text) != "72" for text in wrong)
    assert "48 + 48 = 96\n#### 96" in wrong  # first step skipped
    assert "48 / 2 = 24\n#### 24" in wrong  # stopped early


def test_a_wrong_answer_differs_in_value_not_only_in_zeros():
    """People write 2.5 * 3 as $7.50; a program computes 7.5."""
    priced = Problem(
        id="a",
        question="Ava buys 3 pens for $2.5 each and has $9.",
        answer="7.50",
        solution="2.5 * 3 = 7.50\n#### 7.50",
    )
    wrong = {corrupt(priced, Random(seed)) for seed in range(60)} - {None}
    assert len(wrong) > 5
    assert all(float(extract_answer(text)) != 7.5 for text in wrong)


@pytest.mark.slow
def test_a_miscalculation_is_one_false_equation_and_its_consequences():
    wrong = {miscalculate(CLIPS, Random(seed)) for seed in range(200)} - {None}
    assert len(wrong) > 20
    for text in wrong:
        first, second, last = (line.replace("#### ", "").split(" = ") for line in text.splitlines())
        if first[-1] == "24":  # 48 / 2 = 24
            assert sorted(second[0].split(" + ")) == ["24", "48"]
            assert second[-1] != "72"
        else:
            assert Fraction(second[-1]) == 48 + Fraction(first[-1])
        assert last == second[-1:]
    firsts = {text.partition("\n")[0] for text in wrong}
    assert {"48 / 2 = 25", "48 / 2 = 26", "48 / 2 = 240", "48 / 2 = 2.4"} <= firsts


def test_miscalculations_do_not_change_the_other_wrong_solutions():
    varied, wrong = augment([CLIPS, WEEK], 3, 4, seed=1)
    same, more = augment([CLIPS, WEEK], 3, 4, 2, seed=1)
    assert same == varied
    assert [one for one in more if one in wrong] == wrong
    assert len(wrong) < len(more) <= len(wrong) + 2 * len(varied)
    assert len({candidate.key for candidate in more}) == len(more)


def test_the_variants_of_a_problem_differ():
    few = Problem(id="few", question="How much are 2 and 0?", answer="2", solution="2 + 0 = 2")
    varied, _ = augment([few], num_variants=30, num_wrong=0)
    questions = [problem.question for problem in varied]
    assert 2 < len(questions) == len(set(questions)) < 10


def test_ids_of_variants_stay_unique():
    asked = [replace(CLIPS, id="a"), replace(CLIPS, id="a-0"), replace(CLIPS, id="a-0-0")]
    varied, wrong = augment(asked, 2, 1)
    assert len({problem.id for problem in varied}) == len(varied) == 9
    assert {problem.id for problem in asked} < {problem.id for problem in varied}
    assert len({candidate.key for candidate in wrong}) == len(wrong)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [("2 * 3 = 7", "7"), ("It is clear.", "7"), ("2 * 3 = 6", "7"), ("2 / 0 = 6", "6"), ("", "1")],
)
def test_solutions_without_a_chain_of_true_equations_are_skipped(solution, answer):
    problem = Problem(id="a", question="What are 2 and 3?", answer=answer, solution=solution)
    assert renumber(problem, Random(0)) is None
    assert corrupt(problem, Random(0)) is None
    assert miscalculate(problem, Random(0)) is None
    assert augment([problem], 3, 3, 3) == ([problem], [])


@pytest.mark.slow
def test_augment_is_deterministic_and_its_files_match(tmp_path):
    varied, wrong = augment([CLIPS, WEEK], 3, 4, seed=1)
    assert augment([CLIPS, WEEK], 3, 4, seed=1) == (varied, wrong)
    assert augment([CLIPS, WEEK], 3, 4, seed=2) != (varied, wrong)
    assert len({problem.id for problem in varied}) == len(varied) == 8
    answers = {problem.id: problem.answer for problem in varied}
    for candidate in wrong:
        assert candidate.correct is False
        assert extract_answer(candidate.text) != answers[candidate.problem_id]
    assert len({(c.problem_id, c.index) for c in wrong}) == len(wrong) > 20


@pytest.mark.slow
def test_the_command_holds_out_a_part(run, tmp_path):
    problems = [
        Problem(id=f"p{i}", question=CLIPS.question, answer="72", solution=CLIPS.solution)
        for i in range(51)
    ]
    write_records(tmp_path / "in.jsonl", problems)
    options = ["--variants", 1, "--wrong", 1, "--out", tmp_path / "out"]
    code, _ = run("augment", tmp_path / "in.jsonl", *options)
    assert code == 0
    ids = {
        name: [p.id for p in read_records(tmp_path / "out" / f"{name}.jsonl", Problem)]
        for name in ("train", "valid")
    }
    assert ids["valid"] == ["p0", "p50"]
    assert not [i for i in ids["train"] if i.split("-")[0] in ids["valid"]]
    assert len(ids["train"]) == 98


def test_a_percentage_stays_round_and_below_100() -> None:
    drawn = {other_number("20", "20% of them", Random(seed)) for seed in range(200)}
    assert drawn == {str(number) for number in range(5, 100, 5)}
