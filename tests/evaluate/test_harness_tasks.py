"""Tasks of lm-evaluation-harness: found without reading all of its files, and shown no answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    """The registry is a stand-in; the list is what it was asked for."""
    asked: list[str] = []

    def load(names: list[str]) -> dict[str, dict[str, object]]:
        asked.extend(names)
        return {"tasks": {}}

    stand_in = SimpleNamespace(load=load, all_tasks=["mmlu"])
    monkeypatch.setattr(harness_tasks, "_registry", lambda: stand_in)
    return asked


def test_every_task_of_the_suites_is_one_of_the_harness_or_ours(unread: list[str]) -> None:
    """The names that later versions of the harness may change; one is a group."""
    ours = {*BENCHMARKS, *tasks.CODE_TASKS, "problems_after", "problems_before"}
    named = {task.name for suite in SUITES.values() for task in suite}
    assert {name for name in named if not harness_tasks.is_known(name)} <= ours
    assert {name for name in named if name not in harness_tasks._files()} - ours == {
        "mmlu_continuation"
    }
    assert "mmlu_continuation" in harness_tasks._groups()
    assert harness_tasks._files()["boolq"].parts[-3:] == ("super_glue", "boolq", "default.yaml")


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
def test_a_group_is_read_from_its_folder_where_all_its_tasks_lie_there(
    file: str, text: str, is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag may be set, and a name defined, by any file of the harness."""
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


def test_a_copy_of_a_dataset_stands_for_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness's own arc_easy, on a folder as the hub has it."""
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
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", rows / "hub")  # within a file
    with pytest.raises(InputError, match="rows.jsonl.*HF_HOME") as failure:
        tasks.find_source(str(file), tasks.Options()).load(Direction.REVERSE)
    assert "network" not in str(failure.value)
    assert unread == []


def test_the_harness_shows_no_bars_of_its_own() -> None:
    """tqdm reads its environment when the harness imports it."""
    code = "import ledom.evaluate.harness_tasks, tqdm; list(tqdm.tqdm([1]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stderr == ""


def test_no_document_is_its_own_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task with nothing but test documents, where the harness would draw it as well."""
    from datasets import Dataset

    rows = Dataset.from_list([{"q": f"Q{i}", "a": f"A{i}"} for i in range(3)])
    task = harness_tasks.build_task(
        {
            "task": "x",
            "custom_dataset": lambda **_: {"test": rows},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": lambda doc: doc["q"],
            "doc_to_target": lambda doc: doc["a"],
        }
    )
    monkeypatch.setattr(harness_tasks, "_load", lambda name: [task])
    (built,) = harness_tasks.build_tasks("x", 1)
    built.set_fewshot_seed(seed=1234)
    for _ in range(5):
        for number, doc in enumerate(built.test_docs()):
            text = built.fewshot_context(doc, 1)
            assert text.endswith(f"Q{number}")
            assert f"A{number}" not in text
            assert " A" in text
