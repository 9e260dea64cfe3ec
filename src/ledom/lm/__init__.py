"""Language models behind one interface of two methods; `load` opens one by name and options.

One pair of models comes with the package. `unfamiliar` and `unfamiliar_texts` warn about texts that
this pair cannot judge.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from statistics import median
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, DirectionError, InputError
from ledom.core.options import key_values
from ledom.core.reading import JsonObject
from ledom.core.records import Score
from ledom.core.strict_yaml import parse_yaml
from ledom.lm.language_model import LanguageModel, TokenSpan
from ledom.model.folder import snapshot
from ledom.model.foreign.aliases import what_to_run

__all__ = [
    "BACKENDS",
    "EMBEDDED",
    "UNLIKELY_LOSS",
    "LanguageModel",
    "backend_of",
    "embedded_folder",
    "load",
    "unfamiliar",
    "unfamiliar_texts",
]

EMBEDDED = "tiny"
"""The name of the pair of models that comes with the package."""


@dataclass(frozen=True)
class Backend:
    """A way to run a model."""

    module: str
    """The module of its class; imported on use."""
    class_name: str
    takes: tuple[str, ...]
    """Which of `device` and `dtype` it uses."""
    why_not: str = ""
    """Why it does not use the others, as worded in an error."""


BACKENDS = {
    "": Backend("ledom.lm.backends.local", "HFLanguageModel", ("device", "dtype")),
    "vllm": Backend(
        "ledom.lm.backends.vllm", "VLLMLanguageModel", ("dtype",), "vLLM chooses its devices itself"
    ),
    "openai": Backend(
        "ledom.lm.backends.openai", "OpenAILanguageModel", (), "no model runs in this process"
    ),
}
"""Every backend by the prefix of its models' names."""

_ELSEWHERE = {
    "direction": "the command has its own option for it",
    "api_key": "it is read from the environment variable OPENAI_API_KEY, so that no log keeps it",
}


def load(
    model: str | Path = EMBEDDED,
    direction: Direction | str | None = None,
    *,
    device: str | None = None,
    dtype: Any = "auto",
    **options: Any,
) -> LanguageModel:
    """Load a model.

    `model` is one of:

    - `FOLDER`: a model folder, run in this process (`HFLanguageModel`)
    - `tiny`: the embedded model of the given direction
    - `vllm:FOLDER`: a model folder, run by vLLM (`VLLMLanguageModel`)
    - `openai:NAME`: the model NAME on a server of OpenAI's completions protocol
      (`OpenAILanguageModel`)

    Pass the options of these classes as keywords, or as text after the name:
    `openai:NAME,base_url=...,tokenizer=FOLDER`.

    `direction` is required if the checkpoint does not record one, which is the case for models
    trained elsewhere. `device` (cpu, cuda, cuda:1 ...) and `dtype` (auto, float32, bfloat16,
    float16, int8; see `model.precision`) apply to models in this process; vLLM accepts only
    `dtype`, a server neither. Raises `CheckpointError` for a folder that cannot be loaded,
    `DirectionError` for an unknown direction, and `InputError` for an unknown option.

        >>> import ledom
        >>> reverse = ledom.load("tiny", direction="reverse")
    """
    prefix, name, written = _split(str(model))
    if not name.strip():  # Python treats the empty path as the current folder
        raise InputError(f"the model's name in {str(model)!r} is empty; . is the current folder")
    backend = BACKENDS[prefix]
    model_class = getattr(import_module(backend.module), backend.class_name)
    defaults = {"device": device, "dtype": dtype}
    options = {key: defaults[key] for key in backend.takes} | options
    if written:
        options |= read_options(model_class, written, str(model))
    if name == EMBEDDED and not prefix:  # a folder with this name must be given as ./tiny
        name = str(embedded_folder(direction))
    if not prefix and not os.path.isdir(name) and (remedy := what_to_run(name)):
        raise CheckpointError(
            f"{name}: no such model folder; to import a published checkpoint or a foreign file, "
            f"run: {remedy}"
        )
    if not prefix:
        name = str(snapshot(Path(name)))
    return model_class(name, direction, **options)  # type: ignore[no-any-return]


def _split(model: str) -> tuple[str, str, list[str]]:
    """Split `openai:NAME,key=value` into prefix, name and options; a folder may have any name."""
    if os.path.isdir(model):
        return "", model, []
    prefix, colon, rest = model.partition(":")
    if not prefix or not colon or prefix not in BACKENDS:
        prefix, rest = "", model
    name, *options = rest.split(",")
    return prefix, name, options


def read_options(backend: type[LanguageModel], written: Sequence[str], model: str) -> JsonObject:
    """Parse `key=value` strings into keyword arguments of the backend's class.

    Raises `InputError` for an unknown option or a value of the wrong type.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> read_options(FakeLanguageModel, ["context=64"], "fake")
    {'context': 64}
    """
    parameters = list(signature(backend).parameters.values())[1:]
    takes_more = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD} - {*_ELSEWHERE}
    hints = get_type_hints(backend.__init__, include_extras=True)
    options: JsonObject = {}
    for key, remedy in _ELSEWHERE.items():
        if any(text.partition("=")[0] == key for text in written):
            raise InputError(f"{model!r}: {key} cannot be given here; {remedy}")
    for key, value in key_values(written, repr(model), () if takes_more else known).items():
        text = f"{key}={value}"
        try:
            # Options passed on to another package have no type hints here; YAML's types suffice.
            hint, value = (hints[key], value) if key in known else (Any, parse_yaml(value)[0])
            config = ConfigDict(arbitrary_types_allowed=True)
            options[key] = TypeAdapter(hint, config=config).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{model!r}: {text}: {error.errors()[0]['msg']}") from None
        except InputError as error:
            raise InputError(f"{model!r}: {text}: {error}") from None
    return options


def backend_of(model: str) -> Backend:
    """The backend for a model's name.

    >>> backend_of("vllm:FOLDER").takes, backend_of("FOLDER").takes
    (('dtype',), ('device', 'dtype'))
    """
    return BACKENDS[_split(model)[0]]


def embedded_folder(direction: Direction | str | None) -> Path:
    """The folder of the embedded model for a direction.

    Raises `DirectionError` without a direction.

    >>> embedded_folder("reverse").name
    'reverse'
    """
    if direction is None:
        raise DirectionError(
            "the embedded pair has two models: give direction='forward' or 'reverse'"
        )
    return Path(__file__).parent / "embedded" / str(Direction(direction))


# ---- texts that the embedded pair can judge ----

FAMILIAR_LOSS = 1.0
"""Threshold in nats per token of a question, given the best of its answers. None of 480 unseen
problems from the embedded model's templates is above 0.49; none of 60 from other templates is below
7.8, and none of 60 from GSM8K is below 1.5."""

UNLIKELY_LOSS = 6.0
"""Threshold in nats per token of a text by itself. None of 40 unseen questions from the templates
is above 0.8, none of their second halves above 2.8; few other English texts are below 8. Given an
empty answer, none of 60 questions from the templates is above 4.8."""
_FEW_TOKENS = 8  # shorter texts are not judged: "A baker" may start anything


def unfamiliar(
    lm: LanguageModel | None, scores: Iterable[Score], most: float = FAMILIAR_LOSS
) -> str | None:
    """A warning if at least half of the questions are unlike the embedded model's training data.

    `most` is the threshold; `UNLIKELY_LOSS` allows for questions that have only bad answers.

    The embedded pair knows only 75 templates of school problems. On other texts it still
    confidently prefers one answer, but that means nothing. Returns None for other models, and if
    there are no scores log P(x|y).

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(direction="reverse")
    >>> unfamiliar(lm, []) is None  # not an embedded model
    True
    """
    if lm is None or not _is_embedded(lm):
        return None
    losses: dict[str, float] = {}
    for score in scores:
        if score.target == "x|y":
            loss = -score.logprob / max(1, score.num_tokens)
            losses[score.problem_id] = min(loss, losses.get(score.problem_id, loss))
    limit = f"of the question; at most {FAMILIAR_LOSS:.1f} on its kind of problem"
    return _warning([*losses.values()], most, limit, "its preference")


def unfamiliar_texts(
    lm: LanguageModel, texts: Sequence[str], what: str = "what it writes"
) -> str | None:
    """A warning if at least half of `texts` are unlike the embedded model's training data.

    The texts are beginnings of documents for a forward model, endings for a reverse model. Texts of
    a few tokens are not judged; of a text longer than the context, only the part that the model
    would continue is. Returns None for other models. The warning says that `what` means nothing.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> unfamiliar_texts(lm, ["Call me Ishmael."]) is None  # not an embedded model
    True
    """
    if not _is_embedded(lm):
        return None
    losses, room = [], lm.context - len(lm.bos_ids) - 1
    for text in texts:
        read = lm.prompt_ids(lm.shortened_prompt(text, room)[0], 1)
        ids, first = lm.direction.to_reading_order(read), len(lm.bos_ids)
        if len(ids) - first >= _FEW_TOKENS:
            span = lm.direction.span_to_model_order(first, len(ids), len(ids))
            losses.append(-float(lm.logprobs([TokenSpan(ids, *span)])[0].mean()))
    limit = "of this text; under 3 on its kind of problem"
    return _warning(losses, UNLIKELY_LOSS, limit, what)


def _is_embedded(lm: LanguageModel) -> bool:
    return lm.name == str(embedded_folder(lm.direction))


def _warning(losses: Sequence[float], most: float, per_token: str, what: str) -> str | None:
    if not losses or (loss := median(losses)) <= most:
        return None
    return (
        f"unlike anything that the embedded model was trained on (loss {loss:.1f} nats per token "
        f"{per_token}): {what} means nothing here; use a model of your own"
    )
