"""Features of candidates and steps, on numbers small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ledom.core.records import Candidate, Problem, Score
from ledom.rerank.candidate_table import (
    FEATURES,
    build_candidate_table,
    computable_features,
    split_steps,
    worst_step,
)
from made import made_score, token_score

TEXT = "2 + 3 = 5\n\n5 * 2 = 11\n#### 11"
#       tokens:     "2 +"   " 3 = 5"  "\n\n"   "5 * 2" " = 11"   "\n####"  " 11"
SPANS = [[0, 3], [3, 9], [9, 11], [11, 16], [16, 21], [21, 26], [26, 29]]


def score(target: str, values: list[float], **more: Any) -> Score:
    spans = [*SPANS, [0, 0]][: len(values)]  # forward, the document's end comes last
    return token_score(target, values, spans, **more)


REVERSE = score("y", [-0.5, -0.25, -9.0, -0.5, -4.0, -1.0, -2.0])
FORWARD = score("y|x", [-3.0, -0.5, -9.0, -0.25, -1.0, -1.0, -0.5, -7.0])


def test_tokens_belong_to_the_step_of_their_last_character() -> None:
    steps = split_steps(REVERSE, TEXT)  # neither the blank line nor the end is part of one
    assert steps == [[-0.5, -0.25], [-0.5, -4.0], [-1.0, -2.0]]


def test_the_worst_step_averages_both_models_if_they_read_one_text() -> None:
    assert worst_step(REVERSE, None, TEXT) == -4.0
    assert worst_step(REVERSE, FORWARD, TEXT) == -2.5
    other = score("y|x", [-50.0], text="2 + 3")
    assert worst_step(REVERSE, other, TEXT) == -4.0
    assert worst_step(made_score("y"), None, TEXT) == 0.0
    ended = token_score("y|x", [-7.0], [[0, 0]])
    assert worst_step(token_score("y", [], []), ended, "") == -7.0  # no better than any step


def test_the_worst_step_is_a_feature() -> None:
    problem = Problem(id="p", question="How many?", answer="10")
    candidate = Candidate(problem_id="p", index=0, text=TEXT)
    scores = [FORWARD, made_score("x|y"), REVERSE]
    table = build_candidate_table([problem], [candidate], scores)
    assert table.features["worst_step"][0, 0] == pytest.approx(-2.5)


def test_a_feature_needs_the_scores_of_all_its_targets() -> None:
    assert "contrast" not in computable_features({"x'|y"})  # a difference of two scores
    assert computable_features({"x'|y", "x|y", "y|x", "y", "x~|y"}) == list(FEATURES)
    assert "worst_step" in computable_features({"y"})  # better with y|x, but it does not need it


@pytest.mark.parametrize("writers", [("blank", "a", "b"), ("a", "b", "blank"), ("a", "b")])
def test_blank_texts_have_no_part_in_the_mean_of_their_model(writers: tuple[str, ...]) -> None:
    """Model b's texts are 10 above a's; half of its texts are blank, or all of a third model's."""
    problems = [Problem(id=f"p{i}", question="How many?", answer="1") for i in range(20)]
    candidates, scores = [], []
    for problem in problems:
        texts = [("a", "2", -10.0), ("a", "1", -8.0), ("b", "3", 0.0), ("b", "", 0.0)]
        if "blank" in writers:
            texts += [("blank", "<think>", 0.0)] * 2
        texts.sort(key=lambda one: writers.index(one[0]))
        for index, (model, text, value) in enumerate(texts):
            one = Candidate(problem_id=problem.id, index=index, text=text, model=model)
            candidates.append(one)
            scores.append(made_score("x|y", value, problem_id=problem.id, index=index))
    first = {(c.problem_id, c.text): c.index for c in reversed(candidates)}
    scores = [s for s in scores if s.index in {i for (p, _), i in first.items() if p == "p0"}]
    table = build_candidate_table(problems, candidates, scores)
    if "blank" in writers:  # it wrote no text at all, so its mean is unknown
        assert not table.by_model
        return
    assert table.by_model
    # -10, -8 and 0 less the problem's mean of -6 are -4, -2 and 6; a's mean is -3, b's is 6.
    expected = np.tile([-1.0, 1.0, 0.0, 0.0], (20, 1))
    np.testing.assert_allclose(table.features["reverse"], expected, atol=1e-12)
