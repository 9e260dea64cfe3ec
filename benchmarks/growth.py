"""How the time and memory of `ledom rerank` grow with the number of problems.

    python benchmarks/growth.py [--sizes 100 400 1600] [--samples 2] [--max-tokens 96]

Each size is one process that runs the whole command on the embedded pair, with equal settings. The
samples are few and short, so work that might grow faster than the number of problems (joining,
sorting, intervals, pages) takes a large share of the time. A process takes some seconds to start,
whatever its size. The time per problem is therefore also given for the problems that a size adds to
the previous one. CPU seconds cover the process alone, not other work on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from common import new_parser, parse, print_head, print_row

SIZES = (100, 400, 1600)


@dataclass
class Run:
    """The cost of one command."""

    problems: int
    seconds: float
    cpu_seconds: float
    megabytes: float
    """Peak resident memory."""


def run(problems: int, options: list[str]) -> Run:
    """Run the command to completion."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ledom", "rerank", "--num-problems", str(problems)]
        command += [*options, "--out", folder]
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    megabytes = usage.ru_maxrss * 1024 / 1e6  # Linux counts in KiB
    return Run(problems, seconds, usage.ru_utime + usage.ru_stime, megabytes)


def show(now: Run, before: Run | None) -> None:
    """Print a row: seconds per problem, and per problem added since the previous run."""
    each = f"{now.seconds / now.problems:.3f} ({now.cpu_seconds / now.problems:.3f})"
    more = "–"
    if before is not None:
        added = now.problems - before.problems
        more = f"{(now.seconds - before.seconds) / added:.3f} "
        more += f"({(now.cpu_seconds - before.cpu_seconds) / added:.3f})"
    print_row(now.problems, f"{now.seconds:.0f}", each, more, f"{now.megabytes:.0f}")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=96)
    args = parse(parser)
    options = ["--samples", str(args.samples), "--max-tokens", str(args.max_tokens)]
    print_head("problems", "s", "s per problem (CPU)", "per added problem (CPU)", "peak, MB")
    before: Run | None = None
    for size in sorted(args.sizes):
        now = run(size, options)
        show(now, before)
        before = now


if __name__ == "__main__":
    main()
