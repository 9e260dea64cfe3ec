"""The numbers that a model on this machine computes in: by name, or found by a trial at load.

`auto` is bf16 where the device multiplies faster in it and a trial shows that it is safe: on texts
that the model itself writes, and on a given one, it changes the log-probability of a token by at
most `TOLERANCE` on average. Everywhere else `auto` is fp32. One exception: weights that are kept in
half precision stay in it on a GPU, whose memory their fp32 copy may not fit.

Shapes: B texts of T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ledom.core.errors import CheckpointError, InputError
from ledom.core.processes import fast_bfloat16
from ledom.lm.engine.trunk import LlamaTrunk, Trunk
from ledom.model.checkpoint import Checkpoint

__all__ = ["INT8", "TOLERANCE", "load_in", "round_weights"]

INT8 = "int8"
TOLERANCE = 0.001
"""Nats by which bf16 may change the log-probability of a token, on average."""
_TEXTS, _LENGTH = 4, 64  # that the model writes for the trial, and tokens of each
_GIVEN = (
    "Tom had 48 apples, gave 19 to Ann and bought 6 more: 48 - 19 + 6 = 35.\n"
    "The ship left the harbor before dawn, and nobody who saw it go expected to see it again."
)
"""Another's text for the trial: a model finds its own likely, where errors are smallest."""
_NAMED = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}

Load = Callable[[torch.dtype | Literal["auto"]], Checkpoint]
"""Loads a checkpoint to its device; `auto` is the precision in which its weights are kept."""


def load_in(dtype: str | torch.dtype, device: torch.device, load: Load) -> tuple[Checkpoint, str]:
    """A checkpoint in a precision, and that precision's name. A `torch.dtype` may be any of floats.

    Raises `InputError` for an unknown one, and for int8 on another device than a CPU.

    >>> load_in("int4", torch.device("cpu"), load=lambda dtype: None)
    Traceback (most recent call last):
    ledom.core.errors.InputError: dtype is 'int4'; give auto, float32, bfloat16, float16 or int8
    """
    name = str(dtype).removeprefix("torch.")
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return load(dtype), name
    if name == "auto":
        checkpoint = _chosen(device, load)
        return checkpoint, str(checkpoint.model.dtype).removeprefix("torch.")
    if name == INT8 and device.type != "cpu":
        raise InputError(f"int8 is for the CPU, not for {device}; give bfloat16")
    if name not in (INT8, *_NAMED):
        raise InputError(f"dtype is {name!r}; give auto, {', '.join(_NAMED)} or int8")
    return load(_NAMED.get(name, torch.float32)), name


def _chosen(device: torch.device, load: Load) -> Checkpoint:
    """A checkpoint in what `auto` means for it on a device."""
    say = logging.getLogger("ledom").info
    if not fast_bfloat16(device):
        say("float32: this device is not faster in bfloat16")
        return load(torch.float32)
    if device.type != "cpu" and (kept := load("auto")).model.dtype != torch.float32:
        return kept
    checkpoint = load(torch.float32)
    written = _written(checkpoint)
    if written is None:
        return checkpoint
    texts = [written, _given(checkpoint)]
    exact = [_logprobs(checkpoint, some) for some in texts]
    del checkpoint  # one at a time in memory
    rough = load(torch.bfloat16)
    try:
        errors = [_logprobs(rough, some) - right for some, right in zip(texts, exact, strict=True)]
    except RuntimeError as problem:  # an architecture that mixes dtypes
        say("float32: the model does not run in bfloat16 (%s)", problem)
        del rough
        return load(torch.float32)
    error = float(torch.stack([some.abs().mean() for some in errors]).max())
    safe = error <= TOLERANCE  # NaN is not
    say(
        "%s: bfloat16 changes the log-probability of a token by %.4f nats on average (limit: %s)",
        "bfloat16" if safe else "float32",
        error,
        TOLERANCE,
    )
    return rough if safe else load(torch.float32)


@torch.no_grad()
def _written(checkpoint: Checkpoint) -> Tensor | None:
    """Texts that a model writes from the beginning of a document, [B, T], in its own order.

    None for a model that does not run on ids alone; what is wrong with it is said elsewhere.
    """
    model = checkpoint.model
    generator = torch.Generator().manual_seed(0)
    first = checkpoint.bos_ids or [checkpoint.tokenizer.eos_id]
    ids = torch.tensor([first] * _TEXTS, device=model.device)
    try:
        while ids.shape[1] < min(_LENGTH, checkpoint.context):
            probabilities = model(input_ids=ids).logits[:, -1].float().softmax(-1).cpu()
            drawn = torch.multinomial(probabilities, 1, generator=generator)
            ids = torch.cat([ids, drawn.to(ids.device)], dim=1)
    except Exception:  # whatever an architecture needs besides
        return None
    return ids


def _given(checkpoint: Checkpoint) -> Tensor:
    """The given text in the model's own order, after what it reads first, [1, T]."""
    ids = checkpoint.direction.to_model_order(checkpoint.tokenizer.encode(_GIVEN).ids)
    first = checkpoint.bos_ids or [checkpoint.tokenizer.eos_id]
    return torch.tensor([[*first, *ids][: checkpoint.context]], device=checkpoint.model.device)


@torch.no_grad()
def _logprobs(checkpoint: Checkpoint, texts: Tensor) -> Tensor:
    """log P of each token of some texts but the first, [B, T - 1] in fp32."""
    logits = checkpoint.model(input_ids=texts).logits[:, :-1].float()
    found: Tensor = logits.log_softmax(-1).gather(-1, texts[:, 1:, None])[..., 0]
    return found


def round_weights(trunk: Trunk, exact: bool, name: str) -> None:
    """Let a model of Llama's shape multiply in int8, if its trunk is `exact` for all texts.

    Raises `CheckpointError` for any other: parts of its work would stay in fp32.
    """
    if not (isinstance(trunk, LlamaTrunk) and exact):
        raise CheckpointError(
            f"{name}: int8 is for models of Llama's shape whose texts may share a row, which this "
            f"{type(trunk.model).__name__} is not; give float32"
        )
    trunk.round_weights()
