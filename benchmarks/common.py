"""Helpers shared by several benchmarks. Importing this file loads neither torch nor ledom.

That matters for memory benchmarks, whose child processes import it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from ledom.core.records import Candidate, Problem

__all__ = [
    "add_answers",
    "in_process",
    "new_parser",
    "parse",
    "print_head",
    "print_row",
    "read_answers",
    "resident",
    "spread",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the first line of a benchmark's docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; --threads applies to this process and its children."""
    from ledom.core.processes import set_threads

    parser.add_argument("--threads", type=int, help="CPU threads. Default: as in ledom's commands.")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    return arguments


def print_head(*names: str) -> None:
    """Print the header of a Markdown table."""
    print_row(*names)
    print("|---" * len(names) + "|")


def print_row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def spread(ratios: Sequence[float]) -> str:
    """The median of the rounds' ratios, and their range.

    >>> spread([1.2, 1.5, 1.25])
    '1.25x (1.20 to 1.50)'
    """
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def resident(key: str = "VmRSS", pid: int | str = "self") -> int:
    """Memory of a process in bytes: resident now (VmRSS), or at its peak (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise OSError(f"no {key} in /proc/{pid}/status")
    return 1024 * int(found[1])


def in_process(work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    """Call a function in a new process with its own memory and threads; returns its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        return child.submit(work, *arguments, **options).result()


def add_answers(parser: argparse.ArgumentParser, questions: int) -> None:
    """Add the options of `read_answers`."""
    parser.add_argument("--problems", type=Path)
    parser.add_argument("--candidates", type=Path, help="Default: generate problems and answers.")
    parser.add_argument("--questions", type=int, default=questions)
    parser.add_argument("--answers", type=int, default=8, help="Sampled answers per question.")


def read_answers(arguments: argparse.Namespace) -> tuple[list[Problem], list[Candidate]]:
    """Return the first questions of the files, each with its first sampled answers.

    Without files, the problems are generated and the embedded forward model answers them.
    """
    from ledom.core.records import Candidate, Problem, read_records
    from ledom.data.problems import generate_problems
    from ledom.lm import load
    from ledom.lm.language_model import Sampling
    from ledom.rerank.sample import sample_candidates

    questions, answers = arguments.questions, arguments.answers
    if arguments.problems and arguments.candidates:
        problems = read_records(arguments.problems, Problem)[:questions]
        drawn = read_records(arguments.candidates, Candidate)
    else:
        problems = list(generate_problems("test", questions, seed=9))
        sampling = Sampling(temperature=0.7)
        chunks = sample_candidates(problems, load("tiny", "forward"), sampling, answers)
        drawn = [candidate for chunk in chunks for candidate in chunk]
    kept: dict[str, list[Candidate]] = {problem.id: [] for problem in problems}
    for candidate in drawn:
        own = kept.get(candidate.problem_id)
        if own is not None and not candidate.greedy and len(own) < answers:
            own.append(candidate)
    return problems, [candidate for own in kept.values() for candidate in own]
