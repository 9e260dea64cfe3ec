"""A model that saves its answers to a task's requests in files, so that a run resumes.

There is one file per task and kind of request. Which requests are scored together depends only on
the requests, so a resumed run gets the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ledom.core.errors import InputError, LedomError, in_one_line, needs_extra
from ledom.core.files import fingerprint
from ledom.core.reading import JsonObject
from ledom.core.records import Key, Record
from ledom.core.stage import Stage, Track, Work, at_once, even_groups
from ledom.evaluate.harness import LedomLM, Written, document_batches
from ledom.evaluate.harness_tasks import set_seeds
from ledom.evaluate.likelihood import check_requests, score
from ledom.evaluate.scorings import Parts, Request
from ledom.evaluate.texts import Draw, numbered
from ledom.lm.language_model import LanguageModel

with needs_extra("lm-eval", "eval", "evaluation"):
    from lm_eval.evaluator import evaluate

__all__ = ["Answer", "KeptLM", "file_name"]

_TEXTS_TOGETHER = 32  # texts that are written together, and lost together if the run is stopped
_FORMAT = 4  # version of `Answer` and of what it means
RequestT = TypeVar("RequestT")


@dataclass(kw_only=True)
class Answer(Record):
    """A model's answer to one request of a task, which is identified by its number."""

    KEY = ("number",)

    number: int
    value: JsonObject


@dataclass(frozen=True)
class _Asked(Generic[RequestT]):
    """A request of a task, and its number in the task."""

    number: int
    request: RequestT

    @property
    def key(self) -> Key:
        return (self.number,)


def file_name(task: str) -> str:
    """The prefix of the names of a task's files.

    >>> file_name("my/task.yaml")
    'my-task.yaml'
    """
    return re.sub(r"[^\w.-]+", "-", task)


class KeptLM(LedomLM):
    """A model that saves its answers to the requests of the task `name` in `out`/`direction`."""

    def __init__(
        self,
        lm: LanguageModel,
        name: str,
        out: Path,
        track: Track,
        add_bos_token: bool | None = None,
    ) -> None:
        super().__init__(lm, add_bos_token=add_bos_token)
        self._folder, self._name, self._track = out / str(lm.direction), name, track
        self.known: list[tuple[Request, Parts]] = []
        """The log-likelihood requests with their parts; empty before the first requests."""

    def check(self, tasks: Sequence[Any], limit: int | None, chat: bool) -> None:
        """Raise `InputError` for requests that the model cannot answer, and for saved answers that
        were made with other settings. `run` makes the same requests in the same order."""
        asked: dict[str, list[Any]] = {}
        set_seeds(tasks)
        for task in tasks:
            try:
                task.build_all_requests(
                    limit=limit,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    chat_template=self.apply_chat_template if chat else None,
                    tokenizer_name=self.tokenizer_name if chat else "",
                )
            except LedomError:
                raise
            except Exception as error:  # a task's templates and functions can raise anything
                raise InputError(
                    f"task {task.config.task!r}: the harness could not make its prompts "
                    f"({in_one_line(error)}); check the task's settings and data"
                ) from error
            for instance in task.instances:
                asked.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
        if asked.keys() - {"generate_until"}:
            self.check_prefix()
        if instances := asked.get("loglikelihood"):
            requests = [self.request(instance) for instance in instances]
            if not self._stage("loglikelihood", map(_texts_of, requests)).complete:
                for batch in document_batches(requests, lambda request: request.group):
                    check_requests(self.lm, batch, self.convention)
        if instances := asked.get("loglikelihood_rolling"):
            self._stage("loglikelihood_rolling", ((str(one.args[0]),) for one in instances))
        if instances := asked.get("generate_until"):
            draws = [*numbered(instances)]
            for draw in draws:
                self.generation_settings(draw.settings, self._writer([draw.context]))
            self._stage("generate_until", (draw.identity for draw in draws))

    def run(self, tasks: Sequence[Any], limit: int | None, chat: bool) -> JsonObject:
        """The harness's results and samples for these tasks."""
        set_seeds(tasks)
        found: JsonObject = evaluate(
            self,
            {"tasks": {str(task.config.task): task for task in tasks}},
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=True,  # `ledom.evaluate.tasks` has checked for --allow-code
        )
        return found

    def parts(self, requests: Sequence[Any], asked: Sequence[Request]) -> list[Parts]:
        if not self.known:
            answers = self._fill(
                "loglikelihood",
                asked,
                map(_texts_of, asked),
                lambda some: [
                    asdict(parts) for parts in score(self.lm, some, self.convention, control=True)
                ],
                lambda some: document_batches(some, lambda one: one.request.group),
            )
            self.known = [
                (request, Parts(**answer)) for request, answer in zip(asked, answers, strict=True)
            ]
        if list(asked) != [request for request, _ in self.known]:
            raise RuntimeError(f"task {self._name!r} made different requests the second time")
        return [parts for _, parts in self.known]

    @property
    def documents(self) -> dict[tuple[str, int], list[Parts]]:
        """The parts of each (task, document), in the order of its choices, without the requests
        that have no context, unless the document has no others."""
        found: dict[tuple[str, int], list[Parts]] = {}
        for request, parts in self.known:
            found.setdefault(request.group, []).append(parts)  # type: ignore[arg-type]
        return {
            key: [parts for parts in every if parts.kind != "no context"] or every
            for key, every in found.items()
        }

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [str(instance.args[0]) for instance in requests]
        answers = self._fill(
            "loglikelihood_rolling",
            texts,
            [(text,) for text in texts],
            lambda some: [{"logprob": self.rolling(text)} for text in some],
            lambda some: even_groups(some, 1),
        )
        return [answer["logprob"] for answer in answers]

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        write = super().write
        answers = self._fill(
            "generate_until",
            draws,
            [draw.identity for draw in draws],
            lambda some: [{"text": text, "cut": cut} for text, cut in write(some)],
            lambda some: even_groups(some, _TEXTS_TOGETHER),
        )
        return [(answer["text"], answer["cut"]) for answer in answers]

    def _fill(
        self,
        kind: str,
        requests: Sequence[RequestT],
        texts: Iterable[tuple[str, ...]],
        make: Callable[[Sequence[RequestT]], Sequence[JsonObject]],
        groups: Callable[[Sequence[_Asked[RequestT]]], Sequence[Sequence[_Asked[RequestT]]]],
    ) -> list[JsonObject]:
        """The answers to all requests; missing ones are made with `make`, a group at a time, and
        saved. `texts` identify the requests (see `_stage`)."""
        stage = self._stage(kind, texts)

        def answers(some: Sequence[_Asked[RequestT]]) -> Iterator[list[Answer]]:
            values = make([asked.request for asked in some])
            for asked, value in zip(some, values, strict=True):
                yield [Answer(number=asked.number, value=value)]

        work: Work[_Asked[RequestT], Answer] = Work(
            items=[_Asked(*pair) for pair in enumerate(requests)],
            make=at_once(answers),
            groups=groups,
            together=self.lm.batches_requests,
        )
        name = f"{self._name}, {self.direction}"
        return [answer.value for answer in stage.fill(work, self._track, name)]

    def _stage(self, kind: str, texts: Iterable[tuple[str, ...]]) -> Stage[Answer]:
        """The file of the answers to one kind of request; `texts` identify the requests in its
        settings."""
        settings = {
            "format": _FORMAT,
            "model": self.lm.identity,
            "requests": fingerprint(texts),
            "special_tokens": [list(self.convention.first), list(self.convention.prefix)],
        }
        path = self._folder / f"{file_name(self._name)}.{kind}.jsonl"
        return Stage(path, Answer, settings)


def _texts_of(request: Request) -> tuple[str, ...]:
    """All that the answer to a log-likelihood request depends on besides the model."""
    texts = request.context, request.continuation, request.after
    return (*texts, str(request.examples), str(request.group))
