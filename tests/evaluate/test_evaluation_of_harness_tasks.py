"""Tasks of the harness's own kinds in `ledom eval`: notes, the chance level and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evaluated import evaluate, found_rows, write_rows
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.evaluate.tasks import Options, find_source
from ledom.lm.backends.fake import FakeLanguageModel

pytest.importorskip("lm_eval")

if TYPE_CHECKING:
    from ledom.evaluate.tasks import Source

ROWS = [{"q": "2 + 3 =", "a": "5"}, {"q": "2 + 4 =", "a": "6"}]
CHOICES = [{"q": "2 + 3 =", "choices": ["5", "five", "6"], "right": [0, 1]}]
SEVERAL = {
    "output_type": "multiple_choice",
    "doc_to_target": "right",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc"}],
}


def own_task(
    folder: Path, rows: list[dict[str, Any]], num_fewshot: int = 0, **settings: Any
) -> Source:
    """A task of the harness, in a file of its own (JSON is YAML)."""
    config = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(write_rows(folder / "rows.jsonl", rows))}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        **settings,
    }
    file = folder / "own.yaml"
    file.write_text(json.dumps(config))
    return find_source(str(file), Options(num_fewshot=num_fewshot))


@pytest.mark.slow
def test_harness_prompts_come_with_a_note_for_reverse_models(
    tmp_path: Path, models: dict[Direction, FakeLanguageModel]
) -> None:
    metrics = [{"metric": "exact_match"}]
    source = own_task(tmp_path, ROWS[:1], output_type="generate_until", metric_list=metrics)
    found = evaluate(source, tmp_path / "out", *models.values())
    (note,) = found["tasks"][0]["notes"]
    assert note.startswith("reverse: the harness's prompt asks for text after it")
    assert found["tasks"][0]["num_documents"] == 1


@pytest.mark.slow
def test_a_reverse_models_perplexity_of_a_continuation_is_approximate(
    tmp_path: Path, models: dict[Direction, FakeLanguageModel]
) -> None:
    metrics = [{"metric": "perplexity"}, {"metric": "acc"}]
    source = own_task(tmp_path, ROWS, output_type="loglikelihood", metric_list=metrics)
    found = evaluate(source, tmp_path / "out", *models.values())
    rows = found_rows(found, "perplexity")
    assert "note" not in rows["forward", "conditional"]
    assert rows["reverse", "Bayes"]["note"].startswith("approximate: log P(context)")
    assert found_rows(found, "acc")["reverse", "Bayes"]["note"].startswith("not applicable")


@pytest.mark.slow
def test_with_several_right_choices_no_chance_level_is_stated(
    tmp_path: Path, models: dict[Direction, FakeLanguageModel]
) -> None:
    """One of three choices at random is right in two of three cases, not in one."""
    found = evaluate(own_task(tmp_path, CHOICES, **SEVERAL), tmp_path / "out", *models.values())
    assert found["tasks"][0]["chance"] is None


@pytest.mark.slow
def test_a_prompt_that_the_harness_cannot_make_is_an_error_of_the_task(
    tmp_path: Path, models: dict[Direction, FakeLanguageModel]
) -> None:
    """The harness makes no examples of questions with several right choices."""
    source = own_task(tmp_path, [*CHOICES, CHOICES[0] | {"q": "3 + 2 ="}], 1, **SEVERAL)
    with pytest.raises(InputError, match="task 'own': the harness could not make its prompts"):
        evaluate(source, tmp_path / "out", *models.values())
