import pytest

from ledom.data.question_numbers import changeable, numbers_in_words


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("six friends", "6"),
        ("Twelve girls", "12"),
        ("eighty-five cans", "85"),
        ("two hundred and fifty", "250"),
        ("three thousand four hundred", "3400"),
        ("a sixth of it", "6"),
        ("two thirds", "3"),
        ("in her forties", None),
        ("the fine is doubled", "2"),
        ("two kilograms", "1000"),
        ("someone", None),
    ],
)
def test_numbers_in_words_are_read(words, number):
    meant = numbers_in_words(words)
    assert number in meant if number else not meant


@pytest.mark.parametrize(
    ("question", "used", "free"),
    [
        ("Ten boys have 15 sticks each, twelve girls 12.", ["10", "15", "12"], ["15"]),
        ("It grows by 20%, and there are 20 of 50.", ["20", "0.2", "50"], ["50"]),
        ("It costs 20% less than 50.", ["0.8", "50"], ["50"]),
        ("He does 3 sets of 3 3/8 inches.", ["3", "8"], []),  # 3/8 would keep its 3
        ("Fudge is $2.50/pound; he buys 20.", ["2.50", "20"], ["20"]),
        ("One costs 8.50, one 9.", ["8.5", "8.50", "9"], ["9"]),
        ("He did 4 mazes in 50 minutes, and is in another.", ["5", "4", "50"], None),
        ("It has 90 pages.", ["10", "90"], None),  # 10 is 100 - 90, but not a percentage
    ],
)
def test_which_numbers_may_change(question, used, free):
    assert changeable(question, used) == free


def test_a_weekend_or_a_way_back_may_be_the_two_of_a_solution() -> None:
    week = "She reads 2 pages on 5 weekdays, and 3 pages on each day of the weekend."
    assert changeable(week, ["2", "5", "3", "2"]) == ["3"]
    assert changeable("It is 2 hours to work and 3 hours back.", ["2", "3"]) == ["3"]
