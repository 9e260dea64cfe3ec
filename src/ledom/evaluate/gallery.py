"""The content of `ledom gallery`: texts that a reverse model writes, and results of finished runs.

The texts of the first section are written here. Every other section is read from the files of a
run; if no such run is given, the gallery names the command that creates one. A section always shows
the first items, so nothing is hand-picked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from ledom import __version__
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import as_type, exists, read_json
from ledom.core.records import Problem, read_records
from ledom.data.problems import generate_problems
from ledom.evaluate.infilling import Gap, Middle
from ledom.evaluate.inversion import InvertedPrompt
from ledom.evaluate.proposals import Proposal
from ledom.evaluate.results import Evaluation, is_main
from ledom.evaluate.retrieval import Ranked
from ledom.evaluate.reversal import ARMS, ReversalResult
from ledom.evaluate.synthesis import seed_prompt
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.report.formatting import accuracy, difference, number
from ledom.report.gallery_page import Example, Gallery, Missing, Section, Table

__all__ = ["RUNS", "collect"]

_TEMPERATURE, _MOST_TOKENS = 0.7, 160  # of the first section's texts
_BEST = 3  # passages per query

_Content = tuple[str, Sequence[Example], Sequence[Table]]
"""What a section shows: how the items were chosen, and the items."""


@dataclass(frozen=True)
class RunKind:
    """A kind of run that has a section."""

    heading: str
    lead: str
    command: str
    """The command that creates such a run."""
    files: tuple[str, ...]
    """The files that identify the kind; the first is read."""
    read: Callable[[Path, LanguageModel, int], _Content]
    """Reads the content from that file; takes a model for its tokens, and the number of items."""
    without: tuple[str, ...] = ()
    """Files that folders of this kind do not contain."""


def collect(
    lm: LanguageModel,
    runs: Sequence[Path],
    count: int,
    seed: int,
    name: str = "tiny",
    command: str = "ledom gallery",
) -> Gallery:
    """Collect all sections: first texts that the model `name` writes now, then one per run.

    Raises `DirectionError` for a forward model, and `InputError` for a folder without a known run.
    """
    found = [(kind, folder / kind.files[0]) for folder in runs for kind in _kinds(folder)]
    of_runs = [  # first, since they may be damaged, and writing takes longer than reading
        Section(kind.heading, kind.lead, *kind.read(file, lm, count), source=str(file))
        for kind, file in found
    ]
    shown = {kind.heading for kind, _ in found}
    return Gallery(
        title="Written from the end",
        ledom_version=__version__,
        command=command,
        sections=[written_backwards(lm, name, count, seed), *of_runs],
        missing=[Missing(k.heading, k.command) for k in RUNS if k.heading not in shown],
    )


def _kinds(folder: Path) -> list[RunKind]:
    kinds = [
        kind
        for kind in RUNS
        if all(exists(folder / name) for name in kind.files)
        and not any(exists(folder / name) for name in kind.without)
    ]
    if not kinds:
        files = ", ".join(dict.fromkeys(kind.files[0] for kind in RUNS))
        raise InputError(f"contains no run that can be shown (none of {files})", path=folder)
    return kinds


def written_backwards(lm: LanguageModel, name: str, count: int, seed: int) -> Section:
    """The section with questions that a model writes in front of solutions to unseen problems."""
    Direction.REVERSE.require(lm.direction, lm.name, "to write questions")
    problems = [*generate_problems("test", count, seed)]
    prompts = [seed_prompt(problem, lm.pair_format) for problem in problems]
    sampling = Sampling(temperature=_TEMPERATURE, max_tokens=_MOST_TOKENS, seed=seed)
    texts = {place: made[0] for place, made in lm.generate(prompts, sampling)}
    return Section(
        heading="Questions from solutions",
        lead=f"{name}, a reverse model, is given the solution of a generated problem that it "
        "has not seen, and writes the question in front of it.",
        rule=f"the first {count} problems of the test split with seed {seed}, one text each "
        f"(sample 0, temperature {_TEMPERATURE}, seed {seed}).",
        examples=[
            example(lm, problem.id, texts[place].ids, lm.tokenizer.encode_inside(prompt))
            for place, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
        ],
    )


def example(
    lm: LanguageModel,
    label: str,
    written: Sequence[int],
    after: Sequence[int],
    before: Sequence[int] = (),
    direction: str = "reverse",
) -> Example:
    """The example of a text that a model wrote between two others; all are ids in reading order."""
    pieces = lm.tokenizer.pieces([*before, *written, *after])
    start, end = len(before), len(before) + len(written)
    return Example(label, direction, pieces[:start], pieces[start:end], pieces[end:])


def _synthesized(file: Path, lm: LanguageModel, count: int) -> _Content:
    drawn = read_records(file.with_name("proposals.jsonl"), Proposal, allow_none=True)
    texts = {f"{one.item_id}/{one.index}": one.text for one in drawn}

    def check(problem: Problem) -> None:
        problem.require_solution()
        if problem.id not in texts:
            raise InputError(f"{problem.id!r} is not in proposals.jsonl; restore that file")

    problems = read_records(file, Problem, check, allow_none=True)
    shown = problems[:count]
    rule = f"the first {len(shown)} of {len(problems):,} problems that were kept."
    return rule, [_of_seed(lm, problem, texts[problem.id]) for problem in shown], []


def _of_seed(lm: LanguageModel, problem: Problem, text: str) -> Example:
    """The example of a kept problem; `text` is what the model wrote in front of its seed."""
    between = lm.pair_format.literals[1]
    written = lm.pair_format.written_question(text)
    if between and between in written:  # the steps too: the seed was a bare answer
        problem = replace(problem, solution=None)
    prompt = lm.tokenizer.encode_inside(seed_prompt(problem, lm.pair_format))
    return example(lm, problem.id, lm.tokenizer.encode(written).ids, prompt)


def _benchmarks(file: Path, lm: LanguageModel, count: int) -> _Content:
    found = as_type(read_json(file), Evaluation, file)
    rows = [["task", "documents", "model, scoring", "accuracy, %", "minus forward"]]
    for task in found.tasks:
        for row in task.rows:
            if is_main(row.metric) and row.interval is not None and not row.note:
                gain = "" if row.less_forward is None else difference(row.less_forward)
                name = " ".join(f"{row.model} {row.scoring} {row.metric.partition(' ')[2]}".split())
                value = accuracy(row.interval)
                rows.append([task.task, f"{task.num_documents:,}", name, value, gain])
    rule = f"all tasks of the run that have an accuracy, made by {found.command}."
    return rule, [], [Table("Accuracy by task, model and scoring", rows)]


def _reversal(file: Path, lm: LanguageModel, count: int) -> _Content:
    found = as_type(read_json(file), ReversalResult, file)
    rows = [["seen in training", "asked for", *ARMS], *found.table()]
    asked = [["question", "seen in training", *ARMS]]
    for question in found.questions[:count]:
        answers = [question.answers.get(arm, "") for arm in ARMS]
        marked = [f"{'✓' if answer == question.right else '✗'} {answer}" for answer in answers]
        asked.append([f"{question.asked} of {question.known}", question.seen, *marked])
    rule = (
        f"all {found.num_facts} facts with seed {found.seed} in percent of exact matches, then the "
        f"first {len(asked) - 1} questions."
    )
    return rule, [], [Table("Right answers by kind of question", rows), Table("Answers", asked)]


def _ranked(
    record: type[Ranked | InvertedPrompt],
    whole: str,
    part: str,
    key: str,
    file: Path,
    lm: LanguageModel,
    count: int,
) -> _Content:
    """The best items of the first `count` lists in a file sorted by list and rank.

    `whole` and `part` are the words for a list and an item; `key` is the item's key in a `record`.
    """
    found = read_records(file, record, allow_none=True)
    lists = [[*own] for _, own in groupby(found, attrgetter(f"{whole}_id"))][:count]
    rows = [[whole, "rank", part, "score, nats"]]
    rows += [
        [getattr(one, f"{whole}_id"), str(one.rank), getattr(one, key), number(one.score, 1)]
        for own in lists
        for one in own[:_BEST]
    ]
    rule = f"the best {_BEST} {part}s of each {whole}, up to {whole} {len(lists)}."
    return rule, [], [Table(f"The best {part}s of each {whole}", rows)]


def _infilled(file: Path, lm: LanguageModel, count: int) -> _Content:
    gaps = {gap.id: gap for gap in read_records(file.with_name("gaps.jsonl"), Gap)}

    def check(middle: Middle) -> None:
        if middle.gap_id not in gaps:
            raise InputError(f"the gap {middle.gap_id!r} is not in gaps.jsonl; restore that file")

    middles = read_records(file, Middle, check)
    best = [middle for middle in middles if middle.rank == 1]
    inside, examples = lm.tokenizer.encode_inside, []
    for middle in best[:count]:
        gap = gaps[middle.gap_id]
        before, after = lm.tokenizer.encode(gap.beginning).ids, inside(gap.ending)
        examples.append(example(lm, gap.id, inside(middle.text), after, before, middle.direction))
    return f"the best middle of the first {len(examples)} of {len(best):,} gaps.", examples, []


RUNS = (
    RunKind(
        "Benchmarks in either direction",
        "What a forward and a reverse model know, each scored correctly for its direction.",
        "ledom eval --out RUN",
        ("results.json",),
        _benchmarks,
    ),
    RunKind(
        "The reversal curse",
        "Models read fictional facts in one order and are asked for the name or the description. A "
        "model can answer what it predicted in training; the pair can answer both.",
        "ledom eval --suite reversal --out RUN",
        ("reversal.json",),
        _reversal,
    ),
    RunKind(
        "Passages for a query",
        "Passages ordered by how likely they make the query in front of them.",
        "ledom rank queries.jsonl passages.jsonl --out RUN",
        ("ranking.jsonl", "scores.jsonl"),
        partial(_ranked, Ranked, "query", "passage", "passage_id"),
        without=("proposals.jsonl",),
    ),
    RunKind(
        "Synthesized problems",
        "A reverse model wrote a question for a solution, or question and steps for a bare answer; "
        "it was kept because a forward model gave it the same answer. The tokens come from "
        "this page's model.",
        "ledom synthesize solutions.jsonl --out RUN",
        ("problems.jsonl", "removed.jsonl", "proposals.jsonl"),
        _synthesized,
    ),
    RunKind(
        "Between a beginning and an ending",
        "A reverse model wrote texts in front of an ending without seeing the beginning; the "
        "forward model chose where to cut them, and which is best. The tokens come from this "
        "page's model.",
        'ledom generate --before "..." --after "..." --out RUN',
        ("middles.jsonl", "gaps.jsonl"),
        _infilled,
    ),
    RunKind(
        "Prompts of an output",
        "A reverse model proposes prompts for an output; a forward model orders them.",
        "ledom invert outputs.jsonl --out RUN",
        ("ranking.jsonl", "proposals.jsonl"),
        partial(_ranked, InvertedPrompt, "output", "prompt", "prompt"),
    ),
)
"""Every kind of run that has a section, in the page's order."""
