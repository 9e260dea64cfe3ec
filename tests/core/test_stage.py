"""A stage survives any stop: finished work is kept, interrupted work is redone."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ledom.core.errors import InputError, OutputError
from ledom.core.records import Document, Problem, read_records
from ledom.core.stage import (
    Make,
    Stage,
    Work,
    at_once,
    even_groups,
    no_progress,
    read_settings,
    read_timings,
)


def document(number: int, size: int = 1) -> Document:
    return Document(id=str(number), text="x" * size)


def ids(stage: Stage[Document]) -> list[str]:
    return [record.id for record in stage.records]


def test_finished_work_is_reused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    stage = Stage(path, Document, {"seed": 1})
    assert not stage.complete
    stage.append([document(2)])
    stage.append([document(1)])
    assert not path.exists()
    stage.finish(key=lambda record: record.id)
    assert [record.id for record in read_records(path, Document)] == ["1", "2"]
    again = Stage(path, Document, {"seed": 1})
    assert again.complete
    assert ids(again) == ["1", "2"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.settings.json",
    ]


def test_a_stage_with_no_output_still_finishes(tmp_path: Path) -> None:
    """For example, the scores of prompts when no prompt was completed."""
    Stage(tmp_path / "out.jsonl", Document, {"seed": 1}).finish(key=lambda record: 0)
    again = Stage(tmp_path / "out.jsonl", Document, {"seed": 1})
    assert again.complete
    assert again.records == []


def test_elapsed_seconds_survive_a_stop_and_stay_out_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunks take 2 and 3 s; a stop of 1,000 s between them does not count."""
    path, clock = tmp_path / "out.jsonl", iter([0.0, 2.0, 1002.0, 1002.0, 1005.0])
    monkeypatch.setattr("ledom.core.stage.monotonic", lambda: next(clock))
    Stage(path, Document, {}).append([document(1)])
    work: Work[Problem, Document] = Work(
        items=[Problem(id=number, question="") for number in "12"],
        make=lambda items, have: (([document(int(item.id))], True) for item in items),
        groups=lambda items: [items],
        together=False,
    )
    timings = tmp_path / "timings.json"
    timings.write_text('{"other.jsonl": 7}')
    Stage(path, Document, {}).fill(work, no_progress, "", timed=True)
    assert read_timings(tmp_path) == {"other.jsonl": 7.0, "out.jsonl": 5.0}
    assert "seconds" not in path.read_text()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_an_incomplete_chunk_is_dropped_entirely(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "out.jsonl"
    stage = Stage(path, Document, {"seed": 1})
    stage.append([document(1)])
    stage.append([document(2), document(3)])
    part = tmp_path / "out.jsonl.part"
    part.write_bytes(part.read_bytes()[:-cut])
    stage = Stage(path, Document, {"seed": 1})
    assert ids(stage) == ["1"]
    stage.append([document(2), document(3)])
    assert ids(Stage(path, Document, {"seed": 1})) == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["out.jsonl.part", "out.jsonl.settings.json"])
def test_a_pipe_among_the_stages_files_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith(".json"):
        (tmp_path / "out.jsonl").write_text("")
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="this is a pipe"):
        read_settings(tmp_path / "out.jsonl") if name.endswith(".json") else Stage(
            tmp_path / "out.jsonl", Document, {}
        )


def test_a_part_without_a_complete_first_line_starts_over(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.part").write_text('{"seed"')
    assert ids(Stage(tmp_path / "out.jsonl", Document, {"seed": 1})) == []


def test_the_error_for_other_settings_names_them(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    Stage(path, Document, {"seed": 1, "n": 4}).append([document(1)])
    with pytest.raises(InputError, match=r"out.jsonl.part: .*seed: 1 there, 2 now"):
        Stage(path, Document, {"seed": 2, "n": 4})
    stage = Stage(path, Document, {"seed": 1, "n": 4})
    stage.finish(key=lambda record: record.id)
    with pytest.raises(InputError, match="another output folder, or remove it"):
        Stage(path, Document, {"seed": 1, "n": 5})


def test_a_users_copy_of_a_part_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    stage = Stage(path, Document, {"seed": 1})
    stage.append([document(1)])
    copy = tmp_path / "out.jsonl.part.bak"
    copy.write_bytes((tmp_path / "out.jsonl.part").read_bytes())
    stage = Stage(path, Document, {"seed": 1})
    assert ids(stage) == ["1"]
    stage.finish(key=lambda record: record.id)
    assert ids(Stage(path, Document, {"seed": 1})) == ["1"]
    assert copy.exists()


def test_the_error_for_a_damaged_part_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.part").write_text('{"seed": 1}\n{"id": 3}\n')
    with pytest.raises(InputError, match=r"out.jsonl.part:2: damaged .*remove it"):
        Stage(tmp_path / "out.jsonl", Document, {"seed": 1})


def test_the_error_for_a_part_damaged_in_the_middle_names_the_line(tmp_path: Path) -> None:
    path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    stage = Stage(path, Document, {"seed": 1})
    for number in range(3):
        stage.append([document(number)])
    lines = part.read_text().splitlines(keepends=True)
    for line, damaged in ((2, lines[1][:9] + "\n"), (3, "\n"), (3, '[{"id": 7}]\n'), (1, "{}{\n")):
        changed = [*lines]
        changed[line - 1] = damaged
        part.write_text("".join(changed))
        with pytest.raises(InputError, match=rf"out.jsonl.part:{line}: damaged .*remove it"):
            Stage(path, Document, {"seed": 1})


@pytest.mark.parametrize(
    "settings", ["", "{", '{"seed": 1', "[]", '{"seed": 1}', '{"seed": 1, "sha256": 3}', "\xff"]
)
def test_the_error_for_damaged_settings_names_the_file(tmp_path: Path, settings: str) -> None:
    path = tmp_path / "out.jsonl"
    stage = Stage(path, Document, {"seed": 1})
    stage.append([document(1)])
    stage.finish(key=lambda record: record.id)
    (tmp_path / "out.jsonl.settings.json").write_bytes(settings.encode("latin-1"))
    with pytest.raises(InputError, match=r"out.jsonl.settings.json: damaged .*remove out.jsonl "):
        Stage(path, Document, {"seed": 1})


def test_a_file_of_unknown_origin_or_changed_later_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    stage = Stage(path, Document, {"seed": 1})
    stage.append([document(1), document(2)])
    stage.finish(key=lambda record: record.id)
    whole = path.read_text()
    for changed in (whole.replace('"x"', '"y"'), whole[: whole.index("\n") + 1], whole + whole):
        path.write_text(changed)
        with pytest.raises(InputError, match="out.jsonl: was changed after it was finished"):
            Stage(path, Document, {"seed": 1})
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(InputError, match=r"out.jsonl: its settings are missing .*move the file"):
        Stage(path, Document, {"seed": 1})
    assert path.read_text() == whole + whole


@pytest.mark.parametrize("stopped_before", ["settings", "removal"])
def test_a_kill_during_the_final_rename_loses_nothing(tmp_path: Path, stopped_before: str) -> None:
    path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    stage = Stage(path, Document, {"seed": 1})
    stage.append([document(2), document(1)])
    kept = part.read_bytes()
    stage.finish(key=lambda record: record.id)
    whole = path.read_bytes()
    part.write_bytes(kept)
    if stopped_before == "settings":
        (tmp_path / "out.jsonl.settings.json").unlink()
    again = Stage(path, Document, {"seed": 1})
    if not again.complete:
        again.finish(key=lambda record: record.id)
    assert path.read_bytes() == whole
    assert not part.exists()
    assert Stage(path, Document, {"seed": 1}).complete


def test_groups_have_even_sizes() -> None:
    assert even_groups("", 3) == []
    assert even_groups("abc", 3) == ["abc"]
    assert even_groups("abcd", 3) == ["ab", "cd"]
    assert even_groups("abcdefgh", 3) == ["ab", "cde", "fgh"]


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    """With a file size limit, the kernel itself makes a write fail halfway."""
    path = tmp_path / "out.jsonl"
    stage = Stage(path, Document, {"seed": 1})
    stage.append([document(1)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        stage.append([document(2, 1000)])
        with pytest.raises(OutputError, match="run the same command again"):
            stage.append([document(3, 5000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "out.jsonl.part").stat().st_size == 2000  # it really was cut off
    assert ids(Stage(path, Document, {"seed": 1})) == ["1", "2"]


def test_the_error_for_an_unwritable_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stage = Stage(tmp_path / "file" / "out.jsonl", Document, {})
    with pytest.raises(OutputError, match=r"file/out.jsonl.part: cannot be written"):
        stage.append([document(1)])


def test_a_part_of_a_group_is_refused(tmp_path: Path) -> None:
    """The others of the group would be made without it, or it a second time."""
    items = [Document(id=name, text=name) for name in "ab"]
    stage = Stage(tmp_path / "out.jsonl", Document, {})
    stage.append(items[:1])
    make: Make[Document, Document] = at_once(lambda some: ([item] for item in some))
    work = Work(items, make, lambda items: [items], together=True)
    with pytest.raises(InputError, match=r"out\.jsonl\.part: holds only part of a group of items"):
        stage.fill(work, no_progress, "making")


def test_a_second_concurrent_run_for_the_same_file_is_refused(tmp_path: Path) -> None:
    """The second would truncate what the first wrote after the second had read the file."""
    items = [Document(id=name, text=name) for name in "ab"]
    path = tmp_path / "out.jsonl"

    def fill(make: Make[Document, Document]) -> list[Document]:
        work = Work(items, make, lambda items: [[item] for item in items], together=False)
        return Stage(path, Document, {}).fill(work, no_progress, "making")

    def both(some: Sequence[Document], _: object) -> Iterator[tuple[Sequence[Document], bool]]:
        with pytest.raises(OutputError, match=r"in use by process .*, which makes out\.jsonl"):
            fill(both)
        yield some, True

    assert fill(both) == items
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.settings.json",
    ]


def test_a_run_whose_folder_was_removed_writes_nothing_more(tmp_path: Path) -> None:
    """Another run may have created the folder again, with other settings."""
    items = [Document(id=name, text=name) for name in "ab"]
    out = tmp_path / "out"

    def remove(some: Sequence[Document], _: object) -> Iterator[tuple[Sequence[Document], bool]]:
        shutil.rmtree(out)
        yield some, True

    work = Work(items, remove, lambda items: [[item] for item in items], together=False)
    with pytest.raises(OutputError, match="out: was removed or replaced while this run was using"):
        Stage(out / "out.jsonl", Document, {}).fill(work, no_progress, "making")
    assert not out.exists()
