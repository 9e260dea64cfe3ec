"""Detects whether a caller has changed a loaded model: weights, modules, hooks or settings.

Kernels compute with copies of weights, and files keep results under a model's name. Neither may be
used after the model has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
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
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from ledom.core.errors import CheckpointError
from ledom.model.native.library import library_for

__all__ = [
    "Changes",
    "does_more",
    "evaluating",
    "follows_length",
    "is_extended",
    "modules_state",
    "weights_state",
]

_PROCESS = uuid4().hex
_ENTERING = Lock()
_EVALUATING: WeakKeyDictionary[nn.Module, tuple[list[None], list[nn.Module]]] = WeakKeyDictionary()
"""For each model: an item per open `evaluating` block, and the modules to restore."""
_LIBRARIES = "torch.", "transformers.", "accelerate.", "ledom."
_NO_EFFECT = "make_inputs_require_grad", "output_capturing_hook"
"""Names of transformers' hooks that do not affect results."""
_NO_SETTINGS = re.compile(
    "^(training|gradient_checkpointing|name_or_path|warnings_issued)$|max_seq_len_cached$"
)
"""Names of plain attributes that do not affect results."""
_NO_CONFIG = "output_attentions", "output_hidden_states", "return_dict", "use_cache"
"""Config keys that request other outputs or another way to compute the same ones."""
_PIECE = 2**24  # bytes hashed at a time on a GPU
_FACTOR = 0x9E3779B9


def weights_state(weights: Mapping[str, Tensor], copied: bool = True) -> object:
    """A value that differs from an earlier one if a weight has changed since.

    It holds the addresses of the weights (given by name) and torch's version counters. torch does
    not count changes made through `data` or to tensors created in inference mode. So if the weights
    are `copied`, it also holds hashes of their values, which takes about as long as reading them
    once. Raises `CheckpointError` for a weight that is not in memory.

    >>> weight = torch.ones(3, 5)
    >>> before = weights_state({"w": weight})
    >>> weights_state({"w": weight}) == before
    True
    >>> weight.data[1, 4] = 2
    >>> weights_state({"w": weight}) == before
    False
    """
    dense = [part for name, weight in weights.items() for part in _dense(weight, name)]
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


def is_extended(model: nn.Module) -> bool:
    """Whether a caller's hooks, `forward` methods or attention functions run in the model.

    These see the rows that a module gets, and may treat a row of several texts differently.

    >>> model = nn.Sequential(nn.Linear(1, 1))
    >>> handle = model[0].register_forward_hook(print)
    >>> is_extended(model), is_extended(nn.Linear(1, 1))
    (True, False)
    """
    return bool(_custom_attention(model)) or any(map(does_more, model.modules()))


def modules_state(model: PreTrainedModel) -> object:
    """A value that differs from an earlier one if a module, its settings or the config has changed.

    Weights, hooks and replaced `forward` methods do not count.
    """
    return [*_descriptions(model), model.dtype, config_settings(model.config)]


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
            numbers = self._numbers()
            digest = hashlib.sha256(self._structure(numbers).encode())
            for values in numbers.values():
                digest.update(_bytes(values).cpu().numpy().data)
            self._latest = now, f"-changed-{digest.hexdigest()[:16]}"
        return self._latest[1]

    def _now(self) -> object:
        numbers = self._numbers()
        return self._structure(numbers), _hashes([*numbers.values()])

    def _numbers(self) -> dict[str, Tensor]:
        """The weights and buffers by name, except those that a pass changes."""
        found: dict[str, object] = dict(self._model.named_parameters(remove_duplicate=False))
        for name, module in self._model.named_modules():
            # Not the whole state_dict, in which bitsandbytes repacks weights and damages them.
            if not module._parameters:  # torch's quantized layers keep their weights elsewhere
                module._save_to_state_dict(found, f"{name}.", True)
        for name, buffer in self._model.named_buffers(remove_duplicate=False):
            # Some are not in state_dict, and a pass may merge two into one.
            owner = self._model.get_submodule(name.rpartition(".")[0])
            if "original" in name or not follows_length(owner):
                found[name] = buffer
        parts = {name: _dense(value, name) for name, value in found.items()}
        return {f"{name} {i}": part for name, some in parts.items() for i, part in enumerate(some)}

    def _structure(self, numbers: dict[str, Tensor]) -> str:
        """The modules and their additions, the shapes of all tensors, and the config."""
        added = [str(_additions(module)) for module in self._model.modules()]
        shapes = [f"{name} {x.dtype} {list(x.shape)}" for name, x in numbers.items()]
        config = json.dumps(config_settings(self._model.config), sort_keys=True, default=repr)
        attention = _custom_attention(self._model)
        return "\n".join([*_descriptions(self._model), *added, *attention, *shapes, config])


def config_settings(config: PretrainedConfig) -> dict[str, Any]:
    """A config's keys and values, without those that do not affect results.

    >>> "use_cache" in config_settings(PretrainedConfig(use_cache=False))
    False
    """
    return {name: value for name, value in config.to_dict().items() if name not in _NO_CONFIG}


def follows_length(module: nn.Module) -> bool:
    """Whether a module's state depends on the longest text so far (LongRoPE, dynamic NTK)."""
    # Not getattr(module, ...): for a missing attribute, a module's own lookup is slow.
    kinds = vars(module).get("rope_type", getattr(type(module), "rope_type", None))
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(
        isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names
    )


def _descriptions(model: nn.Module) -> list[str]:
    """The modules with their settings; one that is used several times is listed each time.

    The functions of transformers' files follow, because a caller may replace these too.
    """
    found, homes = [], set()
    for name, module in model.named_modules(remove_duplicate=False):
        kind: Any = type(module)
        homes.add(kind.__module__)
        kind_name = _class_name(kind, getattr(kind, "forward", None))
        found.append(f"{name} {kind_name} {_settings(module)}")
    for home in sorted(home for home in homes if home.startswith("transformers.")):
        functions = filter(isroutine, [*vars(sys.modules[home]).values()])  # threads may import
        found += [home, *map(_described_once, functions)]
    return found


@cache
def _class_name(kind: type, forward: object) -> str:
    """A class's name, and its `forward` if that was replaced."""
    own = {(base.__module__, f"{base.__qualname__}.forward") for base in kind.__mro__}
    is_own = tuple(getattr(forward, key, None) for key in ("__module__", "__qualname__")) in own
    homes = *_LIBRARIES, *(f"{base.__module__}." for base in kind.__mro__)
    is_own = is_own and _home(forward).startswith(homes)
    return kind.__qualname__ if is_own else f"{kind.__qualname__} {_function(forward)}"


def _custom_attention(model: nn.Module) -> list[str]:
    """The attention and mask functions that a model uses, except those of known libraries."""
    configs = (vars(module).get("config") for module in model.modules())
    names = {c._attn_implementation for c in configs if isinstance(c, PretrainedConfig)}
    registered = AttentionInterface(), AttentionMaskInterface()
    used = [kind[name] for kind in registered for name in kind.valid_keys() if name in names]
    return [named for named in map(_function, used) if not named.startswith(_LIBRARIES)]


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module, such as an adapter's scale, and its functions."""
    if type(module) is nn.Linear:  # the most frequent; its shape says all
        return {}
    known = type(module).__module__.startswith(_LIBRARIES)
    return {
        name: value if _is_plain(value) else _function(value)
        for name, value in vars(module).items()
        if not ((known and name.startswith("_")) or _NO_SETTINGS.search(name))
        and (_is_plain(value) or isroutine(value) or isinstance(value, partial))
    }


def _function(function: Any) -> str:
    """A function's name; only those of known libraries are recognized in other processes.

    >>> _function(json.dumps)
    'json.dumps'
    """
    if isinstance(function, partial) and _is_plain([*function.args, function.keywords]):
        return f"{_function(function.func)} {function.args} {function.keywords}"
    name = ".".join(str(getattr(function, key, "")) for key in ("__module__", "__qualname__"))
    home = _home(function)
    known = home.startswith(_LIBRARIES) or home.partition(".")[0] in sys.stdlib_module_names
    return name if known else f"{_PROCESS} {id(function)}"


_described_once = cache(_function)  # not for a partial, whose arguments may change


def _home(function: Any) -> str:
    """The module whose code a function runs, and a dot. `functools.wraps` hides it in the names."""
    home = getattr(function, "__globals__", {}).get("__name__")
    return f"{home or getattr(function, '__module__', '')}."


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
        if not any(name in getattr(hook, "__qualname__", "") for name in _NO_EFFECT)
    ]
    if (other := vars(module).get("forward")) is not None:
        found.append(str(id(other)))
    return [_PROCESS, *found] if found else []


def _dense(value: object, name: str) -> list[Tensor]:
    """The plain tensors of a state entry: a quantized weight, for example, has several.

    Raises `CheckpointError` for one that is not in memory.
    """
    if isinstance(value, Tensor) and value.is_meta:
        raise CheckpointError(
            f"the model's weight {name!r} is on torch's meta device (offloaded, for example by "
            "accelerate); move the whole model to one device"
        )
    if isinstance(value, Tensor) and type(value.data) is Tensor and not value.is_quantized:
        return [value]
    if hasattr(value, "__tensor_flatten__"):  # a weight of torchao
        inner = value.__tensor_flatten__()[0]
        return [part for key in inner for part in _dense(getattr(value, key), name)]
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
