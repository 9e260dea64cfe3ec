"""Helpers of several benchmarks. Importing this file loads neither torch nor ledom.

That matters to benchmarks of memory: their child processes import it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledom.core.records import Candidate, Problem

__all__ = ["generated_answers", "resident", "run_child"]


def resident(key: str = "VmRSS", pid: int | str = "self") -> float:
    """Memory of a process in bytes: resident now (VmRSS), or at its peak (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise OSError(f"no {key} in /proc/{pid}/status")
    return 1024 * float(found[1])


def run_child(file: str, arguments: Sequence[object], **environment: str) -> Any:
    """Run a benchmark's file in a process of its own; returns the JSON in its last line.

    Ends this process with the child's error output if the child fails.
    """
    command = [sys.executable, file, *map(str, arguments)]
    variables: Mapping[str, str] = {**os.environ, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def generated_answers(questions: int, answers: int) -> tuple[list[Problem], list[Candidate]]:
    """Unseen generated problems, with answers sampled from the embedded forward model."""
    from ledom.data.problems import generate_problems
    from ledom.lm import load
    from ledom.lm.language_model import Sampling
    from ledom.rerank.sample import sample_candidates

    problems = list(generate_problems("test", questions, seed=9))
    sampling = Sampling(temperature=0.7)
    chunks = sample_candidates(problems, load("tiny", "forward"), sampling, answers)
    return problems, [c for chunk in chunks for c in chunk if not c.greedy]
