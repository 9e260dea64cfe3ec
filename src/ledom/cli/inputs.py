"""Reads what a command's arguments and options name: texts, problems and models."""

from __future__ import annotations

import os
import sys
from codecs import BOM_UTF8
from typing import TYPE_CHECKING

import typer

from ledom.cli.options import refuse_unused
from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.data.problems import GENERATOR, load_problems

if TYPE_CHECKING:
    from ledom.lm.language_model import LanguageModel


def is_jsonl(argument: str, name: str) -> bool:
    """Whether an argument names a JSONL file; any other argument is itself the text called `name`.

    Raises `InputError` if it names another existing file or folder, which is hardly meant as text.

    >>> is_jsonl("queries.jsonl", "query"), is_jsonl("2 + 2?", "query")
    (True, False)
    """
    if argument.lower().endswith(".jsonl"):
        return True
    _refuse_file(argument, name, "; a file of records must be named .jsonl")
    return False


def read_text(argument: str, name: str) -> str:
    """The text of an argument, or of standard input for `-`; raises `InputError` for the name of a
    file or folder, and if it is not UTF-8.

    >>> read_text("4 €", "query")
    '4 €'
    """
    if argument != "-":
        _refuse_file(argument, name)
        return _decode(os.fsencode(argument), name)
    if sys.stdin is None:
        raise InputError("- means standard input, but standard input is closed; give the text")
    data = sys.stdin.buffer.read().removeprefix(BOM_UTF8)  # which Windows puts before a text
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # as `open` does
    return _decode(data, f"{name} on standard input")


def read_words(argument: str, name: str) -> str:
    """`read_text` for a text that needs words; raises `InputError` for white space alone.

    >>> read_words(" ", "query")
    Traceback (most recent call last):
    ledom.core.errors.InputError: the query is empty; give a text
    """
    text = read_text(argument, name)
    if not text.strip():
        raise InputError(f"the {name} is empty; give a text")
    return text


def _refuse_file(argument: str, name: str, also: str = "") -> None:
    if os.path.isdir(argument):
        raise InputError(
            f"this is a folder, but a text is needed; if this word is the {name}, give - and the "
            "word as standard input",
            path=argument,
        )
    if os.path.exists(argument):  # also a pipe, as of <(COMMAND)
        raise InputError(
            f"this is a file, but a text is needed; to use its contents as the {name}, give - and "
            f"the file as standard input (< FILE){also}",
            path=argument,
        )


def _decode(data: bytes, name: str) -> str:
    """Decode UTF-8, regardless of the locale."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the {name} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it first, for example with iconv -t UTF-8"
        ) from None


def choose_problems(
    context: typer.Context,
    source: str,
    count: int | None,
    draws: bool,
    split: str,
    seed: int,
    held_out: bool = False,
    option: str = "--num-problems",
) -> list[Problem]:
    """The problems that the options ask for; `draws` says whether the command uses random samples.
    Raises `InputError` if there are fewer than `count`, or if an option has no effect."""
    given = source != GENERATOR
    reason = f"the problems come from {source}, and"
    refuse_unused(
        context,
        (given, f"{reason} only {GENERATOR} has splits", ["split", "held_out"]),
        (given and not draws, f"{reason} nothing is drawn at random", ["seed"]),
    )
    problems = load_problems(source, count, split, seed, held_out)
    check_count(count, len(problems), source, option)
    return problems


def check_count(count: int | None, found: int, source: str, option: str) -> None:
    """Raise `InputError` if `source` has fewer items than the option asks for.

    >>> check_count(5, 3, "mine.jsonl", "--num-problems")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: --num-problems is 5, but mine.jsonl has 3; leave it out to ...
    """
    if count is not None and found < count:
        raise InputError(
            f"{option} is {count}, but {source} has {found}; leave it out to take all of them"
        )


def models_or_none(
    forward: str, reverse: str, device: str | None, dtype: str
) -> tuple[LanguageModel | None, LanguageModel | None]:
    """The forward and the reverse model; None for one whose name is `none`."""
    return (
        None if forward == "none" else load_model(forward, "forward", device, dtype),
        None if reverse == "none" else load_model(reverse, "reverse", device, dtype),
    )


def load_model(name: str, direction: str | None, device: str | None, dtype: str) -> LanguageModel:
    """The model of a direction, or of the one that it records, for a command that needs one.

    >>> load_model("none", "reverse", None, "auto")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: this command needs a reverse model; give a model folder, or ...
    """
    from ledom.lm import load

    if name == "none":
        raise InputError(f"this command needs a {direction} model; give a model folder, or tiny")
    return load(name, direction, device=device, dtype=dtype)
