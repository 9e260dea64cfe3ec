"""Tokenizing on mocks of Slurm and Ray: what they are asked to run, and the store."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import stat
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ledom.core.errors import InputError, MissingExtraError, WorkerError
from ledom.data import slurm
from ledom.data import tokenize as module
from ledom.data.store import MANIFEST, TokenStore
from ledom.data.tokenize import Execution
from number_documents import EXPECTED, Make, ids_of
from started import started

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mocks of Slurm's programs; `sbatch` saves its input in this folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in {
        "sbatch": f'for last; do :; done; cat "$last" >> {folder}/jobs; echo Submitted job 42',
        "scontrol": "echo node1",
        "squeue": f'test "$2" = --jobs=42 && cat {folder}/queued',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def launch_elsewhere(pickled: str) -> None:
    """Run what a Slurm job would run."""
    os.chdir("/")
    sys.argv = ["launch_pickled_pipeline", pickled]
    runpy.run_module("datatrove.tools.launch_pickled_pipeline", run_name="__main__")


def test_slurm_gets_one_job_with_all_tasks(tmp_path: Path, make: Make, cluster: Path) -> None:
    options = {"partition": "cpu", "time": "4:00:00", "account": "me"}
    execution = Execution("slurm", workers=7, tasks=3, slurm=options)
    assert make(execution) is None
    asked = (cluster / "jobs").read_text()
    for line in (
        "--partition=cpu",
        "--time=4:00:00",
        "--account=me",
        "--array=0-2%7",
        "--cpus-per-task=1",
        "--job-name=ledom-tokenize",
        "--kill-on-invalid-dep=yes",
    ):
        assert f"#SBATCH {line}\n" in asked
    assert "--qos" not in asked
    pickled = tmp_path / "s" / "tasks" / "executor.pik"
    assert f"launch_pickled_pipeline {pickled}" in asked
    programs = shlex.split(asked[asked.index("export PATH=") :])[1]
    assert shutil.which("launch_pickled_pipeline", path=programs.removeprefix("PATH="))
    # Run each job of the array as Slurm would; the last one finishes the store.
    for task in range(3):
        assert not (tmp_path / "s" / MANIFEST).is_file()
        environment = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "node1"}
        environment["PATH"] = os.environ["PATH"]
        job = started(tmp_path / "said", pickled, run=launch_elsewhere, environment=environment)
        with job as process:
            assert process.wait() == 0, process.said()
    assert ids_of(TokenStore(tmp_path / "s")) == EXPECTED
    assert ids_of(make(execution)) == EXPECTED


def test_a_store_that_slurm_works_on_is_refused(
    tmp_path: Path, make: Make, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = Execution("slurm", tasks=2, slurm={"partition": "cpu"})
    (cluster / "queued").write_text("42_[0-1] cpu ledom-to\n")
    assert make(execution) is None
    part = tmp_path / "s" / "00000_unshuffled.ds.7.part"  # a running task writes it
    part.write_bytes(b"tokens")
    for again in (execution, Execution(tasks=2)):
        with pytest.raises(InputError, match=r"s: Slurm job 42 still works.* end it: scancel 42"):
            make(again)
    (cluster / "queued").unlink()
    with pytest.raises(InputError, match=r"cannot tell whether Slurm job 42 .*queued.*; try again"):
        make(execution)
    monkeypatch.setattr(slurm, "_SECONDS", 0.1)
    (cluster / "squeue").write_text("#!/bin/sh\nexec sleep 9\n")
    with pytest.raises(InputError, match=r"Slurm job 42 still works .*\(no answer in 0.1 s\); try"):
        make(execution)
    assert part.read_bytes() == b"tokens"
    (cluster / "squeue").write_text("#!/bin/sh\necho Invalid job id specified >&2; exit 1\n")
    assert make(execution) is None  # Slurm forgets finished jobs


def test_slurm_requires_its_programs_and_a_partition(
    tmp_path: Path, make: Make, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="give its partition, as --slurm partition=NAME"):
        make(Execution("slurm"))
    (cluster / "sbatch").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(InputError, match=r"sbatch refused the job \(exit code 3\)"):
        make(Execution("slurm", slurm={"partition": "p"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch was not found; run this on a machine with Slurm"):
        make(Execution("slurm", slurm={"partition": "p"}))


def test_ray_gets_one_core_per_task(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    ran: list[Any] = []

    def run(self: Any) -> None:
        ran.append(self)
        for rank in self.get_incomplete_ranks():
            self._run_for_rank(rank)

    monkeypatch.setattr(module.RayPipelineExecutor, "run", run)
    store = make(Execution("ray", workers=5, tasks=3))
    assert ids_of(store) == EXPECTED
    (executor,) = ran
    assert (executor.tasks, executor.workers, executor.cpus_per_task) == (3, 5, 1)
    assert Path(executor.logging_dir.path) == tmp_path / "s" / "tasks"


def test_ray_is_an_extra_and_may_lose_tasks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ray is not .*pip install 'ledom\[ray\]'"):
        make(Execution("ray"))
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setattr(module.RayPipelineExecutor, "run", lambda self: None)  # Ray only warns
    with pytest.raises(WorkerError, match="not all of the 2 tasks have finished, see .*logs"):
        make(Execution("ray", tasks=2))
