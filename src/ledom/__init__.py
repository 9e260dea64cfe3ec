"""ledom: reverse language models - train them, generate with them, use them as a reward."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use: importing torch and transformers takes seconds that `--help` need not.
_HOMES = {
    "Candidate": "ledom.core.records",
    "Direction": "ledom.core.direction",
    "Document": "ledom.core.records",
    "Generation": "ledom.lm.language_model",
    "LanguageModel": "ledom.lm.language_model",
    "LedomError": "ledom.core.errors",
    "PairFormat": "ledom.text.pair_format",
    "Problem": "ledom.core.records",
    "Sampling": "ledom.lm.language_model",
    "Score": "ledom.core.records",
    "TokenSpan": "ledom.lm.language_model",
    "equal_answers": "ledom.text.answers",
    "extract_answer": "ledom.text.answers",
    "load": "ledom.lm",
    "read_records": "ledom.core.records",
    "write_records": "ledom.core.records",
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
