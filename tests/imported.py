"""An imported GGUF file, compared with the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ledom.model.foreign.importer import ImportOptions, import_model


def assert_logits_are_kept(file: Path, model: Any, num_tokens: int) -> None:
    options = ImportOptions("forward", check=False)
    made = import_model(str(file), file.parent / "out", options)
    ours = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 3 + num_tokens)[None]
    torch.testing.assert_close(ours(ids).logits, model(ids).logits, atol=1e-3, rtol=0)
