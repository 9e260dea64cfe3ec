"""Tasks by name and from files: which questions they ask, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluated import write_rows
from ledom.core.direction import Direction
from ledom.core.errors import InputError

pytest.importorskip("lm_eval")

from ledom.evaluate import tasks
from ledom.evaluate.tasks import Options, find_source, find_suite

FORWARD = Direction.FORWARD
QUESTIONS = [
    {"id": f"q{i}", "question": f"{i} + 3?", "choices": [f"{i + 3}", "none"], "answer_index": 0}
    for i in range(3)
]


def test_a_suite_runs_from_local_files_and_reports_what_it_skips(tmp_path: Path) -> None:
    for name in ("arc_easy", "boolq_closed_book"):
        write_rows(tmp_path / f"{name}.jsonl", QUESTIONS)
    sources, notes = find_suite("ledom", Options(data=tmp_path))
    assert [source.name for source in sources] == ["boolq", "arc_easy"]
    assert sources[0].published[0].reverse == 37.77
    assert "not exactly the task of the published figures" in sources[0].notes[0]
    assert sources[1].notes == ()
    assert any("winogrande is left out" in note for note in notes)
    (tmp_path / "arc_easy.jsonl").unlink()
    with pytest.raises(InputError, match="has no task of the suite 'r2l'; logiqa is left out"):
        find_suite("r2l", Options(data=tmp_path))


def test_too_few_documents_are_refused_with_their_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "few.jsonl", [{"id": "a", "text": "Too short."}])
    source = find_source("few_after", Options(data=tmp_path))
    with pytest.raises(InputError, match="few.jsonl: 0 of 1 documents have two adjacent"):
        source.load(FORWARD)


def test_documents_give_tasks_about_neighboring_sentences(tmp_path: Path) -> None:
    text = " ".join(f"This is sentence number {n} of the whole long book." for n in range(6))
    rows = [{"id": str(d), "text": text.replace("book", f"book {d}")} for d in range(6)]
    file = write_rows(tmp_path / "novels.jsonl", rows)
    both = find_source(str(file), Options()).load(FORWARD)
    assert [task.config.task for task in both] == ["novels_after", "novels_before"]
    metrics = [[one["metric"] for one in task.config.metric_list] for task in both]
    assert metrics == [["acc", "acc_norm"], ["acc"]]  # the length of a context normalizes nothing
    (one,) = find_source("novels_before", Options(data=tmp_path, limit=5)).load(FORWARD)
    assert len(one.eval_docs) == 5


CODE = {"task_id": "t", "prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}


def refused(name: str, options: Options = Options()) -> str:  # noqa: B008
    with pytest.raises(InputError) as caught:
        find_source(name, options).load(FORWARD)
    return str(caught.value)


@pytest.mark.slow
def test_bad_tasks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledom.evaluate.harness_tasks._registry", None)  # saves 16 s
    with pytest.raises(InputError, match="unknown task 'arc_eazy'; did you mean .*arc_easy"):
        find_source("arc_eazy", Options())  # before any other task runs
    unknown = refused("no such thing at all")
    assert "'no such thing at all'; a task is a file (.jsonl, .yaml), problems_after," in unknown
    assert "the suites are ledom, r2l, problems" in unknown
    file = write_rows(tmp_path / "code.jsonl", [CODE])
    assert "give --allow-code" in refused(str(file))
    assert "give --allow-code" in refused("humaneval")
    for rows, message in (
        ([CODE, CODE], "code.jsonl:2: the id 't' occurs twice"),
        ([CODE | {"test": "assert f() == 3"}], "code.jsonl:1: problem 't': test defines no check"),
        ([CODE | {"entry_point": "f(x)"}], "entry_point is 'f(x)', expected the name"),
    ):  # otherwise a right program would fail or count twice
        file = write_rows(tmp_path / "code.jsonl", rows)
        assert message in refused(str(file), Options(allow_code=True))
    assert "empty.jsonl: the file has no records" in refused(
        str(write_rows(tmp_path / "empty.jsonl", []))
    )
    file = write_rows(tmp_path / "odd.jsonl", [{"a": 1}])
    assert "odd.jsonl:1: not a task file" in refused(str(file))
    assert "no such file" in refused(str(tmp_path / "none.jsonl")).lower()
    file = write_rows(tmp_path / "open.jsonl", [{"id": "1", "question": "why?"}])
    assert "has no answer to compare with" in refused(str(file))
    file = write_rows(tmp_path / "blank.jsonl", [{"id": "1", "question": "why?", "answer": " "}])
    assert "has no answer to compare with" in refused(str(file))
    for aliases in ("Lutetia", [7]):  # the letters of a string are not answers
        row = {"id": "1", "question": "?", "answer": "Paris", "aliases": aliases}
        assert "alias.jsonl:1: key aliases" in refused(
            str(write_rows(tmp_path / "alias.jsonl", [row]))
        )
    mixed = [QUESTIONS[0], QUESTIONS[1] | {"place": "before"}]
    assert "mixes questions" in refused(str(write_rows(tmp_path / "mixed.jsonl", mixed)))
    assert "not a folder" in refused("arc_easy", Options(data=tmp_path / "no"))

    assert "nowhere.yaml" in refused("nowhere.yaml")
    assert "hub" not in refused("nowhere.yaml")

    def unreachable(name: str, num_fewshot: int, dataset: Path | None) -> Any:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("ledom.evaluate.harness_tasks.build_tasks", unreachable)
    message = refused("arc_easy")
    assert "Couldn't reach the hub" in message
    assert "without a network, give --data FOLDER" in message
    with pytest.raises(InputError, match="unknown suite 'apple'; the suites are ledom, r2l"):
        find_suite("apple", Options())
    assert [*tasks.CODE_TASKS] == ["humaneval"]


@pytest.mark.slow
def test_a_local_task_whose_data_is_missing_is_not_said_to_come_from_the_hub(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.yaml"
    missing = tmp_path / "none.jsonl"
    file.write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {missing}}}\n"
        "test_split: train\noutput_type: multiple_choice\n"
        "doc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n"
    )
    message = refused(str(file))
    assert str(missing) in message
    assert "check the file, and the dataset_path" in message
    file.write_text("include: other.yaml\ntask: mine\n")
    message = refused(str(file))
    assert "other.yaml" in message
    assert "check the file" in message
    (tmp_path / "arc_easy").mkdir()
    message = refused("arc_easy", Options(data=tmp_path))
    assert f"the copy in {tmp_path / 'arc_easy'}: check that it is complete" in message


@pytest.mark.slow
def test_a_task_that_cannot_run_here_says_why(tmp_path: Path) -> None:
    """A missing package is not a problem of the hub; no model reads images."""
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
    rest = f"task: mine\n{data}test_split: test\ndoc_to_target: '4'\noutput_type: generate_until\n"
    (tmp_path / "own.py").write_text("import absent_package\n")
    (tmp_path / "pictures.py").write_text("def of(doc):\n    return []\n")
    for added, says in (
        ("doc_to_text: !function own.text", "No module named 'absent_package'.*; install what the"),
        ("doc_to_text: question\ndoc_to_image: !function pictures.of", "only text; leave it out"),
    ):
        (tmp_path / "mine.yaml").write_text(f"{rest}{added}\n")
        with pytest.raises(InputError, match=says):
            find_source(str(tmp_path / "mine.yaml"), Options()).load(FORWARD)
