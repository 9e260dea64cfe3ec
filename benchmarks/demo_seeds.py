"""The demo's two claims on ten seeds: how often each interval excludes 0, and the run time.

    python benchmarks/demo_seeds.py [--out out/demo-seeds] [--seeds 10] [--problems N] [--samples N]

Runs `ledom demo` with the seeds 0, 1, ... one after the other, at its default size unless one is
given, and prints a Markdown table. A finished seed is not run again. An unfinished one resumes; its
time then covers only the last part and is marked. Run it on an idle machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import new_parser, parse, print_head, print_row

from ledom.report.formatting import accuracy, difference, verdict
from ledom.report.results import Interval


@dataclass(frozen=True)
class Run:
    """A finished demo."""

    seed: int
    seconds: float
    resumed: bool
    arguments: list[str]


def run_seed(seed: int, folder: Path, arguments: list[str]) -> Run:
    """Run the demo, or read the record of an earlier run."""
    record = folder / "elapsed.json"
    if record.is_file():
        run = Run(**json.loads(record.read_text(encoding="utf-8")))
        if run.arguments != arguments:
            raise SystemExit(f"{folder} was made with {run.arguments}; give another --out")
        return run
    resumed = folder.is_dir()
    started = time.perf_counter()
    command = [sys.executable, "-m", "ledom", "demo", "--seed", str(seed), "--out", str(folder)]
    subprocess.run([*command, *arguments], check=True)
    run = Run(seed, time.perf_counter() - started, resumed, arguments)
    record.write_text(json.dumps(asdict(run)), encoding="utf-8")
    return run


def show(runs: list[Run], reports: list[dict[str, Any]]) -> None:
    """Print a row per seed, then the number of intervals above 0 per claim."""
    claims = [row["claim"] for row in reports[0]["headline"] if row.get("main")]
    print_head("seed", "greedy, %", *claims, "time")
    shown = dict.fromkeys(claims, 0)
    for run, report in zip(runs, reports, strict=True):
        by_claim = {row["claim"]: Interval(**row["difference"]) for row in report["headline"]}
        for claim in claims:
            shown[claim] += verdict(by_claim[claim]) == "better"
        greedy = next(row for row in report["strategies"] if row["id"] == "greedy")
        gains = [difference(by_claim[claim]) for claim in claims]
        taken = f"{run.seconds:.0f} s{' (resumed)' * run.resumed}"
        print_row(run.seed, accuracy(Interval(**greedy["accuracy"])), *gains, taken)
    totals = [f"{shown[claim]} of {len(runs)} above 0" for claim in claims]
    slowest = max(run.seconds for run in runs)
    print_row("all", "", *totals, f"at most {slowest:.0f} s")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo-seeds"))
    parser.add_argument("--seeds", type=int, default=10)
    for name in ("problems", "samples"):
        parser.add_argument(f"--{name}", type=int, help="default: the demo's")
    options = parse(parser)
    arguments: list[str] = []
    for name in ("problems", "samples"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name}", str(value)]
    runs: list[Run] = []
    reports: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        folder = options.out / str(seed)
        runs.append(run_seed(seed, folder, arguments))
        reports.append(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    show(runs, reports)


if __name__ == "__main__":
    main()
