"""The table of published suites in docs/evaluate.md, compared with the harness's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledom.core.reading import JsonObject
from ledom.data.benchmarks import BENCHMARKS

pytest.importorskip("lm_eval")
from lm_eval.tasks._yaml_loader import load_yaml

from ledom.evaluate import harness_tasks
from ledom.evaluate.suites import SUITES, suite_tasks
from ledom.evaluate.tasks import CODE_TASKS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text("utf-8")
SECTION = PAGE.partition("## The two published suites\n")[2].partition("\n## ")[0]
TABLE = {
    cells[0]: cells[1:]
    for cells in (
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in SECTION.splitlines()
        if line.startswith("| ") and not line.startswith("| task")
    )
}
SUITES_OF = {
    task.name: ", ".join(
        name for name in ("ledom", "r2l") if task.name in {one.name for one in SUITES[name]}
    )
    for suite in ("ledom", "r2l")
    for task in suite_tasks(suite)
}


def test_the_table_lists_every_task_and_its_published_figures() -> None:
    assert {name: cells[0] for name, cells in TABLE.items()} == SUITES_OF
    for suite in ("ledom", "r2l"):
        for task in suite_tasks(suite):
            for figure in task.published:
                paper, _, size = figure.source.partition(" ")
                assert paper in TABLE[task.name][4]
                assert size in TABLE[task.name][4]


def config(name: str) -> JsonObject:
    file = harness_tasks._files().get(name) or harness_tasks._files()["mmlu_anatomy_continuation"]
    found: JsonObject = load_yaml(file, resolve_func=False)
    return found


@pytest.mark.parametrize("name", [*SUITES_OF])
@pytest.mark.slow
def test_split_metrics_and_choices_match_the_tasks(name: str) -> None:
    """Our own tasks have the split we load and one metric; others follow their file."""
    _, split, metrics, choices, _ = TABLE[name]
    if name in BENCHMARKS or name in CODE_TASKS:
        assert (metrics, choices) == ("exact_match", "–")
        assert split == (BENCHMARKS[name].split if name in BENCHMARKS else "test")
        return
    found = config(name)
    assert split == (found.get("test_split") or found["validation_split"])
    named = [one["metric"] for one in found.get("metric_list", ())] or ["acc", "acc_norm"]
    assert metrics == ", ".join(named)  # the harness's default is these two
    assert (choices == "letters") == (found.get("doc_to_choice") == ["A", "B", "C", "D", "E"])
    assert found.get("num_fewshot") in (None, 0)  # the harness adds no examples itself


@pytest.mark.slow
def test_mmlu_choices_are_the_answers_written_out() -> None:
    assert config("mmlu_continuation")["doc_to_choice"] == "{{choices}}"
    assert "mmlu_continuation" in harness_tasks._groups()
