"""Reads options written as `key=value`, in a name or on the command line; checks secrets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ledom.core.errors import InputError

__all__ = ["check_secret", "key_values"]


def key_values(written: Iterable[str], where: str, known: Collection[str] = ()) -> dict[str, str]:
    """Options by key. `where` names their place in errors; `known` are the keys, if limited.

    Raises `InputError` for a text of another form, an unknown key and a key that is given twice.

    >>> key_values(["split=test", "config="], "hub:NAME")
    {'split': 'test', 'config': ''}
    """
    found: dict[str, str] = {}
    for text in written:
        key, equals, value = text.partition("=")
        if not equals or not key or (known and key not in known):
            keys = f", with one of {', '.join(sorted(known))}" if known else ""
            raise InputError(f"{where}: {text!r:.60} is not an option; write key=value{keys}")
        if key in found:
            raise InputError(f"{where}: {key} is given twice; leave one out")
        found[key] = value
    return found


def check_secret(what: str, secret: str) -> None:
    """Raise `InputError` for a secret that no client can send as a bearer token.

    >>> check_secret("the token in LEDOM_TOKEN", "abc\\n")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: the token in LEDOM_TOKEN is empty or has spaces, line ends or ...
    """
    if not re.fullmatch(r"[!-~]+", secret):
        raise InputError(
            f"{what} is empty or has spaces, line ends or characters beyond ASCII, which no header "
            "can hold; give another, or unset it"
        )
