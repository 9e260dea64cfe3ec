"""Language models behind one interface of two methods; `load` opens one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError
from ledom.lm.language_model import LanguageModel
from ledom.model.foreign.aliases import what_to_run
from ledom.model.foreign.hub import snapshot

__all__ = ["EMBEDDED", "LanguageModel", "load"]

EMBEDDED = "tiny"
"""The name of the pair that comes with the package."""

_BACKENDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "": ("ledom.lm.backends.local", "HFLanguageModel", ("device", "dtype")),
    "vllm": ("ledom.lm.backends.vllm", "VLLMLanguageModel", ("dtype",)),
    "openai": ("ledom.lm.backends.openai", "OpenAILanguageModel", ()),
}
"""By the prefix of a model's name: the backend's module, imported only for it, its class, and which
options of `load` it takes."""


def load(
    model: str | Path = EMBEDDED,
    direction: Direction | str | None = None,
    *,
    device: str | None = None,
    dtype: Any = "auto",
    **options: Any,
) -> LanguageModel:
    """Load a model.

    `FOLDER` runs it in this process (`HFLanguageModel`), `tiny` is the embedded one of the given
    direction; `vllm:FOLDER` runs it by vLLM (`VLLMLanguageModel`); `openai:NAME` is the model NAME
    behind a server of OpenAI's completions protocol (`OpenAILanguageModel`). Options of these
    classes are given here, or as text after the name: `openai:NAME,base_url=...,tokenizer=FOLDER`.

    `direction` may be left out where the checkpoint records it; a checkpoint made elsewhere needs
    it. `device` (cpu, cuda, cuda:1 ...) and `dtype` (auto, float32, bfloat16, float16, int8; see
    `lm.precision`) are for models that run here: vLLM chooses its devices, a server both. Raises
    `CheckpointError`, `DirectionError`, and `InputError` for an unknown option.

        >>> import ledom
        >>> reverse = ledom.load("tiny", direction="reverse")
    """
    prefix, name, written = _split(str(model))
    module, class_name, taken = _BACKENDS[prefix]
    backend = getattr(import_module(module), class_name)
    defaults = {"device": device, "dtype": dtype}
    options = {key: defaults[key] for key in taken} | options
    if written:
        from ledom.lm.options import read_options

        options |= read_options(backend, written, str(model))
    if name == EMBEDDED and not prefix:  # a folder of that name is ./tiny
        name = str(embedded_folder(direction))
    if not prefix and not Path(name).is_dir() and (remedy := what_to_run(name)):
        raise CheckpointError(
            f"{name}: no such model folder; to import a published checkpoint or a foreign file, "
            f"run: {remedy}"
        )
    if not prefix:
        name = str(snapshot(Path(name)))
    return backend(name, direction, **options)  # type: ignore[no-any-return]


def _split(model: str) -> tuple[str, str, list[str]]:
    """`openai:NAME,key=value` as prefix, name and options; a folder may be called anything."""
    if Path(model).is_dir():
        return "", model, []
    prefix, colon, rest = model.partition(":")
    if not prefix or not colon or prefix not in _BACKENDS:
        prefix, rest = "", model
    name, *options = rest.split(",")
    return prefix, name, options


def backend_of(model: str) -> str:
    """Which backend runs a model of this name: vllm, openai, or the empty text for our own.

    >>> backend_of("vllm:FOLDER"), backend_of("FOLDER")
    ('vllm', '')
    """
    return _split(model)[0]


def embedded_folder(direction: Direction | str | None) -> Path:
    """Where the embedded model of a direction lies.

    >>> embedded_folder("reverse").name
    'reverse'
    """
    from ledom.core.errors import DirectionError

    if direction is None:
        raise DirectionError(
            "the embedded pair has two models: say direction='forward' or 'reverse'"
        )
    return Path(__file__).parent / "embedded" / str(Direction(direction))
