"""Language models behind two methods; `load` is the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ledom.direction import Direction
from ledom.lm.base import LanguageModel

__all__ = ["EMBEDDED", "LanguageModel", "load"]

EMBEDDED = "tiny"
"""The name of the pair that comes with the package."""

_SERVER_PREFIX = "openai:"


def load(
    path: str | Path = EMBEDDED, direction: Direction | str | None = None, **options: Any
) -> LanguageModel:
    """Load a model from a folder, or `tiny` for the embedded one of the given direction.

    `openai:NAME` is the model NAME behind a server of OpenAI's completions protocol, with the
    options of `OpenAILanguageModel`: `tokenizer` (needed), `base_url`, `api_key` and others.

    `direction` may be left out where the checkpoint records it; a checkpoint made elsewhere needs
    it. Options (see `HFLanguageModel`): `device`, `dtype`, `eos_token`, `tokens_per_batch`, `rows`.
    Raises `CheckpointError` and `DirectionError`.

        >>> import ledom
        >>> reverse = ledom.load("tiny", direction="reverse")
    """
    if str(path).startswith(_SERVER_PREFIX):
        from ledom.lm.openai import OpenAILanguageModel

        return OpenAILanguageModel(str(path).removeprefix(_SERVER_PREFIX), direction, **options)
    from ledom.lm.hf import HFLanguageModel

    if str(path) == EMBEDDED:  # a folder of that name is ./tiny
        path = embedded_folder(direction)
    return HFLanguageModel(path, direction, **options)


def embedded_folder(direction: Direction | str | None) -> Path:
    """Where the embedded model of a direction lies."""
    from ledom.errors import DirectionError

    if direction is None:
        raise DirectionError(
            "the embedded pair has two models: say direction='forward' or 'reverse'"
        )
    return Path(__file__).parents[1] / "assets" / str(Direction(direction))
