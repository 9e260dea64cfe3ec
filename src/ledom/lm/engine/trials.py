"""Trials at load: which of the fast ways to run a model give the results of its own forward pass.

Half precision rounds by more than a small fault changes: a row whose second text sees a little of
the first, a cache that loses a little, a scale that sampling leaves out. So a model in half
precision is tried twice: as it is, and as a copy in fp32, of its first layers only if it is large.
All ids are in model order.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Decoder
from ledom.lm.engine.own_decoder import Reader
from ledom.lm.engine.trunk import Trunk, build_trunk
from ledom.lm.language_model import Sampling
from ledom.model.architectures import half_precision, layer_list, num_weights
from ledom.model.exactness import close, packing_reach, rounded, tolerance, vocab_size
from ledom.model.own_forward import OwnForward, scales_with_length

__all__ = ["decodes_exactly", "in_float32", "keeps_exactly", "longest_packed"]

_LONG = 257  # tokens: more than the chunks of recurrent architectures
_MOST_COPIED = 2**29  # parameters of a copy: 2 GB


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
