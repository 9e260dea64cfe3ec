"""Benchmarks from files to one table: hand-computed numbers, resuming and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from evaluated import QUESTIONS, evaluate, found_rows, write_rows
from kills import contents, run_through_kills
from ledom.core.direction import Direction
from ledom.core.errors import HubError, InputError
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.text.tokenizer import Tokenizer

pytest.importorskip("lm_eval")
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from ledom.evaluate import evaluation, harness, kept, tasks
from ledom.evaluate.evaluation import Job, evaluate_models
from ledom.evaluate.harness import LedomLM
from ledom.evaluate.kept import KeptLM
from ledom.evaluate.scorings import Parts
from ledom.evaluate.tasks import Options, Source, find_source

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


@pytest.mark.slow
@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_the_numbers_equal_those_of_the_harness_itself(
    num_fewshot: int, choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Compares lm_eval using `LedomLM` with `ledom eval`."""
    source = find_source(str(choices), Options(num_fewshot=num_fewshot))
    for model in models.values():
        found = evaluate(source, tmp_path / str(model.direction), model)
        theirs = simple_evaluate(
            LedomLM(model),
            tasks=[*source.load(model.direction)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
        assert theirs is not None
        for metric in ("acc", "acc_norm"):
            row = next(r for r in found["tasks"][0]["rows"] if r["metric"] == metric)
            assert row["value"] == pytest.approx(theirs["results"]["mine"][f"{metric},none"])
        file = tmp_path / str(model.direction) / str(model.direction) / "mine.loglikelihood.jsonl"
        value = json.loads(file.read_text().splitlines()[0])["value"]
        bayes = value["continuation"]
        if model.direction is REVERSE:
            bayes += value["context"] - value["alone"]
        assert theirs["samples"]["mine"][0]["resps"][0][0][0] == pytest.approx(bayes)


class Stopped(FakeLanguageModel):
    """A model that stops at the second call, as if by Ctrl-C."""

    calls = 0

    def logprobs(self, targets: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().logprobs(targets)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["document", "copy"])
def test_questions_with_one_source_are_not_independent(
    key: str, tmp_path: Path, models: dict[Direction, FakeLanguageModel]
) -> None:
    """Two copies of each question leave the intervals as they are."""
    ones = [one | {key: one["id"]} for one in QUESTIONS]
    twos = [one | {"id": f"{number}"} for number, one in enumerate(2 * ones)]
    found = []
    for rows in (ones, twos):
        source = find_source(str(write_rows(tmp_path / "mine.jsonl", rows)), Options())
        (task,) = evaluate(source, tmp_path / f"{len(rows)}", *models.values())["tasks"]
        found.append(task)
    assert found[0]["rows"] == found[1]["rows"]
    assert f"over {len(ones)} sources, not {len(twos)} questions" in str(found[1]["notes"])
    assert "sources" not in str(found[0]["notes"])


@pytest.mark.slow
def test_questions_after_and_before_the_sentences_of_a_document_share_it(
    tmp_path: Path, models: dict[Direction, FakeLanguageModel]
) -> None:
    text = " ".join(f"This is sentence number {n} of the whole long book." for n in range(6))
    rows = [{"id": str(d), "text": text.replace("book", f"book {d}")} for d in range(6)]
    source = find_source(str(write_rows(tmp_path / "books.jsonl", rows)), Options())
    (task,) = evaluate(source, tmp_path / "out", models[REVERSE])["tasks"]
    assert "over 6 sources, not 48 questions" in str(task["notes"])


@pytest.mark.slow
def test_kills_at_any_time_leave_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks, one with choices and one with written answers, for both models."""
    monkeypatch.setattr(harness, "_TOGETHER", 8)
    monkeypatch.setattr(kept, "_TEXTS_TOGETHER", 2)
    problems = [{"id": str(i), "question": f"{i} + 3?", "answer": f"{i + 3}"} for i in range(6)]
    files = (
        write_rows(tmp_path / "mine.jsonl", QUESTIONS),
        write_rows(tmp_path / "sums.jsonl", problems),
    )

    def work(out: Path) -> None:
        models = [FakeLanguageModel(tokenizer, direction, ["5 is"]) for direction in Direction]
        sources = [find_source(str(file), Options()) for file in files]
        evaluate_models(Job(sources, models, out), no_progress)

    assert run_through_kills(work, tmp_path / "whole", tmp_path / "killed", seed=6) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_stopped_resumes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [QUESTIONS[i % 12] | {"id": str(i)} for i in range(150)]
    file = write_rows(tmp_path / "mine.jsonl", rows)
    source = find_source(str(file), Options())
    model = Stopped(tokenizer, REVERSE)
    with pytest.raises(KeyboardInterrupt):
        evaluate(source, tmp_path / "out", model)
    part = tmp_path / "out" / "reverse" / "mine.loglikelihood.jsonl.part"
    kept = len(part.read_text().splitlines()) - 1
    assert 200 < kept < 600
    scored = model.num_scored
    resumed = evaluate(source, tmp_path / "out", model)
    assert model.num_scored == 3 * scored  # three sets of similar requests, each scored once
    whole = evaluate(source, tmp_path / "whole", FakeLanguageModel(tokenizer, REVERSE))
    assert resumed == whole
    counted = model.num_scored
    assert evaluate(source, tmp_path / "out", model) == whole
    assert model.num_scored == counted  # nothing is scored twice


def test_another_model_or_task_does_not_reuse_the_answers(
    choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    source = find_source(str(choices), Options())
    evaluate(source, tmp_path / "out", models[FORWARD])
    models[FORWARD].fingerprint = "another"
    with pytest.raises(InputError, match="was made with other settings .model"):
        evaluate(source, tmp_path / "out", models[FORWARD])


def test_written_answers_are_extracted_in_both_directions(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    problems = [{"id": str(i), "question": f"{i} + 3?", "answer": f"{i + 3}"} for i in range(6)]
    file = write_rows(tmp_path / "sums.jsonl", problems)
    written = {
        FORWARD: "The answer is 5.\n\nQuestion: more",
        REVERSE: "more\n\n5 is the answer of the following question.\n2 + 3",
    }
    source = find_source(str(file), Options(num_fewshot=2))
    for direction, text in written.items():
        model = FakeLanguageModel(tokenizer, direction, [text])
        model.stops_at_patterns = False  # type: ignore[misc]
        found = evaluate(source, tmp_path / str(direction), model)
        (row,) = found_rows(found, "exact_match").values()
        assert row["value"] == 0.25  # among problems 2 to 5, only "2 + 3" is 5
        assert found["tasks"][0]["num_documents"] == 4


@pytest.mark.parametrize(("context", "most"), [(128, 64), (520, 260)])
def test_written_answers_fit_into_a_short_context(
    context: int, most: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    problems = [{"id": "a", "question": "2 + 3?", "answer": "5"}]
    source = find_source(str(write_rows(tmp_path / "sums.jsonl", problems)), Options())
    model = FakeLanguageModel(tokenizer, FORWARD, ["The answer is 5."], context=context)
    found = evaluate(source, tmp_path / "out", model)
    assert found["tasks"][0]["notes"] == [
        f"forward: answers have at most {most} tokens, half of the model's context"
    ]
    (row,) = found_rows(found, "exact_match").values()
    assert row["value"] == 1


def test_truncation_and_choices_that_are_prefixes_are_noted(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"id": "1", "question": "so " * 60, "choices": ["a", "a b"], "answer_index": 0}]
    file = write_rows(tmp_path / "long.jsonl", rows)
    model = FakeLanguageModel(tokenizer, REVERSE, context=40)
    (task,) = evaluate(find_source(str(file), Options()), tmp_path / "out", model)["tasks"]
    assert "2 requests were longer than the model's context of 40" in task["notes"][0]
    assert "1 documents have a choice that is the beginning of another one" in task["notes"][1]


def test_a_reverse_model_that_reads_nothing_first_is_refused(tokenizer: Tokenizer) -> None:
    model = FakeLanguageModel(tokenizer, REVERSE)
    model.bos_ids = []
    with pytest.raises(InputError, match="reads no special token before a text.*ledom_bos_tokens"):
        LedomLM(model).rolling("2 + 2")


def test_two_models_of_the_same_direction_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = FakeLanguageModel(tokenizer, FORWARD)
    with pytest.raises(InputError, match="both models are forward ones"):
        evaluate_models(Job([], [model, model], tmp_path), no_progress)


def test_two_tasks_with_the_same_name_are_refused_before_any_work(
    models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """The second task's answers would go into the first one's file."""
    files = [tmp_path / folder / "mine.jsonl" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        write_rows(file, QUESTIONS)
    both = [find_source(str(file), Options()) for file in files]
    with pytest.raises(InputError, match="two tasks are called 'mine'"):
        evaluate_models(Job(both, [models[REVERSE]], tmp_path / "out"), no_progress)
    assert not (tmp_path / "out").exists()


LONG = QUESTIONS[0] | {"id": "long", "choices": ["4", "four " * 900]}
SUM = {"id": "s", "question": "2 + 2?", "answer": "4"}


@pytest.mark.parametrize(
    ("rows", "context", "error"),
    [
        ([*QUESTIONS, QUESTIONS[0] | {"id": "z", "answer_index": 4}], 4096, r"jsonl:13: .* is 4"),
        ([*QUESTIONS, LONG], 512, "document 12 of task 'last'.* longer than the model's context"),
        ([SUM], 1, "max_tokens is 0; it must be at least 1"),
        ([SUM, {"id": "t", "question": "3 + 3?"}], 4096, "'t' of .* has no answer"),
    ],
)
@pytest.mark.parametrize("short", list(Direction))
def test_all_tasks_are_checked_for_both_models_before_any_work(
    short: Direction, rows: Any, context: int, error: str, choices: Path, tmp_path: Path
) -> None:
    """A change of the task's file would make answers that are saved by then useless."""
    made = {way: FakeLanguageModel(direction=way) for way in Direction}
    made[short].context = context
    files = [choices, write_rows(tmp_path / "last.jsonl", rows)]
    sources = [find_source(str(file), Options()) for file in files]
    if context == 1:
        sources.pop(0)  # no question fits
    with pytest.raises(InputError, match=error):
        evaluate_models(Job(sources, [*made.values()], tmp_path / "out"), no_progress)
    assert [one.num_scored for one in made.values()] == [0, 0]
    assert not (tmp_path / "out").exists()


def test_saved_answers_to_other_requests_are_refused_before_any_work(
    choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """The second task was changed since its answers were saved; the first was never run."""
    last, out = tmp_path / "last.jsonl", tmp_path / "out"
    evaluate(find_source(str(write_rows(last, QUESTIONS[:4])), Options()), out, models[REVERSE])
    write_rows(last, QUESTIONS[:5])
    both = [find_source(str(file), Options()) for file in (choices, last)]
    model = FakeLanguageModel(models[REVERSE].tokenizer, REVERSE)
    with pytest.raises(InputError, match=r"last.loglikelihood.jsonl: was made with other settings"):
        evaluate_models(Job(both, [model], out), no_progress)
    assert model.num_scored == 0


def test_a_reverse_model_that_reads_no_special_token_is_refused_before_any_work(
    choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    models[REVERSE].bos_ids = []
    source = find_source(str(choices), Options())
    with pytest.raises(InputError, match="reads no special token before a text"):
        evaluate_models(Job([source], [*models.values()], tmp_path), no_progress)
    assert models[FORWARD].num_scored == 0


@pytest.mark.parametrize(("gold", "expected"), [(1, [{("t", 0): 2.0}]), (-1, []), (2, [])])
def test_the_entropy_ignores_unlabeled_questions(
    gold: int, expected: list[dict[tuple[str, int], float]]
) -> None:
    """A label of -1 means unlabeled, not the last choice."""
    task = SimpleNamespace(
        config=SimpleNamespace(task="t"),
        eval_docs=[{}],
        OUTPUT_TYPE="multiple_choice",
        multiple_input=0,
        doc_to_target=lambda doc: gold,
    )
    model = SimpleNamespace(direction=FORWARD, documents={("t", 0): [Parts(-1.0), Parts(-2.0)]})
    found: Any = evaluation._entropy(model, [task])  # type: ignore[arg-type]
    assert [one.values for one in found] == expected


def test_a_suite_without_a_network_runs_what_it_can(
    choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Data that cannot be fetched: a note for a suite, an error for a task requested by name."""

    def fails(name: str) -> Source:
        def load(direction: Direction) -> Sequence[Any]:
            return tasks._reach(name, lambda: 1 / 0, tasks._FROM_HUB)  # type: ignore[no-any-return]

        return Source(name, load)

    here, out = find_source(str(choices), Options()), tmp_path / "out"
    some = [fails("lost"), here, fails("gone")]
    found = evaluate_models(Job(some, [models[REVERSE]], out, leave_out=True), no_progress)
    assert [task.task for task in found.tasks] == ["mine"]
    assert [note.split(": task")[0] for note in found.notes] == [
        "lost is left out",
        "gone is left out",
    ]
    assert all("could not be loaded (division by zero)" in note for note in found.notes)
    assert all("without a network, give --data FOLDER" in note for note in found.notes)
    with pytest.raises(HubError, match="'lost' could not be loaded"):
        evaluate_models(Job(some, [models[REVERSE]], out), no_progress)
    none = [fails("lost"), fails("gone")]
    with pytest.raises(HubError, match="none of 2 tasks could be loaded; the first: task 'lost'"):
        evaluate_models(Job(none, [models[REVERSE]], out, leave_out=True), no_progress)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected"),
    [(ConnectionError("no route"), [False, True, True]), (KeyError("split"), [False] * 3)],
)
def test_a_suite_that_finds_no_network_does_not_retry(
    choices: Path,
    models: dict[Direction, FakeLanguageModel],
    tmp_path: Path,
    error: Exception,
    expected: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's clients retry each dataset for half a minute; other errors do not count."""
    seen, seen_in_runs = [], set()
    real = KeptLM.run

    def run(*arguments: Any) -> Any:  # in which a metric may be loaded from the hub
        seen_in_runs.add(huggingface_hub.is_offline_mode())
        return real(*arguments)

    monkeypatch.setattr(KeptLM, "run", run)

    def watched(name: str) -> Source:
        def load(direction: Direction) -> Sequence[Any]:
            seen.append(huggingface_hub.is_offline_mode())
            if name == "mine":
                return find_source(str(choices), Options()).load(direction)

            def fail() -> None:
                raise error

            return tasks._reach(name, fail, "")  # type: ignore[no-any-return]

        return Source(name, load)

    some = [watched(name) for name in ("lost", "gone", "mine")]
    found = evaluate_models(Job(some, [models[REVERSE]], tmp_path, leave_out=True), no_progress)
    assert [task.task for task in found.tasks] == ["mine"]
    assert seen == expected
    assert seen_in_runs == {expected[-1]}
    assert not huggingface_hub.is_offline_mode()
