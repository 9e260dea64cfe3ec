"""Beam search over steps: what is kept, what counts as finished, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import ledom
from ledom.core.errors import DirectionError, InputError
from ledom.core.records import Candidate, Problem, Score
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.rerank import step_search as module
from ledom.rerank.step_search import SearchConfig, search
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?", answer="2") for i in range(40)]
ANSWERS = ("good\n1 + 1 = 2\n#### 2", "bad\n1 + 1 = 3\n#### 3", "bad\n1 + 1 = 4\n#### 4")


@pytest.fixture
def forward(tokenizer: Tokenizer) -> FakeLanguageModel:
    return FakeLanguageModel(tokenizer, "forward", ANSWERS)


@pytest.fixture
def reverse(tokenizer: Tokenizer) -> FakeLanguageModel:
    return FakeLanguageModel(tokenizer, "reverse")


@pytest.fixture
def good_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score texts by the word `good`, whatever the model."""

    def scored(
        problems: Sequence[Problem],
        candidates: Sequence[Candidate],
        lm: LanguageModel,
        with_thoughts: bool,
    ) -> Iterator[list[Score]]:
        for candidate in candidates:
            value = -1.0 if "good" in candidate.text else -2.0
            yield [
                Score(
                    problem_id=candidate.problem_id,
                    index=candidate.index,
                    model="m",
                    direction="forward",
                    target=target,
                    logprob=3 * value,
                    num_tokens=3,
                    token_logprobs=[value] * 3,
                    token_spans=[[0, 1], [1, 2], [0, 0]],
                )
                for target in ("y|x", "x|y")
            ]

    monkeypatch.setattr(module, "score_candidates", scored)


@pytest.mark.usefixtures("good_is_better")
def test_the_better_beams_are_continued(
    forward: FakeLanguageModel, reverse: FakeLanguageModel
) -> None:
    config = SearchConfig(width=1, expansions=12)
    found = list(search(PROBLEMS, forward, reverse, config))
    assert [problem_id for problem_id, _, _ in found] == [p.id for p in PROBLEMS]
    for _, beams, generated in found:
        assert [beam.text for beam in beams] == [ANSWERS[0]]
        assert beams[0].finish_reason == "stop"
        assert beams[0].score == pytest.approx(-1.0)
        assert beams[0].num_tokens > 5
        assert generated > 12  # discarded text counts too


@pytest.mark.usefixtures("good_is_better")
def test_duplicates_form_one_beam(forward: FakeLanguageModel, reverse: FakeLanguageModel) -> None:
    for _, beams, _ in search(PROBLEMS, forward, reverse, SearchConfig(width=4, expansions=3)):
        texts = [beam.text for beam in beams]
        assert len(set(texts)) == len(texts)
        assert set(texts) <= set(ANSWERS)
        assert texts[0] == ANSWERS[0]  # twelve first draws of three answers


def test_a_finished_text_is_not_a_duplicate_of_its_truncation(
    forward: FakeLanguageModel, reverse: FakeLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Generation("#### 2", [5, 6], "length"), Generation("#### 2", [5, 6], "stop")]
    monkeypatch.setattr(forward, "generate", lambda *_: iter([(0, made)]))
    [(_, beams, _)] = search(PROBLEMS[:1], forward, reverse, SearchConfig())
    assert [beam.finish_reason for beam in beams] == ["stop", "length"]


def test_a_text_that_ran_out_of_tokens_is_not_finished(
    forward: FakeLanguageModel, reverse: FakeLanguageModel, tokenizer: Tokenizer
) -> None:
    short = SearchConfig(sampling=Sampling(temperature=0.7, max_tokens=2))
    for _, beams, _ in search(PROBLEMS[:3], forward, reverse, short):
        assert {beam.finish_reason for beam in beams} == {"length"}
    forward.answers = ["#### 2", "1 + 1 = 2 and so on and on and on"]
    room = len(tokenizer.encode("#### 2").ids) + 1
    one_ends = replace(short, sampling=Sampling(temperature=0.7, max_tokens=room))
    seen: set[str] = set()
    for _, beams, _ in search(PROBLEMS, forward, reverse, one_ends):
        reasons = [beam.finish_reason for beam in beams]
        seen |= {*reasons}
        assert reasons == sorted(reasons, key=lambda reason: reason != "stop")
        assert all((b.finish_reason == "stop") == (b.text == "#### 2") for b in beams)
    assert seen == {"stop", "length"}


def test_a_full_context_ends_a_beam(
    forward: FakeLanguageModel, reverse: FakeLanguageModel, tokenizer: Tokenizer
) -> None:
    prompt = len(tokenizer.encode(PROBLEMS[0].question + "\n\n").ids)
    first = len(tokenizer.encode("good\n").ids)
    forward.context = prompt + first + 10
    config = SearchConfig(sampling=Sampling(temperature=0.7, max_tokens=12))
    ((_, beams, _),) = search(PROBLEMS[:1], forward, reverse, config)
    assert {beam.finish_reason for beam in beams} == {"length"}


def test_an_endless_search_is_stopped(
    forward: FakeLanguageModel, reverse: FakeLanguageModel
) -> None:
    ((_, beams, _),) = search(PROBLEMS[:1], forward, reverse, SearchConfig(max_steps=1))
    assert {beam.finish_reason for beam in beams} == {"pattern"}
    assert all(beam.text.endswith("\n") for beam in beams)


@pytest.mark.slow
def test_a_greedy_beam_of_one_is_the_greedy_text(checkpoints: dict[str, Path]) -> None:
    """With real models, steps from cached keys and values give the same text as one pass."""
    lm = ledom.load(checkpoints["forward"], device="cpu")
    whole = Sampling(temperature=0.0, max_tokens=40)
    prompts = [lm.pair_format.before_solution(p.question) for p in PROBLEMS[:3]]
    expected = {place: made[0] for place, made in lm.generate(prompts, whole)}
    config = SearchConfig(1, 1, 0.0, step_end=r"[^ ]", max_steps=25, sampling=whole)
    found = [beams[0] for _, beams, _ in search(PROBLEMS[:3], lm, None, config)]
    for place, beam in enumerate(found):
        assert expected[place].text.startswith(beam.text)
        assert beam.num_tokens >= 20 or beam.finish_reason != "pattern"
    assert len(found) == 3


def test_models_must_match(forward: FakeLanguageModel, reverse: FakeLanguageModel) -> None:
    with pytest.raises(DirectionError, match="give a forward one to sample steps"):
        list(search(PROBLEMS, reverse, reverse, SearchConfig()))
    with pytest.raises(DirectionError, match="give a reverse one to score steps"):
        list(search(PROBLEMS, forward, forward, SearchConfig()))
    with pytest.raises(InputError, match=r"lambda is 0\.5 without a reverse model"):
        list(search(PROBLEMS, forward, None, SearchConfig()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"expansions": 0}, "expansions is 0"),
        ({"lam": 1.5}, "lambda is 1.5"),
        ({"lam": float("nan")}, "lambda is nan"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"step_end": "("}, "stop_pattern .* is not a regular expression"),
        ({"step_end": ""}, "step_end '' matches an empty text"),
        ({"step_end": r"\n*"}, "matches an empty text"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchConfig(**settings)  # type: ignore[arg-type]


def test_the_formats_ending_is_not_part_of_a_solution(
    tokenizer: Tokenizer, reverse: FakeLanguageModel
) -> None:
    """`</a>` ends a text; an open beam is scored without it, a finished one with it."""
    lm = FakeLanguageModel(tokenizer, answers=["1 + 1 = 2\n#### 2\n</a>"])
    lm.pair_format = PairFormat("{question}\n{solution}\n</a>")
    config = SearchConfig(width=1, expansions=1, lam=0)
    ((_, (beam,), _),) = search(PROBLEMS[:1], lm, None, config)
    assert (beam.text, beam.finish_reason) == ("1 + 1 = 2\n#### 2", "stop")
    whole = tokenizer.encode(f"{PROBLEMS[0].question}\n{beam.text}\n</a>").ids
    y = len(tokenizer.encode(f"{PROBLEMS[0].question}\n").ids)
    eos = tokenizer.eos_id
    (values,) = lm.logprobs([TokenSpan([eos, *whole, eos], y + 1, len(whole) + 2)])
    assert beam.score == pytest.approx(values.mean(), abs=1e-5)
    ((_, (beam,), _),) = search(PROBLEMS[:1], lm, None, replace(config, max_steps=1))
    assert (beam.text, beam.finish_reason) == ("1 + 1 = 2\n", "pattern")
    shown = len(tokenizer.encode(f"{PROBLEMS[0].question}\n1 + 1 = 2").ids)
    assert beam.score == pytest.approx(values[: shown - y].mean(), abs=1e-5)
