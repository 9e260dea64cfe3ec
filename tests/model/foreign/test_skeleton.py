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


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("safetensors", "use it as it is"), ("bin", "save it with transformers and use the result")],
)
def test_the_error_for_a_renamed_tensor_says_what_to_do(
    foreign: Path, tmp_path: Path, kind: str, remedy: str
) -> None:
    file = foreign / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.experts.0.w1.weight"] = weights.pop("model.norm.weight")
    if kind == "bin":
        file.unlink()
        torch.save(weights, foreign / "pytorch_model.bin")
    else:
        save_file(weights, file)
    with pytest.raises(CheckpointError, match=f"w1.weight' is not part of a llama .*, {remedy}, "):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse", check=False))
