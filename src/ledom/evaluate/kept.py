"""A model whose answers to a task's requests are kept in files, so that a run resumes.

One file per task and kind of request; what is scored together is decided by the requests alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ledom.core.files import fingerprint
from ledom.core.records import Record
from ledom.core.stage import Stage, Track, Work, even_groups
from ledom.evaluate.harness import LedomLM, document_batches
from ledom.evaluate.likelihood import score
from ledom.evaluate.scorings import Parts, Request
from ledom.lm.language_model import LanguageModel

__all__ = ["Answer", "KeptLM"]

_TEXTS_TOGETHER = 32  # written texts that are made, and can be lost, together
_FORMAT = 2  # of an answer
_NOT_A_NAME = re.compile(r"[^\w.-]+")


@dataclass(kw_only=True)
class Answer(Record):
    """What a model answers to one request of a task."""

    types = {"number": (int,), "value": (dict,)}
    number: int
    value: dict[str, Any]


class KeptLM(LedomLM):
    """A model whose answers to the task `name` are kept in a folder."""

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
        """The log-likelihood requests with their parts, once they were asked."""

    def parts(self, requests: Sequence[Any], asked: Sequence[Request]) -> list[Parts]:
        if not self.known:
            answers = self._fill(
                "loglikelihood",
                [(r.context, r.continuation, str(r.group)) for r in asked],
                lambda some: _score(self, [asked[number] for number in some]),
                lambda numbers: _batches(asked, numbers),
            )
            self.known = [
                (request, Parts(**answer)) for request, answer in zip(asked, answers, strict=True)
            ]
        if list(asked) != [request for request, _ in self.known]:
            raise RuntimeError(f"task {self._name!r} asks other requests the second time")
        return [parts for _, parts in self.known]

    @property
    def documents(self) -> dict[tuple[str, int], list[Parts]]:
        """The parts by document, its choices in order; what is asked without a context is left
        out, unless the document has nothing else."""
        found: dict[tuple[str, int], list[Parts]] = {}
        for request, parts in self.known:
            found.setdefault(request.group, []).append(parts)  # type: ignore[arg-type]
        inside = {
            key: [parts for parts in every if parts.kind != "no context"]
            for key, every in found.items()
        }
        return {key: inside[key] or every for key, every in found.items()}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [str(instance.args[0]) for instance in requests]
        answers = self._fill(
            "loglikelihood_rolling",
            [(text,) for text in texts],
            lambda some: [{"logprob": self.rolling(texts[number])} for number in some],
            lambda numbers: even_groups(numbers, 1),
        )
        return [answer["logprob"] for answer in answers]

    def write(self, requests: Sequence[Any]) -> list[tuple[str, int]]:
        write = super().write

        def texts(some: Sequence[int]) -> list[dict[str, Any]]:
            made = write([requests[number] for number in some])
            return [{"text": text, "cut": cut} for text, cut in made]

        answers = self._fill(
            "generate_until",
            [(str(r.args[0]), repr(r.args[1])) for r in requests],
            texts,
            lambda numbers: even_groups(numbers, _TEXTS_TOGETHER),
        )
        return [(answer["text"], answer["cut"]) for answer in answers]

    def _fill(
        self,
        kind: str,
        asked: Sequence[tuple[str, ...]],
        make: Callable[[Sequence[int]], Sequence[dict[str, Any]]],
        groups: Callable[[Sequence[int]], Sequence[Sequence[int]]],
    ) -> list[dict[str, Any]]:
        """The answers to all requests; those that the file lacks are made."""
        path = self._folder / f"{_NOT_A_NAME.sub('-', self._name)}.{kind}.jsonl"
        settings = {
            "format": _FORMAT,
            "model": self.lm.identity,
            "requests": fingerprint(asked),
            "special_tokens": [list(self.convention.first), list(self.convention.prefix)],
        }
        stage = Stage(path, Answer, settings)

        def answers(
            some: Sequence[int], have: Mapping[Any, Sequence[Answer]]
        ) -> Iterator[tuple[list[Answer], bool]]:
            for number, value in zip(some, make(some), strict=True):
                yield [Answer(number=number, value=value)], True

        work: Work[int, Answer] = Work(
            items=range(len(asked)),
            item_key=lambda number: (number,),
            record_key=lambda answer: (answer.number,),
            make=answers,
            groups=groups,
            together=self.lm.batches_requests,
        )
        name = f"{self._name}, {self.direction}"
        return [answer.value for answer in stage.fill(work, self._track, name)]


def _score(lm: LedomLM, asked: Sequence[Request]) -> list[dict[str, Any]]:
    """Parts as JSON objects."""
    return [asdict(parts) for parts in score(lm.lm, asked, lm.convention, control=True)]


def _batches(asked: Sequence[Request], numbers: Sequence[int]) -> list[list[int]]:
    """Numbers of requests in runs that do not divide a document."""
    batches = document_batches([asked[number] for number in numbers])
    remaining = iter(numbers)
    return [[next(remaining) for _ in batch] for batch in batches]
