"""The reversal suite: which model answers which question about a fact that it read in one order.

Models are trained on fictional facts and asked for the description of a name and for the name of a
description. A forward model writes its answer at the end of a sentence, a reverse model at the
start, so each can answer what was there in training. All arms have the same shape and steps:

    forward           a forward model that reads the facts
    reverse           a reverse model that reads the facts
    pair              these two models: both propose answers, Reverse Reward chooses
    reverse training  a forward model that reads the facts and their reversed texts
    identity bridge   a forward model that reads the facts and a sentence "A is A" per entity

    out/reversal/<model>/     a model's training run and its answers
    out/reversal/pair/        the proposals of both models, and their scores
    out/reversal.json         the results, and every answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ledom import __version__
from ledom.core.direction import Direction
from ledom.core.files import check_settings, write_json
from ledom.core.reading import exists, read_json
from ledom.core.records import Candidate, Document, Problem, write_records
from ledom.core.stage import Track
from ledom.data.prepare import DataConfig, prepare_data
from ledom.evaluate.facts import (
    ORDERS,
    PAIR_FORMAT,
    Fact,
    Order,
    identities,
    make_facts,
    reversed_texts,
    texts,
)
from ledom.evaluate.proposals import Prompt, propose
from ledom.lm import load
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.model.presets import ModelConfig
from ledom.report.formatting import accuracy, to_json
from ledom.report.intervals import paired_share_interval, share_interval
from ledom.report.results import Interval
from ledom.rerank.score import ScoreFiles, fill_scores
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import train_tokenizer
from ledom.train.checkpoints import newest_step
from ledom.train.loop import Progress, train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

__all__ = ["ARMS", "ReversalJob", "ReversalResult", "run_reversal"]

Asked = Literal["description", "name"]
ARMS = ("forward", "reverse", "pair", "reverse training", "identity bridge")

_ASKED: tuple[Asked, ...] = ("description", "name")
_MODELS: dict[str, tuple[Direction, Callable[[Sequence[Fact]], list[str]]]] = {
    "forward": (Direction.FORWARD, lambda facts: []),
    "reverse": (Direction.REVERSE, lambda facts: []),
    "reverse training": (Direction.FORWARD, reversed_texts),
    "identity bridge": (Direction.FORWARD, identities),
}
"""The models to train: (direction, the texts that it reads besides the facts)."""
_SHAPE = ModelConfig(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
)
_VOCAB_SIZE = 512
_BATCH_SIZE = 48
_MOST_TOKENS = 24  # of an answer
_SAMPLES = 8  # proposals per question by each model of the pair
_OPENING = PAIR_FORMAT.partition("{question}")[0]


@dataclass(frozen=True)
class ReversalJob:
    """The settings of the suite, and its output folder."""

    out: Path
    per_order: int = 30
    seed: int = 0
    """Of the facts, the models and the samples."""
    steps: int = 150
    command: str = "ledom eval --suite reversal"


@dataclass(frozen=True)
class Question:
    """A question about a fact: for its description given its name, or for its name."""

    id: str
    seen: Order
    asked: Asked
    known: str
    right: str
    answers: Mapping[str, str] = field(default_factory=dict)
    """By arm."""


@dataclass(frozen=True)
class ArmResult:
    """The share of questions of one kind that an arm answers correctly."""

    seen: Order | Literal["one order"]
    """The order of the facts in training; `one order`: all facts that were read in only one."""
    asked: Asked | Literal["either"]
    arm: str
    accuracy: Interval
    less_forward: Interval | None = None
    """Paired difference from the forward arm."""


@dataclass(frozen=True, kw_only=True)
class ReversalResult:
    """The content of reversal.json."""

    ledom_version: str
    command: str
    seed: int
    steps: int
    num_facts: int
    results: Sequence[ArmResult]
    questions: Sequence[Question] = field(default_factory=list)

    def table(self) -> list[list[str]]:
        """A row per kind of fact and question: what was seen and asked, and each arm's accuracy."""
        kinds = groupby(self.results, lambda result: (result.seen, result.asked))
        by_arm = [(kind, {one.arm: one.accuracy for one in own}) for kind, own in kinds]
        return [[*kind, *(accuracy(own.get(arm)) for arm in ARMS)] for kind, own in by_arm]


Watch = Callable[[str, int, int], AbstractContextManager[Callable[[Progress], None]]]
"""Shows the progress of a training run with this name, first step and number of steps."""


def run_reversal(job: ReversalJob, watch: Watch, track: Track) -> ReversalResult:
    """Train the models, ask them all questions, and compare their answers.

    Returns the result, which is written to reversal.json. Raises `InputError` if the folder holds a
    run with other settings.
    """
    facts = make_facts(job.per_order, job.seed)
    file = job.out / "reversal" / "settings.json"
    settings = {"seed": job.seed, "facts per order": job.per_order, "steps": job.steps}
    if exists(file):
        check_settings(read_json(file), settings, file.parent, "give another --out")
    write_json(file, settings)
    questions = make_questions(facts)
    models = {name: _train(job, name, facts, watch) for name in _MODELS}
    answers = {
        name: ask(lm, questions, _folder(job, name) / "answers.jsonl", track)
        for name, lm in models.items()
    }
    both = models["forward"], models["reverse"]
    answers["pair"] = ask_pair(*both, questions, job.seed, _folder(job, "pair"), track)
    found = ReversalResult(
        ledom_version=__version__,
        command=job.command,
        seed=job.seed,
        steps=job.steps,
        num_facts=len(facts),
        results=compare_arms(questions, answers),
        questions=[
            replace(question, answers={arm: answers[arm][place] for arm in ARMS})
            for place, question in enumerate(questions)
        ],
    )
    write_json(job.out / "reversal.json", to_json(found))
    return found


def make_questions(facts: Iterable[Fact]) -> list[Question]:
    """Two questions about each fact, for its description and for its name."""
    return [
        question
        for fact in facts
        for question in (
            Question(fact.id, fact.seen, "description", fact.name, fact.description),
            Question(fact.id, fact.seen, "name", fact.description, fact.name),
        )
    ]


def _folder(job: ReversalJob, arm: str) -> Path:
    return job.out / "reversal" / arm.replace(" ", "-")


def _train(job: ReversalJob, name: str, facts: Sequence[Fact], watch: Watch) -> LanguageModel:
    """The model of an arm; its training resumes."""
    direction, extra = _MODELS[name]
    folder = _folder(job, name)
    documents = enumerate(texts(facts) + extra(facts))
    write_records(folder / "texts.jsonl", (Document(id=str(i), text=text) for i, text in documents))
    every = [*texts(facts), *reversed_texts(facts), *identities(facts)]
    train_tokenizer(every, _VOCAB_SIZE).save(folder)  # the same for all models
    recipe = _recipe(job, folder)
    data = prepare_data(recipe.data, folder / "data", lambda *_: None)  # validates on its texts
    with watch(f"training: {name}", newest_step(folder), job.steps) as on_progress:
        return load(train(recipe, direction, data, folder, on_progress))


def _recipe(job: ReversalJob, folder: Path) -> Recipe:
    """The recipe of an arm; arms differ only in its paths."""
    documents = str(folder / "texts.jsonl")
    return Recipe(
        name="reversal",
        seed=job.seed,
        data=DataConfig(
            train=documents,
            valid=documents,
            num_valid=_BATCH_SIZE,
            pair_format=PAIR_FORMAT,
            tokenizer=str(folder / "tokenizer.json"),
        ),
        model=_SHAPE,
        optim=OptimConfig(steps=job.steps, warmup_steps=min(20, job.steps)),
        train=TrainConfig(
            batch_size=_BATCH_SIZE,
            seq_len=_SHAPE.max_position_embeddings,
            validate_every=job.steps,
            checkpoint_every=-(-job.steps // 4),
        ),
    )


def ask(lm: LanguageModel, questions: Sequence[Question], path: Path, track: Track) -> list[str]:
    """A model's most likely answer to every question, kept in the file `path`."""
    greedy = Sampling(temperature=0, max_tokens=_MOST_TOKENS)
    return [answer for (answer,) in _proposals(lm, questions, greedy, 1, path, track)]


def _proposals(
    lm: LanguageModel,
    questions: Sequence[Question],
    sampling: Sampling,
    count: int,
    path: Path,
    track: Track,
) -> list[list[str]]:
    """`count` answers to every question: a forward model writes the end of a sentence, a reverse
    model the start."""
    forward = lm.direction is Direction.FORWARD
    pair_format = PairFormat(PAIR_FORMAT)
    prompts = [
        Prompt(
            f"{q.id}, {q.asked}",
            pair_format.before_solution(q.known).rstrip()  # a token starts with its space
            if forward
            else pair_format.after_question(q.known),
        )
        for q in questions
    ]
    name = f"asking: {path.parent.name}"
    texts = [one.text for one in propose(lm, prompts, sampling, count, path, track, name)]
    answers = [
        text.partition(".")[0].strip() if forward else text.removeprefix(_OPENING).strip()
        for text in texts
    ]
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def ask_pair(
    forward: LanguageModel,
    reverse: LanguageModel,
    questions: Sequence[Question],
    seed: int,
    out: Path,
    track: Track,
) -> list[str]:
    """The answer that Reverse Reward chooses among the proposals of both models, kept in `out`.

    Question and proposal make a sentence of two parts. Its reward is the mean of log P(second |
    first) by the forward model and log P(first | second) by the reverse model.
    """
    sampling = Sampling(max_tokens=_MOST_TOKENS, seed=seed)
    after, before = (
        _proposals(lm, questions, sampling, _SAMPLES, out / f"proposals.{name}.jsonl", track)
        for name, lm in (("forward", forward), ("reverse", reverse))
    )
    sentences = [
        {(question.known, answer): answer for answer in ends if answer}
        | {(answer, question.known): answer for answer in starts if answer}
        for question, ends, starts in zip(questions, after, before, strict=True)
    ]
    parts = [*dict.fromkeys(pair for own in sentences for pair in own)]
    second = _totals(forward, parts, "y|x", out, track)
    first = _totals(reverse, parts, "x|y", out, track)
    total = {pair: (first[pair] + second[pair]) / 2 for pair in parts}
    return [own[max(own, key=lambda pair: total[pair])] if own else "" for own in sentences]


def _totals(
    lm: LanguageModel, parts: Sequence[tuple[str, str]], target: str, out: Path, track: Track
) -> dict[tuple[str, str], float]:
    """The log-probability of every sentence for a target, by the sentence's parts."""
    problems = [Problem(id=first, question=first) for first in dict.fromkeys(p[0] for p in parts)]
    candidates = [
        Candidate(problem_id=first, index=number, text=second)
        for number, (first, second) in enumerate(parts)
    ]
    scores = fill_scores(ScoreFiles(out, problems, candidates, lm, track))
    return {parts[one.index]: one.logprob for one in scores if one.target == target}


def compare_arms(
    questions: Sequence[Question], answers: Mapping[str, Sequence[str]]
) -> list[ArmResult]:
    """Every arm's accuracy by kind of fact and question, with intervals bootstrapped over facts.

    The last rows are over the facts that were read in one order, with both of their questions.
    """
    right = {
        arm: np.array([a == q.right for a, q in zip(answers[arm], questions, strict=True)], float)
        for arm in ARMS
    }
    results: list[ArmResult] = []
    for seen, asked in product(ORDERS, _ASKED):
        inside = np.array([q.seen == seen and q.asked == asked for q in questions])
        results += _results(seen, asked, {arm: v[inside] for arm, v in right.items()})
    single = np.array([q.seen != "both orders" for q in questions])
    by_fact = {arm: v[single].reshape(-1, len(_ASKED)).mean(axis=1) for arm, v in right.items()}
    return [*results, *_results("one order", "either", by_fact)]


def _results(
    seen: Order | Literal["one order"],
    asked: Asked | Literal["either"],
    right: Mapping[str, NDArray[np.float64]],
) -> Iterator[ArmResult]:
    for arm in ARMS:
        less = None if arm == "forward" else paired_share_interval(right[arm], right["forward"])
        yield ArmResult(seen, asked, arm, share_interval(right[arm]), less)
