import numpy as np
import pytest

from ledom.core.direction import Direction
from ledom.core.errors import DirectionError, InputError


def test_forward_leaves_sequences_unchanged():
    assert Direction.FORWARD.to_model_order([1, 2, 3]) == [1, 2, 3]
    assert Direction.FORWARD.to_reading_order(["a", "b"]) == ["a", "b"]
    assert Direction.FORWARD.span_to_model_order(1, 3, 5) == (1, 3)


def test_reverse_flips_sequences():
    assert Direction.REVERSE.to_model_order([1, 2, 3]) == [3, 2, 1]
    assert Direction.REVERSE.to_reading_order(["a", "b", "c"]) == ["c", "b", "a"]
    assert Direction.REVERSE.to_model_order([]) == []


def test_reverse_flips_the_last_axis_of_arrays_only():
    rows = np.array([[1, 2, 3], [4, 5, 6]])
    assert Direction.REVERSE.to_model_order(rows).tolist() == [[3, 2, 1], [6, 5, 4]]


def test_the_input_sequence_is_not_modified():
    ids = [1, 2, 3]
    Direction.REVERSE.to_model_order(ids)
    assert ids == [1, 2, 3]


def test_a_reversed_span_matches_one_worked_out_by_hand():
    # a b [c d] e  ->  e [d c] b a
    assert Direction.REVERSE.span_to_model_order(2, 4, 5) == (1, 3)


@pytest.mark.parametrize("direction", Direction)
def test_a_span_contains_the_same_items_in_both_orders(direction):
    items = list("abcdef")
    ordered = direction.to_model_order(items)
    for start in range(len(items) + 1):
        for end in range(start, len(items) + 1):
            first, last = direction.span_to_model_order(start, end, len(items))
            assert direction.to_reading_order(ordered[first:last]) == items[start:end]


def test_the_name_of_a_direction_is_its_value():
    assert str(Direction.REVERSE) == "reverse"
    assert f"{Direction.FORWARD}" == "forward"
    assert Direction("reverse") is Direction.REVERSE
    with pytest.raises(ValueError, match="sideways"):
        Direction("sideways")


@pytest.mark.parametrize("value", ["up", "", None])
def test_the_error_for_an_unknown_name_lists_the_known_names(value):
    with pytest.raises(InputError, match="^direction is .*; give forward or reverse$"):
        Direction(value)


def test_the_error_for_the_wrong_direction_states_the_purpose():
    Direction.REVERSE.require(Direction.REVERSE, "tiny", "to explain questions")
    refused = "^tiny is a forward model; give a reverse one to explain questions$"
    with pytest.raises(DirectionError, match=refused):
        Direction.REVERSE.require(Direction.FORWARD, "tiny", "to explain questions")
