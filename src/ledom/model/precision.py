"""Chooses, at load, the precision that a model computes in.

`auto` is bf16 if it is faster on the device and a test shows that it is safe: on each of two fixed
texts, bf16 changes the log-probability of a token by at most `TOLERANCE` on average. The model did
not write these texts, because errors are smallest on texts that a model finds likely. Otherwise
`auto` is fp32. One exception: on a GPU, weights stored in half precision stay in it, because an
fp32 copy may not fit into memory.

Shapes: T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ledom.core.errors import InputError
from ledom.model.architectures import is_quantized
from ledom.model.attention import without_autocast
from ledom.model.checkpoint import Checkpoint
from ledom.model.device import fast_bfloat16

__all__ = ["INT8", "load_in"]

INT8 = "int8"
TOLERANCE = 0.001
"""Nats by which bf16 may change the log-probability of a token, on average."""
_TEXTS = (
    """Tom had 48 apples, gave 19 to Ann and bought 6 more: 48 - 19 + 6 = 35.
The ship left the harbor before dawn, and nobody who saw it go expected to see it again.
def mean(values): return sum(values) / len(values)
"Well," said the old man, "in 1987 we paid $2.50 for it, and 15% of that was tax."
""",
    """В 7 утра было −12 °C. 他在1998年买了3本书。 مرحبا 12 + 30 = 42; नमस्ते, καλημέρα, naïve café!
for (int i = 0; i < 64; i++) { s[i] += 0x1F * 3.14159e-2; }  // 2718281828
""",
)
"""The texts of the test: English arithmetic, prose, code and speech; then other scripts, digits and
signs, whose tokens have other weights."""
_FEW_PARAMETERS = 200_000_000
"""A model with at most so many parameters takes 1.2 GB of memory in fp32 and bf16 together."""
_NAMED = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}

Load = Callable[[torch.dtype | Literal["auto"]], Checkpoint]
"""Loads a checkpoint onto its device; `auto` keeps the precision of the stored weights."""


def load_in(dtype: str | torch.dtype, device: torch.device, load: Load) -> tuple[Checkpoint, str]:
    """Load a checkpoint in a precision; also returns the name of the precision in use.

    `dtype` is a name, or any floating-point `torch.dtype`. Raises `InputError` for an unknown name,
    and for int8 on a device other than a CPU.

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
    """Load a checkpoint in the precision that `auto` means for it on a device."""
    log = logging.getLogger("ledom").info
    if not fast_bfloat16(device):
        log("float32: this device is not faster in bfloat16")
        return load(torch.float32)
    checkpoint = load(torch.float32 if device.type == "cpu" else "auto")
    if checkpoint.model.dtype != torch.float32:
        return checkpoint
    exact: list[Tensor] | None = None
    try:
        exact = [_logprobs(checkpoint, text) for text in _TEXTS]
    except Exception:
        if not is_quantized(checkpoint.model):
            return checkpoint  # models that do not run on ids alone are refused elsewhere
    # Two large models might not fit in memory, so a large one is loaded again if it is needed.
    in_memory = checkpoint if checkpoint.model.num_parameters() <= _FEW_PARAMETERS else None
    del checkpoint
    if exact is None:
        log("the stored precision: these quantized weights do not run in float32")
        return load("auto")
    rough = load(torch.bfloat16)
    try:
        found = [_logprobs(rough, text) for text in _TEXTS]
    except RuntimeError as problem:  # for example, an architecture that mixes dtypes
        log("float32: the model does not run in bfloat16 (%s)", problem)
        del rough
        return in_memory or load(torch.float32)
    errors = [float((one - other).abs().mean()) for one, other in zip(found, exact, strict=True)]
    safe = all(error <= TOLERANCE for error in errors)  # NaN is not
    log(
        "%s: bfloat16 changes the log-probability of a token by %.4f nats on average (limit: %s)",
        "bfloat16" if safe else "float32",
        max(errors),
        TOLERANCE,
    )
    return rough if safe else in_memory or load(torch.float32)


@torch.no_grad()
def _logprobs(checkpoint: Checkpoint, text: str) -> Tensor:
    """log P of each token of a text [T], in model order, in fp32."""
    ids = checkpoint.direction.to_model_order(checkpoint.tokenizer.encode(text).ids)
    first = checkpoint.bos_ids or [checkpoint.tokenizer.eos_id]
    read = torch.tensor([*first, *ids][: checkpoint.context], device=checkpoint.model.device)
    with without_autocast(checkpoint.model):
        logits = checkpoint.model(input_ids=read[None]).logits[0, :-1].float()
    found: Tensor = logits.log_softmax(-1).gather(-1, read[1:, None])[:, 0]
    return found
