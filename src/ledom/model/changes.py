"""What a caller did to a loaded model: other weights, adapters, hooks, training mode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from ledom.model.native.layers import weights_state

__all__ = ["Changes", "evaluating"]

_PLAIN = bool | int | float | str | None
_OF_LIBRARIES = ("torch.", "transformers.", "ledom.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off until the block ends, for a model that is being trained.

    >>> model = nn.Dropout(0.5)
    >>> with evaluating(model):
    ...     model(torch.ones(3))
    tensor([1., 1., 1.])
    >>> model.training
    True
    """
    in_training = [module for module in model.modules() if module.training]
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


class Changes:
    """Notices changes to a model since this was made, at the cost of milliseconds.

    >>> model = nn.Linear(2, 1)
    >>> changes = Changes(model)
    >>> changes.mark()
    ''
    >>> _ = model.weight.data.fill_(1)
    >>> changes.mark() == changes.mark() != ""
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first: object = self._state()
        self._latest: tuple[object, str] = self._first, ""

    def mark(self) -> str:
        """Empty for an unchanged model; else equal, in every process, for equal changes."""
        state = self._state()
        if state == self._first:
            return ""
        if state != self._latest[0]:
            self._latest = state, f"-changed-{_digest(self._model)}"
        return self._latest[1]

    def _state(self) -> object:
        known: Any = weights_state(list(self._model.parameters()))
        (_, *others), sample = known  # not their addresses: our own modules join weights
        return others, sample, _modules(self._model)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_first": None if self._state() == self._first else self._first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._first is None:  # a copy of an unchanged model, whose weights are elsewhere
            self._first = self._state()


def _digest(model: nn.Module) -> str:
    """A hash of every weight, and of `_modules`."""
    digest = hashlib.sha256(repr(_modules(model)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {[*value.shape]}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _modules(model: nn.Module) -> list[tuple[Any, ...]]:
    """The name, type and hooks of every module, and an adapter's settings (scale, on or off)."""
    return [
        (name, type(module).__qualname__, _hooks(module), _settings(module))
        for name, module in model.named_modules()
    ]


def _hooks(module: nn.Module) -> list[str]:
    hooks = chain(module._forward_pre_hooks.values(), module._forward_hooks.values())
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module of another package; some of ours change in every pass."""
    if type(module).__module__.startswith(_OF_LIBRARIES):
        return {}
    return {k: v for k, v in vars(module).items() if k != "training" and _is_plain(v)}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
