"""GGUF files (llama.cpp's format), read and dequantized by transformers with the package `gguf`.

The whole model is in memory at once, in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ledom.core.errors import CheckpointError, MissingExtraError
from ledom.core.reading import JsonObject
from ledom.model.checkpoint import quiet
from ledom.model.foreign.tensors import StoredTensor, from_torch

__all__ = ["GGUF", "read_gguf"]


@dataclass(frozen=True)
class GGUF:
    """The contents of a GGUF file."""

    config: JsonObject
    tensors: dict[str, StoredTensor]
    tokenizer: RustTokenizer
    eos_token: str | None


def read_gguf(file: Path) -> GGUF:
    """Read a GGUF file.

    Raises `CheckpointError` if transformers cannot read it, and `MissingExtraError` without the
    package `gguf`.
    """
    try:
        import gguf  # noqa: F401  (transformers needs it)
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    with file.open("rb") as contents:
        if contents.read(4) != b"GGUF":
            raise CheckpointError(f"{file}: not a GGUF file; it does not begin with GGUF")
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, trust_remote_code=False
            )
    except Exception as error:  # transformers raises many types for bad files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{file}: transformers cannot read it: {reason[:300]}") from None
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain numbers now
    tensors = {name: from_torch(value, file) for name, value in model.state_dict().items()}
    return GGUF(config, tensors, tokenizer.backend_tokenizer, tokenizer.eos_token)
