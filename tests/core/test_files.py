"""Files and folders are written completely or not at all."""

import errno
import hashlib
import os
import signal
from functools import partial
from itertools import count

import pytest
from torch.distributed import HashStore

from kills import in_a_child
from ledom.core import processes
from ledom.core.errors import InputError, OutputError
from ledom.core.files import (
    cache_folder,
    check_processes,
    differences,
    fingerprint,
    real_path,
    write_atomically,
    writing,
)
from ledom.core.folders import write_folder
from ledom.core.records import Document, write_records


def test_writing_creates_parents_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "out.jsonl"
    write_records(path, [Document(id="1", text="x")])
    assert path.read_text() == '{"id": "1", "text": "x"}\n'
    assert os.listdir(path.parent) == ["out.jsonl"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def half_way() -> None:
        with write_atomically(path) as out:
            out.write("new")
            out.flush()
            raise error

    with pytest.raises(error):
        half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_full_disk_is_an_output_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "out.jsonl"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"out\.jsonl: cannot be written: No space left"):
        write_records(path, [Document(id="1", text="x")])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/out\.jsonl: cannot be written"):
        write_records(tmp_path / "file" / "out.jsonl", [])
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        write_records(tmp_path / ("x" * 300), [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written"):
        write_records(tmp_path / "folder", [])
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        write_records(tmp_path / "pipe", [Document(id="1", text="x")])
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_follow_the_users_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_records(tmp_path / "a.jsonl", [])
        with write_folder(tmp_path / "model") as folder:
            (folder / "weights").touch(0o600)  # as safetensors makes its files
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask


def test_writing_through_a_link_keeps_the_link_and_permissions(tmp_path):
    (tmp_path / "kept").mkdir()
    private = tmp_path / "kept" / "out.jsonl"
    private.touch(0o600)
    (tmp_path / "out.jsonl").symlink_to(private)
    write_records(tmp_path / "out.jsonl", [Document(id="1", text="x")])
    assert (tmp_path / "out.jsonl").is_symlink()
    assert private.read_text() == '{"id": "1", "text": "x"}\n'
    assert private.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_a_file_system_that_refuses_permissions_is_written_to(tmp_path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "chmod", refuse)  # as FAT and NTFS do for files of the mount's owner
    for text in ("first", "second"):
        write_records(tmp_path / "a.jsonl", [Document(id="1", text=text)])
        with write_folder(tmp_path / "model", replace=True) as folder:
            (folder / "weights").touch(0o600)
    assert (tmp_path / "a.jsonl").read_text() == '{"id": "1", "text": "second"}\n'
    assert (tmp_path / "model" / "weights").exists()


@pytest.fixture
def refuse_rename(tmp_path, monkeypatch):
    """A function that lets every renaming of the folder `model` fail with a code."""
    path, rename = tmp_path / "model", os.replace
    path.mkdir()
    (path / "weights").write_text("old")

    def refuse(code):
        def replace(source, target):
            if source == path:
                raise OSError(code, os.strerror(code))
            rename(source, target)

        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "rename", replace)

    return refuse


def test_a_folder_that_cannot_be_renamed_is_replaced(tmp_path, refuse_rename):
    """As in Docker, if the folder is in the image."""
    refuse_rename(errno.EXDEV)
    path = tmp_path / "model"
    with write_folder(path, replace=True) as folder:
        (folder / "config").write_text("new")
    assert [file.name for file in path.iterdir()] == ["config"]
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_in_use_keeps_its_files(tmp_path, refuse_rename):
    """As a mount point in a container, which cannot be renamed either."""
    refuse_rename(errno.EBUSY)
    path = tmp_path / "model"
    with pytest.raises(OutputError, match="busy"), write_folder(path, replace=True) as folder:
        (folder / "config").write_text("new")
    assert [file.name for file in path.iterdir()] == ["weights"]


def test_an_error_while_writing_names_the_output_once(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/tokens.ds")
    with pytest.raises(OutputError) as error, writing(tmp_path):
        raise full
    assert str(error.value) == f"{tmp_path}: cannot be written: No space left on device"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_a_killed_process_are_removed_by_the_next_write(tmp_path, kind):
    path = tmp_path / "a[1].out"
    write = write_atomically if kind == "file" else partial(write_folder, replace=True)

    def killed():
        with write(path) as out:
            (out if kind == "file" else (out / "part").open("w")).write("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    others = [".a[1].out.tmp", ".a[1].outer.0-1.x", ".b.out"]
    for name in others:
        (tmp_path / name).touch()
    with write(path):  # a concurrent write by a live process
        with write(path):
            pass
        assert len(os.listdir(tmp_path)) == 1 + 1 + len(others)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *others])


def test_texts_that_contain_the_separator_have_distinct_fingerprints() -> None:
    rows = [("a\0", "b"), ("a", "\0b"), ("a\1\2", "b"), ("a\1", "\2b"), ("a", "b"), ("ab", "")]
    assert len({fingerprint([row]) for row in rows}) == len(rows)
    known = hashlib.sha256(b"a\0b\0").hexdigest()[:16]
    assert fingerprint([("a", "b")]) == known  # fingerprints of finished files must not change


def test_processes_with_other_settings_are_refused_at_the_start(tmp_path, monkeypatch):
    """Ranks check in turn in torch's store; `auto` can pick another precision elsewhere."""
    store = HashStore()
    monkeypatch.setattr(processes, "size", lambda: 3)
    monkeypatch.setattr(processes, "_store", lambda: store)
    identity = {"name": "tiny", "hash": "ab"}
    for rank, name in enumerate(("ab", "ab", "ab-bfloat16")):
        monkeypatch.setattr(processes, "rank", lambda own=rank: own)
        monkeypatch.setattr(processes, "_texts", count())
        settings = {"model": identity | {"hash": name}, "seed": 1}
        if rank < 2:
            check_processes(settings, tmp_path)
            continue
        with pytest.raises(InputError) as refusal:
            check_processes(settings, tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: process 2 would make it with other settings than process 0 (model: tiny (ab) "
        "there, tiny (ab-bfloat16) now, the same weights in another precision: write "
        ",dtype=float32 after its name); give all processes the same"
    )


def test_settings_of_any_kind_are_compared():
    model = {"name": "tiny", "hash": "ab"}
    for there, now, shown in (
        (None, model, "None there, tiny (ab) now"),
        (model, None, "tiny (ab) there, None now"),
        ({"b": 1}, 2, "{'b': 1} there, 2 now"),
        (2, {"b": 1}, "2 there, {'b': 1} now"),
    ):
        assert [*differences({"a": there}, {"a": now})] == [f"a: {shown}"]


def test_the_cache_folder_is_in_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ledom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ledom"


def test_a_link_to_itself_resolves_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert real_path(tmp_path / "loop").name == "loop"
    assert real_path(tmp_path / "link") == real_path(tmp_path) / "file"
