"""Trials at load: the precision that a model computes in, and which fast ways to run it are exact.

`auto` is bf16 if the device is faster in it and a trial shows that it is safe: on each of two fixed
texts, bf16 changes the log-probability of a token by at most `TOLERANCE` on average. The model did
not write these texts, because errors are smallest where a model finds a text likely. Otherwise
`auto` is fp32. One exception: on a GPU, weights stored in half precision stay in it, because an
fp32 copy may not fit its memory.

A way to run a model is exact if it gives the results of the model's own forward pass. Half
precision rounds by more than a small fault changes: a row whose second text sees a little of the
first, a cache that loses a little, a scale that sampling leaves out. So a model in half precision
is tried twice: as it is, and as a copy in fp32, of its first layers only if it is large.

All ids are in model order.

Shapes: T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ledom.core.errors import CheckpointError, InputError
from ledom.core.processes import fast_bfloat16
from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Decoder
from ledom.lm.engine.own_decoder import Reader
from ledom.lm.engine.trunk import LlamaTrunk, Trunk, build_trunk
from ledom.lm.language_model import Sampling
from ledom.model.architectures import half_precision, layer_list, num_weights
from ledom.model.checkpoint import Checkpoint
from ledom.model.exactness import close, packing_reach, rounded, tolerance, vocab_size
from ledom.model.own_forward import OwnForward, scales_with_length

__all__ = [
    "INT8",
    "TOLERANCE",
    "decodes_exactly",
    "in_float32",
    "keeps_exactly",
    "load_in",
    "longest_packed",
    "round_weights",
]

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
"""The texts of the trial: arithmetic, prose, code and speech in English; other scripts, digits and
signs, whose tokens have other weights."""
_NAMED = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_LONG = 257  # tokens: more than the chunks of recurrent architectures
_MOST_COPIED = 2**29  # parameters of a copy: 2 GB

Load = Callable[[torch.dtype | Literal["auto"]], Checkpoint]
"""Loads a checkpoint onto its device; `auto` keeps the precision of the stored weights."""


# ---- the precision ----


def load_in(dtype: str | torch.dtype, device: torch.device, load: Load) -> tuple[Checkpoint, str]:
    """Load a checkpoint in a precision; returns it with the name of the precision in use.

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
    if device.type != "cpu" and (kept := load("auto")).model.dtype != torch.float32:
        return kept
    checkpoint = load(torch.float32)
    try:
        exact = [_logprobs(checkpoint, text) for text in _TEXTS]
    except Exception:  # a model that does not run on ids alone is refused elsewhere
        return checkpoint
    del checkpoint  # one at a time in memory
    rough = load(torch.bfloat16)
    try:
        found = [_logprobs(rough, text) for text in _TEXTS]
    except RuntimeError as problem:  # an architecture that mixes dtypes
        log("float32: the model does not run in bfloat16 (%s)", problem)
        del rough
        return load(torch.float32)
    errors = [float((one - other).abs().mean()) for one, other in zip(found, exact, strict=True)]
    safe = all(error <= TOLERANCE for error in errors)  # NaN is not
    log(
        "%s: bfloat16 changes the log-probability of a token by %.4f nats on average (limit: %s)",
        "bfloat16" if safe else "float32",
        max(errors),
        TOLERANCE,
    )
    return rough if safe else load(torch.float32)


@torch.no_grad()
def _logprobs(checkpoint: Checkpoint, text: str) -> Tensor:
    """log P of each token of a text [T], in model order, in fp32."""
    ids = checkpoint.direction.to_model_order(checkpoint.tokenizer.encode(text).ids)
    first = checkpoint.bos_ids or [checkpoint.tokenizer.eos_id]
    read = torch.tensor([*first, *ids][: checkpoint.context], device=checkpoint.model.device)
    logits = checkpoint.model(input_ids=read[None]).logits[0, :-1].float()
    found: Tensor = logits.log_softmax(-1).gather(-1, read[1:, None])[:, 0]
    return found


def round_weights(trunk: Trunk, exact: bool, name: str) -> None:
    """Quantize a model of Llama's shape to int8, if its trunk is `exact` for texts of any length.

    Raises `CheckpointError` for any other model: parts of its work would stay in fp32.
    """
    if not (isinstance(trunk, LlamaTrunk) and exact):
        raise CheckpointError(
            f"{name}: int8 is for models of Llama's shape whose texts may share a row, which this "
            f"{type(trunk.model).__name__} is not; give float32"
        )
    trunk.round_weights()


# ---- fast ways to run a model ----


def longest_packed(trunk: Trunk, own: OwnForward, eos_id: int, context: int) -> int:
    """The longest text, in tokens read, that may share a row; see `packing_reach`."""
    reach = packing_reach(own, trunk.packed, eos_id, context)
    if reach and (copy := in_float32(own.model)) is not None:
        reach = min(
            reach, packing_reach(OwnForward(copy), build_trunk(copy).packed, eos_id, context)
        )
    if not reach:
        own.restore()
        _check_long_text(own, context)
    return reach


@torch.inference_mode()
def _check_long_text(own: OwnForward, context: int) -> None:
    """Raise `CheckpointError` for a model in half precision that fails only on a text of more
    than one chunk, as recurrent ones do whose kernels mix precisions."""
    if half_precision(own.model):
        ids = torch.zeros(min(context, _LONG), dtype=torch.long, device=own.model.device)
        try:
            own(ids)
        except Exception as error:
            raise own.refusal(error, "fails on longer texts", "give another model") from error


def decodes_exactly(trunk: Trunk, own: OwnForward, eos_id: int) -> bool:
    """Whether `Decoder`, writing greedily, agrees with the model's own pass over the same text."""
    if not _decodes(trunk, own, eos_id):
        return False
    copy = in_float32(own.model)
    return copy is None or _decodes(build_trunk(copy), OwnForward(copy), eos_id)


def keeps_exactly(own: OwnForward, eos_id: int) -> bool:
    """Whether reading a text token by token with the model's cache gives the same logits."""
    if not _keeps(own, eos_id):
        return False
    copy = in_float32(own.model)
    return copy is None or _keeps(OwnForward(copy), eos_id)


def in_float32(model: PreTrainedModel, most: int = _MOST_COPIED) -> PreTrainedModel | None:
    """A copy in fp32 of a model in half precision: of all its layers, or of the first ones that
    `most` parameters leave room for.

    None for a model in another precision, and if the copy would be too large or does not run: some
    architectures need all layers.
    """
    layers = layer_list(model)
    if not half_precision(model) or layers is None:
        return None
    room = most - num_weights(model) + num_weights(layers)
    kept = []
    for layer in layers:
        room -= num_weights(layer)
        if room < 0:
            break
        kept.append(layer)
    if not kept:
        return None
    known: dict[int, Any] = {}
    if len(kept) < len(layers):  # `deepcopy` takes what it finds here for the copy
        known[id(layers)] = nn.ModuleList(deepcopy(layer, known) for layer in kept)
    copy: PreTrainedModel = deepcopy(model, known).float()
    try:
        OwnForward(copy)(torch.zeros(2, dtype=torch.long, device=copy.device))
    except Exception:  # an architecture may fail in any way with fewer layers
        return None
    return copy


def _text(own: OwnForward, eos_id: int, size: int) -> list[int]:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(vocab_size(own.model), (size - 1,), generator=generator)
    return [eos_id, *ids.tolist()]


@torch.inference_mode()
def _keeps(own: OwnForward, eos_id: int) -> bool:
    if scales_with_length(own.model):
        return False
    ids = _text(own, eos_id, 12)
    try:
        reader = Reader(own, keeps=True)
        found = torch.stack([reader(ids[:end]) for end in range(8, len(ids) + 1)])
        if not reader.state:
            return False
        read = torch.tensor(ids, device=own.model.device)
        expected = own(read)[7:].float().log_softmax(-1)
        with rounded(own.model):
            noise = (own(read)[7:].float().log_softmax(-1) - expected).abs().max()
    except Exception:  # an architecture's own cache may fail in any way
        return False
    return close(found.float().log_softmax(-1), expected, tolerance(own.model.dtype), float(noise))


@torch.inference_mode()
def _decodes(trunk: Trunk, own: OwnForward, eos_id: int) -> bool:
    sampling = Sampling(temperature=0, max_tokens=4)
    jobs = [Job(_text(own, eos_id, size), size, 0, ()) for size in (9, 5)]
    try:
        done = list(Decoder(trunk, [eos_id], sampling, len(jobs)).run(jobs))
    except Exception:  # for example, keys of different shapes in different layers
        return False
    for job in done:
        ids = [*job.prompt, *job.ids]
        logits = own(torch.tensor(ids, device=own.model.device))[len(job.prompt) - 1 :].float()
        drawn = torch.tensor([*job.ids, eos_id][: sampling.max_tokens], device=logits.device)
        log_p = logits[: len(drawn)].log_softmax(-1)
        chosen = log_p.gather(1, drawn[:, None])[:, 0]
        certainty = -(log_p.mean(-1) + torch.log(torch.tensor(log_p.shape[-1]))).sum()
        found = torch.tensor(job.certainty, device=logits.device)
        limit = tolerance(own.model.dtype)
        if (log_p.max(-1).values - chosen).max() > limit or (certainty - found).abs() > 10 * limit:
            return False
    return True
