"""Runs benchmarks with one or two models, and computes all numbers from their saved answers.

out/forward/TASK.loglikelihood.jsonl   out/reverse/TASK.generate_until.jsonl   out/results.json
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ledom import __version__
from ledom.core.direction import Direction
from ledom.core.errors import HubError, InputError
from ledom.core.files import write_json
from ledom.core.hub import is_unreachable, offline
from ledom.core.reading import JsonObject
from ledom.core.stage import Track
from ledom.evaluate.kept import KeptLM, file_name
from ledom.evaluate.own_tasks import GROUP
from ledom.evaluate.results import ENTROPY, Evaluation, Measured, TaskResult, compare
from ledom.evaluate.scorings import SCORINGS, Scoring
from ledom.evaluate.tasks import Source
from ledom.lm.language_model import LanguageModel
from ledom.report.formatting import to_json

__all__ = ["Job", "evaluate_models"]


@dataclass
class Job:
    """The benchmarks, models and settings of an evaluation, and its output folder."""

    sources: Sequence[Source]
    models: Sequence[LanguageModel]
    """One model, or one of each direction."""
    out: Path
    limit: int | None = None
    """Documents per task; None for all."""
    chat: bool = False
    """Whether requests use the model's chat template."""
    add_bos_token: bool | None = None
    """See `LedomLM`."""
    command: str = "ledom eval"
    notes: Sequence[str] = ()
    leave_out: bool = False
    """Whether to leave out tasks whose data cannot be loaded from the hub, each with a note."""


def evaluate_models(job: Job, track: Track) -> Evaluation:
    """Run the job; returns the result, which is written to results.json.

    Raises `InputError` for two models of one direction and for two tasks of one name, and
    `HubError` for a task that cannot be loaded (with `leave_out`, only if none can).
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its hints are about its own options
    directions = [model.direction for model in job.models]
    if len({*directions}) != len(directions):
        raise InputError(f"both models are {directions[0]} ones; give one of each direction")
    _check_names(job.sources)
    tasks, notes = _evaluate_tasks(job, track)
    found = Evaluation(
        ledom_version=__version__,
        command=job.command,
        limit=job.limit,
        models={str(model.direction): model.identity for model in job.models},
        tasks=tasks,
        notes=[*job.notes, *notes],
    )
    write_json(job.out / "results.json", to_json(found))
    return found


def _check_names(sources: Sequence[Source]) -> None:
    """Raise `InputError` for two tasks whose answers would be in the same file."""
    seen = set[str]()
    for source in sources:
        if (name := file_name(source.name)) in seen:
            raise InputError(
                f"two tasks are called {name!r}, so their answers would be in one file; rename a "
                "task file, or run the tasks separately, each with its own --out"
            )
        seen.add(name)


@dataclass
class _Ready:
    """A benchmark that can be run: its tasks for each model."""

    source: Source
    runs: list[tuple[KeptLM, Sequence[Any]]]
    notes: list[str]


def _evaluate_tasks(job: Job, track: Track) -> tuple[list[TaskResult], list[str]]:
    """The results of all benchmarks, and notes on those that are left out. All are loaded and
    checked before the first is run, which may take hours."""
    ready: list[_Ready] = []
    failures: list[tuple[str, HubError]] = []
    with ExitStack() as stack:
        for source in job.sources:
            try:
                ready.append(_prepare(source, job, track))
            except HubError as error:
                if not job.leave_out:
                    raise
                if is_unreachable(error):
                    stack.enter_context(offline())
                failures.append((source.name, error))
        if failures and not ready:
            raise HubError(
                f"none of {len(failures)} tasks could be loaded; the first: {failures[0][1]}"
            )
        results = []
        while ready:  # a task that was run is no longer kept in memory
            results.append(_evaluate_task(ready.pop(0), job))
    return results, [f"{name} is left out: {error}" for name, error in failures]


def _prepare(source: Source, job: Job, track: Track) -> _Ready:
    """Load the tasks of one benchmark for every model, and check all of their requests."""
    ready = _Ready(source, [], [*source.notes])
    for model in job.models:
        lm = KeptLM(model, source.name, job.out, track, job.add_bos_token)
        tasks = source.load(lm.direction)
        ready.notes += [] if source.from_harness else _shorten_texts(lm, tasks)
        lm.check(tasks, job.limit, job.chat)
        ready.runs.append((lm, tasks))
    return ready


def _evaluate_task(ready: _Ready, job: Job) -> TaskResult:
    source, notes = ready.source, ready.notes
    measured: list[Measured] = []
    chance = None
    groups: dict[tuple[str, int], Hashable] = {}
    for lm, tasks in ready.runs:
        found = lm.run(tasks, job.limit, job.chat)
        scoring = lm.scoring if lm.known else ""
        measured += _measured(lm.direction, scoring, found, _kinds(tasks))
        if lm.known:
            measured += [*_other_scorings(lm, tasks, job), *_entropy(lm, tasks)]
            counts = [len(parts) for parts in lm.documents.values()]
            several = any(getattr(task, "multiple_target", False) for task in tasks)
            known = max(counts) > 1 and not several
            chance = float(np.mean([1 / one for one in counts])) if known else None
        notes += _notes(lm, source, tasks, job.chat)
        groups = _groups(found["samples"])
    if (distinct := len({*groups.values()})) < len(groups):
        notes.append(
            f"some questions share a source: the intervals are over {distinct:,} sources, not "
            f"{len(groups):,} questions"
        )
    rows = compare(measured, groups)
    return TaskResult(
        source.name, len(groups), chance, rows, source.published, [*dict.fromkeys(notes)]
    )


def _groups(samples: JsonObject) -> dict[tuple[str, int], Hashable]:
    """For each (task, document), what it shares with those that are not independent of it."""
    return {
        (task, one["doc_id"]): one["doc"].get(GROUP, one["doc_hash"])
        for task, own in samples.items()
        for one in own
    }


def _shorten_texts(lm: KeptLM, tasks: Sequence[Any]) -> Iterator[str]:
    """Limit written answers to half of the context if it is short; yields a note if so."""
    for task in tasks:
        settings, most = task.config.generation_kwargs or {}, lm.max_length // 2
        if settings.get("max_gen_toks", 0) > most:
            settings["max_gen_toks"] = most
            yield (
                f"{lm.direction}: answers have at most {most} tokens, half of the model's context"
            )


def _other_scorings(lm: KeptLM, tasks: Sequence[Any], job: Job) -> Iterator[Measured]:
    """The accuracy by every other scoring that applies to all documents."""
    own = lm.scoring
    for scoring, value in SCORINGS[lm.direction].items():
        applies = all(value(parts) is not None for _, parts in lm.known)
        if scoring == own or not applies or _kinds(tasks) != {"multiple_choice"}:
            continue
        lm.scoring = scoring
        found = lm.run(tasks, job.limit, job.chat)
        every = _measured(lm.direction, scoring, found, _kinds(tasks))
        yield from (one for one in every if one.metric == "acc")
    lm.scoring = own


def _kinds(tasks: Sequence[Any]) -> set[str]:
    return {str(task.OUTPUT_TYPE) for task in tasks}


def _measured(
    direction: Direction, scoring: str, found: JsonObject, kinds: set[str]
) -> Iterator[Measured]:
    """The metrics of a benchmark, with the documents of all its tasks pooled; one that is not a
    mean over documents, such as perplexity, is taken from the harness."""
    by_metric = _by_document(found["samples"])
    for (metric, name), values in [*by_metric.items()]:
        by_task = defaultdict[str, list[float]](list)
        for (task, _), value in values.items():
            by_task[task].append(value)
        means = {task: np.mean(own) for task, own in by_task.items()}
        stated = {task: found["results"][task].get(f"{metric},{name}") for task in means}
        if any(stated[task] is None or not np.isclose(stated[task], means[task]) for task in means):
            del by_metric[metric, name]
            continue
        note = _note(direction, metric, kinds, scoring)
        yield Measured(direction, scoring, _shown(metric, name), values, note=note)
    for task, results in found["results"].items():
        of = f" of {task}" if len(found["results"]) > 1 else ""
        for key, value in results.items():
            metric, _, name = key.partition(",")
            known = (metric, name) in by_metric or metric.endswith("_stderr")
            if not known and isinstance(value, int | float) and name:
                shown, note = _shown(metric, name) + of, _note(direction, metric, kinds, scoring)
                yield Measured(direction, scoring, shown, {}, float(value), note)


def _shown(metric: str, name: str) -> str:
    """A metric's name, with the filter that answers went through, if any."""
    return metric if name == "none" else f"{metric} ({name})"


def _by_document(samples: JsonObject) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
    """The values of each (metric, filter), by (task, document)."""
    found = defaultdict[tuple[str, str], dict[tuple[str, int], float]](dict)
    for task, own in samples.items():
        for sample in own:
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, int | float):
                    found[metric, sample["filter"]][task, sample["doc_id"]] = float(value)
    return found


def _note(direction: Direction, metric: str, kinds: set[str], scoring: str) -> str:
    """A caution about a metric of a reverse model; empty if there is none."""
    if direction is Direction.FORWARD:
        return ""
    greedy = {"multiple_choice": "exact_match", "loglikelihood": "acc"}
    if metric in {greedy.get(kind) for kind in kinds}:
        return "not applicable: a reverse model does not write the continuation"
    if metric in ("acc_norm", "acc_bytes", "perplexity") and scoring == "Bayes":
        return "approximate: log P(context) treats the context as a whole document"
    return ""


def _entropy(lm: KeptLM, tasks: Sequence[Any]) -> Iterator[Measured]:
    """Mean -log P(right choice | context) forward, -log P(context | right choice) in reverse."""
    scoring: Scoring = "conditional" if lm.direction is Direction.FORWARD else "posterior"
    values: dict[tuple[str, int], float] = {}
    documents = lm.documents
    for task in tasks:
        name = str(task.config.task)
        for number, doc in enumerate(task.eval_docs):
            parts = documents.get((name, number))
            right = _right_choice(task, doc)
            if parts is None or right is None or not 0 <= right < len(parts):
                continue
            value = SCORINGS[lm.direction][scoring](parts[right])
            if value is not None:
                values[name, number] = -value
    if values:
        yield Measured(lm.direction, scoring, ENTROPY, values)


def _right_choice(task: Any, doc: Mapping[str, Any]) -> int | None:
    """The number of a document's right choice; None if there is not exactly one."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        choices = task.doc_to_choice(doc)
        return choices.index(gold) if gold in choices else None
    return gold if isinstance(gold, int) else None


def _notes(lm: KeptLM, source: Source, tasks: Sequence[Any], chat: bool) -> Iterator[str]:
    if lm.direction is Direction.REVERSE:
        if source.from_harness and "generate_until" in _kinds(tasks):
            yield (
                "reverse: the harness's prompt asks for text after it, but a reverse model writes "
                "before it, so its number does not show what it knows"
            )
        if chat and lm.known and any(task.config.num_fewshot for task in tasks):
            yield "reverse: with --chat, the examples are placed where the model reads them last"
    cut = sum(parts.cut > 0 for _, parts in lm.known) or sum(lm.cut.values())
    if cut:
        yield (
            f"{lm.direction}: {cut} requests were longer than the model's context of "
            f"{lm.max_length} tokens and were cut at the end far from the target"
        )
    continuations = defaultdict[Any, list[str]](list)
    for request, parts in lm.known:
        if parts.kind != "no context":
            continuations[request.group].append(request.continuation)
    nested = sum(
        any(a != b and b.startswith(a) for a in own for b in own) for own in continuations.values()
    )
    if nested:
        yield (
            f"{nested} documents have a choice that is the beginning of another one: a forward "
            "model can prefer the longer one only if the two differ in their first tokens"
        )
