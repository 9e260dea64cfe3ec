"""Builds tasks of lm-evaluation-harness, if possible without its registry.

The registry reads 14,000 files, which takes 16 s. So a task that exactly one file defines is built
from that file, and a group whose tasks are all in its own folder from that folder. The registry is
used only for other groups, for tags, and for names that several files define.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ledom.core.errors import InputError, needs_extra
from ledom.core.folders import temporary_folder
from ledom.core.reading import JsonObject, check_regular
from ledom.evaluate.suites import SUITE_NAMES

with needs_extra("lm-eval", "eval", "evaluation"):
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

__all__ = [
    "build_task",
    "build_tasks",
    "check_known",
    "is_file",
    "leave_out_the_question",
    "set_seeds",
]

_NAME = rb"^[\"']?%s[\"']?:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?\r?$"
_TASK = re.compile(_NAME % b"task", re.MULTILINE)
_GROUP = re.compile(_NAME % b"group", re.MULTILINE)
_HAS_GROUP = re.compile(rb"^[\"']?group\b", re.MULTILINE)


def check_known(name: str, ours: Sequence[str]) -> None:
    """Raise `InputError` unless `name` is a YAML file, or a task, group or tag of the harness.

    `ours` are the names of ledom's own tasks.
    """
    if is_file(name):
        check_regular(Path(name))
    elif name not in _files() and name not in _groups():
        if _mentioned({name.encode()}, _yaml_files()) and name in _registry().all_tasks:
            return
        near = get_close_matches(name, [*_files(), *_groups(), *ours, *SUITE_NAMES], n=4)
        hint = f"did you mean {', '.join(near)}? A" if near else "a"
        raise InputError(
            f"unknown task {name!r}; {hint} task is a file (.jsonl, .yaml), {', '.join(ours)}, one "
            "in the --data folder, or one of the harness's (listed by: lm-eval ls tasks); the "
            f"suites are {', '.join(SUITE_NAMES)}"
        )


def build_task(config: JsonObject) -> Any:
    """The task that a configuration describes."""
    return ConfigurableTask(config=config)


def build_tasks(name: str, num_fewshot: int, dataset: Path | None = None) -> list[Any]:
    """The tasks under a name that `check_known` accepts.

    `dataset` is a folder with a copy of the task's dataset on the hub, to read instead. Raises
    `InputError` if it is given for anything but a single task.
    """
    set_seeds()
    tasks = _load(name) if dataset is None else _load_with(name, dataset)
    for task in tasks:
        shows_examples = task.OUTPUT_TYPE != "loglikelihood_rolling"
        if num_fewshot and shows_examples and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif not shows_examples or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        leave_out_the_question(task, partial(_asks_the_same, task))
        metrics = task.aggregation()
        metrics.update({name: partial(_aggregate, how) for name, how in metrics.items()})
    return tasks


def _aggregate(how: Callable[[Any], Any], items: Any) -> Any:
    """A metric of all documents; infinite if it is too large, as the perplexity of a long word.

    The harness would raise an error, which would end the evaluation of all tasks.
    """
    try:
        return how(items)
    except OverflowError:
        return math.inf


def set_seeds(tasks: Sequence[Any] = ()) -> None:
    """Set the harness's own seeds: of the examples, and of the global generators, with which some
    tasks (GPQA, RULER) shuffle choices or make questions."""
    random.seed(0)
    np.random.seed(1234)
    for task in tasks:
        task.set_fewshot_seed(seed=1234)


def _load(name: str) -> list[Any]:
    file = Path(name) if is_file(name) else _files().get(name)
    if file is not None and file.is_file() and not _HAS_GROUP.search(file.read_bytes()):
        name, manager = str(file), TaskManager(include_defaults=False)
    else:
        manager = _folder_manager(name) or _registry()
    return [*manager.load([name])["tasks"].values()]


def _folder_manager(group: str) -> Any | None:
    """A manager that loads a group from its own folder; None if tasks may be missing there."""
    if group not in _groups():
        return None
    folder = _groups()[group].parent
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tags: set[bytes] = set()
    todo: list[Any] = [group]
    while todo:
        item = todo.pop()
        if isinstance(item, dict) and isinstance(item["task"], list):  # a group without a file
            todo += item["task"]
        elif (entry := manager.task_index.get(str(item))) is None:
            return None
        elif item in _groups():
            todo += entry.cfg["task"]
        elif item not in _files():
            tags.add(item.encode())
    inside = {*folder.rglob("*.yaml")}
    outside = (file for file in _yaml_files() if file not in inside)
    return None if tags and _mentioned(tags, outside) else manager


def _mentioned(names: set[bytes], files: Iterable[Path]) -> bool:
    """Whether one of the files contains one of the names."""
    words = re.compile(rb"(?<![\w-])(?:%s)(?![\w-])" % b"|".join(map(re.escape, names)))
    return any(words.search(file.read_bytes()) for file in files)


def _load_with(name: str, dataset: Path) -> list[Any]:
    if name not in _files():
        raise InputError(
            f"{name!r} is not a single task, so it cannot read this data; name one of its tasks",
            path=dataset,
        )
    config = {"include": str(_files()[name]), "dataset_path": str(dataset.resolve())}
    with temporary_folder() as folder:
        file = folder / "task.yaml"
        file.write_text(json.dumps(config), "utf-8")  # JSON is YAML
        return [*TaskManager(include_defaults=False).load([str(file)])["tasks"].values()]


def is_file(name: str) -> bool:
    """Whether a name is the path of a YAML file in the harness's format."""
    return name.endswith((".yaml", ".yml"))


def _files() -> dict[str, Path]:
    """The harness's files by the task that each defines; see `_defined_once`."""
    return _defined_once()[0]


def _groups() -> dict[str, Path]:
    """The harness's files by the group that each defines; see `_defined_once`."""
    return _defined_once()[1]


@cache
def _defined_once() -> tuple[dict[str, Path], dict[str, Path]]:
    """The files by the tasks, and by the groups, that their text defines; each file is read once.

    A name that several files define is left out, since only the registry knows which comes first.
    """
    found: tuple[dict[str, set[Path]], dict[str, set[Path]]] = {}, {}
    for file in _yaml_files():
        text = file.read_bytes()
        for names, pattern in zip(found, (_TASK, _GROUP), strict=True):
            for name in pattern.findall(text):
                names.setdefault(name.decode(), set()).add(file)
    tasks, groups = ({n: file for n, (file, *more) in each.items() if not more} for each in found)
    return tasks, groups


def _yaml_files() -> Iterator[Path]:
    return Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")


def leave_out_the_question(task: Any, is_same: Callable[[Any, Any], bool]) -> None:
    """Remove each question from its own few-shot examples; later examples take its place.

    The harness leaves out only rows that equal the question's row in every key, and only if the
    task says that examples come from the rows that are asked. If its draw does not include the
    question, the draw is unchanged. `is_same` compares an example with the row that is asked.
    """
    settings, sampler = task.fewshot_cfg, getattr(task, "sampler", None)
    if sampler is None:
        return
    draw, told = sampler.sample, settings.split == task.config.test_split
    settings.split = task.config.test_split  # so that the sampler is told the question

    def sample(n: int, eval_doc: Any) -> list[Any]:
        try:
            drawn = draw(n, eval_doc=eval_doc if told else None)
        except (AssertionError, ValueError):  # as in the harness
            drawn = []
        pool = chain(drawn, (doc for doc in sampler.df if doc not in drawn))
        found = [*islice((doc for doc in pool if not is_same(doc, eval_doc)), n)]
        if len(found) < n:
            raise InputError(
                f"task {task.config.task!r} has {len(found) + 1} different questions, all used as "
                "examples; lower --num-fewshot"
            )
        return found

    sampler.sample = sample


def _asks_the_same(task: Any, example: Any, asked: Any) -> bool:
    """Whether an example has the asked row's text and, if there are choices, one of its answers."""
    how = task.fewshot_cfg
    text, answer = (
        task.doc_to_text(example, how.doc_to_text),
        task.doc_to_target(example, how.doc_to_target),
    )
    own_text = task.doc_to_text(asked)
    if task.multiple_input:  # the choices come before the text
        text, answer, own_text = answer, text, task.doc_to_target(asked)
    if text != own_text or task.config.doc_to_choice is None:
        return bool(text == own_text)
    answer = answer[0] if isinstance(answer, list) else answer
    if isinstance(answer, int):
        answer = task.doc_to_choice(example, how.doc_to_choice)[answer]
    return answer in task.doc_to_choice(asked)


@cache
def _registry() -> Any:
    return TaskManager()
