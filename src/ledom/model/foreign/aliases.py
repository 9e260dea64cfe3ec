"""Short names of published reverse checkpoints; this module imports nothing heavy."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ledom.core.direction import Direction

__all__ = ["ALIASES", "is_hub_name", "what_to_run"]


@dataclass(frozen=True)
class Published:
    """A checkpoint on the hub."""

    repo: str
    direction: Direction
    added_tokens: tuple[str, ...] = ()
    """Tokens that its tokenizer class adds after those of tokenizer.model, and that no file in the
    repository lists."""


ALIASES = {
    "ledom-7b": Published(
        "Corning/Reverse-Model-7B-348B",
        Direction.REVERSE,
        ("<|CLS|>", "<|SEP|>", "<|EOD|>", "<|MASK|>", "<|PAD|>"),
    ),
    "ledom-2b": Published("Corning/LEDOM-2B", Direction.REVERSE),
    "reverse-pythia": Published("afterless/reverse-pythia-160m", Direction.REVERSE),
    "2tpg": Published("drwahl/2tpg", Direction.REVERSE),
}
"""Published checkpoints, by the name that `ledom import` takes."""


def is_hub_name(name: str) -> bool:
    """Whether a name has the form USER/NAME.

    >>> is_hub_name("Corning/LEDOM-2B"), is_hub_name("./folder")
    (True, False)
    """
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def what_to_run(model: str) -> str | None:
    """The command that imports a model which `ledom.load` cannot read; None for any other name.

    >>> what_to_run("ledom-2b")
    'ledom import ledom-2b --out ledom-2b'
    """
    path = Path(model)
    folder: str | None = None
    if model in ALIASES:
        folder = model
    elif path.suffix == ".gguf" or os.path.isdir(path):
        folder = f"{path.stem}-imported"
    elif is_hub_name(model) and not os.path.exists(path.parent):
        folder = path.name
    return folder and f"ledom import {model} --out {folder}"
