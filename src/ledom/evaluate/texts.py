"""The harness's requests for texts: their settings, and numbers that tell equal ones apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledom.core.errors import InputError, needs_extra
from ledom.core.reading import JsonObject
from ledom.lm.language_model import Sampling

with needs_extra("lm-eval", "eval", "evaluation"):
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["Draw", "numbered", "read_settings"]

_MAX_TOKENS = 256  # HFLM's default for tasks that set no limit
_KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "use_cache")
_NEUTRAL: JsonObject = {
    "min_p": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "no_repeat_ngram_size": 0,
}
"""Settings that ledom does not support, with the values that change nothing."""


@dataclass(frozen=True)
class Draw:
    """A request for a text, and its number among equal ones, which a task with `repeats` makes."""

    context: str
    settings: JsonObject
    number: int

    @property
    def identity(self) -> tuple[str, ...]:
        """All that the text depends on besides the model."""
        number = [str(self.number)] if self.number else []
        return (self.context, repr(self.settings), *number)


def numbered(requests: Sequence[Instance]) -> Iterator[Draw]:
    """The requests with their numbers.

    >>> from lm_eval.api.instance import Instance
    >>> ask = Instance("generate_until", {}, ("2 + 2?", {"until": []}), 0)
    >>> [draw.number for draw in numbered([ask, ask])]
    [0, 1]
    """
    seen = Counter[tuple[str, str]]()
    for instance in requests:
        context, settings = str(instance.args[0]), instance.args[1]
        yield Draw(context, settings, seen[context, repr(settings)])
        seen[context, repr(settings)] += 1


def read_settings(settings: JsonObject, at_patterns: bool) -> tuple[Sampling, list[str]]:
    """The sampling and the stop strings of the harness's generation settings.

    With `at_patterns`, the sampling stops at the stop strings. Raises `InputError` for a setting
    that ledom does not support.

    >>> sampling, until = read_settings({"until": ["Q:"], "max_gen_toks": 9}, at_patterns=True)
    >>> sampling.temperature, sampling.max_tokens, until
    (0, 9, ['Q:'])
    """
    settings = normalize_gen_kwargs(settings, _MAX_TOKENS)
    for key, value in settings.items():
        if key not in _KNOWN and (key not in _NEUTRAL or value != _NEUTRAL[key]):
            raise InputError(
                f"the task's generation_kwargs have {key}: {value!r}, which ledom does not "
                "support; remove it"
            )
    until = [term for term in handle_stop_sequences(settings["until"], None) if term]
    sampling = Sampling(
        temperature=settings.get("temperature", 1.0) if settings["do_sample"] else 0,
        top_k=settings.get("top_k", 0),
        top_p=settings.get("top_p", 1.0),
        max_tokens=settings["max_gen_toks"],
        stop_pattern="|".join(map(re.escape, until)) or None if at_patterns else None,
    )
    return sampling, until
