"""Detects whether a caller has changed a loaded model: weights, modules, hooks or settings.

Kernels compute with copies of weights, and files keep results under a model's name. Neither may be
used after the model has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import isroutine
from io import BytesIO
from threading import Lock
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from transformers import PretrainedConfig, PreTrainedModel

from ledom.model.native.library import library_for

__all__ = [
    "Changes",
    "config_settings",
    "does_more",
    "evaluating",
    "follows_length",
    "weights_state",
]

_PROCESS = uuid4().hex
_ENTERING = Lock()
_EVALUATING: WeakKeyDictionary[nn.Module, tuple[list[None], list[nn.Module]]] = WeakKeyDictionary()
"""For each model: an item per open `evaluating` block, and the modules to restore."""
_LIBRARIES = "torch.", "transformers.", "ledom."
_NO_SETTINGS = re.compile(
    "^(training|gradient_checkpointing|name_or_path|warnings_issued)$|max_seq_len_cached$"
)
"""Names of plain attributes that do not affect results."""
_NO_CONFIG = "output_attentions", "output_hidden_states", "return_dict", "use_cache"
"""Config keys that request other outputs or another way to compute the same ones."""
_PIECE = 2**24  # bytes hashed at a time on a GPU
_FACTOR = 0x9E3779B9


def weights_state(weights: Sequence[Tensor], copied: bool = True) -> object:
    """A value that differs from an earlier one if a weight has changed since.

    It holds the weights' addresses and torch's version counters. torch does not count changes made
    through `data` or to tensors created in inference mode. So if the weights are `copied`, it also
    holds hashes of their values, which takes about as long as reading them once.

    >>> weight = torch.ones(3, 5)
    >>> before = weights_state([weight])
    >>> weights_state([weight]) == before
    True
    >>> weight.data[1, 4] = 2
    >>> weights_state([weight]) == before
    False
    """
    dense = [part for weight in weights for part in _dense(weight)]
    known = [
        (w.data_ptr(), w.shape, w.stride(), 0 if w.is_inference() else w._version) for w in dense
    ]
    return (known, _hashes(dense)) if copied else known


def does_more(module: nn.Module) -> bool:
    """Whether calling the module does more than its class does, or something else.

    >>> module = nn.Linear(1, 1)
    >>> handle = module.register_forward_hook(print)
    >>> does_more(module), does_more(nn.Linear(1, 1))
    (True, False)
    """
    return bool(_additions(module))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this block, dropout is off, for a model that is being trained.

    >>> model = nn.Dropout(0.5)
    >>> with evaluating(model):
    ...     model(torch.ones(3))
    tensor([1., 1., 1.])
    >>> model.training
    True
    """
    with _ENTERING:
        inside, in_training = _EVALUATING.setdefault(model, ([], []))
        if not inside:
            in_training += [module for module in model.modules() if module.training]
            for module in in_training:
                module.training = False
        inside.append(None)
    try:
        yield
    finally:
        with _ENTERING:
            inside.pop()
            if not inside:  # the last of several blocks, including other threads' blocks
                while in_training:
                    in_training.pop().training = True


class Changes:
    """Notices changes to a model since creation, in about the time it takes to read it once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._first = self._now()
        self._latest: tuple[object, str] = self._first, ""

    def mark(self) -> str:
        """Empty for an unchanged model; otherwise the same in every process for equal changes.

        Hooks and replaced `forward` methods are the exception: no other process recognizes them.
        """
        now = self._now()
        if now == self._first:
            return ""
        if now != self._latest[0]:
            digest = hashlib.sha256(self._structure().encode())
            for numbers in self._numbers().values():
                digest.update(_bytes(numbers).cpu().numpy().data)
            self._latest = now, f"-changed-{digest.hexdigest()[:16]}"
        return self._latest[1]

    def _now(self) -> object:
        return self._structure(), _hashes(list(self._numbers().values()))

    def _numbers(self) -> dict[str, Tensor]:
        """The weights and buffers by name, except those that a pass changes."""
        found: dict[str, object] = self._model.state_dict()
        for name, buffer in self._model.named_buffers(remove_duplicate=False):
            # Some are not in state_dict, and a pass may merge two into one.
            owner = self._model.get_submodule(name.rpartition(".")[0])
            if "original" in name or not follows_length(owner):
                found[name] = buffer
        parts = {name: _dense(value) for name, value in found.items()}
        return {f"{name} {i}": part for name, some in parts.items() for i, part in enumerate(some)}

    def _structure(self) -> str:
        """The modules and their additions, the shapes of all tensors, and the config."""
        modules = [
            f"{name} {type(module).__qualname__} {_additions(module)} {_settings(module)}"
            for name, module in self._model.named_modules()
        ]
        shapes = [f"{name} {x.dtype} {list(x.shape)}" for name, x in self._numbers().items()]
        config = json.dumps(config_settings(self._model.config), sort_keys=True, default=repr)
        return "\n".join([*modules, *shapes, config])


def config_settings(config: PretrainedConfig) -> dict[str, Any]:
    """A config's keys and values, without those that do not affect results.

    >>> "use_cache" in config_settings(PretrainedConfig(use_cache=False))
    False
    """
    return {name: value for name, value in config.to_dict().items() if name not in _NO_CONFIG}


def follows_length(module: nn.Module) -> bool:
    """Whether a module's state depends on the longest text so far (LongRoPE, dynamic NTK)."""
    kinds = getattr(module, "rope_type", None)
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(
        isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module, such as an adapter's scale, and its functions."""
    found = {
        name: value if _is_plain(value) else _function(value)
        for name, value in vars(module).items()
        if _is_plain(value) or isroutine(value) or isinstance(value, partial)
    }
    if type(module).__module__.startswith(_LIBRARIES):
        found = {name: value for name, value in found.items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if not _NO_SETTINGS.search(name)}


def _function(function: Any) -> str:
    """A function's name; only those of known libraries are recognized in other processes."""
    if isinstance(function, partial) and _is_plain([*function.args, function.keywords]):
        return f"{_function(function.func)} {function.args} {function.keywords}"
    name = f"{function.__module__}.{getattr(function, '__qualname__', None)}"
    return name if name.startswith(_LIBRARIES) else f"{_PROCESS} {id(function)}"


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _additions(module: nn.Module) -> list[str]:
    """Additions to the module's class: hooks, another `forward`."""
    own = module._forward_hooks | module._forward_pre_hooks
    hooks = own | torch_modules._global_forward_hooks | torch_modules._global_forward_pre_hooks
    found = [
        str(number)  # specific to a process
        for number, hook in hooks.items()
        # the hook of gradient checkpointing does not change results
        if "make_inputs_require_grad" not in getattr(hook, "__qualname__", "")
    ]
    if (other := vars(module).get("forward")) is not None:
        found.append(str(id(other)))
    return [_PROCESS, *found] if found else []


def _dense(value: object) -> list[Tensor]:
    """The plain tensors of a state entry: a quantized weight, for example, has several."""
    if isinstance(value, Tensor) and type(value.data) is Tensor and not value.is_quantized:
        return [value]
    if hasattr(value, "__tensor_flatten__"):  # a weight of torchao
        names = value.__tensor_flatten__()[0]
        return [part for name in names for part in _dense(getattr(value, name))]
    torch.save(value, kept := BytesIO())
    return [torch.frombuffer(kept.getbuffer(), dtype=torch.uint8)]


def _hashes(weights: Sequence[Tensor]) -> list[int]:
    """Hashes of each weight's bytes; if one number changes, so does its weight's hash."""
    plain = [weight.detach().contiguous() for weight in weights]
    native = library_for()
    if native is None or not all(weight.is_cpu for weight in plain):
        return [_hash(_bytes(weight)) for weight in plain]
    addresses = np.array([weight.data_ptr() for weight in plain])
    sizes = np.array([weight.nbytes for weight in plain])
    hashes = np.empty(len(plain), np.uint32)
    pointers = (addresses.ctypes.data, sizes.ctypes.data, len(plain), hashes.ctypes.data)
    native.hash_arrays(*pointers, torch.get_num_threads())
    found: list[int] = hashes.tolist()
    return found


def _bytes(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().reshape(-1).view(torch.uint8)


def _hash(numbers: Tensor) -> int:
    """Hash bytes without kernels; on a GPU by sums, so that the bytes need not leave it."""
    if numbers.is_cpu:
        return zlib.crc32(numbers.numpy().data)
    total = 0
    for piece in numbers.split(_PIECE):
        factors = torch.arange(len(piece), device=piece.device) * _FACTOR
        factors = (factors ^ factors >> 29) * _FACTOR | 1  # an odd factor loses no bits
        total = hash((total, int((piece * factors).sum())))
    return total
