"""Parses the options after a model's name, `key=value`, and checks them against the backend."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ledom.core.errors import InputError
from ledom.core.reading import JsonObject
from ledom.core.strict_yaml import parse_yaml
from ledom.lm.language_model import LanguageModel

__all__ = ["read_options"]

_ELSEWHERE = {
    "direction": "the command has its own option for it",
    "api_key": "it is read from the environment variable OPENAI_API_KEY, so that no log keeps it",
}


def read_options(backend: type[LanguageModel], written: Sequence[str], model: str) -> JsonObject:
    """Parse `key=value` strings into keyword arguments of the backend's class.

    Raises `InputError` for an unknown option, or a value of the wrong type.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> read_options(FakeLanguageModel, ["context=64"], "fake")
    {'context': 64}
    """
    parameters = list(signature(backend).parameters.values())[1:]
    takes_more = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD} - {*_ELSEWHERE}
    hints = get_type_hints(backend.__init__)
    options: JsonObject = {}
    for text in written:
        key, equals, value = text.partition("=")
        if key in _ELSEWHERE:
            raise InputError(f"{model!r}: {key} cannot be given here; {_ELSEWHERE[key]}")
        if not equals or not (key in known or takes_more):
            raise InputError(
                f"{model!r}: {text!r} is not an option; write key=value, with one of "
                f"{', '.join(sorted(known))}"
            )
        try:
            # Options passed on to another package have no type hints here; YAML's types will do.
            hint, value = (hints[key], value) if key in known else (Any, parse_yaml(value)[0])
            config = ConfigDict(arbitrary_types_allowed=True)
            options[key] = TypeAdapter(hint, config=config).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{model!r}: {text}: {error.errors()[0]['msg']}") from None
        except InputError as error:
            raise InputError(f"{model!r}: {text}: {error}") from None
    return options
