"""External scores: which are in use, and which will not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.core.records import Candidate
from ledom.rerank.external_scores import choose_external_scores, read_candidates


def candidate(index: int = 0, greedy: bool = False, **scores: object) -> Candidate:
    return Candidate(problem_id="p", index=index, text="#### 1", greedy=greedy, extra=scores)


def test_self_certainty_is_taken_where_all_have_it() -> None:
    sure = [candidate(0, self_certainty=1.5), candidate(1, self_certainty=2)]
    greedy = candidate(2, greedy=True)  # stands apart, and need not have it
    assert choose_external_scores([*sure, greedy]) == ("self_certainty",)
    assert choose_external_scores([*sure, candidate(3)]) == ()
    assert choose_external_scores(sure, []) == ()


def test_score_fields_asked_for_and_needed() -> None:
    both = [candidate(verifier=0.5, other=-3)]
    assert choose_external_scores(both, ["verifier"]) == ("verifier",)
    assert choose_external_scores(both, None, ["other"]) == ("other",)
    assert choose_external_scores(both, ["verifier", "other"], ["verifier"]) == (
        "verifier",
        "other",
    )
    with pytest.raises(InputError, match="candidate 0 of problem 'p' has no 'reward'"):
        choose_external_scores(both, ["verifier"], ["reward"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forward", "ledom computes a score of that name"),
        ("majority", "ledom computes a score of that name"),
        ("index", "a key of every candidate"),
        ("correct", "a key of every candidate"),
        ("vote, verifier", "letters, digits"),
        ("", "letters, digits"),
    ],
)
def test_names_that_are_taken_or_odd(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_external_scores([candidate(**{name: 1.0})], [name])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", "'0.5', expected a number of at most 1e.100"),
        (True, "True, expected a number of at most 1e.100"),
        ([1.0], r"\[1.0\], expected a number of at most 1e.100"),
        (None, "has no 'verifier'"),
        (-2e100, "-2e.100, expected a number of at most 1e.100"),
    ],
)
def test_what_is_no_number_is_named_with_file_and_line(
    tmp_path: Path, value: object, message: str
) -> None:
    path = tmp_path / "c.jsonl"
    rows = [candidate(0, verifier=1), candidate(1, greedy=True), candidate(2, verifier=value)]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    assert len(read_candidates(path)) == 3  # whatever is not asked for does not matter
    with pytest.raises(InputError, match=message) as error:
        read_candidates(path, ["verifier"])
    assert str(error.value).startswith(f"{path}:3: candidate 2 of problem 'p'")
