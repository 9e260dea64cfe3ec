"""Suites of benchmarks by name, with the figures that were published for them.

A suite's task is run from a local file of its name where a folder of them is given, else from the
hub. Figures are accuracies in percent, each a reverse model's and its forward twin's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledom.core.errors import InputError

__all__ = ["REVERSAL", "SUITES", "SUITE_NAMES", "Published", "SuiteTask", "suite_tasks"]


@dataclass(frozen=True)
class Published:
    """What a paper reports for a task, in percent."""

    source: str
    forward: float
    reverse: float


@dataclass(frozen=True)
class SuiteTask:
    """A benchmark: its name in the harness or among ours, and other names of its local file."""

    name: str
    published: tuple[Published, ...] = ()
    files: tuple[str, ...] = ()
    """Names of a local file of it, besides its own; without the ending."""


def _ledom(size: str, reverse: float, forward: float) -> Published:
    return Published(f"LEDOM {size}", forward, reverse)


def _apple(forward: float, reverse: float) -> tuple[Published]:
    """8B parameters, 350B tokens; the best of three scorings in reverse (arXiv 2502.18435)."""
    return (Published("R2L 8B", forward, reverse),)


_LEDOM = (
    SuiteTask("boolq", (_ledom("7B", 37.77, 65.69),), ("boolq_closed_book",)),
    SuiteTask("winogrande"),
    SuiteTask("arc_easy"),
    SuiteTask("arc_challenge"),
    SuiteTask("hellaswag"),
    SuiteTask("openbookqa"),
    SuiteTask("triviaqa", (_ledom("2B", 19.82, 40.22),)),
    SuiteTask("nq_open"),
    SuiteTask("gsm8k", (_ledom("7B", 1.74, 16.83),)),
    SuiteTask("humaneval", (_ledom("7B", 1.22, 13.41), _ledom("2B", 2.44, 8.54))),
)
_R2L = (
    SuiteTask("logiqa", _apple(29.95, 31.03)),
    SuiteTask("openbookqa", _apple(45.0, 48.4)),
    SuiteTask("truthfulqa_mc1", _apple(24.97, 31.70)),
    SuiteTask("commonsense_qa", _apple(39.15, 44.96)),
    SuiteTask("arc_challenge", _apple(68.3, 56.2)),
    SuiteTask("arc_easy", _apple(68.3, 56.2)),
    SuiteTask("hellaswag", _apple(71.6, 49.2)),
    SuiteTask("mathqa", _apple(28.8, 25.3)),
    SuiteTask("mmlu", _apple(38.9, 37.1)),
    SuiteTask("piqa", _apple(77.8, 59.1)),
    SuiteTask("winogrande", _apple(65.8, 54.7)),
    SuiteTask("social_iqa", _apple(44.58, 43.50)),
)
SUITES: dict[str, tuple[SuiteTask, ...]] = {
    "ledom": _LEDOM,
    "r2l": _R2L,
    "problems": (SuiteTask("problems_after"), SuiteTask("problems_before")),
}
"""Every suite. `problems` is generated, for the embedded pair; the published figure of ARC is one
number for both of its parts."""
REVERSAL = "reversal"
"""The suite that trains its own models (`ledom.evaluate.reversal`), so it has no tasks."""
SUITE_NAMES = (*SUITES, REVERSAL)


def suite_tasks(name: str) -> tuple[SuiteTask, ...]:
    """The tasks of a suite; raises `InputError` for an unknown one.

    >>> [task.name for task in suite_tasks("problems")]
    ['problems_after', 'problems_before']
    """
    if name not in SUITES:
        raise InputError(f"unknown suite {name!r}; the suites are {', '.join(SUITE_NAMES)}")
    return SUITES[name]
