"""What the gallery collects: the model's own tokens and the files of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Run
from ledom.core.errors import DirectionError, InputError
from ledom.core.records import Problem, write_records
from ledom.data.problems import generate_problems
from ledom.evaluate.gallery import RUNS, collect, written_backwards
from ledom.evaluate.infilling import Gap, Middle
from ledom.evaluate.inversion import InvertedPrompt
from ledom.evaluate.proposals import Proposal
from ledom.evaluate.results import Evaluation, Row, TaskResult
from ledom.evaluate.retrieval import Ranked
from ledom.evaluate.reversal import ArmResult, Question, ReversalResult
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.report.formatting import to_json
from ledom.report.results import Interval
from ledom.text.tokenizer import Tokenizer

SURE = Interval(1.0, 1.0, 1.0)


@pytest.fixture
def lm(tokenizer: Tokenizer) -> FakeLanguageModel:
    return FakeLanguageModel(tokenizer, "reverse", answers=["How many pens – 2 or 3?"])


def test_the_first_problems_are_shown_with_the_generated_tokens(
    lm: FakeLanguageModel,
) -> None:
    section = written_backwards(lm, "tiny", 2, seed=7)
    problems = [*generate_problems("test", 2, 7)]
    assert [example.label for example in section.examples] == [p.id for p in problems]
    for example, problem in zip(section.examples, problems, strict=True):
        assert "".join(example.written) == "How many pens – 2 or 3?"
        assert "".join(example.after) == f"\n\n{problem.solution}"
        assert len(example.written) == len(lm.tokenizer.encode("How many pens – 2 or 3?").ids)
    assert "seed 7" in section.rule


def test_without_runs_every_section_names_its_command(lm: FakeLanguageModel) -> None:
    gallery = collect(lm, [], 1, seed=0)
    assert len(gallery.sections) == 1
    commands = [missing.command.split()[1] for missing in gallery.missing]
    assert commands == ["eval", "eval", "rank", "synthesize", "generate", "invert"]


def test_a_forward_model_and_a_folder_without_a_run_are_refused(
    lm: FakeLanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DirectionError, match="forward model; give a reverse one"):
        collect(FakeLanguageModel(tokenizer), [], 1, seed=0)
    with pytest.raises(InputError, match=r"no run that can be shown \(none of results.json"):
        collect(lm, [tmp_path], 1, seed=0)


def test_the_reversal_run_shows_its_table_and_the_first_questions(
    lm: FakeLanguageModel, tmp_path: Path
) -> None:
    arms = ("forward", "reverse", "pair", "reverse training", "identity bridge")
    answers = dict.fromkeys(arms, "Ada Bel") | {"forward": "nobody"}
    found = ReversalResult(
        ledom_version="1",
        command="ledom eval --suite reversal",
        seed=5,
        steps=1,
        num_facts=3,
        results=[
            *(ArmResult("name first", "name", arm, SURE) for arm in arms),
            ArmResult("both orders", "name", "pair", Interval(0.5, 0.4, 0.6)),  # the only arm
        ],
        questions=[
            Question(f"fact-{i}", "name first", "name", f"the keeper of {i}", "Ada Bel", answers)
            for i in range(4)
        ],
    )
    (tmp_path / "reversal.json").write_text(json.dumps(to_json(found)))
    _, section = collect(lm, [tmp_path], 2, seed=0).sections
    table, asked = section.tables
    assert table.rows[1] == ["name first", "name", *["100.0 ± 0.0"] * 5]
    assert table.rows[2] == ["both orders", "name", "–", "–", "50.0 ± 10.0", "–", "–"]
    assert [row[0] for row in asked.rows[1:]] == [
        "name of the keeper of 0",
        "name of the keeper of 1",
    ]
    assert asked.rows[1][2:4] == ["✗ nobody", "✓ Ada Bel"]


def test_benchmarks_and_rankings_are_shown(lm: FakeLanguageModel, tmp_path: Path) -> None:
    rows = [
        Row("acc", "forward", "conditional", 1.0, SURE),
        Row("acc", "reverse", "posterior", 1.0, SURE, less_forward=Interval(0.1, 0.0, 0.2)),
        Row("acc_norm", "reverse", "Bayes", 1.0, SURE),
    ]
    found = Evaluation(
        ledom_version="1",
        command="ledom eval pens",
        limit=None,
        models={},
        tasks=[TaskResult("pens", 4, 0.25, rows)],
        notes=[],
    )
    (tmp_path / "results.json").write_text(json.dumps(to_json(found)))
    ranking = [
        Ranked(query_id=query, rank=rank, passage_id=f"p{rank}", score=-rank)
        for query in ("a", "b")
        for rank in range(1, 6)
    ]
    write_records(tmp_path / "ranking.jsonl", ranking)
    (tmp_path / "scores.jsonl").write_text("")
    _, benchmarks, passages = collect(lm, [tmp_path], 1, seed=0).sections
    assert benchmarks.tables[0].rows == [
        ["task", "documents", "model, scoring", "accuracy, %", "minus forward"],
        ["pens", "4", "forward conditional", "100.0 ± 0.0", ""],
        ["pens", "4", "reverse posterior", "100.0 ± 0.0", "+10.0 [0.0, +20.0]"],
    ]
    assert [row[:3] for row in passages.tables[0].rows[1:]] == [
        ["a", "1", "p1"],
        ["a", "2", "p2"],
        ["a", "3", "p3"],
    ]


def _synthesized(folder: Path, texts: list[str], solutions: list[str]) -> None:
    """Write a run whose problems s/0, s/1 ... come from these texts of the reverse model."""
    made = [
        Problem(id=f"s/{i}", question=text.partition("\n\n")[0], solution=solution, answer="7")
        for i, (text, solution) in enumerate(zip(texts, solutions, strict=True))
    ]
    drawn = [Proposal(item_id="s", index=i, text=text) for i, text in enumerate(texts)]
    write_records(folder / "problems.jsonl", made)
    write_records(folder / "proposals.jsonl", drawn)
    (folder / "removed.jsonl").write_text("")


def test_synthesized_problems_are_shown_token_by_token(
    lm: FakeLanguageModel, tmp_path: Path
) -> None:
    solution = "3 + 4 = 7\n#### 7"
    _synthesized(tmp_path, ["How many?", "How much?", "Who?"], [solution] * 3)
    _, section = collect(lm, [tmp_path], 2, seed=0).sections
    assert ["".join(example.written) for example in section.examples] == ["How many?", "How much?"]
    assert {"".join(example.after) for example in section.examples} == {f"\n\n{solution}"}
    assert section.rule == "the first 2 of 3 problems that were kept."


def test_steps_generated_for_a_bare_answer_are_not_shown_as_given(
    lm: FakeLanguageModel, tmp_path: Path
) -> None:
    _synthesized(tmp_path, ["How many?\n\n3 + 4 = 7\n"], ["3 + 4 = 7\n#### 7"])
    _, section = collect(lm, [tmp_path], 1, seed=0).sections
    (example,) = section.examples
    assert "".join(example.written) == "How many?\n\n3 + 4 = 7\n"
    assert "".join(example.after) == "#### 7"


def test_a_problem_without_its_proposal_is_refused_before_any_text_is_written(
    lm: FakeLanguageModel, tmp_path: Path
) -> None:
    lm.answers = []  # writing would fail
    _synthesized(tmp_path, ["How many?"], ["#### 7"])
    (tmp_path / "proposals.jsonl").write_text("")
    with pytest.raises(InputError, match="problems.jsonl:1: 's/0' is not in proposals.jsonl"):
        collect(lm, [tmp_path], 1, seed=0)


def test_inverted_prompts_and_middles_are_distinguished_from_rankings(
    lm: FakeLanguageModel, tmp_path: Path
) -> None:
    """A middle is shown between its beginning and its ending."""
    inverted, middles = tmp_path / "inverted", tmp_path / "middles"
    for folder in (inverted, middles):
        for name in ("proposals.jsonl", "scores.jsonl"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("")
    gaps = [Gap(id=f"g{i}", beginning="One", ending=f" of {i} – yes.") for i in range(3)]
    write_records(middles / "gaps.jsonl", gaps)
    write_records(
        middles / "middles.jsonl",
        [
            Middle(gap_id=g.id, rank=r, text=f" and {r}", score=-r, direction="reverse")
            for g in gaps
            for r in (1, 2)
        ],
    )
    ranking = [InvertedPrompt(output_id="o", rank=1, prompt="Why?", score=-2.0)]
    write_records(inverted / "ranking.jsonl", ranking)
    _, first, second = collect(lm, [inverted, middles], 2, seed=0).sections
    assert first.tables[0].rows[1] == ["o", "1", "Why?", "\N{MINUS SIGN}2.0"]
    assert [one.label for one in second.examples] == ["g0", "g1"]
    assert second.rule == "the best middle of the first 2 of 3 gaps."
    for number, one in enumerate(second.examples):
        parts = ["".join(part) for part in (one.before, one.written, one.after)]
        assert parts == ["One", " and 1", f" of {number} – yes."]
        assert one.read == one.after[::-1]


def test_a_middle_for_another_gap_is_refused(lm: FakeLanguageModel, tmp_path: Path) -> None:
    write_records(tmp_path / "gaps.jsonl", [Gap(id="g", beginning="One", ending=".")])
    middle = Middle(gap_id="h", rank=1, text=" two", score=-1.0, direction="reverse")
    write_records(tmp_path / "middles.jsonl", [middle])
    with pytest.raises(InputError, match="middles.jsonl:1: the gap 'h' is not in"):
        collect(lm, [tmp_path], 2, seed=0)


def test_runs_that_kept_nothing_are_shown(lm: FakeLanguageModel, tmp_path: Path) -> None:
    for folder, names in (
        ("synthesized", ("problems.jsonl", "removed.jsonl", "proposals.jsonl")),
        ("inverted", ("ranking.jsonl", "proposals.jsonl")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("")
    found = collect(lm, [tmp_path / "synthesized", tmp_path / "inverted"], 2, seed=0)
    _, synthesized, inverted = found.sections
    assert synthesized.examples == []
    assert synthesized.rule == "the first 0 of 0 problems that were kept."
    assert len(inverted.tables[0].rows) == 1


@pytest.mark.slow
def test_the_command_of_every_section_exists(run: Run) -> None:
    for kind in RUNS:
        code, _ = run(kind.command.split()[1], "--help")
        assert code == 0


@pytest.mark.usefixtures("fakes")
def test_the_command_writes_the_page(run: Run, tmp_path: Path) -> None:
    code, text = run("gallery", "--out", tmp_path / "page.html", "--examples", 1)
    assert code == 0
    assert f"page: {tmp_path / 'page.html'}" in text
    assert "tiny, a reverse model" in (tmp_path / "page.html").read_text()
