"""Files and folders are written completely or not at all."""

import errno
import hashlib
import os
import signal
import tempfile
from functools import partial
from itertools import count

import pytest
from torch.distributed import HashStore

from kills import in_a_child
from ledom.core import processes
from ledom.core.errors import InputError, OutputError
from ledom.core.files import (
    check_processes,
    fingerprint,
    real_path,
    temporary_folder,
    write_atomically,
    write_folder,
    write_json,
    writing,
)
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


def test_an_error_while_writing_names_the_output_once(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/tokens.ds")
    with pytest.raises(OutputError) as error, writing(tmp_path):
        raise full
    assert str(error.value) == f"{tmp_path}: cannot be written: No space left on device"


def test_an_error_in_a_new_folder_names_the_folder_that_the_user_gave(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "model"
    with pytest.raises(OutputError) as error, write_folder(out) as folder:
        write_json(folder / "config.json", {})
    expected = f"{out}/config.json: cannot be written: No space left on device"
    assert str(error.value) == expected
    assert os.listdir(tmp_path) == []


def test_without_a_temporary_folder_the_error_says_how_to_give_one(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/missing")
    with (
        pytest.raises(OutputError, match=r"No such file or directory\); set TMPDIR to a folder"),
        temporary_folder(),
    ):
        pass


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    out = tmp_path / "a" / "model"
    with write_folder(out) as folder:
        (folder / "config.json").write_text("{}")
        assert not out.exists()
    assert os.listdir(out.parent) == ["model"]
    assert os.listdir(out) == ["config.json"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_folder_write_leaves_the_old_folder(tmp_path, error):
    out = tmp_path / "model"
    out.mkdir()
    (out / "old").touch()

    def half_way() -> None:
        with write_folder(out, replace=True) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(error):
        half_way()
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(out) == ["old"]


def test_a_folder_replaces_another_only_on_request(tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(OutputError, match="model: cannot be written"), write_folder(out):
        pass
    assert os.listdir(out) == ["old"]
    with write_folder(out, replace=True) as folder:
        (folder / "new").touch()
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(out) == ["new"]


def test_a_linked_folder_is_replaced_where_it_is(tmp_path):
    there = tmp_path / "disk" / "model"
    there.mkdir(parents=True)
    (there / "old").touch()
    (tmp_path / "link").symlink_to(there)
    with write_folder(tmp_path / "link", replace=True) as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(there.parent) == ["model"]
    assert os.listdir(there) == ["new"]


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


def test_a_link_to_itself_resolves_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert real_path(tmp_path / "loop").name == "loop"
    assert real_path(tmp_path / "link") == real_path(tmp_path) / "file"
