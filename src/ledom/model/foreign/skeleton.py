"""A model without weights in memory: the tensors that it needs, and passes that stream them.

Parameters are on the meta device, which takes no memory. `streamed` loads each module's weights
when the module is called and drops them afterwards, so a model of any size runs in the memory of
its largest module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ledom.core.errors import CheckpointError
from ledom.model.architectures import COMPUTED_BUFFERS
from ledom.model.foreign.tensors import StoredTensor

__all__ = ["build_skeleton", "differing_ties", "fit_tensors", "streamed"]

_OTHER_NAMES = {"embed_out.weight": "lm_head.weight"}
"""Names in files, and transformers' names for the same tensors (GPT-NeoX)."""


def build_skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A model from a config: parameters on the meta device, buffers in memory."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", on_meta):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    model.eval()
    return model


def _wanted_name(name: str, expected: Mapping[str, Any], prefix: str) -> str:
    """The model's name for a stored tensor; a name that the model lacks if there is none."""
    name = name.removeprefix("_orig_mod.").removeprefix("module.")
    if name not in expected and f"{prefix}.{name}" in expected:
        return f"{prefix}.{name}"
    return name


def _parameter(wanted: str, expected: Mapping[str, Any]) -> str:
    """transformers' name for a `_wanted_name`; files may use another."""
    return wanted if wanted in expected else _OTHER_NAMES.get(wanted, wanted)


def differing_ties(tensors: Mapping[str, StoredTensor], model: PreTrainedModel) -> list[str]:
    """Names of weights that a model ties to others, although the files hold different ones.

    A config may claim that the head is the embedding, of a model trained with two: transformers
    then takes both from the files.
    """
    expected = model.state_dict()
    stored = {}
    for name, tensor in tensors.items():
        wanted = _wanted_name(name, expected, model.base_model_prefix)
        stored[_parameter(wanted, expected)] = tensor
    first: dict[int, str] = {}
    differing = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        both = stored.get(name), stored.get(other)
        if name != other and both[0] and both[1] and not both[0].equals(both[1]):
            differing.append(name)
    return differing


def fit_tensors(
    tensors: Mapping[str, StoredTensor], model: PreTrainedModel, rows: int | None = None
) -> dict[str, StoredTensor]:
    """The tensors that a model needs, under the names that its files use.

    With `rows`, the vocabulary's size, a padded embedding or head is cut to that many rows. Raises
    `CheckpointError` for tensors that are missing, unknown or of the wrong shape.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    needed = {name for name, _ in model.named_parameters()}  # tied weights once
    fitted: dict[str, StoredTensor] = {}
    found = set()
    for stored, tensor in tensors.items():
        name = _wanted_name(stored, expected, model.base_model_prefix)
        own = _parameter(name, expected)
        if own not in expected:
            if COMPUTED_BUFFERS.search(stored):
                continue
            raise CheckpointError(
                f"{tensor.file}: the tensor {stored!r} is not part of a {model.config.model_type} "
                "model as ledom knows it"
            )
        if rows is not None and tensor.shape[1:] == expected[own][1:] and expected[own][0] == rows:
            tensor = _without_padding(stored, tensor, rows)
        if tensor.shape != expected[own]:
            raise CheckpointError(
                f"{tensor.file}: the tensor {stored!r} has the shape {[*tensor.shape]}, "
                f"config.json needs {[*expected[own]]}"
            )
        found.add(own)
        if own in needed:
            fitted[name] = tensor
    missing = sorted(needed - found)
    if missing:
        raise CheckpointError(
            f"the weights lack {len(missing)} tensors, the first {missing[0]!r}; the files are "
            "incomplete or belong to another config.json"
        )
    return fitted


def _without_padding(name: str, tensor: StoredTensor, rows: int) -> StoredTensor:
    padded = -(-rows // 64) * 64
    if tensor.shape[0] not in (rows, padded):
        raise CheckpointError(
            f"{tensor.file}: the tensor {name!r} has {tensor.shape[0]} rows, expected the "
            f"vocabulary's {rows}, or {padded} with padding"
        )
    return tensor.first_rows(rows)


@contextmanager
def streamed(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Within this block a skeleton computes in fp32, with weights read from a folder as needed."""
    places = _places(folder, model)
    first = {id(value): name for name, value in model.named_parameters()}
    hooks = []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        files = {name: places[first[id(value)]] for name, value in own.items()}
        hooks.append(module.register_forward_pre_hook(_load(files), prepend=True))
        hooks.append(module.register_forward_hook(_unload(own)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _places(folder: Path, model: PreTrainedModel) -> dict[str, tuple[Path, str]]:
    """For each tensor, by the model's name for it: its file, and its name in the file."""
    expected = model.state_dict()
    places = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                own = _parameter(name, expected)
                places[own] = file, name
    return places


def _load(files: dict[str, tuple[Path, str]]) -> Any:
    def hook(module: nn.Module, arguments: Any) -> None:
        for name, (file, stored) in files.items():
            with safe_open(file, framework="pt") as tensors:
                value = tensors.get_tensor(stored).to(torch.float32, copy=True)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)

    return hook


def _unload(parameters: dict[str, nn.Parameter]) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        module._parameters.update(parameters)

    return hook
