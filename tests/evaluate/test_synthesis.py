"""Questions for solutions and answers: what is kept and why, resuming, and refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from command_line import Run, check_refused
from evaluated import write_rows
from kills import contents, run_through_kills
from ledom.core.errors import DirectionError, InputError
from ledom.core.records import Problem, read_records, unique_ids, write_records
from ledom.core.stage import no_progress
from ledom.evaluate.synthesis import Seed, SynthesisSettings, Synthesized, sift, synthesize
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer
from stand_in_models import ScriptedLanguageModel

pytest.importorskip("datasketch")

Fakes = dict[str, FakeLanguageModel]
PENS = "Ava has 3 pens and buys 4 more. How many?"
HENS = "Ava has 3 hens and buys 4 more. How many?"
SOLVED = Seed(id="s", solution="3 + 4 = 7\n#### 7")
BARE = Seed(id="b", answer="7")
READ = {"s": "\n\n3 + 4 = 7\n#### 7", "b": "#### 7"}
RIGHT, WRONG = "so 7\n#### 7", "so 8\n#### 8"


def made(
    tokenizer: Tokenizer,
    out: Path,
    seed: Seed,
    texts: Sequence[str],
    answers: dict[str, list[str]],
    known: Sequence[str] = (),
    **settings: float,
) -> Synthesized:
    """The result for one seed if the models write these texts and answers."""
    reverse = ScriptedLanguageModel(tokenizer, "reverse", {READ[seed.id]: texts})
    script = {f"{question}\n\n": own for question, own in answers.items()}
    forward = ScriptedLanguageModel(tokenizer, "forward", script)
    num_answers = len(next(iter(answers.values()), [""]))
    how = SynthesisSettings(Sampling(), len(texts), num_answers, **settings)
    return synthesize([seed], reverse, forward, how, known, out, no_progress)


def reasons(found: Synthesized) -> dict[str, str]:
    return {problem.question: problem.extra["reason"] for problem in found.removed}


def test_a_question_with_agreeing_answers_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two of three answers equal the seed's (0.66667); one of three is too few."""
    answers = {PENS: [RIGHT, WRONG, "7"], "Why?": [RIGHT, WRONG, WRONG]}
    found = made(tokenizer, tmp_path, SOLVED, [PENS, "Why?"], answers)
    expected = Problem(
        id="s/0",
        question=PENS,
        answer="7",
        solution=SOLVED.solution,
        extra={"seed": "s", "agreement": 0.66667},
    )
    assert found.problems == read_records(tmp_path / "problems.jsonl", Problem) == [expected]
    assert reasons(found) == {"Why?": "other answer"}
    assert found.agreements.tolist() == pytest.approx([0.5], abs=1e-5)  # (2/3 + 1/3) / 2
    summary = json.loads((tmp_path / "synthesis.json").read_text())
    assert summary["removed"] == {"other answer": 1}
    assert summary["agreement"]["mean"] == pytest.approx(0.5, abs=1e-5)


def test_one_of_three_answers_is_a_third(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The agreement is saved as 0.33333, which is less than 1/3."""
    answers = {PENS: [RIGHT, WRONG, WRONG]}
    found = made(tokenizer, tmp_path, SOLVED, [PENS], answers, min_agreement=1 / 3)
    assert [problem.question for problem in found.problems] == [PENS]


def test_the_formats_ending_is_not_part_of_an_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """`7</a>` is the answer 7, as written by a model trained on `...</a>`."""
    reverse = ScriptedLanguageModel(tokenizer, "reverse", {READ[SOLVED.id]: [PENS]})
    forward = ScriptedLanguageModel(tokenizer, "forward", {f"{PENS}\n<a>": [f"{RIGHT}</a>"]})
    forward.pair_format = PairFormat("{question}\n<a>{solution}</a>")
    how = SynthesisSettings(Sampling(), 1, 1)
    found = synthesize([SOLVED], reverse, forward, how, [], tmp_path, no_progress)
    assert [problem.extra["agreement"] for problem in found.problems] == [1.0]


def test_an_answer_gets_a_question_and_the_steps_in_between(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = [f"{PENS}\n\n3 + 4 = 7\n", "No steps?\n\n", "No line", f"{HENS}\n\n3 + 4 = 8\n"]
    found = made(tokenizer, tmp_path, BARE, texts, {PENS: [RIGHT]})
    assert [(p.question, p.solution) for p in found.problems] == [(PENS, "3 + 4 = 7\n#### 7")]
    assert list(reasons(found).values()) == ["not one question"] * 2 + ["false equation"]


def test_only_questions_are_answered(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The models are not asked for an answer: the script contains none."""
    texts = ["... she buys 4. How many?", f"Yes.\n\n{PENS}", " ", PENS, "Known?", "Known?"]
    found = made(tokenizer, tmp_path, SOLVED, texts, {}, known=[PENS, "known"])
    assert found.problems == []
    assert [p.extra["reason"] for p in found.removed] == [
        "unfinished",
        "not one question",
        "not one question",
        "known",
        "known",
        "duplicate",
    ]
    assert len(found.agreements) == 0


@pytest.mark.slow
def test_truncated_answers_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    problem = Problem(id="a/0", question="How many?", answer="22", extra={"seed": "a"})
    forward = FakeLanguageModel(tokenizer, "forward", answers=["20 + 2 = 22"])
    for most, cut in ((1, 3), (40, 0)):
        how = SynthesisSettings(Sampling(max_tokens=most), num_answers=3)
        found = sift([problem], forward, how, [], tmp_path / str(most), no_progress)
        assert (found.num_answers, found.num_cut) == (3, cut)


def test_the_seeds_own_question_counts_as_known(tokenizer: Tokenizer, tmp_path: Path) -> None:
    seed = Seed(id="s", solution=SOLVED.solution, question=PENS)
    found = made(tokenizer, tmp_path, seed, [PENS.upper()], {})
    assert list(reasons(found).values()) == ["known"]


@pytest.mark.slow
def test_the_best_answered_of_near_duplicates_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """10 words have 6 n-grams; `pens` is in 4 of them, so 2 / 10 are shared."""
    answers = {PENS: [RIGHT, WRONG], HENS: [RIGHT, RIGHT]}
    found = made(tokenizer, tmp_path / "a", SOLVED, [PENS, HENS], answers, similarity=0.2)
    assert [p.question for p in found.problems] == [HENS]
    assert reasons(found) == {PENS: "near duplicate"}
    found = made(tokenizer, tmp_path / "b", SOLVED, [PENS, HENS], answers, similarity=0.21)
    assert [p.question for p in found.problems] == [PENS, HENS]


SEEDS = [Seed(id=f"s{i}", solution=f"1 + 1 = 2\n#### {i}") for i in range(4)]
HOW = SynthesisSettings(Sampling(), 3, 2)


def written_by_fakes(tokenizer: Tokenizer, out: Path) -> None:
    questions = [f"What is {i} and 1?" for i in range(9)]
    reverse = FakeLanguageModel(tokenizer, "reverse", questions)
    synthesize(SEEDS, reverse, FakeLanguageModel(tokenizer), HOW, (), out, no_progress)


@pytest.mark.slow
def test_kills_at_any_time_leave_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def work(out: Path) -> None:
        written_by_fakes(tokenizer, out)

    assert run_through_kills(work, tmp_path / "whole", tmp_path / "killed", seed=3) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_folder_is_not_redone(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by_fakes(tokenizer, tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(FakeLanguageModel, "generate", None)
    written_by_fakes(tokenizer, tmp_path)
    assert contents(tmp_path) == before


def test_models_of_the_wrong_direction_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    forward = FakeLanguageModel(tokenizer)
    with pytest.raises(DirectionError, match="fake is a forward model; give a reverse one"):
        synthesize(SEEDS, forward, forward, HOW, (), tmp_path, no_progress)


def test_texts_that_leave_no_room_are_removed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A seed is too long for the reverse model, a question too long for the forward one."""
    long = Seed(id="long", solution="1 + 1 = 2\n" * 40 + "#### 2")
    script = {READ["s"]: [f"{PENS} " * 9, PENS]}
    reverse = ScriptedLanguageModel(tokenizer, "reverse", script)
    forward = ScriptedLanguageModel(tokenizer, "forward", {f"{PENS}\n\n": [RIGHT]})
    reverse.context = forward.context = 120
    how = SynthesisSettings(Sampling(max_tokens=60), 2, 1)
    found = synthesize([long, SOLVED], reverse, forward, how, (), tmp_path, no_progress)
    assert [problem.id for problem in found.problems] == ["s/1"]
    assert {p.id: p.extra["reason"] for p in found.removed} == {
        "s/0": "too long",
        "long/0": "too long",
    }


def test_ids_stay_distinct(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The seed `s/0`, which is too long, is not the first question of the seed `s`."""
    long = Seed(id="s/0", solution="1 + 1 = 2\n" * 40 + "#### 2")
    reverse = ScriptedLanguageModel(tokenizer, "reverse", {READ["s"]: [PENS]})
    forward = ScriptedLanguageModel(tokenizer, "forward", {f"{PENS}\n\n": [RIGHT]})
    reverse.context = 120
    how = SynthesisSettings(Sampling(max_tokens=60), 1, 1)
    found = synthesize([long, SOLVED], reverse, forward, how, (), tmp_path, no_progress)
    assert [problem.id for problem in found.problems] == ["s/0"]
    assert [problem.id for problem in found.removed] == ["s/0/0"]


@pytest.mark.slow
@pytest.mark.parametrize("answer", [" 7\n", "7"])
def test_spaces_around_an_answer_and_a_blank_solution_are_ignored(
    tokenizer: Tokenizer, tmp_path: Path, answer: str
) -> None:
    seed = Seed(id="b", answer=answer, solution=" ")
    found = made(tokenizer, tmp_path, seed, [f"{PENS}\n\n3 + 4 = 7\n"], {PENS: [RIGHT]})
    assert [(p.answer, p.solution) for p in found.problems] == [("7", "3 + 4 = 7\n#### 7")]


def test_with_a_blank_answer_the_solutions_answer_counts() -> None:
    assert Seed(id="s", answer=" ", solution=SOLVED.solution).final_answer == "7"


def test_seeds_without_room_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    reverse = FakeLanguageModel(tokenizer, "reverse", context=20)
    with pytest.raises(InputError, match="'s0': the prompt .* lower max_tokens"):
        synthesize(SEEDS, reverse, FakeLanguageModel(tokenizer), HOW, (), tmp_path, no_progress)
    assert contents(tmp_path) == {}


def test_the_command_writes_problems(run: Run, fakes: Fakes, tmp_path: Path) -> None:
    """The fake forward model answers every question with 2 or 3."""
    fakes["reverse"].answers = ["Who?", "Which?", "Whose hat is it?"]
    seeds = tmp_path / "seeds.jsonl"
    write_records(seeds, [Seed(id="a", answer="2"), Seed(id="b", solution="#### 2")])
    write_records(tmp_path / "known.jsonl", [Problem(id="k", question="who")])
    known = ["--known", tmp_path / "known.jsonl", "--agreement", 0]
    out = tmp_path / "out"
    code, text = run("synthesize", seeds, *known, "--samples", 20, "--out", out)
    assert code == 0, text
    assert "2 of 40 questions kept; removed: 20 not one question, " in text
    kept = read_records(out / "problems.jsonl", Problem)
    assert sorted(problem.question for problem in kept) == ["Which?", "Whose hat is it?"]
    assert "agrees: " in text


def test_generated_problems_can_be_seeds(run: Run, fakes: Fakes, tmp_path: Path) -> None:
    fakes["reverse"].answers = [f"Number {i}?" for i in range(50)]
    out = tmp_path / "out"
    code, text = run("synthesize", "--num-seeds", 3, "--temperature", 0, "--out", out)
    assert code == 0, text
    assert "of 3 questions kept" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"id": "a"}], ["seeds.jsonl:1", "no solution and no answer"]),
        ([{"id": "a", "answer": " "}], ["seeds.jsonl:1", "add the key 'answer'"]),
        ([{"id": "a", "solution": "Why not."}], ["a solution that states no answer"]),
        ([{"id": "a", "answer": "1"}] * 2, ["seeds.jsonl:2", "'a' occurs twice"]),
        ([{"answer": "1"}], ["seeds.jsonl:1", "missing key 'id'"]),
        ([{"id": "a", "answer": 1}], ["seeds.jsonl:1", "answer"]),
        ([], ["no Seed records"]),
    ],
)
def test_the_error_for_a_bad_seed_names_the_line(
    run: Run, fakes: Fakes, tmp_path: Path, rows: list[dict[str, Any]], parts: list[str]
) -> None:
    path = tmp_path / "seeds.jsonl"
    write_rows(path, rows)
    check_refused(run("synthesize", path, "--out", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_bad_input_is_refused(run: Run, fakes: Fakes, tmp_path: Path) -> None:
    path, out = tmp_path / "seeds.jsonl", tmp_path / "out"
    write_records(path, SEEDS)
    check_refused(run("synthesize", path, "--agreement", 2, "--out", out), "agreement is 2", "[0,")
    check_refused(run("synthesize", path, "--similarity", 0, "--out", out), "similarity is 0")
    check_refused(run("synthesize", path, "--split", "test"), "--split would have no effect")
    check_refused(run("synthesize", path, "--forward", "none"), "needs a forward model")
    greedy = ["--temperature", 0, "--out", out]
    check_refused(run("synthesize", path, *greedy, "--seed", 3), "--seed would have no effect")
    many = len(SEEDS) + 1
    refused = run("synthesize", path, "--num-seeds", many)
    check_refused(refused, f"--num-seeds is {many}, but {path} has {len(SEEDS)}; leave it out")
    check_refused(run("synthesize", path, "--known", tmp_path / "no.jsonl"), "no such file")
    check_refused(run("synthesize", "gsm9k"), "gsm9k: no such file", "gsm_symbolic, gsm8k,")
    assert not out.exists()
    assert read_records(path, Seed, unique_ids()) == SEEDS


def test_without_datasketch_the_command_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before a model is loaded."""
    monkeypatch.setitem(sys.modules, "datasketch", None)
    out = tmp_path / "out"
    refused = run("synthesize", "--forward", "nowhere", "--reverse", "nowhere", "--out", out)
    check_refused(refused, "datasketch is not installed; run: pip install 'ledom[data]'")
    assert not out.exists()
