"""Builds tasks of the harness from questions with choices and problems with written answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import JsonObject
from ledom.core.records import Problem
from ledom.evaluate.choices import ChoiceQuestion
from ledom.evaluate.written import FORMS, CodeProblem, is_right, prompt

__all__ = ["GROUP", "Options", "choice_task", "written_task"]

GROUP = "ledom_group"
"""Key of a task's rows, for intervals: rows with the same value are not independent."""


@dataclass(frozen=True)
class Options:
    """The settings with which tasks are created."""

    data: Path | None = None
    """Folder of local task files."""
    limit: int | None = None
    """Documents per task, from its start; None for all."""
    num_fewshot: int = 0
    """Solved examples that the model reads before a question."""
    seed: int = 0
    """Seed of generated questions."""
    allow_code: bool = False
    """Whether programs that a model writes may be run here."""


def choice_task(
    name: str, questions: Sequence[ChoiceQuestion], text: str, delimiter: str, options: Options
) -> Any:
    """A multiple-choice task, for a model of either direction.

    `text` is the template of a question, and `delimiter` stands between it and a choice. Choices
    before the question have no acc_norm, as their scores cover the question too. The first
    questions are used as examples and are not asked. No question is an example for one with the
    same text or from the same document.
    """
    from ledom.evaluate.harness_tasks import leave_out_the_question

    num_fewshot = options.num_fewshot
    _check_examples(name, len(questions), num_fewshot)
    places = {question.place for question in questions}
    if len(places) > 1:
        raise InputError(f"task {name!r} mixes questions with place after and before; split it")
    before = places == {"before"}
    text = "{}" if before else text  # unchanged after a choice, as nothing is asked at its end
    rows = [
        {
            "text": text.format(q.question),
            "choices": q.choices,
            "answer_index": q.answer_index,
            "about": q.document or q.question,
            GROUP: q.document or f"{q.question} {sorted(q.choices)}",
        }
        for q in questions
    ]
    task = _make(
        name,
        rows[num_fewshot:][: options.limit],
        output_type="multiple_choice",
        doc_to_text="answer_index" if before else "text",
        doc_to_choice="choices",
        doc_to_target="text" if before else "answer_index",
        target_delimiter=delimiter,
        num_fewshot=num_fewshot,
        fewshot_config={"sampler": "first_n", "samples": rows},
        metric_list=[_mean("acc")] if before else [_mean("acc"), _mean("acc_norm")],
    )
    leave_out_the_question(task, lambda example, asked: example["about"] == asked["about"])
    return task


def _check_examples(name: str, count: int, num_fewshot: int) -> None:
    if count <= num_fewshot:
        raise InputError(
            f"task {name!r} has {count} different questions, all used as examples; lower "
            "--num-fewshot"
        )


def written_task(
    name: str,
    kind: str,
    direction: Direction,
    problems: Sequence[Problem] | Sequence[CodeProblem],
    options: Options,
) -> Any:
    """A task of problems with written answers, in the direction's `FORMS`; the first problems are
    used as examples, as in `choice_task`."""
    num_fewshot = options.num_fewshot
    _check_examples(name, len(problems), num_fewshot)
    form = FORMS[kind][direction]
    rows = []
    for asked in problems[num_fewshot:][: options.limit]:
        text = form.question(asked)
        others = (one for one in problems if form.question(one) != text)
        examples = [*islice(others, num_fewshot)]
        _check_examples(name, 1 + len(examples), num_fewshot)
        shown = prompt(kind, direction, asked, examples)
        rows.append({"problem": json.dumps(asked.to_json()), "prompt": shown, GROUP: text})
    return _make(
        name,
        rows,
        output_type="generate_until",
        doc_to_text="prompt",
        doc_to_target="",
        process_results=partial(_judge, kind, direction),
        generation_kwargs={"until": list(form.until), "max_gen_toks": form.max_tokens},
        num_fewshot=0,
        metric_list=[_mean("exact_match")],
    )


def _judge(
    kind: str, direction: Direction, doc: Mapping[str, Any], results: Sequence[str]
) -> dict[str, float]:
    problem = json.loads(doc["problem"])  # no file
    return {"exact_match": float(is_right(kind, direction, problem, results[0]))}


def _mean(metric: str) -> JsonObject:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _make(name: str, rows: Sequence[JsonObject], **config: Any) -> Any:
    """A task of the harness, with its rows in memory; `doc_to_...` name the rows' keys."""
    from datasets import Dataset

    from ledom.evaluate.harness_tasks import build_task

    return build_task(
        {
            "task": name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(list(rows))},
            "test_split": "test",
            "metadata": {"version": 1.0},
            **config,
        }
    )
