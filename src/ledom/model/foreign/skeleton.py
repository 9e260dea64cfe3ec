"""A model without weights in memory: the tensors that it needs, and passes that stream them.

Parameters are on the meta device, which takes no memory. `streamed` loads the weights of a layer
when the layer is called and drops them afterwards, so a model of any size runs in the memory of its
largest layer.
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
from ledom.model.architectures import COMPUTED_BUFFERS, decoder_layers
from ledom.model.foreign.tensors import StoredTensor

__all__ = ["build_skeleton", "differing_ties", "fit_tensors", "read_whole", "streamed"]

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


def read_whole(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """The model with all of its weights in memory, in fp32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
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

    A config may claim that the head is the embedding although the model was trained with two.
    transformers then takes both from the files.
    """
    owners = _owners(model)
    stored = {}
    for name, tensor in tensors.items():
        stored[_parameter(_wanted_name(name, owners, model.base_model_prefix), owners)] = tensor
    tied = {name: owner for name, owner in owners.items() if name != owner}
    return [
        name
        for name, owner in tied.items()
        if name in stored and owner in stored and not stored[name].equals(stored[owner])
    ]


def _owners(model: PreTrainedModel) -> dict[str, str]:
    """For each weight and stored buffer, its own name or the name of the one that it is tied to.

    A file may hold a tied weight under either name.
    """
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    owners = {name: name for name in model.state_dict()}
    for same in names.values():
        owner = next((name for name in same if name not in ties), same[0])
        owners |= dict.fromkeys(same, owner)
    return owners


def fit_tensors(
    tensors: Mapping[str, StoredTensor], model: PreTrainedModel, rows: int | None, source: str
) -> dict[str, StoredTensor]:
    """The tensors of `source` that a model needs, under the files' names; tied ones once.

    With `rows` (the vocabulary size), a padded embedding or head is cut to that many rows. Raises
    `CheckpointError` for tensors that are missing, unknown or of the wrong shape.
    """
    weights = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in weights.items()}
    owners = _owners(model)
    fitted: dict[str, tuple[str, StoredTensor]] = {}  # by owner
    for stored, tensor in tensors.items():
        name = _wanted_name(stored, expected, model.base_model_prefix)
        own = _parameter(name, expected)
        if own not in expected:
            if COMPUTED_BUFFERS.search(stored):
                continue
            # transformers renames the tensors of some architectures while reading them
            is_safe = tensor.file.suffix == ".safetensors"
            how = "use it as it is" if is_safe else "save it with transformers and use the result"
            raise CheckpointError(
                f"{tensor.file}: the tensor {stored!r} is not part of a {model.config.model_type} "
                f"model as ledom knows it; if transformers can read the folder, {how}, without "
                "importing it"
            )
        if rows is not None and tensor.shape[1:] == expected[own][1:] and expected[own][0] == rows:
            tensor = _without_padding(stored, tensor, rows)
        if tensor.shape != expected[own]:
            raise CheckpointError(
                f"{tensor.file}: the tensor {stored!r} has the shape {[*tensor.shape]}, "
                f"config.json needs {[*expected[own]]}"
            )
        if weights[own].is_floating_point() and not tensor.is_float:
            raise CheckpointError(
                f"{tensor.file}: the tensor {stored!r} is stored as {tensor.dtype}, like quantized "
                "weights; give plain ones, or a GGUF file"
            )
        owner = owners[own]
        if own == owner or owner not in fitted:
            fitted[owner] = name, tensor
    missing = sorted({*owners.values()}.difference(fitted))
    if missing:
        raise CheckpointError(
            f"{source}: the weights lack {len(missing)} tensors, the first {missing[0]!r}; the "
            "files are incomplete or belong to another config.json"
        )
    return dict(fitted.values())


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
    """Within this block, a skeleton computes in fp32; weights are read from a folder as needed.

    Raises `RuntimeError` if some parts were never called: if another part reads their weights
    instead, PyTorch may silently compute with whatever was in memory.
    """
    owners = _owners(model)
    places = _places(folder, owners)
    for name, buffer in model.named_buffers():
        if name in places:
            buffer.copy_(_read(*places[name]))
    hooks = []
    waiting = set()
    for part, weights in _parts(model):
        slots = [(*weight, places[owners[name]]) for name, weight in weights.items()]
        waiting.add(part)
        load, unload = _hooks(slots, waiting)
        hooks.append(part.register_forward_pre_hook(load, prepend=True))
        hooks.append(part.register_forward_hook(unload))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if waiting:
        raise RuntimeError(f"{len(waiting)} parts were not called")


def _parts(model: PreTrainedModel) -> Iterator[tuple[nn.Module, dict[str, tuple[nn.Module, str]]]]:
    """The parts of a model that are in memory one at a time, each with its weights by name, as
    (module, attribute).

    A layer is one part, because its modules may read each other's weights. Every other module that
    has weights of its own is also a part.
    """
    names = {module: name for name, module in model.named_modules()}
    layers = decoder_layers(model)
    inside = {module for layer in layers for module in layer.modules()}
    for part in [*layers, *(module for module in names if module not in inside)]:
        weights = {
            f"{names[module]}.{attribute}".removeprefix("."): (module, attribute)
            for module in (part.modules() if part in inside else [part])
            for attribute, _ in module.named_parameters(recurse=False)
        }
        if weights:
            yield part, weights


def _places(folder: Path, owners: Mapping[str, str]) -> dict[str, tuple[Path, str]]:
    """Map each tensor, by its owner's name, to its file and its name in the file."""
    places = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                places[owners[_parameter(name, owners)]] = file, name
    return places


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as tensors:
        value: torch.Tensor = tensors.get_tensor(name)
        return value.to(torch.float32, copy=True)


def _hooks(
    slots: list[tuple[nn.Module, str, tuple[Path, str]]], waiting: set[nn.Module]
) -> tuple[Any, Any]:
    """Hooks that load a part's weights, given as (module, attribute, place), and drop them."""
    empty = [module._parameters[attribute] for module, attribute, _ in slots]

    def load(part: nn.Module, arguments: Any) -> None:
        waiting.discard(part)
        for module, attribute, place in slots:
            module._parameters[attribute] = nn.Parameter(_read(*place), requires_grad=False)

    def unload(part: nn.Module, arguments: Any, output: Any) -> None:
        for (module, attribute, _), parameter in zip(slots, empty, strict=True):
            module._parameters[attribute] = parameter

    return load, unload
