"""The candidates of several models in one table, on numbers small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ledom.core.records import Candidate, Problem
from ledom.rerank.candidate_table import build_candidate_table
from made import made_score


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
