"""Texts between two others: cuts of proposals, hand-computed scores, resuming, refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

from command_line import Run, check_refused
from kills import contents, run_through_kills
from ledom.core.direction import Direction
from ledom.core.errors import DirectionError, InputError
from ledom.core.records import read_records
from ledom.core.stage import no_progress
from ledom.evaluate.infilling import Gap, Middle, cuts, infill, middle_spans
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.text.tokenizer import Tokenizer
from stand_in_models import ScriptedLanguageModel

Fakes = dict[str, FakeLanguageModel]
FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE
GAP = Gap(id="g", beginning="Ava has", ending=" 7 pens.")


@pytest.mark.parametrize(
    ("direction", "beginning", "ending", "expected"),
    [
        (REVERSE, "We", " run", [" a b c d", " b c d"]),
        (REVERSE, "We ", " run", [" a b c d", "a b c d", "b c d"]),
        (FORWARD, "We", "run", [" a b c d", " a b ", " a b c "]),
        (FORWARD, "We", " run", [" a b c d", " a b", " a b c"]),
    ],
)
def test_a_proposal_is_cut_at_the_end_far_from_its_prompt(
    direction: Direction, beginning: str, ending: str, expected: list[str]
) -> None:
    gap = Gap(id="g", beginning=beginning, ending=ending)
    assert cuts(" a b c d", gap, direction) == expected


def mean_by_hand(tokenizer: Tokenizer, middle: str) -> float:
    """The fake's mean log P of tokens that extend past the beginning, without the end token."""
    encoding = tokenizer.encode(f"{GAP.beginning}{middle}{GAP.ending}")
    values = [-math.log1p((a + b) % 7) for a, b in pairwise([tokenizer.eos_id, *encoding.ids])]
    inside = [
        value
        for value, (_, end) in zip(values, encoding.offsets, strict=True)
        if end > len(GAP.beginning)
    ]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("direction", Direction)
def test_the_forward_model_chooses_by_the_mean_per_token(
    tokenizer: Tokenizer, tmp_path: Path, direction: Direction
) -> None:
    drawn = [" 3 pens and buys 4, so she has", " 9 and gives 2 away:", " 9 and gives 2 away:"]
    prompt = GAP.beginning if direction is FORWARD else GAP.ending
    proposer = ScriptedLanguageModel(tokenizer, str(direction), {prompt: drawn})
    forward = FakeLanguageModel(tokenizer)
    found = infill([GAP], proposer, forward, Sampling(), 3, tmp_path, no_progress)["g"]
    texts = {text for one in drawn for text in cuts(one, GAP, direction)}
    expected = sorted(((mean_by_hand(tokenizer, text), text) for text in texts), reverse=True)
    assert [one.score for one in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
    assert {one.text for one in found} == texts
    assert mean_by_hand(tokenizer, found[0].text) == pytest.approx(expected[0][0], abs=1e-4)


def test_a_token_across_the_end_of_the_beginning_counts(tokenizer: Tokenizer) -> None:
    """A token may span the end of the beginning; it then belongs to the middle."""
    forward = FakeLanguageModel(tokenizer)
    text = "How many"
    whole = tokenizer.encode(text)
    cut = whole.offsets[0][1] - 1  # inside the first token
    gap = Gap(id="g", beginning=text[:cut], ending=text[cut + 1 :])
    (span,) = middle_spans(forward, [(gap, text[cut])])
    assert span.ids == [tokenizer.eos_id, *whole.ids, tokenizer.eos_id]
    assert (span.start, span.end) == (1, 1 + len(whole.ids))


def test_spans_skip_the_first_token_if_the_model_reads_no_bos(tokenizer: Tokenizer) -> None:
    """The first token then has no log-probability and is not requested."""
    forward = FakeLanguageModel(tokenizer)
    forward.bos_ids = []
    gap = Gap(id="g", beginning="", ending="")
    for middle, length in (("two pens", len(tokenizer.encode("two pens").ids)), ("", 1)):
        (span,) = middle_spans(forward, [(gap, middle)])
        assert (span.start, span.end) == (1, length)
        forward.check_target(span)


@pytest.mark.slow
def test_kills_at_any_time_leave_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    gaps = [Gap(id=f"g{i}", beginning="Ava has", ending=f" {i} pens.") for i in range(4)]

    def work(out: Path) -> None:
        reverse = FakeLanguageModel(tokenizer, "reverse", [" 3 and 4, so", " 5 less 2 are"])
        infill(gaps, reverse, FakeLanguageModel(tokenizer), Sampling(), 6, out, no_progress)

    assert run_through_kills(work, tmp_path / "whole", tmp_path / "killed", seed=5) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_models_and_texts_must_fit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    forward, reverse = (FakeLanguageModel(tokenizer, way) for way in ("forward", "reverse"))
    with pytest.raises(DirectionError, match="give a forward one to choose middles"):
        infill([GAP], reverse, reverse, Sampling(), 1, tmp_path, no_progress)
    small = FakeLanguageModel(tokenizer, "reverse", context=12)
    with pytest.raises(InputError, match="'g': the prompt .* lower max_tokens"):
        infill([GAP], small, forward, Sampling(max_tokens=12), 1, tmp_path, no_progress)
    long = Gap(id="l", beginning="one two " * 50, ending=" 7 pens.")
    small = FakeLanguageModel(tokenizer, context=60)
    with pytest.raises(InputError, match="'l': beginning and ending have .* the context of 60"):
        infill([long], reverse, small, Sampling(max_tokens=12), 1, tmp_path, no_progress)
    text = f"{long.beginning}{long.ending}"
    over = len(tokenizer.encode(text).ids) + 1  # with EOS, which the model reads first
    for context, remedy in (
        (over + 3, "lower max_tokens to 3, or shorten them"),
        (over, "shorten"),
    ):
        small = FakeLanguageModel(tokenizer, context=context)
        with pytest.raises(InputError, match=f"of fake; {remedy}"):
            infill([long], reverse, small, Sampling(max_tokens=12), 1, tmp_path, no_progress)
    assert contents(tmp_path) == {}


def test_a_gap_needs_text_on_both_sides(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Without an ending, an empty middle would have no tokens and the best score, 0."""
    forward, reverse = (FakeLanguageModel(tokenizer, way) for way in ("forward", "reverse"))
    for name, gap in (
        ("beginning", Gap(id="g", beginning="", ending="7")),
        ("ending", Gap(id="g", beginning="7", ending="")),
    ):
        with pytest.raises(InputError, match=f"'g': the {name} is empty; give a text"):
            infill([gap], reverse, forward, Sampling(), 1, tmp_path, no_progress)
    assert contents(tmp_path) == {}


def test_the_command_prints_the_best_middle(run: Run, fakes: Fakes, tmp_path: Path) -> None:
    """The best middle is printed between beginning and ending."""
    fakes["reverse"].answers = [" 3 pens and buys 4, so she has", " 9 and gives 2 away:"]
    texts = {text for one in fakes["reverse"].answers for text in cuts(one, GAP, REVERSE)}
    best = max(texts, key=lambda text: mean_by_hand(fakes["forward"].tokenizer, text))
    ends = ["--after", GAP.beginning, "--before", GAP.ending]
    out = tmp_path / "out"
    code, text = run("generate", *ends, "--proposals", 20, "--out", out)
    assert code == 0, text
    assert text == f"{GAP.beginning}{best}{GAP.ending}\n"
    middles = read_records(out / "middles.jsonl", Middle)
    assert [one.rank for one in middles] == [*range(1, len(texts) + 1)]
    assert {one.gap_id for one in middles} == {"gap"}
    assert (middles[0].text, middles[0].direction) == (best, "reverse")
    (gap,) = read_records(out / "gaps.jsonl", Gap)
    assert (gap.beginning, gap.ending) == (GAP.beginning, GAP.ending)
    code, text = run("generate", *ends, "--samples", 3, "--temperature", 0)
    assert code == 0, text
    assert text.count(GAP.ending) == 3


def test_a_middle_that_is_too_long_to_be_scored_is_left_out(
    run: Run, fakes: Fakes, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Half a character is generated as one token, but read back as the three of U+FFFD."""
    size = len(tokenizer.encode(f"{GAP.beginning}{GAP.ending}").ids)
    room = size + 2  # EOS, and one token to generate
    forward = FakeLanguageModel(tokenizer, context=room)
    reverse = ScriptedLanguageModel(tokenizer, "reverse", {GAP.ending: ["\ufffd", ""]})
    found = infill([GAP], reverse, forward, Sampling(max_tokens=1), 2, tmp_path, no_progress)["g"]
    assert [one.text for one in found] == [""]
    assert found[0].score == pytest.approx(mean_by_hand(tokenizer, ""), abs=1e-4)
    fakes["reverse"].answers, fakes["forward"].context = ["é"], room
    ends = ["--after", GAP.beginning, "--before", GAP.ending, "--max-tokens", 1]
    check_refused(run("generate", *ends), "fits the context of tiny", "lower --max-tokens")


def test_bad_gaps_are_refused(run: Run, fakes: Fakes) -> None:
    check_refused(run("generate"), "nothing to write from", "--before ENDING")
    check_refused(run("generate", "--before", "-", "--after", "-"), "only one standard input")
    ends = ["--after", "a", "--before", "b"]
    check_refused(run("generate", *ends, "--forward", "none"), "needs a forward model")
    refused = run("generate", *ends, "--temperature", 0, "--proposals", 2)
    check_refused(refused, "--proposals would have no effect", "leave it out")
