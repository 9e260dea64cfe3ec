"""New folders are complete or absent, and temporary ones can be created or the error says how."""

import errno
import os
import tempfile

import pytest

from ledom.core.errors import OutputError
from ledom.core.files import write_json
from ledom.core.folders import temporary_folder, write_folder


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
