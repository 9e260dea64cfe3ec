"""Opens every backend on one tiny model; servers and vLLM are mocks (tests/stand_ins.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import ledom
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import LanguageModel
from ledom.text.tokenizer import Tokenizer
from stand_ins import CompletionsServer, PlainModel, vllm_module


@dataclass
class Parts:
    """What a backend may be opened from."""

    direction: ledom.Direction
    folder: Path
    plain: PlainModel
    """The model in the folder, run by transformers."""
    tokenizer: Tokenizer


@contextmanager
def _hf(parts: Parts) -> Iterator[LanguageModel]:
    yield ledom.load(parts.folder, device="cpu")


@contextmanager
def _fake(parts: Parts) -> Iterator[LanguageModel]:
    answers = [f"{i} + 1\n#### {i}" for i in range(256)]
    yield FakeLanguageModel(parts.tokenizer, parts.direction, answers)


@contextmanager
def _openai(parts: Parts) -> Iterator[LanguageModel]:
    with closing(CompletionsServer(parts.plain.complete)) as server:
        yield ledom.load(f"openai:m,tokenizer={parts.folder}", base_url=server.url)


@contextmanager
def _vllm(parts: Parts) -> Iterator[LanguageModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", vllm_module())
        yield ledom.load(f"vllm:{parts.folder}")


BACKENDS: dict[str, Callable[[Parts], AbstractContextManager[LanguageModel]]] = {
    "hf": _hf,
    "fake": _fake,
    "openai": _openai,
    "vllm": _vllm,
}
