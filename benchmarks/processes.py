"""Training on several processes on the CPU with gloo, with one process killed.

    python benchmarks/processes.py [--processes 2] [--steps 20]

Trains the `tiny` preset in fp32 on generated problems with `ledom train`: once in one process; once
under torchrun with FSDP2, to compare the losses; and once more with one process killed (SIGKILL)
halfway. The last run shows how long the others take to exit, which error they print, and whether
the same command then resumes to the same losses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import new_parser

from ledom.core.errors import InputError
from ledom.train.metrics import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def write_recipe(file: Path, steps: int) -> None:
    """Write the recipe for all runs."""
    recipe: dict[str, Any] = {
        "name": "alone",
        "data": {"num_documents": 600, "num_valid": 20},
        "model": "tiny",
        "optim": {"steps": steps, "warmup_steps": 5, "decay_steps": steps // 2},
        "train": {"batch_size": 8, "seq_len": 256, "precision": "float32"},
    }
    recipe["train"] |= {"validate_every": steps, "checkpoint_every": max(1, steps // 8)}
    file.write_text(yaml.safe_dump(recipe))


def command(name: str, processes: int) -> list[str]:
    """`ledom train` on this number of processes, into runs/NAME."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    train = ["-m", "ledom", "train", "recipe.yaml", f"name={name}", "--direction", "reverse"]
    return [*launcher, *train, "--threads", "1"]


def losses(folder: Path, name: str) -> list[float]:
    """The losses of the steps so far."""
    try:
        rows = read_metrics(folder / "runs" / name / "reverse" / "metrics.jsonl")
    except InputError:  # before the end of the first step
        return []
    return [row["loss"] for row in rows]


def run(folder: Path, name: str, processes: int) -> list[float]:
    """Train to the end; returns the losses."""
    done = subprocess.run(command(name, processes), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return losses(folder, name)


def difference(found: list[float], expected: list[float]) -> float:
    """The largest difference in the loss of any step; infinite if steps are missing."""
    if len(found) != len(expected):
        return float("inf")
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def worker(launcher: int, rank: int) -> int:
    """The process id of torchrun's worker of this rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise RuntimeError(f"torchrun has no worker of rank {rank} among {children}")


def kill_one(folder: Path, name: str, processes: int, steps: int) -> tuple[float, str]:
    """SIGKILL the last process halfway; returns seconds until torchrun ended, and the errors."""
    log = folder / "log.txt"
    with log.open("w") as out:
        job = subprocess.Popen(command(name, processes), cwd=folder, stdout=out, stderr=out)
        while len(losses(folder, name)) < steps // 2:
            if job.poll() is not None:
                sys.exit(f"{name} ended early:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        os.kill(worker(job.pid, processes - 1), signal.SIGKILL)
        started = time.perf_counter()
        job.wait()
        seconds = time.perf_counter() - started
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    return seconds, " / ".join(errors) or "no error was printed"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_recipe(folder / "recipe.yaml", args.steps)
        alone = run(folder, "alone", 1)
        shared = run(folder, "shared", args.processes)
        print(f"losses from {alone[0]:.4f} to {alone[-1]:.4f} in {args.steps} steps")
        print(f"{args.processes} processes: differ by {difference(shared, alone):.1e} at most")
        seconds, errors = kill_one(folder, "killed", args.processes, args.steps)
        reached = len(losses(folder, "killed"))
        print(f"one killed after step {reached}: all had ended {seconds:.1f} s later; {errors}")
        resumed = run(folder, "killed", args.processes)
        print(f"run again to the end: differ by {difference(resumed, alone):.1e} at most")


if __name__ == "__main__":
    main()
