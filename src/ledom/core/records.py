"""The record types that every stage reads and writes, one JSON object per line.

documents -> token shards -> checkpoint -> candidates -> scores -> report: each arrow is a file of
these records. Unknown keys are kept in `extra` and written back; a missing or mistyped key is an
error that names the file and the line. This module does not know about models or tokens.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ledom.core.errors import InputError
from ledom.core.files import write_atomically
from ledom.core.reading import JsonObject, first_problem, is_number, read_jsonl

__all__ = [
    "CONFIDENCE",
    "DECIMALS",
    "EARLY_STOP",
    "NUM_TOKENS",
    "SELF_CERTAINTY",
    "Candidate",
    "Document",
    "Key",
    "Problem",
    "Record",
    "Score",
    "Target",
    "read_records",
    "unique_ids",
    "write_records",
]

SELF_CERTAINTY = "self_certainty"
"""Extra key of a sampled candidate: the model's self-certainty."""
CONFIDENCE = ("confidence_mean", "confidence_tail", "confidence_lowest")
"""Extra keys of a sampled candidate: the confidence of its tokens (`ledom.lm.confidence`)."""
NUM_TOKENS = "num_tokens"
"""Extra key of a sampled candidate: the number of tokens, including the end token."""
DECIMALS = 5
"""The number of decimals of log-probabilities in files."""
EARLY_STOP = "early_stop_of"
"""Key in a candidate's `sampling`: the number of candidates without an early stop."""

_LARGEST_SCORE = 1e100  # in magnitude; its square is still finite
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=methodcaller("tolist"))

Key = tuple[Any, ...]
"""Identifies a record in its file: an id, then numbers or names within it."""

FinishReason = Literal["stop", "length", "unsure"]
Target = Literal["y|x", "x|y", "y", "x'|y", "x~|y"]


@dataclass(kw_only=True)
class Record:
    """The base class of records; `extra` holds the keys that the type does not define."""

    KEY: ClassVar[tuple[str, ...]] = ("id",)
    """The fields that form the key."""

    extra: JsonObject = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """The record's key in its file; it starts with the key of the record that it belongs to.

        >>> Candidate(problem_id="a", index=3, text="7").key
        ('a', 3)
        """
        return tuple([getattr(self, name) for name in self.KEY])

    @classmethod
    def from_json(cls: type[RecordT], data: JsonObject) -> RecordT:
        """Build a record from a parsed JSON object; raises `InputError` for a missing or bad key.

        >>> Document.from_json({"id": "a", "text": "Hello.", "language": "en"}).extra
        {'language': 'en'}
        """
        schema = _schema(cls)  # type: ignore[arg-type]
        try:
            checked = schema.model_validate(data)
        except ValidationError as error:
            missing = next((e["loc"][0] for e in error.errors() if e["type"] == "missing"), None)
            if missing is None:
                raise InputError(first_problem(error)) from None
            needed = [name for name, known in schema.model_fields.items() if known.is_required()]
            raise InputError(
                f"missing key {missing!r}; each {cls.__name__} needs: {', '.join(needed)}"
            ) from None
        return cls(**vars(checked), extra=checked.model_extra or {})

    @classmethod
    def own_keys(cls) -> set[str]:
        """The keys that the type defines.

        >>> sorted(Document.own_keys())
        ['id', 'source', 'text']
        """
        return {f.name for f in fields(cls)} - {"extra"}

    def to_json(self) -> JsonObject:
        """The record as a JSON object: its own keys (without those that are None), then `extra`.

        >>> Problem(id="a", question="2 + 2?", extra={"level": 1}).to_json()
        {'id': 'a', 'question': '2 + 2?', 'level': 1}
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**{k: v for k, v in own.items() if v is not None}, **self.extra}


RecordT = TypeVar("RecordT", bound=Record)


@lru_cache
def _schema(record_type: type[Record]) -> type[BaseModel]:
    """The pydantic check of a record type; nothing is converted, and other keys are kept."""
    hints = get_type_hints(record_type)
    known: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is MISSING else f.default)
        for f in fields(record_type)
        if f.name != "extra"
    }
    config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    return create_model(record_type.__name__, __config__=config, **known)


@dataclass(kw_only=True)
class Document(Record):
    """A text to train on."""

    id: str
    text: str
    source: str | None = None


@dataclass(kw_only=True)
class Problem(Record):
    """A question x, with its final answer and a worked solution, if known.

    >>> Problem(id="a", question="2 + 2?", answer="4").is_labeled
    True
    """

    id: str
    question: str
    answer: str | None = None
    solution: str | None = None
    aliases: list[str] | None = None
    """Other right answers."""

    def __post_init__(self) -> None:
        """Reject a worked solution as the answer (GSM8K's format); no answer would equal it."""
        _, mark, final = str(self.answer).rpartition("####")
        if mark and final.strip():
            raise InputError(
                f"the answer of problem {self.id!r} is a worked solution; put that under the key "
                f"'solution', and under 'answer' only {final.strip()!r:.60}"
            )

    @property
    def is_labeled(self) -> bool:
        """Whether the problem has an answer; a blank answer does not count.

        >>> Problem(id="a", question="2 + 2?", answer=" ").is_labeled
        False
        """
        return bool(self.answer and self.answer.strip())

    def require_solution(self) -> str:
        """The worked solution; raises `InputError` if there is none.

        >>> Problem(id="a", question="2 + 2?").require_solution()
        Traceback (most recent call last):
        ledom.core.errors.InputError: problem 'a' has no solution; add the key 'solution'
        """
        if self.solution is None:
            raise InputError(f"problem {self.id!r} has no solution; add the key 'solution'")
        return self.solution


@dataclass(kw_only=True)
class Candidate(Record):
    """A solution y that a model proposes for a problem.

    A candidate that was stopped for low confidence (`unsure`) is never chosen; it only counts as
    cost. `correct` is a label from the file; without one, the candidate's answer is compared with
    the problem's.

    >>> Candidate(problem_id="a", index=0, text="#### 4").to_json()
    {'problem_id': 'a', 'index': 0, 'text': '#### 4', 'finish_reason': 'stop', 'greedy': False}
    """

    KEY = ("problem_id", "index")

    problem_id: str
    index: int
    text: str
    model: str | None = None
    finish_reason: FinishReason = "stop"
    greedy: bool = False
    sampling: JsonObject | None = None
    correct: bool | None = None

    def external_score(self, name: str) -> float:
        """The number in an extra field; raises `InputError` if there is none.

        >>> judged = Candidate(problem_id="a", index=0, text="4", extra={"verifier": 1})
        >>> judged.external_score("verifier")
        1.0
        """
        value = self.extra.get(name)
        if value is None:
            raise InputError(
                f"candidate {self.index} of problem {self.problem_id!r} has no {name!r}, a score "
                "field that the command line names or the weights need"
            )
        if not is_number(value) or not abs(value) <= _LARGEST_SCORE:  # NaN is refused too
            raise InputError(
                f"candidate {self.index} of problem {self.problem_id!r}: the score field {name!r} "
                f"is {value!r:.40}, expected a number of at most {_LARGEST_SCORE:g}"
            )
        return float(value)


class _Packed:
    """A field that keeps its list in an array; Python objects would take ten times the memory.

    Every read returns a new list. Values that fit no array are kept unchanged.
    """

    def __init__(self, pack: Callable[[Any], object], unpack: Callable[[Any], object]) -> None:
        self._pack, self._unpack = pack, unpack

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = f"_{name}"

    def __get__(self, record: Any, owner: type) -> Any:
        held = None if record is None else getattr(record, self._slot)  # the default is None
        return self._unpack(held) if isinstance(held, array) else held

    def __set__(self, record: Any, values: Any) -> None:
        held = values
        with suppress(TypeError, ValueError, OverflowError):  # the reader's checks report these
            held = self._pack(values)
        setattr(record, self._slot, held)


def _pack_numbers(values: list[float]) -> array[Any]:
    """Store numbers with few decimals as integers, in half the memory; others unchanged."""
    with suppress(ValueError, OverflowError):  # not finite, or too large
        whole = array("i", [round(x * 10**DECIMALS) for x in values])
        if _unpack_numbers(whole) == values:
            return whole
    return array("d", values)


def _unpack_numbers(held: array[Any]) -> list[float]:
    return held.tolist() if held.typecode == "d" else [n / 10**DECIMALS for n in held]


def _pack_spans(spans: list[list[int]]) -> array[Any]:
    flat = [x for start, end in spans for x in (start, end)]
    return array("H" if max(flat, default=0) < 2**16 else "i", flat)


@dataclass(kw_only=True)
class Score(Record):
    """A model's log-probability of one part of a (question, solution) pair.

    `logprob` is in nats and is the sum of `token_logprobs`; these and `token_spans` are in reading
    order. `token_spans` are [start, end) character offsets into the question (`x|y`) or the
    solution (`y|x`, `y`); the token that ends or starts the document, if counted, has an empty
    span. `text` is the solution that the model read, if it differs from the candidate's text.

    Two targets have no tokens. `x'|y` is the log of the mean probability of copies of the question
    with one number changed; the extra key `copies` lists them. `x~|y` is the log of the mean
    overlap between the question and questions sampled backwards from the solution.

    >>> score = Score(problem_id="a", index=0, model="m", direction="reverse", target="x|y",
    ...               logprob=-1.5, num_tokens=2, token_logprobs=[-1.0, -0.5])
    >>> score.key
    ('a', 0, 'x|y')
    >>> score.token_spans = [[0, 1], [1, 4]]
    >>> score.tokens()
    [(-1.0, [0, 1]), (-0.5, [1, 4])]
    """

    KEY = ("problem_id", "index", "target")

    problem_id: str
    index: int
    model: str
    direction: Literal["forward", "reverse"]
    target: Target
    logprob: float
    num_tokens: int
    token_logprobs: list[float] | None = _Packed(  # type: ignore[assignment]
        _pack_numbers, _unpack_numbers
    )
    token_spans: list[list[int]] | None = _Packed(  # type: ignore[assignment]
        _pack_spans, lambda held: list(map(list, zip(held[::2], held[1::2], strict=True)))
    )
    text: str | None = None

    def tokens(self) -> list[tuple[float, list[int]]] | None:
        """The log-probability and [start, end) span of each token; None without token scores."""
        values, spans = self.token_logprobs, self.token_spans
        return None if values is None or spans is None else list(zip(values, spans, strict=True))

    def solution(self, text: str) -> str:
        """The solution that the model read, given the candidate's text."""
        return text if self.text is None else self.text


def read_records(
    path: str | Path,
    record_type: type[RecordT],
    check: Callable[[RecordT], object] | None = None,
    allow_none: bool = False,
) -> list[RecordT]:
    """Read a JSONL file of one record type; blank lines are skipped.

    `check` is called with each record and raises `InputError` for a bad one. Raises an `InputError`
    with file and line for such a record, for a missing or mistyped key, for a line that is not a
    JSON object, and for a file that is missing, is a directory, or has no records (unless
    `allow_none`).

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     write_records(file.name, [Document(id="a", text="Hello.")])
    ...     read_records(file.name, Document)
    [Document(extra={}, id='a', text='Hello.', source=None)]
    """
    path = Path(path)
    records = []
    for number, data in read_jsonl(path):
        try:
            record = record_type.from_json(data)
            if check is not None:
                check(record)
            records.append(record)
        except InputError as error:
            raise InputError(str(error), path=path, line=number) from None
    if not records and not allow_none:
        raise InputError(f"the file has no {record_type.__name__} records", path=path)
    return records


def unique_ids() -> Callable[[Record], None]:
    """A check for `read_records` that raises `InputError` for an empty or duplicate id.

    >>> check = unique_ids()
    >>> check(Problem(id="a", question="?"))
    >>> check(Problem(id="a", question="!"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: the id 'a' occurs twice; ids must be unique
    """
    seen: set[Key] = set()

    def check(record: Record) -> None:
        if not record.key[0]:
            raise InputError("the id is empty; give one")
        if record.key in seen:
            raise InputError(f"the id {record.key[0]!r} occurs twice; ids must be unique")
        seen.add(record.key)

    return check


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, atomically; see `write_atomically`.

    Numbers of numpy and torch become JSON's. Raises `InputError` for a value that JSON lacks (NaN).

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     write_records(file.name, [Problem(id="a", question="2 + 2?", answer="4")])
    ...     print(Path(file.name).read_text(), end="")
    {"id": "a", "question": "2 + 2?", "answer": "4"}
    """
    with write_atomically(path) as out:
        for number, record in enumerate(records, start=1):
            try:
                out.write(_ENCODER.encode(record.to_json()) + "\n")
            except (AttributeError, TypeError, ValueError) as error:
                raise InputError(f"record {number} cannot be written: {error}", path=path) from None
