"""Texts that are given on the command line: as arguments, on standard input, or in files."""

from __future__ import annotations

import os
import sys

from ledom.core.errors import InputError

__all__ = ["argument_text", "is_jsonl", "read_text"]


def is_jsonl(argument: str, name: str) -> bool:
    """Whether an argument names a JSONL file; anything else is itself the text called `name`.

    Raises `InputError` for another file that is there: its name was surely not meant as the text.

    >>> is_jsonl("queries.jsonl", "query"), is_jsonl("2 + 2?", "query")
    (True, False)
    """
    if argument.lower().endswith(".jsonl"):
        return True
    _refuse_file(argument, name, "; a file of records must be named .jsonl")
    return False


def read_text(argument: str, name: str) -> str:
    """The text of an argument, or of standard input for `-`; see `argument_text`."""
    if argument == "-":
        return _decode(_read_input(), f"{name} on standard input")
    return argument_text(argument, name)


def argument_text(argument: str, name: str) -> str:
    """An argument as text; raises `InputError` for the name of a file, and if it is not UTF-8.

    >>> argument_text("4 €", "query")
    '4 €'
    """
    _refuse_file(argument, name)
    return _decode(os.fsencode(argument), name)


def _refuse_file(argument: str, name: str, also: str = "") -> None:
    if os.path.isfile(argument):
        raise InputError(
            f"this is a file, but a text is needed; to use its contents as the {name}, give - and "
            f"the file as standard input (< FILE){also}",
            path=argument,
        )


def _decode(data: bytes, name: str) -> str:
    """Decode UTF-8, whatever the locale."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the {name} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it first, for example with iconv -t UTF-8"
        ) from None


def _read_input() -> bytes:
    """Standard input, with line ends normalized as `open` does."""
    if sys.stdin is None:
        raise InputError("- means standard input, but standard input is closed; give the text")
    data = sys.stdin.buffer.read()
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
