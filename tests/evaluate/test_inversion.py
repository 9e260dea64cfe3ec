"""Prompts for an output: hand-computed scores, order, resuming and refusals."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from command_line import Run, check_refused
from evaluated import write_rows
from kills import contents, run_through_kills
from ledom.core.errors import DirectionError, InputError, ServerError
from ledom.core.records import write_records
from ledom.core.stage import no_progress
from ledom.evaluate.inversion import (
    InvertedPrompt,
    Output,
    invert,
    pair_spans,
    sample_pairs,
)
from ledom.evaluate.proposals import Prompt
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer
from stand_in_models import ScriptedLanguageModel

Fakes = dict[str, FakeLanguageModel]
ANSWER = "1 + 1 = 2\n#### 2"
QUESTIONS = ["What is 1 + 1?", "How many are 1 and 1?", "What is 2 + 2?"]


def by_hand(tokenizer: Tokenizer, question: str, prior: bool, answer: str = ANSWER) -> float:
    """The fake's log P of all tokens after the first, or only of those after the empty line."""
    encode, eos = tokenizer.encode, tokenizer.eos_id
    fed = [eos, *encode(f"{question}\n\n{answer}").ids, eos]
    values = [-math.log1p((a + b) % 7) for a, b in pairwise(fed)]
    return sum(values if prior else values[-len(encode(answer).ids) - 1 :])


def inverted(
    tokenizer: Tokenizer, out: Path, drawn: list[str], prior: bool
) -> list[InvertedPrompt]:
    reverse = ScriptedLanguageModel(tokenizer, "reverse", {f"\n\n{ANSWER}": drawn})
    outputs = [Output(id="o", text=ANSWER)]
    forward = FakeLanguageModel(tokenizer)
    return invert(outputs, reverse, forward, Sampling(), len(drawn), out, no_progress, prior)


@pytest.mark.parametrize("prior", [True, False])
def test_prompts_are_ordered_by_the_forward_models_score(
    tokenizer: Tokenizer, tmp_path: Path, prior: bool
) -> None:
    """Each is scored once; an incomplete prompt and an empty one are left out.

    The fake sees one token back, so without the prior all scores are equal and keep their order.
    """
    drawn = [*QUESTIONS, QUESTIONS[0], "... many?", " "]
    found = inverted(tokenizer, tmp_path, drawn, prior)
    scored = [(by_hand(tokenizer, question, prior), question) for question in QUESTIONS]
    assert (len({score for score, _ in scored}) == 1) is not prior
    expected = sorted(scored, key=lambda pair: -pair[0])
    assert [one.prompt for one in found] == [question for _, question in expected]
    assert [one.score for one in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
    assert [one.rank for one in found] == [1, 2, 3]


def test_scores_of_another_prior_are_refused_by_that_name(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    inverted(tokenizer, tmp_path, QUESTIONS, prior=True)
    with pytest.raises(InputError, match=r"prior: True there, False now"):
        inverted(tokenizer, tmp_path, QUESTIONS, prior=False)


def test_each_model_reads_an_output_in_its_own_style(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The proposer reads only equations and the verifier also the words, and vice versa."""
    words = "She has 1 + 1 = 2 pens.\n#### 2"
    for proposer_reads, verifier_reads in [(ANSWER, words), (words, ANSWER)]:
        reverse = ScriptedLanguageModel(tokenizer, "reverse", {f"\n\n{proposer_reads}": ["Why?"]})
        forward = FakeLanguageModel(tokenizer)
        styled = reverse if proposer_reads == ANSWER else forward
        styled.pair_format = PairFormat(style="equations")
        out, outputs = tmp_path / styled.direction, [Output(id="o", text=words)]
        (found,) = invert(outputs, reverse, forward, Sampling(), 1, out, no_progress)
        expected = by_hand(tokenizer, "Why?", True, verifier_reads)
        assert (found.prompt, found.score) == ("Why?", pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("room", [1, 0])
def test_a_prompt_that_is_too_long_to_be_verified_is_left_out(
    tokenizer: Tokenizer, tmp_path: Path, room: int
) -> None:
    """Half a character is generated as one token but read back as three (U+FFFD, three bytes)."""
    garbage = "\ufffd" * 9
    reverse = ScriptedLanguageModel(tokenizer, "reverse", {f"\n\n{ANSWER}": [garbage, "Why?"]})
    length = len(tokenizer.encode(f"{garbage}\n\n{ANSWER}").ids) + 1
    forward = FakeLanguageModel(tokenizer, context=length - 1 + room)
    outputs, how = [Output(id="o", text=ANSWER)], (Sampling(), 2, tmp_path, no_progress)
    found = invert(outputs, reverse, forward, *how)
    assert {one.prompt for one in found} == {"Why?"} | ({garbage} if room else set())
    assert [one.score for one in found if one.prompt == "Why?"] == pytest.approx(
        [by_hand(tokenizer, "Why?", True)], abs=1e-4
    )
    assert invert(outputs, reverse, forward, *how) == found  # from the files


def test_the_formats_ending_is_not_part_of_an_output(tokenizer: Tokenizer, tmp_path: Path) -> None:
    forward = ScriptedLanguageModel(tokenizer, "forward", {"2 + 2?\n<a>": ["4</a>"]})
    forward.pair_format = PairFormat("{question}\n<a>{solution}</a>")
    asked = [Prompt("a", "2 + 2?")]
    (pair,) = sample_pairs(forward, asked, Sampling(), tmp_path / "outputs.jsonl", no_progress)
    assert (pair.question, pair.solution) == ("2 + 2?", "4")


def test_spans_skip_the_first_token_if_the_model_reads_no_bos(tokenizer: Tokenizer) -> None:
    """The first token then has no log-probability and is not requested."""
    forward = FakeLanguageModel(tokenizer)
    forward.bos_ids = []
    for span in pair_spans(forward, [("What?", ANSWER)], True):
        assert span.start == 1
        forward.check_target(span)


@pytest.mark.slow
def test_kills_at_any_time_leave_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    outputs = [Output(id=f"o{i}", text=f"{i} + 1 = {i + 1}") for i in range(4)]

    def work(out: Path) -> None:
        reverse = FakeLanguageModel(tokenizer, "reverse", QUESTIONS)
        invert(outputs, reverse, FakeLanguageModel(tokenizer), Sampling(), 6, out, no_progress)

    assert run_through_kills(work, tmp_path / "whole", tmp_path / "killed", seed=4) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_models_and_outputs_must_fit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    outputs, how = [Output(id="o", text=ANSWER)], (Sampling(max_tokens=8), 2, tmp_path, no_progress)
    forward, reverse = (FakeLanguageModel(tokenizer, way) for way in ("forward", "reverse"))
    with pytest.raises(DirectionError, match="give a reverse one to propose"):
        invert(outputs, forward, reverse, *how)
    small = FakeLanguageModel(tokenizer, "reverse", context=12)
    with pytest.raises(InputError, match="'o': the prompt .* lower max_tokens"):
        invert(outputs, small, forward, *how)
    size = len(forward.tokenizer.encode(f"\n\n{ANSWER}").ids) + 1  # EOS is also read
    full = FakeLanguageModel(tokenizer, context=size)
    with pytest.raises(InputError, match=f"'o' has {size} tokens, which leave no room .* {size};"):
        invert(outputs, reverse, full, *how)
    assert contents(tmp_path) == {}


def test_a_server_that_cannot_score_is_refused_before_any_sampling(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ServerError("the server gives no log-probabilities of a prompt")

    reverse, forward = (FakeLanguageModel(tokenizer, way) for way in ("reverse", "forward"))
    monkeypatch.setattr(forward, "logprobs", refuse)
    with pytest.raises(ServerError, match="gives no log-probabilities"):
        invert(
            [Output(id="o", text=ANSWER)], reverse, forward, Sampling(), 2, tmp_path, no_progress
        )
    assert contents(tmp_path) == {}


def test_an_output_without_room_is_left_out_and_the_others_are_inverted(
    run: Run, fakes: Fakes, tmp_path: Path
) -> None:
    """One is too long for the reverse model plus 200 tokens, one for the forward model."""
    fakes["reverse"].answers = QUESTIONS
    tokenizer = fakes["reverse"].tokenizer
    texts = {"a": ANSWER, "b": ANSWER * 9, "c": ANSWER * 4}
    sizes = {i: len(tokenizer.encode(f"\n\n{text}").ids) + 1 for i, text in texts.items()}
    fakes["reverse"].context = sizes["c"] + 200
    fakes["forward"].context = sizes["c"]
    file, alone, out = tmp_path / "outputs.jsonl", tmp_path / "alone.jsonl", tmp_path / "out"
    write_records(file, [Output(id=i, text=t, prompt=QUESTIONS[0]) for i, t in texts.items()])
    write_records(alone, [Output(id="a", text=ANSWER, prompt=QUESTIONS[0])])
    code, text = run("invert", file, "--max-tokens", 200, "--out", out)
    assert code == 0, text
    assert "note: 2 of 3 outputs leave no room for a prompt of 200 tokens in a model's" in text
    assert run("invert", alone, "--max-tokens", 200, "--out", tmp_path / "right")[0] == 0
    for name in ("ranking.jsonl", "proposals.jsonl", "scores.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "right" / name).read_bytes()
    found = json.loads((out / "inversion.json").read_text())
    assert (found["num_outputs"], found["num_without_prompt"]) == (3, 2)
    right = json.loads((tmp_path / "right/inversion.json").read_text())
    rank = found["mrr"]["mean"]  # 0 for an output without prompts
    assert rank == pytest.approx(right["mrr"]["mean"] / 3, abs=1e-4)
    write_records(file, [Output(id=i, text=texts[i]) for i in "bc"])
    check_refused(run("invert", file, "--max-tokens", 200, "--out", out), "'b': the prompt")


def test_an_output_is_inverted_from_the_command_line(run: Run, fakes: Fakes) -> None:
    fakes["reverse"].answers = QUESTIONS
    code, text = run("invert", f"{ANSWER}\n", "--samples", 40, "--top", 2)
    assert code == 0, text
    tokenizer = fakes["forward"].tokenizer
    best = sorted(((by_hand(tokenizer, q, True), q) for q in QUESTIONS), reverse=True)
    for rank, (score, question) in enumerate(best[:2], start=1):
        assert f"{rank}. {score:.1f}\n{question}\n" in text
    assert "3. " not in text
    assert "MRR" not in text


def test_outputs_without_a_finished_prompt_are_counted(
    run: Run, fakes: Fakes, tmp_path: Path
) -> None:
    """Every proposal is empty; the second run reads the folder of the first."""
    fakes["reverse"].answers = [" "]
    for _ in range(2):
        code, text = run("invert", ANSWER, "--max-tokens", 9, "--out", tmp_path / "out")
        assert code == 0, text
        assert "1 of 1 outputs got no prompt: each proposal was empty, did not end" in text
        assert "within 9 tokens, or is too long for the forward model; try another" in text


def test_a_file_of_outputs_is_inverted(run: Run, fakes: Fakes, tmp_path: Path) -> None:
    """The true prompt of some outputs ranks first; that of the others is not proposed. Outputs of
    one prompt are not independent: the interval is that of two."""
    fakes["reverse"].answers = QUESTIONS
    best = max(QUESTIONS, key=lambda q: by_hand(fakes["forward"].tokenizer, q, True))
    texts = {f" {best}\n": ANSWER, "Why?": "2"}
    outputs = [
        Output(id=f"{name}{i}", text=text, prompt=prompt)
        for name, (prompt, text) in zip("ab", texts.items(), strict=True)
        for i in range(6)
    ]
    write_records(tmp_path / "outputs.jsonl", outputs)
    out = tmp_path / "out"
    code, text = run("invert", tmp_path / "outputs.jsonl", "--samples", 40, "--out", out)
    assert code == 0, text
    assert "MRR 0.500 [" in text
    assert "right first 50.0 ± 50.0%; " in text
    assert "12 of 12 outputs have a known prompt" in text
    summary = json.loads((out / "inversion.json").read_text())
    assert (summary["num_outputs"], summary["num_known"]) == (12, 12)
    assert summary["mrr"]["mean"] == summary["right_first"]["mean"] == 0.5
    rows = [json.loads(line) for line in (out / "ranking.jsonl").read_text().splitlines()]
    assert [(row["output_id"], row["rank"]) for row in rows] == [
        (one.id, rank) for one in outputs for rank in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"id": "a", "text": " "}], ["outputs.jsonl:1", "output 'a' has an empty text"]),
        ([{"id": "a", "text": "x"}] * 2, ["outputs.jsonl:2", "'a' occurs twice"]),
        ([{"id": "a"}], ["outputs.jsonl:1", "missing key 'text'"]),
        ([{"id": "a", "text": "x", "prompt": 1}], ["outputs.jsonl:1", "prompt"]),
        ([{"id": "a", "text": "x", "prompt": "\n"}], ["outputs.jsonl:1", "an empty prompt"]),
        ([], ["no Output records"]),
    ],
)
def test_the_error_for_a_bad_output_names_the_line(
    run: Run, fakes: Fakes, tmp_path: Path, rows: list[dict[str, Any]], parts: list[str]
) -> None:
    path = tmp_path / "outputs.jsonl"
    write_rows(path, rows)
    check_refused(run("invert", path, "--out", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_other_bad_input_is_refused(run: Run, fakes: Fakes, tmp_path: Path) -> None:
    write_records(tmp_path / "outputs.jsonl", [Output(id="a", text="x")])
    check_refused(run("invert", tmp_path / "outputs.jsonl"), "give --out FOLDER")
    check_refused(run("invert", " \n"), "the output is empty")
    check_refused(run("invert", "x", "--forward", "none"), "needs a forward model")
    check_refused(run("invert", tmp_path / "none.jsonl", "--out", tmp_path), "no such file")
