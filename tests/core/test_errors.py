import pickle
from pathlib import Path

import pytest

from ledom.core import errors


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({}, "bad"),
        ({"path": "a.jsonl"}, "a.jsonl: bad"),
        ({"path": Path("a.jsonl"), "line": 3}, "a.jsonl:3: bad"),
    ],
)
def test_input_error_puts_the_place_in_front(place, message):
    assert str(errors.InputError("bad", **place)) == message


def test_missing_extra_names_the_command():
    error = errors.MissingExtraError("vllm", "vllm")
    assert "pip install 'ledom[vllm]'" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # from another process


def test_every_error_can_be_caught_as_ledom_error():
    classes = [value for name in errors.__all__ if isinstance(value := getattr(errors, name), type)]
    assert len(classes) > 10
    assert all(issubclass(one, errors.LedomError) for one in classes)
    assert issubclass(errors.DirectionError, errors.CheckpointError)
