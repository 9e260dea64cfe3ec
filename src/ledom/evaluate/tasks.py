"""Creates tasks for the harness from a name or a file.

    NAME_after, NAME_before   questions made from documents (NAME.jsonl), or generated problems
    FILE.jsonl                questions with choices, problems with answers, or code to complete
    FILE.yaml, NAME           a task of the harness's own

The first record of a local file decides what it holds. Tasks with written answers have a different
form for each direction (`ledom.evaluate.written`), so tasks are made for a direction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import HubError, InputError, LedomError, in_one_line
from ledom.core.reading import exists, read_jsonl
from ledom.core.records import Document, read_records, unique_ids
from ledom.data.benchmarks import BENCHMARKS
from ledom.data.problems import load_problems
from ledom.evaluate.choices import (
    PLACES,
    ChoiceQuestion,
    Place,
    neighbor_questions,
    problem_questions,
)
from ledom.evaluate.own_tasks import Options, choice_task, written_task
from ledom.evaluate.suites import Published, SuiteTask, suite_tasks
from ledom.evaluate.written import CodeProblem

__all__ = ["CODE_TASKS", "Options", "Source", "find_source", "find_suite"]

CODE_TASKS = {"humaneval": "openai/openai_humaneval"}
"""Benchmarks whose answers are programs, which are run: the dataset on the hub by name."""
_GENERATED = {f"problems_{place}": partial(problem_questions, place) for place in PLACES}
_QUESTION = "Question: {}\nAnswer:"
_FROM_HUB = (
    "it comes from the hub; without a network, give --data FOLDER with local task files or copies "
    "of datasets (ledom docs evaluate)"
)


Load = Callable[[Direction], Sequence[Any]]


@dataclass(frozen=True)
class Source:
    """A benchmark; `load` creates its tasks for a direction."""

    name: str
    load: Load
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
    from_harness: bool = False
    """Whether its prompts are the harness's own, for a forward model."""
    unused: frozenset[str] = frozenset()
    """Which of the options `data` and `seed` have no effect on it."""


def find_suite(name: str, options: Options) -> tuple[list[Source], list[str]]:
    """A suite's benchmarks, and notes on those that are left out: those that are not in the folder
    of local files, if one is given. Raises `InputError` if none is left."""
    sources, notes = [], []
    for task in suite_tasks(name):
        file = _local_file(options.data, (task.name, *task.files))
        here = file or _dataset_folder(options.data, task.name) or task.name in _GENERATED
        runs_code = task.name in CODE_TASKS and not options.allow_code
        if options.data is not None and not here:
            notes.append(f"{task.name} is left out: {options.data} has no {task.name}.jsonl")
        elif runs_code:
            notes.append(f"{task.name} is left out: it runs programs; give --allow-code")
        else:
            sources.append(_source(task, file, options))
    if not sources:
        raise InputError(f"{options.data} has no task of the suite {name!r}; {notes[0]}")
    return sources, notes


def find_source(name: str, options: Options) -> Source:
    """The benchmark of a name or in a file; raises `InputError` if there is none."""
    if name.endswith(".jsonl"):
        return _source(SuiteTask(Path(name).stem), Path(name), replace(options, data=None))
    return _source(SuiteTask(name), _local_file(options.data, (name,)), options)


def _local_file(folder: Path | None, names: Sequence[str]) -> Path | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError("not a folder; give one with task files", path=folder)
    places = [f"{name}.jsonl" for name in names]
    places += [BENCHMARKS[name].file for name in names if name in BENCHMARKS]
    return next((folder / place for place in places if exists(folder / place)), None)


def _dataset_folder(folder: Path | None, name: str) -> Path | None:
    """The local copy of the hub's dataset for one of the harness's tasks; None without one."""
    if folder is None or name in BENCHMARKS or name in CODE_TASKS:
        return None
    return found if (found := folder / name).is_dir() else None


def _source(task: SuiteTask, file: Path | None, options: Options) -> Source:
    """The source of a task: a file, the generator, one of our problem sets, or the harness."""
    name = task.name
    place = next((place for place in PLACES if name.endswith(f"_{place}")), None)
    documents = _local_file(options.data, (name.removesuffix(f"_{place}"),)) if place else None
    local = file or documents or _dataset_folder(options.data, name)
    draws = from_harness = False
    if file is not None:
        load, draws = _from_file(name, file, options)
    elif name in _GENERATED:
        load, draws = partial(_generated, name, options), True
    elif place is not None and documents is not None:
        load, draws = partial(_neighbors, {name: place}, documents, options), True
    elif name in CODE_TASKS:
        _check_code(name, options)
        load = partial(_code, name, None, options)
    elif name in BENCHMARKS:
        load = partial(_problems, name, name, options)
    else:
        from ledom.evaluate.harness_tasks import check_known

        check_known(name, [*_GENERATED])
        load, from_harness = partial(_from_harness, name, options), True
    other = file is not None and file.stem in task.files
    notes = (f"from {file}: not exactly the task of the published figures",) if other else ()
    used = {"data": options.data is not None and local is not None, "seed": draws}
    unused = frozenset(option for option, is_used in used.items() if not is_used)
    return Source(name, load, task.published, notes, from_harness, unused)


def _from_file(name: str, file: Path, options: Options) -> tuple[Load, bool]:
    """Loads the tasks in a local file; also returns whether questions are drawn with the seed."""
    _, first = next(read_jsonl(file), (0, None))
    if first is None:
        raise InputError("the file has no records", path=file)
    keys = first.keys()
    if "choices" in keys:
        return partial(_choices, name, file, options), False
    if {"prompt", "test", "entry_point"} <= keys:
        _check_code(name, options)
        return partial(_code, name, file, options), False
    if "question" in keys:
        return partial(_problems, name, str(file), options), False
    if "text" in keys:
        return partial(_neighbors, {f"{name}_{p}": p for p in PLACES}, file, options), True
    raise InputError(
        "not a task file: a record needs question and choices, question and answer, prompt, test "
        f"and entry_point, or text; this one has {', '.join(keys) or 'no keys'}",
        path=file,
        line=1,
    )


def _choices(name: str, file: Path, options: Options, direction: Direction) -> Sequence[Any]:
    questions = read_records(file, ChoiceQuestion, unique_ids())
    return [choice_task(name, questions, _QUESTION, " ", options)]


def _code(name: str, file: Path | None, options: Options, direction: Direction) -> Sequence[Any]:
    if file is not None:
        problems = read_records(file, CodeProblem, unique_ids())
    else:
        from datasets import load_dataset

        load = partial(load_dataset, CODE_TASKS[name], split="test")
        problems = [CodeProblem.from_json(row) for row in _reach(name, load, _FROM_HUB)]
    return [written_task(name, "code", direction, problems, options)]


def _generated(name: str, options: Options, direction: Direction) -> Sequence[Any]:
    count = (options.limit or 200) + options.num_fewshot
    questions = _GENERATED[name](count, options.seed)
    return [choice_task(name, questions, "{}", "\n\n", options)]


def _neighbors(
    places: Mapping[str, Place], file: Path, options: Options, direction: Direction
) -> Sequence[Any]:
    documents = read_records(file, Document, unique_ids())
    try:
        asked = {n: neighbor_questions(documents, p, options.seed) for n, p in places.items()}
    except InputError as error:
        raise InputError(error.reason, path=file) from None
    return [choice_task(name, own, "{}", " ", options) for name, own in asked.items()]


def _problems(name: str, source: str, options: Options, direction: Direction) -> Sequence[Any]:
    """A task of problems with written answers; raises `InputError` for a problem without one."""
    problems = load_problems(source, None)
    for problem in problems:
        if not problem.is_labeled:
            raise InputError(
                f"problem {problem.id!r} of {source} has no answer to compare with; add the key "
                "'answer', or remove it"
            )
    return [written_task(name, "text", direction, problems, options)]


def _check_code(name: str, options: Options) -> None:
    if not options.allow_code:
        raise InputError(
            f"task {name!r} runs programs that the model writes, without a sandbox; give "
            "--allow-code"
        )


def _from_harness(name: str, options: Options, direction: Direction) -> Sequence[Any]:
    from ledom.evaluate.harness_tasks import build_tasks, is_file

    folder = _dataset_folder(options.data, name)
    remedy = _FROM_HUB
    if folder is not None:
        remedy = f"its data is the copy in {folder}: check that it is complete"
    elif is_file(name):
        remedy = (
            "check the file, and the dataset_path and dataset_kwargs that it names; a dataset of "
            "the hub needs the network"
        )
    tasks = _reach(name, partial(build_tasks, name, options.num_fewshot, folder), remedy)
    if any(getattr(task, "MULTIMODAL", False) for task in tasks):
        raise InputError(
            f"task {name!r} has images or sounds, but models read only text; leave it out"
        )
    if any(getattr(task, "UNSAFE_CODE", False) for task in tasks):
        _check_code(name, options)
    return list(tasks)


def _reach(name: str, load: Callable[[], Any], remedy: str) -> Any:
    """Load a task; raises `HubError`, with the remedy, for errors of the hub's client."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return load()
    except LedomError:
        raise
    except Exception as error:  # the hub's client and the harness can raise anything
        reason = in_one_line(error)
        if isinstance(error, ImportError):
            remedy = "install what the task needs"
        local = isinstance(error, OSError) and error.filename  # not a network problem
        if local and not isinstance(error, FileNotFoundError):
            remedy = "set HF_HOME to a folder that can be written; the datasets library needs one"
        raise HubError(f"task {name!r} could not be loaded ({reason}); {remedy}") from error
