"""The reversal suite with mock models: what is asked, chosen and counted."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command_line import Run
from kills import run_through_kills
from ledom.cli.evaluate import show_reversal
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.stage import no_progress
from ledom.evaluate import reversal
from ledom.evaluate.facts import PAIR_FORMAT, Fact, make_facts, texts
from ledom.evaluate.reversal import (
    ARMS,
    ReversalJob,
    ReversalResult,
    ask,
    ask_pair,
    compare_arms,
    make_questions,
    run_reversal,
)
from ledom.lm.generation import Prompts, PromptTexts
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import train_tokenizer

FACTS = [
    Fact("fact-0", "Ada Bel", "the keeper of Red Sea", "name first"),
    Fact("fact-1", "Cy Dor", "the painter of Old Mill", "description first"),
    Fact("fact-2", "Eli Fox", "the founder of New Dawn", "both orders"),
]
QUESTIONS = make_questions(FACTS)
TOKENIZER = train_tokenizer(texts(FACTS), 300)


class Memory(LanguageModel):
    """A perfect memory of the sentences of some facts, in the order in which they were read.

    It completes a sentence that it has read, and otherwise writes `guess`. Tokens of a sentence
    that it has read are likely (-0.1 each), other tokens unlikely (-5 each).
    """

    batches_requests = False

    def __init__(self, direction: Direction, guess: str = "nobody") -> None:
        super().__init__(
            name="memory",
            direction=direction,
            tokenizer=TOKENIZER,
            pair_format=PairFormat(PAIR_FORMAT),
            bos_ids=[TOKENIZER.eos_id],
            context=200,
            fingerprint="memory",
        )
        self.sentences = texts(FACTS)
        self.guess = guess

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        each = [-0.1 if self._knows(target) else -5.0 for target in targets]
        return [
            np.full(target.end - target.start, value, np.float32)
            for target, value in zip(targets, each, strict=True)
        ]

    def _knows(self, target: TokenSpan) -> bool:
        return TOKENIZER.decode(target.ids) in self.sentences

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        for place, prompt in enumerate(prompts):
            assert isinstance(prompt, str)
            yield place, [Generation(self._write(prompt), [], "stop")] * num_samples

    def _write(self, prompt: str) -> str:
        if self.direction is Direction.FORWARD:
            known = (s.removeprefix(prompt) for s in self.sentences if s.startswith(prompt))
            return next(known, f" {self.guess}.")
        known = (s.removesuffix(prompt) for s in self.sentences if s.endswith(prompt))
        return next(known, f"We know that {self.guess}")


FORWARD, REVERSE = Memory(Direction.FORWARD), Memory(Direction.REVERSE)


def test_each_direction_answers_if_the_answer_was_on_the_side_it_writes(
    tmp_path: Path,
) -> None:
    def right(lm: Memory) -> list[bool]:
        answers = ask(lm, QUESTIONS, tmp_path / f"{lm.direction}.jsonl", no_progress)
        return [answer == q.right for answer, q in zip(answers, QUESTIONS, strict=True)]

    assert right(FORWARD) == [True, False, False, True, True, True]
    assert right(REVERSE) == [False, True, True, False, True, True]


def test_the_pair_chooses_the_sentence_that_both_models_know(tmp_path: Path) -> None:
    chosen = ask_pair(FORWARD, REVERSE, QUESTIONS, 0, tmp_path, no_progress)
    assert chosen == [q.right for q in QUESTIONS]


def test_an_interrupted_evaluation_keeps_its_answers(tmp_path: Path) -> None:
    """Each of these models dies at its fifth prompt; the next one resumes there."""

    class Dying(Memory):
        def _write(self, prompt: str) -> str:
            asked.append(prompt)
            if len(asked) == 5:
                raise KeyboardInterrupt
            return super()._write(prompt)

    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ask(Dying(Direction.FORWARD), QUESTIONS, tmp_path / "answers.jsonl", no_progress)
    assert len(asked) == 5
    found = ask(Dying(Direction.FORWARD), QUESTIONS, tmp_path / "answers.jsonl", no_progress)
    assert found == ask(FORWARD, QUESTIONS, tmp_path / "whole.jsonl", no_progress)
    assert asked[5:] == ["We know that Eli Fox is", "We know that the founder of New Dawn is"]


def test_a_guess_with_a_better_reward_is_chosen_over_the_right_answer(tmp_path: Path) -> None:
    """The reward is the mean of both models' log-probabilities, whichever model proposed."""

    class Liar(Memory):
        def _knows(self, target: TokenSpan) -> bool:
            return "nobody" in TOKENIZER.decode(target.ids)

    liars = Liar(Direction.FORWARD), Liar(Direction.REVERSE)
    assert ask_pair(*liars, QUESTIONS[:2], 0, tmp_path, no_progress) == ["nobody", "nobody"]


def test_accuracies_and_differences_are_per_kind_of_fact_and_question(tmp_path: Path) -> None:
    right = [question.right for question in QUESTIONS]
    answers = dict.fromkeys(ARMS, right) | {
        "forward": ask(FORWARD, QUESTIONS, tmp_path / "answers.jsonl", no_progress)
    }
    found = {(r.seen, r.asked, r.arm): r for r in compare_arms(QUESTIONS, answers)}
    assert found["name first", "description", "forward"].accuracy.mean == 1
    assert found["name first", "name", "forward"].accuracy.mean == 0
    assert found["description first", "description", "forward"].accuracy.mean == 0
    assert found["both orders", "name", "forward"].accuracy.mean == 1
    assert found["one order", "either", "forward"].accuracy.mean == 0.5
    gained = found["one order", "either", "pair"].less_forward
    assert gained is not None
    # With two facts, 1 - 0.025 ** (1 / 2) = 84.2% may have another difference, from -1 to 1.
    assert (gained.mean, gained.low) == (0.5, pytest.approx(0.5 - 0.84189 * 1.5, abs=1e-4))
    assert gained.high == pytest.approx(0.5 + 0.84189 * 0.5, abs=1e-4)
    assert found["one order", "either", "forward"].less_forward is None
    assert len(found) == 7 * len(ARMS)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, small batches, few and short proposals."""
    shape = reversal._SHAPE.model_copy(update={"hidden_size": 32, "num_hidden_layers": 1})
    small = {"_SHAPE": shape, "_BATCH_SIZE": 8, "_SAMPLES": 2, "_MOST_TOKENS": 6}
    for name, value in small.items():
        monkeypatch.setattr(reversal, name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_the_command_resumes_and_refuses_another_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[str] = []

    def watch(name: str, done: int, steps: int) -> Any:
        return nullcontext(lambda progress: trained.append(name))

    job = ReversalJob(tmp_path, per_order=2, steps=2)
    found = run_reversal(job, watch, no_progress)
    assert len(trained) == 4 * 2
    assert [
        r for r in caplog.records if r.name == "ledom"
    ] == []  # though it validates on its texts
    assert [q.right for q in found.questions[::2]] == [f.description for f in make_facts(2)]
    written = json.loads((tmp_path / "reversal.json").read_text())
    assert written["num_facts"] == 6
    assert set(written["questions"][0]["answers"]) == set(ARMS)
    trained.clear()
    (tmp_path / "reversal.json").unlink()
    assert run_reversal(job, watch, no_progress) == found
    assert trained == []  # every model was already finished
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        run_reversal(ReversalJob(tmp_path, per_order=2, steps=2, seed=1), watch, no_progress)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert run_reversal(ReversalJob(moved, per_order=2, steps=2), watch, no_progress) == found
    assert trained == []


def test_sigterm_in_training_says_how_to_resume_and_returns_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(job: ReversalJob, watch: reversal.Watch, track: object) -> None:
        with watch("training: forward", 0, 2):
            raise SystemExit(0)

    monkeypatch.setattr(reversal, "run_reversal", stopped)
    code, text = run("eval", "--suite", "reversal", "--out", tmp_path)
    assert code == 128 + signal.SIGTERM
    assert text == "stopped; every step is saved: run the same command again to resume\n"


def test_the_table_is_complete_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    answers = {key: [question.right for question in QUESTIONS] for key in ARMS}
    results = compare_arms(QUESTIONS, answers | {"forward": [""] * len(QUESTIONS)})
    show_reversal(
        ReversalResult(ledom_version="1", command="", seed=0, steps=1, num_facts=3, results=results)
    )
    printed = capsys.readouterr()
    head, *rows = printed.out.splitlines()
    assert " ".join(head.split()) == " ".join(["seen in training asked for", *ARMS])
    assert " ".join(rows[2].split()) == " ".join(
        ["description first description 0.0 [0.0, 97.5]", *["100.0 [2.5, 100.0]"] * 4]
    )
    assert "  pair: +100.0 [−68.4, +100.0] points" in printed.err  # two facts prove nothing


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_kills_at_any_time_leave_the_same_answers(tmp_path: Path) -> None:
    def work(out: Path) -> None:
        job = ReversalJob(out, per_order=1, steps=2)
        run_reversal(job, lambda name, done, steps: nullcontext(lambda progress: None), no_progress)

    assert run_through_kills(work, tmp_path / "whole", tmp_path / "killed", seed=1, kills=2) > 0
    written = [(tmp_path / name / "reversal.json").read_bytes() for name in ("whole", "killed")]
    assert written[0] == written[1]
