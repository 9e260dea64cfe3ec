"""Training on several processes, and the loss of one, on the CPU with gloo.

    python benchmarks/processes.py [--processes 2] [--steps 20]

Trains the `tiny` preset in fp32 on generated problems, by the command line as a user would:
once in one process; once under torchrun with FSDP2, whose losses are compared; and once more, where
one process is killed (SIGKILL) half-way, to see how long the others take to end, what they say, and
whether the same command then goes on to the same losses.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from ledom.core.errors import InputError
from ledom.train.metrics import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def write_recipe(file: Path, steps: int) -> None:
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
    """`ledom train` on so many processes, into runs/NAME."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    train = ["-m", "ledom", "train", "recipe.yaml", f"name={name}", "--direction", "reverse"]
    return [*launcher, *train, "--threads", "1"]


def losses(folder: Path, name: str) -> list[float]:
    """Of the steps so far."""
    try:
        rows = read_metrics(folder / "runs" / name / "reverse" / "metrics.jsonl")
    except InputError:  # before the first step has ended
        return []
    return [row["loss"] for row in rows]


def run(folder: Path, name: str, processes: int) -> list[float]:
    done = subprocess.run(command(name, processes), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return losses(folder, name)


def difference(found: list[float], expected: list[float]) -> float:
    """The largest of any step; infinite where steps are missing."""
    if len(found) != len(expected):
        return float("inf")
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def worker(launcher: int, rank: int) -> int:
    """The process id of a worker of torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise RuntimeError(f"torchrun has no worker of rank {rank} among {children}")


def kill_one(folder: Path, name: str, processes: int, steps: int) -> tuple[float, str]:
    """SIGKILL the last process half-way: seconds until torchrun has ended, and what was said."""
    with (folder / "said.txt").open("w") as said:
        job = subprocess.Popen(command(name, processes), cwd=folder, stdout=said, stderr=said)
        while len(losses(folder, name)) < steps // 2:
            if job.poll() is not None:
                sys.exit(f"it ended early:\n{(folder / 'said.txt').read_text()[-2000:]}")
            time.sleep(0.02)
        os.kill(worker(job.pid, processes - 1), signal.SIGKILL)
        started = time.perf_counter()
        job.wait()
    lines = (folder / "said.txt").read_text().splitlines()
    told = [line for line in lines if line.startswith("error: ")]
    return time.perf_counter() - started, " / ".join(told) or "no error was said"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        seconds, said = kill_one(folder, "killed", args.processes, args.steps)
        reached = len(losses(folder, "killed"))
        print(f"one killed after step {reached}: all had ended {seconds:.1f} s later; {said}")
        resumed = run(folder, "killed", args.processes)
        print(f"run again to the end: differ by {difference(resumed, alone):.1e} at most")


if __name__ == "__main__":
    main()
