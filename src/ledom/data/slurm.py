"""What ledom asks of Slurm for tokenizing: the options of its jobs, and whether any still run."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledom.core.errors import InputError

__all__ = ["JOB_FILE", "ExecutorOptions", "refuse_queued", "slurm_options"]

ExecutorOptions = dict[str, Any]  # keyword arguments of datatrove's executors

JOB_FILE = "slurm_job"  # the id of the last job that was submitted
_SECONDS = 60  # for an answer of Slurm


def slurm_options(given: Mapping[str, str]) -> ExecutorOptions:
    """The executor's options for these options of sbatch."""
    if shutil.which("sbatch") is None:
        raise InputError("executor slurm: sbatch was not found; run this on a machine with Slurm")
    # Slurm would otherwise keep the job that sums up the tasks forever once a task has failed.
    sbatch = {"time": "24:00:00", "kill-on-invalid-dep": "yes", **given}
    if "partition" not in sbatch:
        raise InputError("executor slurm: give its partition, as --slurm partition=NAME")
    return {
        "time": sbatch.pop("time"),
        "partition": sbatch.pop("partition"),
        "qos": "",
        "job_name": "ledom-tokenize",
        # Jobs call datatrove's programs by name, also if this environment is not activated.
        "env_command": f'export PATH={shlex.quote(sysconfig.get_path("scripts"))}:"$PATH"',
        "sbatch_args": sbatch,
    }


def refuse_queued(file: Path) -> None:
    """Raise `InputError` while Slurm has the job in this file: its tasks write the same shards."""
    if not file.is_file() or shutil.which("squeue") is None:
        return
    job = file.read_text()
    command = ["squeue", "--noheader", f"--jobs={job}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        code, found, error = asked.returncode, asked.stdout.strip(), asked.stderr.strip()
    except subprocess.TimeoutExpired:
        code, found, error = 1, "", f"no answer in {_SECONDS} s"
    if code and "Invalid job id" not in error:  # Slurm has not just forgotten the job
        problem = f"squeue cannot tell whether Slurm job {job} still works on this store ({error})"
        raise InputError(f"{problem}; try again later, or remove {file}", path=file.parents[1])
    if found:
        raise InputError(
            f"Slurm job {job} still works on this store; wait for it, or end it: scancel {job}",
            path=file.parents[1],
        )
