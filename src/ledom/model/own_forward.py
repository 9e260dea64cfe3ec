"""A model's own forward pass over one text, as plain transformers runs it.

It is what every faster path is checked against (`model.packing`), and what runs where there is
none. The model may have been given ledom's attention since: its own is put back for the call.

Shapes: T tokens read, N outputs wanted, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ledom.core.errors import CheckpointError
from ledom.model.attention import IMPLEMENTATION

__all__ = ["OwnForward", "scales_with_length", "use_attention"]


class OwnForward:
    """Runs a model with the attention that transformers chose for it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._configs = _configs(model)
        default = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        current = [config._attn_implementation for config in self._configs]
        self._names = [default if name == IMPLEMENTATION else name for name in current]
        parameters = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
        self._selects = "logits_to_keep" in parameters

    def __call__(self, ids: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits [T, V] for ids [T] in model order, or [N, V] at the places `wanted` [N]."""
        options = dict(self._options)
        if wanted is not None and self._selects:
            options["logits_to_keep"] = wanted
        logits: Tensor = self.run(ids, **options).logits[0]
        return logits if wanted is None or self._selects else logits[wanted]

    def run(self, ids: Tensor, **options: Any) -> Any:
        """The model's outputs for ids [T]."""
        with self.attention():
            reset_length(self.model)
            return self.model(input_ids=ids[None], **options)

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Give the model its own attention until the block ends."""
        before = [config._attn_implementation for config in self._configs]
        _assign(self._configs, self._names)
        try:
            yield
        finally:
            _assign(self._configs, before)

    @torch.no_grad()
    def check_training(self, longest: int) -> None:
        """Raise `CheckpointError` for a model that does not train on texts of every length.

        Tried with `longest` tokens and with one fewer, which cannot both be a multiple.
        """
        training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng():  # dropout draws
                for length in (longest, max(longest - 1, 1)):
                    self(torch.zeros(length, dtype=torch.long, device=self.model.device))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{type(self.model).__name__} cannot be trained on texts of {length} tokens "
                f"({reason}); give another architecture"
            ) from error
        finally:
            self.model.train(training)

    def restore(self) -> None:
        """Give the model its own attention for good."""
        _assign(self._configs, self._names)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Let every layer run the attention registered with transformers under a name."""
    configs = _configs(model)
    _assign(configs, [name] * len(configs))


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    found = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found[id(config)] = config
    return list(found.values())


def _assign(configs: list[PretrainedConfig], names: list[str | None]) -> None:
    # The public property also changes the configs below, which have names of their own here.
    for config, name in zip(configs, names, strict=True):
        config._attn_implementation_internal = name


def scales_with_length(model: PreTrainedModel) -> bool:
    """Whether rotary positions are scaled by the longest text in sight (LongRoPE, dynamic NTK).

    Keys of earlier tokens then change when a text grows, so none may be kept.
    """
    return any(True for _ in _scaling_modules(model))


def reset_length(model: PreTrainedModel) -> None:
    """Forget the texts read before: dynamic NTK goes on with the longest one's frequencies."""
    for module in _scaling_modules(model):
        kinds = module.rope_type
        prefixes = [f"{layer_type}_" for layer_type in kinds] if isinstance(kinds, dict) else [""]
        for prefix in prefixes:
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if isinstance(original, Tensor) and hasattr(module, "original_max_seq_len"):
                # A copy: LongRoPE writes its frequencies into this buffer.
                buffer = original.to(getattr(module, f"{prefix}inv_freq").device, copy=True)
                module.register_buffer(f"{prefix}inv_freq", buffer, False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _scaling_modules(model: PreTrainedModel) -> Iterator[Any]:
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        names = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(isinstance(n, str) and ("dynamic" in n or n == "longrope") for n in names):
            yield module
