"""The weights file: the error for a bad one names the key and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.rerank.weights import TunedWeights

GOOD = {"format": 3, "num_problems": 1, "num_candidates": 2, "problem_hashes": [], "weights": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"forward": {"forward": True}}}, "key weights.forward.forward: .*found True"),
        ({"weights": {"forward": {"forward": "1"}}}, "key weights.forward.forward: .*found '1'"),
        ({"weights": {"forward": 1}}, "key weights.forward: .*found 1"),
        ({"weights": {"best": {"forward": 1}}}, "unknown strategy 'best'; known: greedy"),
        ({"weights": {"judge": {"judge": 1}}}, "unknown strategy 'judge'; known: greedy"),
        (
            {"weights": {"noisy_channel": {"forwards": 1}}},
            "strategy 'noisy_channel': unknown feature 'forwards'; it uses: forward, rev",
        ),
        (
            {"weights": {"reverse_reward": {"forward": 0.5, "reverse_mean": 0.5}}},
            r"strategy 'reverse_reward' mixes sums and means per token \(forward, reverse_mean\)",
        ),
        (
            {"weights": {"reverse_reward": {"forward": 1, "reverse": 1}}},
            "strategy 'reverse_reward' has the weights 1.0, 1.0; give 1 - lambda and lambda",
        ),
        ({"weights": {"reverse_reward": {"reverse": -1, "forward": 2}}}, "weights -1.0, 2.0; give"),
        (
            {"weights": {"majority": {"forward": 1}}},
            "strategy 'majority': unknown feature 'forward'; it has no weights",
        ),
        (
            {"weights": {"all_terms": {}}},
            "strategy 'all_terms' has no weights; it uses: forward, forward_mean",
        ),
        ({"num_problems": 3.7}, "key num_problems: .*found 3.7"),
        ({"num_problems": -1}, "key num_problems: .*found -1"),
        ({"num_problems": True}, "key num_problems: .*found True"),
        ({"problem_hashes": "a b"}, "key problem_hashes: .*found 'a b'"),
        ({"problem_hashes": ["0123456789a"]}, "key problem_hashes.0: .*found '0123456789a'"),
        ({"external_scores": "verifier"}, "key external_scores: .*found 'verifier'"),
        ({"external_scores": [1]}, "key external_scores.0: .*found 1"),
        ({"external_scores": ["forward"]}, "a score field cannot be called 'forward'"),
        ({"format": 2}, "its format is 2, not 3; make a weights file with: ledom tune"),
    ],
)
def test_bad_contents_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = tmp_path / "weights.json"
    file.write_text(json.dumps(GOOD))
    assert TunedWeights.load(file).num_problems == 1
    file.write_text(json.dumps(GOOD | changes))
    with pytest.raises(InputError, match=message) as error:
        TunedWeights.load(file)
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a JSON object, found list"),
        ("format: 2", "not JSON: .*; make a weights file with: ledom tune"),  # an earlier format
        ('{"format": 3, "weights": {"forward": {"forward": NaN}}}', "NaN"),
        ('{"format": 3, "weights": {}}', "key num_problems: Field required"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "weights.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        TunedWeights.load(file)
    assert str(error.value).startswith(f"{file}: ")
