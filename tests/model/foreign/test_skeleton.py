"""Which stored tensors fit a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ledom.core.errors import CheckpointError
from ledom.model.foreign.importer import ImportOptions, import_model


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_quantized_weights_without_their_settings_are_refused(
    foreign: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    file, name = foreign / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    weights = load_file(file)
    weights[name] = weights[name].to(dtype)
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=rf"{name}' is stored as [IU]\d+, like quantized .*;"):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse", check=False))
    assert not (tmp_path / "out").exists()
