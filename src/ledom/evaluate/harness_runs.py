"""Runs tasks of lm-evaluation-harness with a model, and builds their requests without running them.

This module does not know how tasks are found, or how requests are answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from ledom.core.errors import needs_extra
from ledom.core.reading import JsonObject
from ledom.evaluate.harness import LedomLM

with needs_extra("lm-eval", "eval", "evaluation"):
    from lm_eval.evaluator import evaluate

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["build_requests", "run_tasks"]

_FEWSHOT_SEED = 1234  # the harness's own


def run_tasks(lm: LedomLM, tasks: Sequence[Any], limit: int | None, chat: bool) -> JsonObject:
    """The harness's results and samples for these tasks."""
    _set_seeds(tasks)
    found = evaluate(
        lm,
        {"tasks": {str(task.config.task): task for task in tasks}},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=True,  # `ledom.evaluate.tasks` has checked for --allow-code
    )
    return cast(JsonObject, found)


def build_requests(
    lm: LedomLM, tasks: Sequence[Any], limit: int | None, chat: bool
) -> Iterator[Instance]:
    """The requests that `run_tasks` makes, each as often as it is made, in the same order."""
    _set_seeds(tasks)
    for task in tasks:
        task.build_all_requests(
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=lm.apply_chat_template if chat else None,
            tokenizer_name=lm.tokenizer_name if chat else "",
        )
        for instance in task.instances:
            yield from [instance] * instance.repeats


def _set_seeds(tasks: Sequence[Any]) -> None:
    """Make the examples the same in each run."""
    for task in tasks:
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
