"""Whether a model in memory has changed: its weights, modules, hooks or settings.

Kernels compute with copies of weights, and results are kept in files under a model's name. Neither
may outlive a change of the model, however it was made.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ledom.model.native.library import library_for

__all__ = ["Contents", "does_more", "weights_state"]

_PROCESS = uuid4().hex
_PIECE = 2**24  # bytes that a GPU hashes at a time
_FACTOR = 0x9E3779B9


def weights_state(weights: Sequence[Tensor], copied: bool = True) -> object:
    """Differs from an earlier one if a weight has changed since.

    It holds the weights' addresses and torch's counts of changes. torch does not count changes
    through `data`, nor those of tensors made in inference mode. So if the weights are `copied`, it
    holds hashes of their numbers too, which takes about as long as reading them once.

    >>> weight = torch.ones(3, 5)
    >>> before = weights_state([weight])
    >>> weights_state([weight]) == before
    True
    >>> weight.data[1, 4] = 2
    >>> weights_state([weight]) == before
    False
    """
    known = [
        (w.data_ptr(), w.shape, w.stride(), 0 if w.is_inference() else w._version) for w in weights
    ]
    return (known, _hashes(weights)) if copied else known


def does_more(module: torch.nn.Module) -> bool:
    """Whether a call of the module does more, or other things, than its class says.

    >>> module = torch.nn.Linear(1, 1)
    >>> handle = module.register_forward_hook(print)
    >>> does_more(module), does_more(torch.nn.Linear(1, 1))
    (True, False)
    """
    return bool(_additions(module))


class Contents:
    """What a model consists of when this is made."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._first = self._now()

    def change(self) -> str:
        """A hash of what the model is now if it has changed since, in any process; else "".

        Hooks and replaced `forward` methods are functions, which no other process recognizes.
        """
        if self._now() == self._first:
            return ""
        digest = hashlib.sha256(self._structure().encode())
        for weight in self._model.state_dict().values():
            digest.update(_bytes(weight).cpu().numpy().data)
        return digest.hexdigest()[:16]

    def _now(self) -> object:
        return self._structure(), _hashes(list(self._model.state_dict().values()))

    def _structure(self) -> str:
        """The modules with what was added to them, the weights' shapes, and the settings."""
        modules = [
            f"{name} {type(module).__qualname__} {_additions(module)}"
            for name, module in self._model.named_modules()
        ]
        weights = self._model.state_dict().items()
        shapes = [f"{name} {weight.dtype} {list(weight.shape)}" for name, weight in weights]
        return "\n".join([*modules, *shapes, self._model.config.to_json_string()])


def _additions(module: torch.nn.Module) -> list[str]:
    """What a call of the module does besides what its class says: hooks, another `forward`."""
    hooks = [*module._forward_hooks, *module._forward_pre_hooks]  # numbered within a process
    other = vars(module).get("forward")
    found = [*map(str, hooks), *([] if other is None else [str(id(other))])]
    return [_PROCESS, *found] if found else []


def _hashes(weights: Sequence[Tensor]) -> list[int]:
    """Of each weight's bytes; if one number changes, its weight's hash does."""
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
    """Of bytes, without kernels; on a GPU by sums, so that the bytes need not leave it."""
    if numbers.is_cpu:
        return zlib.crc32(numbers.numpy().data)
    total = 0
    for piece in numbers.split(_PIECE):
        factors = torch.arange(len(piece), device=piece.device) * _FACTOR
        factors = (factors ^ factors >> 29) * _FACTOR | 1  # an odd one loses no bit
        total = hash((total, int((piece * factors).sum())))
    return total
