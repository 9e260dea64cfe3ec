"""Suites of benchmarks by name, with the published accuracies of reverse models and their twins."""

from __future__ import annotations

from dataclasses import dataclass

from ledom.core.errors import InputError

__all__ = ["REVERSAL", "SUITES", "SUITE_NAMES", "Published", "SuiteTask", "suite_tasks"]


@dataclass(frozen=True)
class Published:
    """The accuracies that a paper reports for a task, in percent."""

    source: str
    forward: float
    reverse: float
    note: str
    """How they were measured, as far as is known."""


@dataclass(frozen=True)
class SuiteTask:
    """A benchmark, by its name in the harness or among ours."""

    name: str
    published: tuple[Published, ...] = ()
    files: tuple[str, ...] = ()
    """Other names of its local file, without the ending."""


def _ledom(size: str, reverse: float, forward: float) -> Published:
    """A figure of Yin et al., ACL 2026, who do not state shots, splits and metrics."""
    return Published(f"LEDOM {size}", forward, reverse, "with examples, their number unknown")


def _apple(forward: float, reverse: float, note: str = "examples unknown") -> tuple[Published]:
    """A figure of arXiv 2502.18435: 8B parameters, 350B tokens (apple/ml-reversal-blessing)."""
    return (Published("R2L 8B", forward, reverse, f"best of 3 scorings in reverse; {note}"),)


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
_ARC = _apple(68.29, 56.22, "easy and challenge in one number, examples unknown")
_R2L = (
    SuiteTask("logiqa", _apple(29.95, 31.03)),
    SuiteTask("openbookqa", _apple(45.00, 48.40)),
    SuiteTask("truthfulqa_mc1", _apple(24.97, 31.70)),
    SuiteTask("commonsense_qa", _apple(39.15, 44.96, "probably without the letters shown here")),
    SuiteTask("arc_challenge", _ARC),
    SuiteTask("arc_easy", _ARC),
    SuiteTask("hellaswag", _apple(71.60, 49.22)),
    SuiteTask("mathqa", _apple(28.77, 25.33)),
    SuiteTask("mmlu_continuation", _apple(38.90, 37.11)),
    SuiteTask("piqa", _apple(77.80, 59.14)),
    SuiteTask("winogrande", _apple(65.75, 54.70)),
    SuiteTask("social_iqa", _apple(44.58, 43.50)),
)
SUITES: dict[str, tuple[SuiteTask, ...]] = {
    "ledom": _LEDOM,
    "r2l": _R2L,
    "problems": (SuiteTask("problems_after"), SuiteTask("problems_before")),
}
"""Every suite. `problems` is generated, for the embedded pair. MMLU is used in the form whose
choices are written out: with letters as choices, a reverse model could not tell them apart."""
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
