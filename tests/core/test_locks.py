"""Locks on folders, on file systems without locks and in folders that are removed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from kills import in_a_child
from ledom.core.errors import OutputError
from ledom.core.files import lock_folder


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """For example, NFS without its lock service, and some FUSE file systems."""

    def refuse(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(OutputError, match=r"out: its file system has no file locks .*; give a fol"),
        lock_folder(tmp_path / "out", "trains"),
    ):
        pass


def test_a_holder_notices_that_its_folder_was_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lock_folder(out, "trains") as check:
        check()
        shutil.rmtree(out)
        with pytest.raises(OutputError, match=r"out: was removed or replaced while this run was"):
            check()
    assert not out.exists()


def test_another_run_in_a_new_folder_keeps_its_lock(tmp_path: Path) -> None:
    """A user removes the folder of a run that still lives, and starts another one."""
    out = tmp_path / "out"
    first = lock_folder(out, "trains")
    check = first.__enter__()
    shutil.rmtree(out)

    def second() -> None:
        with lock_folder(out, "trains"):
            with pytest.raises(OutputError, match="removed or replaced"):
                check()
            first.__exit__(None, None, None)
            with pytest.raises(OutputError, match="in use by process"), lock_folder(out, "trains"):
                pass

    assert in_a_child(second) == 0


def test_tasks_of_srun_are_told_of_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for tasks, remedy in (
        ("2", "if srun started both, start one task per machine"),
        ("1", "stop it"),
    ):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        with (
            lock_folder(tmp_path, "trains"),
            pytest.raises(OutputError, match=f"which trains there; {remedy}"),
            lock_folder(tmp_path, "trains"),
        ):
            pass


def test_a_users_own_lock_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    with lock_folder(tmp_path, "trains"):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"
    assert os.listdir(tmp_path) == [".lock"]
