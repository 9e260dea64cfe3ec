"""Weights in files: tensors that are not each in one place, and dtypes that are not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ledom.core.errors import CheckpointError
from ledom.model.foreign.tensors import read_folder


def save(file: Path, *names: str, dtype: torch.dtype = torch.float32) -> None:
    save_file({name: torch.ones(2).to(dtype) for name in names}, file)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", "w")
    message = r"/b\.safetensors: the tensor 'w' is in a\.safetensors too$"
    with pytest.raises(CheckpointError, match=message):
        read_folder(tmp_path)


def test_a_tensor_that_is_not_where_the_index_says_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", "w")
    save(tmp_path / "b.safetensors", "v")
    index = tmp_path / "model.safetensors.index.json"
    message = r"/b\.safetensors: has no tensor 'w', which model\.safetensors\.index\.json places th"
    for places in ({"w": "b", "v": "b"}, {"w": "b", "v": "a"}):
        files = {name: f"{stem}.safetensors" for name, stem in places.items()}
        index.write_text(json.dumps({"weight_map": files}))
        with pytest.raises(CheckpointError, match=message):
            read_folder(tmp_path)


def test_dtypes_that_are_not_read_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"\.bin: a tensor is stored as torch\.complex64"):
        read_folder(tmp_path)
    save(tmp_path / "model.safetensors", "w", dtype=torch.float8_e4m3fn)
    message = r"/model\.safetensors: 'w' is stored as F8_E4M3; give weights in one of F64, F32, F16"
    with pytest.raises(CheckpointError, match=message):
        read_folder(tmp_path)
