"""lm-evaluation-harness tasks: found without reading all files, and never shown answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.data.benchmarks import BENCHMARKS

pytest.importorskip("lm_eval")

from ledom.evaluate import harness_tasks, tasks
from ledom.evaluate.suites import SUITES
from waiting import SECONDS

TASK = """
task: two
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["4", "5"]
doc_to_target: 0
"""


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Mock the registry; the list records what it was asked for."""
    asked: list[str] = []

    def load(names: list[str]) -> dict[str, dict[str, object]]:
        asked.extend(names)
        return {"tasks": {}}

    stand_in = SimpleNamespace(load=load, all_tasks=["mmlu"])
    monkeypatch.setattr(harness_tasks, "_registry", lambda: stand_in)
    return asked


@pytest.mark.slow
def test_every_task_in_the_suites_exists_in_the_harness_or_here(unread: list[str]) -> None:
    """Later versions of the harness may change these names; one is a group."""
    ours = {*BENCHMARKS, *tasks.CODE_TASKS, "problems_after", "problems_before"}
    named = {task.name for suite in SUITES.values() for task in suite}
    for name in named - ours:
        harness_tasks.check_known(name, [])
    assert {name for name in named if name not in harness_tasks._files()} - ours == {
        "mmlu_continuation"
    }
    assert "mmlu_continuation" in harness_tasks._groups()
    assert harness_tasks._files()["boolq"].parts[-3:] == ("super_glue", "boolq", "default.yaml")


@pytest.mark.slow
def test_a_task_is_built_from_its_file_and_a_group_by_the_registry(
    unread: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "2 + 2?"}\n{"question": "1 + 3?"}\n')
    file = tmp_path / "two.yaml"
    file.write_text(TASK.replace("FILE", str(rows)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")  # not in HOME
    monkeypatch.setattr(harness_tasks, "_files", lambda: {"two": file})
    for name in ("two", str(file)):
        (task,) = harness_tasks.build_tasks(name, 0)
        assert task.doc_to_text(task.eval_docs[1]) == "1 + 3?"
    assert unread == []
    group = tmp_path / "group.yaml"
    group.write_text("group: both\ntask: [two, arc_easy]\n")
    for name in ("glue", str(group)):
        assert harness_tasks.build_tasks(name, 0) == []
    assert unread == ["glue", str(group)]


FILES = {
    "own/group.yaml": "group: all\ntask:\n  - alone\n  - group: some\n    task: [tagged]\n",
    "own/one.yaml": "task: alone\n",
    "own/two.yaml": "task: two\ntag: tagged\n",
    "other/three.yaml": "task: three\n",
}


@pytest.mark.parametrize(
    ("file", "text", "is_whole"),
    [
        ("other/four.yaml", "task: four\ntag: another\n", True),
        ("other/four.yaml", "task: four\ntag: not_tagged\n", True),
        ("other/four.yaml", "task: four\ntag: [another, tagged]\n", False),
        ("other/four.yaml", "task: alone\n", False),
        ("own/group.yaml", "group: all\ntask: [alone, three]\n", False),
        ("own/group.yaml", "group: all\ntask: [{task: alone, num_fewshot: 2}]\n", False),
    ],
)
def test_a_group_is_read_from_its_folder_if_it_contains_all_tasks(
    file: str, text: str, is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any file of the harness may set a tag or define a name."""
    for name, content in (FILES | {file: text}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(harness_tasks, "_yaml_files", lambda: tmp_path.rglob("*.yaml"))
    harness_tasks._defined_once.cache_clear()
    try:
        manager = harness_tasks._folder_manager("all")
        assert (manager is not None) == is_whole
        if manager is not None:
            assert manager.all_tasks == ["all", "alone", "tagged", "two"]
    finally:
        harness_tasks._defined_once.cache_clear()


@pytest.mark.slow
def test_mmlu_is_read_from_its_folder() -> None:
    for name in ("mmlu", "mmlu_continuation"):
        manager = harness_tasks._folder_manager(name)
        assert manager is not None
        assert len([task for task in manager.all_subtasks if task.startswith("mmlu_")]) == 57


README = """---
configs:
- config_name: ARC-Easy
  data_files: [{split: train, path: one.jsonl}, {split: test, path: one.jsonl},
    {split: validation, path: one.jsonl}]
---
"""


@pytest.mark.slow
def test_a_local_copy_of_a_dataset_replaces_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness's own arc_easy, with a folder laid out as on the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")  # not in HOME
    folder = tmp_path / "arc_easy"
    folder.mkdir()
    (folder / "README.md").write_text(README)
    row = {
        "id": "1",
        "question": "What do plants need?",
        "choices": {"text": ["light", "noise"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    (folder / "one.jsonl").write_text(json.dumps(row) + "\n")
    options = tasks.Options(data=tmp_path)
    (task,) = tasks.find_source("arc_easy", options).load(Direction.REVERSE)
    (doc,) = task.eval_docs
    assert task.doc_to_text(doc) == "Question: What do plants need?\nAnswer:"
    assert (task.doc_to_choice(doc), task.doc_to_target(doc)) == (["light", "noise"], 1)
    assert task.config.task == "arc_easy"
    sources, notes = tasks.find_suite("ledom", options)
    assert [source.name for source in sources] == ["arc_easy"]
    assert any("boolq is left out" in note for note in notes)
    with pytest.raises(InputError, match="'mmlu' is not a single task"):
        harness_tasks.build_tasks("mmlu", 0, folder)


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_network(
    unread: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "two.yaml"
    rows.write_text('{"question": "2 + 2?"}\n')
    file.write_text(TASK.replace("FILE", str(rows)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", rows / "hub")  # a path inside a file
    with pytest.raises(InputError, match="rows.jsonl.*HF_HOME") as failure:
        tasks.find_source(str(file), tasks.Options()).load(Direction.REVERSE)
    assert "network" not in str(failure.value)
    assert unread == []


@pytest.mark.slow
def test_the_harness_shows_no_progress_bars_of_its_own() -> None:
    """tqdm reads its environment when the harness imports it."""
    code = "import ledom.evaluate.harness_tasks, tqdm; list(tqdm.tqdm([1]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stderr == ""


SPLITS: dict[str, dict[str, object]] = {
    "tests alone": {"test_split": "test"},
    "training documents are asked": {"training_split": "test", "test_split": "test"},
    "validation documents are asked": {"validation_split": "test", "fewshot_split": "test"},
    "examples of another split": {"test_split": "test", "fewshot_split": "train"},
}


def made(config: dict[str, object], num_fewshot: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task with questions Q0 ... and answers A0 ...; the first question has two rows."""
    from datasets import Dataset

    rows = [{"id": str(i), "q": f"Q{q}", "a": f"A{q}"} for i, q in enumerate([0, 1, 2, 0])]
    splits = {"test": Dataset.from_list(rows), "train": Dataset.from_list(rows[::-1])}
    task = harness_tasks.build_task(
        {
            "task": "x",
            "custom_dataset": lambda **_: splits,
            "output_type": "generate_until",
            "doc_to_text": lambda doc: doc["q"],
            "doc_to_target": lambda doc: doc["a"],
            **config,
        }
    )
    monkeypatch.setattr(harness_tasks, "_load", lambda name: [task])
    (built,) = harness_tasks.build_tasks("x", num_fewshot)
    built.set_fewshot_seed(seed=1234)
    return built


@pytest.mark.slow
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_no_document_is_its_own_example(
    splits: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for any split, and under another id."""
    config = SPLITS[splits] | {"fewshot_config": {"sampler": sampler}}
    task = made(config, 2, monkeypatch)
    for _ in range(5):
        for doc in task.eval_docs:
            text = task.fewshot_context(doc, 2)
            assert text.endswith(doc["q"])
            assert doc["a"] not in text
            assert text.count(" A") == 2
    with pytest.raises(InputError, match="task 'x' has 3 different questions, all used"):
        made(config, 3, monkeypatch).fewshot_context(task.eval_docs[0], 3)


def test_texts_that_are_scored_whole_have_no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of their questions are empty, so none could be an example of another."""
    whole = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "test_split": "test"}
    task = made(whole, 2, monkeypatch)
    assert task.config.num_fewshot == 0
    task.build_all_requests()
    assert [one.args for one in task.instances] == [("A0",), ("A1",), ("A2",), ("A0",)]


def test_a_perplexity_that_is_too_large_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chinese text without spaces is a single word of thousands of nats."""
    whole = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "test_split": "test"}
    of = made(whole, 0, monkeypatch).aggregation()["word_perplexity"]
    assert of([(-1.0, 1), (-3.0, 1)]) == pytest.approx(math.exp(2.0))
    assert of([(-1.0, 1), (-3000.0, 1)]) == math.inf


def test_examples_equal_those_of_the_harness_unless_one_is_the_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for wrap in (harness_tasks.leave_out_the_question, lambda *_: None):
        monkeypatch.setattr(harness_tasks, "leave_out_the_question", wrap)
        task = made(SPLITS["examples of another split"], 1, monkeypatch)
        found.append([task.fewshot_context({"q": "Q9", "a": "A9"}, 1) for _ in range(20)])
    assert found[0] == found[1]
    assert len({*found[0]}) == 3


@pytest.mark.parametrize(("other", "is_same"), [("one", True), ("none", False)])
def test_questions_with_the_same_wording_differ_by_their_choices(
    other: str, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    rows = [{"choices": ["one", "two"], "gold": 0}, {"choices": [other, "six"], "gold": 0}]
    task = harness_tasks.build_task(
        {
            "task": "x",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Which is right?",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}],
        }
    )
    assert harness_tasks._asks_the_same(task, *task.eval_docs) == is_same


@pytest.mark.slow
def test_choices_that_a_task_shuffles_are_the_same_for_every_model_and_run(tmp_path: Path) -> None:
    """GPQA shuffles with the global generator, which the harness seeds before it loads a task."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "2 + 2?", "choices": [*map(str, range(40))]}) + "\n")
    (tmp_path / "own.py").write_text(
        "import random\nfrom datasets import Dataset\n\n\ndef shuffled(docs):\n"
        "    rows = [*docs]\n    for row in rows:\n        random.shuffle(row['choices'])\n"
        "    return Dataset.from_list(rows)\n"
    )
    file = tmp_path / "own.yaml"
    text = TASK.replace('["4", "5"]', "choices").replace("FILE", str(rows))
    file.write_text(f"{text}process_docs: !function own.shuffled\n")
    first, second = (
        harness_tasks.build_tasks(str(file), 0)[0].eval_docs[0]["choices"] for _ in range(2)
    )
    assert first == second != [*map(str, range(40))]
