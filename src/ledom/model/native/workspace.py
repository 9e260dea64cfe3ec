"""Memory that a thread's passes use again and again.

A forward pass needs the same large buffers in every layer. Each would cost page faults if it were
allocated anew in `model.device.large_blocks_apart`.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from ledom.model.device import LARGE

__all__ = ["workspace"]


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}


_KEPT = _Kept()


def workspace(name: str, *shape: int) -> Tensor:
    """An uninitialized tensor in fp32, valid until this thread's next call with the same name.

    The memory of small tensors is not kept: allocating them is fast.

    >>> workspace("doctest", 2, 3).shape
    torch.Size([2, 3])
    """
    size = math.prod(shape)
    if 4 * size < LARGE:
        return torch.empty(shape)
    kept = _KEPT.memory.get(name)
    if kept is None or len(kept) < size:
        _KEPT.memory.pop(name, None)  # frees it first
        with torch.inference_mode(False):
            kept = _KEPT.memory[name] = torch.empty(size)
    return kept[:size].view(shape)
