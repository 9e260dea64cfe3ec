"""Documents of files, folders and the hub: which are read, under which key, and what changed."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from document_files import TEXTS, WRITERS, jsonl, parts, write_parquet
from ledom.core.errors import InputError, MissingExtraError
from ledom.data.documents import FileDocuments, HubDocuments, open_documents


def test_the_text_may_be_under_another_key(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"content": "c", "text": 3}\n')
    write_parquet(tmp_path / "d.parquet", ["p"], key="content")
    assert list(open_documents([str(tmp_path)], text_key="content").texts()) == ["c", "p"]


def test_the_format_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "dump"
    file.write_bytes(jsonl(TEXTS))
    assert list(open_documents([str(file)], "jsonl").texts()) == TEXTS
    with pytest.raises(InputError, match=r"dump: its name ends in none of \.jsonl, .*parquet"):
        open_documents([str(file)])
    with pytest.raises(InputError, match="unknown format 'csv'; known: jsonl, .*lines"):
        open_documents([str(file)], "csv")


def test_the_error_for_missing_files_names_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        open_documents([str(tmp_path / "none.jsonl")])
    with pytest.raises(InputError, match=r"no files in this folder end in \.jsonl, .*\.txt"):
        open_documents([str(tmp_path)])
    file = tmp_path / "d.jsonl"
    file.write_bytes(jsonl(TEXTS))
    documents = open_documents([str(file)])
    file.unlink()
    with pytest.raises(InputError, match=r"d\.jsonl: cannot be read: No such file or directory$"):
        documents.settings()
    with pytest.raises(InputError, match=r"d\.jsonl: cannot be read: No such file or directory$"):
        [*documents.texts()]


def test_a_files_name_may_be_in_another_encoding(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path / "Stra") + b"\xdfe.txt"))  # Latin-1
    file.write_text("Hello.")
    documents = open_documents([str(tmp_path)])
    assert list(documents.texts()) == ["Hello."]
    assert documents.settings()["documents"].startswith("1 files, 6 bytes, state ")
    assert documents.source == "Stra\ufffde.txt"


def test_settings_reveal_a_changed_file(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(jsonl(TEXTS))
    documents = open_documents([str(file)])
    before = documents.settings()
    assert documents.settings() == before
    assert documents.num_bytes == len(jsonl(TEXTS))
    file.write_bytes(jsonl([*TEXTS, "more"]))
    assert documents.settings() != before
    with pytest.raises(InputError, match=r"d\.jsonl: was changed while it was read; run"):
        list(documents.texts())  # its second part would miss documents
    assert documents.source == "d.jsonl"
    (tmp_path / "e.jsonl").touch()
    assert open_documents([str(tmp_path)]).source == f"{tmp_path.name} (2 files)"
    apart = tuple((Path(place), "text") for place in ("/a/x.txt", "/b/y.txt"))
    assert FileDocuments(apart).source == "/ (2 files)"
    assert open_documents(["hub:a/b,split=valid"]).source == "hub:a/b"
    assert open_documents([str(file)], text_key="t").settings()["text_key"] == "t"


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("d.jsonl.zst", "d.parquet"):
        WRITERS[name](tmp_path / name, TEXTS)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'ledom\[data\]'"):
            list(open_documents([str(tmp_path / name)]).texts())
        monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"datasets .* pip install 'ledom\[hub\]'"):
        list(open_documents(["hub:some/thing"]).texts())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A mock of `datasets`; returns the list of requests, followed by the rows to return."""
    asked: list[Any] = [[]]
    module = types.ModuleType("datasets")
    distributed = types.ModuleType("datasets.distributed")

    def load_dataset(*names: Any, **options: Any) -> list[Any]:
        asked.append((names, options))
        if isinstance(asked[0], Exception):
            raise asked[0]
        return asked[0]

    vars(module).update(load_dataset=load_dataset, distributed=distributed)
    distributed.split_dataset_by_node = lambda rows, rank, world_size: rows[rank::world_size]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.distributed", distributed)
    return asked


def test_the_hub_is_streamed(hub: list[Any]) -> None:
    hub[0] = [{"text": text, "url": "u"} for text in TEXTS]
    documents = open_documents(["hub:a/b,config=en,split=valid,revision=v1"])
    assert isinstance(documents, HubDocuments)
    assert documents.num_bytes is None
    assert list(documents.texts()) == TEXTS
    assert hub[1] == (("a/b", "en"), {"split": "valid", "revision": "v1", "streaming": True})
    assert parts(documents, 2) == [TEXTS[::2], TEXTS[1::2]]
    list(open_documents(["hub:a/b"]).texts())
    assert hub[-1] == (("a/b", None), {"split": "train", "revision": None, "streaming": True})
    assert documents.settings()["config"] == "en"


def test_bad_rows_and_an_unreachable_hub_give_one_line(hub: list[Any]) -> None:
    documents = open_documents(["hub:a/b"])
    hub[0] = [{"text": "a"}, {"content": "b"}]
    with pytest.raises(InputError, match="hub:a/b: row 2 of part 0: no key 'text', only content"):
        list(documents.texts())
    hub[0] = ConnectionError("no\nroute")
    with pytest.raises(InputError, match="hub:a/b: cannot be read: no route"):
        list(documents.texts())
    for options, refusal in (
        ("cfg=x", "'cfg=x' is not an option; write key=value, with one of config, revision, split"),
        ("split=", "split is empty"),
        ("split=a,split=b", "split is given twice"),
    ):
        with pytest.raises(InputError, match=refusal):
            open_documents([f"hub:a/b,{options}"])
    with pytest.raises(InputError, match="hub:NAME must be the only source"):
        open_documents(["hub:a/b", "more.jsonl"])


@pytest.mark.slow
def test_a_local_folder_is_read_through_datasets_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # not in HOME
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl(TEXTS))
    documents = open_documents([f"hub:{folder}"])
    assert list(documents.texts()) == TEXTS
    assert sorted(text for part in parts(documents, 2) for text in part) == sorted(TEXTS)


def names(documents: Any) -> list[str]:
    return [file.name for file, _ in documents.files]


def test_hidden_files_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["one"]))
    for hidden in (".ipynb_checkpoints", ".git", "sub/.cache"):
        (tmp_path / hidden).mkdir(parents=True)
        (tmp_path / hidden / "a-checkpoint.jsonl").write_bytes(jsonl(["one"]))
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes.md").touch()
    documents = open_documents([str(tmp_path)])
    assert list(documents.texts()) == ["one"]
    assert documents.notes == (
        "hidden files and folders, not read: 4 (.DS_Store, .cache, .git, ...)",
        "files of other formats, not read: 1 (.md)",
    )
    # A hidden folder is read if it is named explicitly.
    assert list(open_documents([str(tmp_path / ".git")]).texts()) == ["one"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (corpus / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    for folder, text in ((corpus, "a"), (corpus / "sub", "b"), (elsewhere, "c")):
        (folder / f"{text}.jsonl").write_bytes(jsonl([text]))
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "again").symlink_to(corpus / "sub")
    (corpus / "z.jsonl").symlink_to(corpus / "a.jsonl")
    (corpus / "sub" / "up").symlink_to(corpus)
    (elsewhere / "top").symlink_to(tmp_path)
    (corpus / "lost.jsonl").symlink_to(tmp_path / "nothing")
    (corpus / "loop.jsonl").symlink_to(corpus / "loop.jsonl")
    os.mkfifo(corpus / "pipe.jsonl")
    documents = open_documents([str(corpus), str(corpus / "a.jsonl")])
    assert names(documents) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert sorted(documents.texts()) == ["a", "b", "c"]
    assert {*documents.notes} == {
        "links to an enclosing folder, not followed: 2 (top, up)",
        "broken links, pipes and devices, not read: 3 (loop.jsonl, lost.jsonl, pipe.jsonl)",
        "found twice, by links or on the command line, read once: 3 (a.jsonl, sub, z.jsonl)",
    }


def test_anything_but_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.jsonl")
    for name in (tmp_path / "d.jsonl", "/dev/zero"):
        with pytest.raises(InputError, match=r"(d\.jsonl|zero): this is a pipe or a device; write"):
            open_documents([str(name)], "jsonl")


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(InputError, match="text key 'content': plain text has no keys"):
        open_documents([str(tmp_path)], text_key="content")
    with pytest.raises(InputError, match="format 'lines': a dataset on the hub has its own"):
        open_documents(["hub:name"], "lines")


def test_settings_reveal_a_change_of_equal_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "d.txt"
    for size in (10, 1_000_000):
        states = set()
        for place in (None, 0, size // 2, size - 1):
            content = bytearray(b"x" * size)
            if place is not None:
                content[place] = ord("y")
            file.write_bytes(content)
            os.utime(file, ns=(1, 1))
            states.add(str(open_documents([str(file)]).settings()))
        assert len(states) == 4
