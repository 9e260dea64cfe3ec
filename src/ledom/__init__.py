"""ledom: reverse language models - train them, generate with them, use them as a reward."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use: importing torch and transformers takes seconds that `--help` need not.
_HOMES = {
    "Candidate": "ledom.records",
    "Direction": "ledom.direction",
    "Document": "ledom.records",
    "Generation": "ledom.lm.base",
    "LanguageModel": "ledom.lm.base",
    "LedomError": "ledom.errors",
    "PairFormat": "ledom.pairs",
    "Problem": "ledom.records",
    "Sampling": "ledom.lm.base",
    "Score": "ledom.records",
    "Target": "ledom.lm.base",
    "equal_answers": "ledom.evaluate.equality",
    "extract_answer": "ledom.evaluate.answers",
    "load": "ledom.lm",
    "read_records": "ledom.records",
    "write_records": "ledom.records",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ledom' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
