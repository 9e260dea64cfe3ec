"""The weights file: a bad one is refused, with the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.rerank.weights import TunedWeights

HEAD = "{format: 2, num_problems: 1, num_candidates: 2, problems: '', "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{format: 2, weights: 3}", "key num_problems: Field required"),
        ("[1, 2]", "expected keys and values, found list"),
        ("a: [", "not YAML"),
        (HEAD + "weights: {forward: {forward: .nan}}}", "nan"),
        (
            HEAD + "weights: {forward: {forward: true}}}",
            "key weights.forward.forward: .*found True",
        ),
        (HEAD + "weights: {forward: {forward: '1'}}}", "key weights.forward.forward: .*found '1'"),
        (HEAD + "weights: {forward: 1}}", "key weights.forward: .*found 1"),
        (HEAD + "weights: {best: {forward: 1}}}", "unknown strategy 'best'; known: greedy"),
        (HEAD + "weights: {judge: {judge: 1}}}", "unknown strategy 'judge'; known: greedy"),
        (
            HEAD + "weights: {noisy_channel: {forwards: 1}}}",
            "strategy 'noisy_channel': unknown feature 'forwards'; it uses: forward, rev",
        ),
        (
            HEAD + "weights: {reverse_reward: {forward: 0.5, reverse_mean: 0.5}}}",
            r"strategy 'reverse_reward' mixes sums and means per token \(forward, reverse_mean\)",
        ),
        (
            HEAD + "weights: {majority: {forward: 1}}}",
            "strategy 'majority': unknown feature 'forward'; it has no weights",
        ),
        (
            HEAD + "weights: {all_terms: {}}}",
            "strategy 'all_terms' has no weights; it uses: forward, forward_mean",
        ),
        (
            "{format: 2, num_problems: 3.7, num_candidates: 2, problems: '', weights: {}}",
            "key num_problems: .*found 3.7",
        ),
        (
            "{format: 2, num_problems: -1, num_candidates: 2, problems: '', weights: {}}",
            "key num_problems: .*found -1",
        ),
        (
            "{format: 2, num_problems: true, num_candidates: 2, problems: '', weights: {}}",
            "key num_problems: .*found True",
        ),
        (
            "{format: 2, num_problems: 3, num_candidates: 2, problems: [a, b], weights: {}}",
            "key problems: .*found \\['a', 'b'\\]",
        ),
        (
            "{format: 2, num_problems: 3, num_candidates: 2, problems: 0123456789a, weights: {}}",
            "key problems: '0123456789a' is not the hash of a question",
        ),
        (
            HEAD + "weights: {}, external_scores: verifier}",
            "key external_scores: .*found 'verifier'",
        ),
        (HEAD + "weights: {}, external_scores: [1]}", "key external_scores.0: .*found 1"),
        (
            HEAD + "weights: {}, external_scores: [forward]}",
            "a score field cannot be called 'forward'",
        ),
        (
            "{num_problems: 1, weights: {}}",
            "a weights file of format 1, expected 2; make it again with: ledom tune",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "weights.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        TunedWeights.load(file)
    assert str(file) in str(error.value)
