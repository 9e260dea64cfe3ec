"""A model's own forward pass, as plain transformers runs it: the reference for fast passes.

Shapes: T tokens read, N outputs wanted, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ledom.core.errors import CheckpointError, in_one_line, is_out_of_memory
from ledom.model.architectures import half_precision, is_quantized
from ledom.model.attention import IMPLEMENTATION, turn, without_autocast
from ledom.model.changes import follows_length

__all__ = ["OwnForward", "reset_length"]


class OwnForward:
    """Runs a model as plain transformers does, with the attention that transformers chooses.

    The caller's autocast has no effect, unless `follows_autocast` is set, as in training.
    """

    def __init__(self, model: PreTrainedModel, follows_autocast: bool = True) -> None:
        self.model = model
        self._precision: Callable[[], AbstractContextManager[object]]
        self._precision = nullcontext if follows_autocast else partial(without_autocast, model)
        configs = (getattr(module, "config", None) for module in model.modules())
        found = {id(config): config for config in configs if isinstance(config, PretrainedConfig)}
        self._configs = list(found.values())
        default = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        self._names = [default if _is_ours(name) else name for name in self._current()]
        parameters = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
        self._selects = "logits_to_keep" in parameters

    def __call__(self, ids: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits [T, V] for ids [T] in model order, or [N, V] at the indices `wanted` [N]."""
        options = dict(self._options)
        if wanted is not None and self._selects:
            options["logits_to_keep"] = wanted
        logits: Tensor = self.run(ids, **options).logits[0]
        return logits if wanted is None or self._selects else logits[wanted]

    def run(self, ids: Tensor, **options: Any) -> Any:
        """The model's outputs for ids [T]."""
        with self.attention(None):
            return self.model(input_ids=ids[None], **options)

    @contextmanager
    def attention(self, name: str | None) -> Iterator[None]:
        """Within this block, the model uses the attention registered under a name, or its own.

        Only this thread runs its modules meanwhile, and they keep no state from earlier texts.
        """
        with turn(self.model), self._precision():
            before = self._current()
            self.use(name)
            following = [*filter(follows_length, self.model.modules())]
            _reset(following)
            try:
                yield
            finally:
                self._assign(before)
                _reset(following)

    def use(self, name: str | None) -> None:
        """Make every layer run the attention registered under a name, or, without one, the model's
        own: the current one, unless that is one of ledom's; then the one it had at first."""
        pairs = zip(self._current(), self._names, strict=True)
        self._assign([name or (own if _is_ours(now) else now) for now, own in pairs])

    def _current(self) -> list[str | None]:
        return [config._attn_implementation for config in self._configs]

    def _assign(self, names: list[str | None]) -> None:
        # The public property would also change nested configs, which are set separately here.
        for config, name in zip(self._configs, names, strict=True):
            config._attn_implementation_internal = name

    @torch.no_grad()
    def check_training(self, longest: int) -> None:
        """Raise `CheckpointError` for a model that cannot be trained on texts of every length.

        Both `longest` tokens and one fewer are tried, because some architectures need a multiple.
        """
        training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng():  # dropout draws random numbers
                for length in (longest, max(longest - 1, 1)):
                    self(torch.zeros(length, dtype=torch.long, device=self.model.device))
        except Exception as error:
            what = f"cannot be trained on texts of {length} tokens"
            raise self.refusal(error, what, "give another architecture") from error
        finally:
            self.model.train(training)

    def refusal(self, error: object, what: str, remedy: str) -> CheckpointError:
        """The error for a model that cannot be used; quantization or precision may be the cause."""
        kind, half = type(self.model).__name__, half_precision(self.model)
        reason = in_one_line(error)
        if is_quantized(self.model):
            what, remedy = "does not run correctly with quantized weights", "give plain ones"
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):  # two dtypes
                full = self.model.dtype == torch.float32  # scales may be in half precision
                remedy = f"try {'bfloat16' if full else 'float32'}, or {remedy}"
        elif half:
            what, remedy = f"does not run correctly in {half}", f"try float32, or {remedy}"
        return CheckpointError(f"{kind} {what} ({reason}); {remedy}")


def _is_ours(name: str | None) -> bool:
    return name is not None and name.startswith(IMPLEMENTATION)


def reset_length(model: nn.Module) -> None:
    """Forget earlier texts, because dynamic NTK keeps the frequencies of the longest one."""
    _reset(filter(follows_length, model.modules()))


def _reset(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        kinds: Any = module.rope_type
        prefixes = [f"{layer_type}_" for layer_type in kinds] if isinstance(kinds, dict) else [""]
        for prefix in prefixes:
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if isinstance(original, Tensor) and hasattr(module, "original_max_seq_len"):
                # A copy: LongRoPE writes its frequencies into this buffer, in any mode of torch.
                with torch.inference_mode(False):
                    buffer = original.to(getattr(module, f"{prefix}inv_freq").device, copy=True)
                module.register_buffer(f"{prefix}inv_freq", buffer, False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
