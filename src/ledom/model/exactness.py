"""A test at load that shows whether texts may share a row.

Packing is exact if attention is the only way in which the model mixes tokens, and if it is the
attention that ledom computes: causal, over the whole text, without biases. Convolutions,
recurrences, custom attention classes, ALiBi, sliding windows and rotary positions scaled by the
longest text all break this, most of them without an error. So an architecture's name proves
nothing: each model is tested in ten forward passes over at most 20 tokens and compared with plain
transformers.

Shapes: T tokens read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ledom.core.errors import CheckpointError
from ledom.model.architectures import half_precision, is_quantized, layer_list, num_weights
from ledom.model.attention import IMPLEMENTATION, packed_attention
from ledom.model.folder import numbers_in
from ledom.model.own_forward import OwnForward, reset_length

__all__ = [
    "check_long_text",
    "close",
    "in_float32",
    "packing_reach",
    "random_text",
    "rounded",
    "tolerance",
    "vocab_size",
]

PackedRun = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(ids, positions, boundaries, targets) of a packed row -> log P of each target [T]. All are int64
[T], except the boundaries [documents + 1] on the CPU. It may raise any error."""

_PROBE = "ledom-probe"  # our attention, which also records the masks that a model requests
_SIZES = (12, 7)  # tokens of the two texts
_PREFIX = 6  # first tokens, whose outputs must not depend on later ones
_NOISE = 3  # a correct row may differ by this many times the rounding noise
_ROUNDING = 2**-20  # a few units in the last place of fp32
_FAR = 2**20  # a position beyond any text, for models without a limit
_LONG = 257  # tokens: more than the chunks of recurrent architectures
_MOST_COPIED = 2**29  # parameters of a copy, which takes 2 GB


@dataclass(frozen=True)
class _Row:
    """Two texts in one row, and the token to predict at each position."""

    ids: Tensor
    targets: Tensor

    def moved(self, first: int) -> Tensor:
        """Position ids [T]; they begin at `first` in the first text and at 0 in the second."""
        a, b = (torch.arange(size, device=self.ids.device) for size in _SIZES)
        return torch.cat([a + first, b])


@torch.no_grad()
def packing_reach(own: OwnForward, packed: PackedRun, eos_id: int, context: int) -> int:
    """The longest text, in tokens read, for which `packed` agrees with the model's own pass.

    It is 0 if packing is never exact; such a model runs one text at a time. Otherwise the model
    keeps ledom's attention. Raises `CheckpointError` for a model that cannot run on token ids
    alone, or that sees later tokens.
    """
    model, training = own.model, own.model.training
    model.eval()
    ids = _random_ids(model, sum(_SIZES) + 1)
    row = _Row(ids[:-1].clone(), ids[1:].clone())  # the first begins inside a document
    row.ids[_SIZES[0]] = eos_id
    try:
        expected, noise = _alone(own, row)
        try:
            reach = min(_mask_reach(own, row.ids[: _SIZES[0]], context), context)
            own.use(IMPLEMENTATION)
            reach = min(reach, _checked(model, packed, row, expected, noise, context))
        except Exception:  # an architecture may fail in any way on unknown arguments
            reach = 0
        if not reach:
            own.use(None)
        return reach
    finally:
        reset_length(model)
        model.train(training)


def _checked(
    model: PreTrainedModel,
    packed: PackedRun,
    row: _Row,
    expected: Tensor,
    noise: float,
    context: int,
) -> int:
    """The longest text for which the packed run is right; 0 if there is none."""
    boundaries = torch.tensor([0, _SIZES[0], sum(_SIZES)])

    def run(row: _Row, first: int = 0) -> Tensor:
        return packed(row.ids, row.moved(first), boundaries, row.targets).float()

    found = run(row)
    if not close(found, expected, tolerance(model.dtype), noise):
        return 0
    other = _Row(row.ids.clone(), row.targets)
    # New tokens, not a new order of the same ones, which would hide a leak of averages.
    other.ids[1 : _SIZES[0]] = _random_ids(model, _SIZES[0] - 1, seed=1)
    # With a different neighbor of the same length, only a leak changes the second text's results.
    limit = _tolerance_at_a_length(model) / 10
    second = slice(_SIZES[0], None)
    if not close(run(other)[second], found[second], limit):
        return 0
    # then the lengths up to which rotary positions are unscaled, longest first
    numbers = numbers_in(model.config.to_dict())
    known = {number for key, number in numbers if key == "original_max_position_embeddings"}
    for reach in (context, *sorted(map(int, known), reverse=True)):
        far = max(0, min(reach, _FAR) - _SIZES[0])
        if close(run(row, far)[second], found[second], limit):
            return reach
    return 0


def _random_ids(model: PreTrainedModel, count: int, seed: int = 0) -> Tensor:
    """Random ids [count]; the global random state does not change."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size(model), (count,), generator=generator).to(model.device)


def random_text(model: PreTrainedModel, eos_id: int, size: int) -> list[int]:
    """EOS and random ids, `size` in total; always the same for a model and a size."""
    return [eos_id, *_random_ids(model, size - 1, seed=size).tolist()]


def vocab_size(model: PreTrainedModel) -> int:
    """The number of ids that the model can both read and predict."""
    config = model.config.get_text_config()
    predicted = getattr(config, "unpadded_vocab_size", None) or config.vocab_size  # Inkling
    return int(min(config.vocab_size, predicted))


def _alone(own: OwnForward, row: _Row) -> tuple[Tensor, float]:
    """log P of the targets [T] by the model's own pass over each text, and the rounding noise.

    The noise is how much, in nats, rounding or another length changes the results for the same
    tokens.
    """
    try:
        parts = [own(ids).float().log_softmax(-1) for ids in row.ids.split(_SIZES)]
        with rounded(own.model):
            again = [own(ids).float().log_softmax(-1) for ids in row.ids.split(_SIZES)]
        # of the same length, because another length rounds differently in half precision
        other = row.ids[: _SIZES[0]].clone()
        other[_PREFIX:] = _random_ids(own.model, _SIZES[0] - _PREFIX, seed=1)
        prefix = own(other)[:_PREFIX].float().log_softmax(-1)
        shorter = own(row.ids[:_PREFIX]).float().log_softmax(-1)
    except Exception as error:
        raise own.refusal(error, "does not run on token ids alone", "give a decoder") from error
    if not all(part.isfinite().all() for part in (*parts, prefix, shorter)):
        raise CheckpointError(
            f"{type(own.model).__name__}: its logits are not finite; the weights are damaged, or "
            f"too large for {str(own.model.dtype).removeprefix('torch.')}"
        )
    limit = tolerance(own.model.dtype)
    # A copy in fp32 shows smaller leaks, but there is none of quantized weights: those of
    # bitsandbytes' 8 bits leak 0.15 nats in any precision.
    same = _tolerance_at_a_length(own.model) if is_quantized(own.model) else limit
    # ProphetNet's results depend on the number of following tokens. Half precision needs tolerance.
    other_length = limit if own.model.dtype == torch.float32 else 4 * limit
    first = parts[0][:_PREFIX]
    noise = float((first - again[0][:_PREFIX]).abs().max())
    if not (close(first, prefix, same, noise) and close(first, shorter, other_length, noise)):
        seen = "sees later tokens, so it defines no probability of a text"
        remedy = "give a decoder (some encoders become one with is_decoder: true in config.json)"
        raise own.refusal("other tokens after it change a text's beginning", seen, remedy)
    expected, other = (
        torch.cat(each).gather(1, row.targets[:, None])[:, 0] for each in (parts, again)
    )
    return expected, max(float(d.abs().max()) for d in (expected - other, first - shorter))


@contextmanager
def rounded(model: PreTrainedModel) -> Iterator[None]:
    """Within this block, the model's input embeddings change by a few units in the last place.

    Some trained models amplify such a change a thousandfold at tokens with huge activations
    (SmolLM2: the first token of a text without BOS). Their own results are no more exact than that.
    In half precision, the change is rounded away.

    >>> model = torch.nn.Embedding(1, 8, _weight=torch.ones(1, 8))
    >>> model.get_input_embeddings = lambda: model
    >>> with rounded(model):
    ...     changed = model(torch.tensor([0]))
    >>> bool(0 < (changed - 1).abs().max() < 1e-6)
    True
    """
    generator = torch.Generator().manual_seed(0)

    def change(_: Any, __: Any, out: Tensor) -> Tensor:
        noise = 2 * torch.rand(out.shape, generator=generator, dtype=torch.float32) - 1
        return (out * (1 + _ROUNDING * noise.to(out.device))).to(out.dtype)

    hook = model.get_input_embeddings().register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference between two log-probabilities that are both right, in nats.

    In fp32, another order of sums changes about 1e-6, and a leak far more. Half precision rounds
    each layer's output to 8 or 11 bits, which affects the second decimal of log-probabilities near
    -10. A smaller leak shows up when the neighboring text is replaced.

    >>> tolerance(torch.float32)
    0.0001
    """
    return {torch.bfloat16: 0.25, torch.float16: 0.03}.get(dtype, 1e-4)


def _tolerance_at_a_length(model: PreTrainedModel) -> float:
    """The `tolerance` between results for the same tokens among as many others.

    No shapes change, so the results may change only by the order of sums, in any precision. Experts
    are the exception: the shapes of their matmuls depend on the tokens that they get.
    """
    experts = any(name.endswith("experts") for name, _ in model.named_modules())
    return tolerance(model.dtype if experts else torch.float32)


def close(found: Tensor, expected: Tensor, limit: float, noise: float = 0.0) -> bool:
    """Whether all differences are within `limit` (scaled up for values over 10) or the noise.

    Rounding grows with the logits: a trained model gives random tokens log-probabilities of -30. A
    right result may differ by three times the noise, because the noise comes from a single trial.

    >>> close(torch.tensor([-1.0002]), torch.tensor([-1.0]), 1e-4, noise=1e-4)
    True
    """
    limit = max(limit, limit * float(expected.abs().max()) / 10, _NOISE * noise)
    return bool((found - expected).abs().max() <= limit)  # NaN is not


def in_float32(model: PreTrainedModel) -> PreTrainedModel | None:
    """Copy a half-precision model in fp32: all its layers, or as many as fit in `_MOST_COPIED`.

    Returns None for a model in another precision or with quantized weights, and if the copy would
    be too large or does not run (some architectures need all layers).
    """
    layers = layer_list(model)
    if not half_precision(model) or layers is None or is_quantized(model):
        return None
    room = _MOST_COPIED - num_weights(model) + num_weights(layers)
    sizes = accumulate(num_weights(layer) for layer in layers)
    kept = [layer for layer, size in zip(layers, sizes, strict=True) if size <= room]
    if not kept:
        return None
    known: dict[int, Any] = {}
    if len(kept) < len(layers):  # `deepcopy` uses the entries here as the copy
        known[id(layers)] = nn.ModuleList(deepcopy(layer, known) for layer in kept)
    copy: PreTrainedModel = deepcopy(model, known).float()
    try:
        OwnForward(copy)(torch.zeros(2, dtype=torch.long, device=copy.device))
    except Exception:  # with fewer layers, an architecture may fail in any way
        return None
    return copy


@torch.no_grad()
def check_long_text(own: OwnForward, context: int) -> None:
    """Raise `CheckpointError` for a half-precision model that fails only on texts longer than one
    chunk, like recurrent models whose kernels mix precisions."""
    if half_precision(own.model):
        ids = torch.zeros(min(context, _LONG), dtype=torch.long, device=own.model.device)
        try:
            own(ids)
        except Exception as error:
            raise own.refusal(error, "fails on longer texts", "give another model") from error


def _mask_reach(own: OwnForward, ids: Tensor, context: int) -> int:
    """The longest text that every layer attends to in full, according to the model's masks.

    Masks that no layer receives do not count: Qwen2-MoE also requests one for a window of 0.
    """
    try:
        masks = _Masks(context, marked=True)
        masks.record(own, ids)
    except Exception:  # an architecture that computes with its masks fails on marked masks
        masks = _Masks(context, marked=False)
        masks.record(own, ids)
    every_layer = len(masks.layers) >= (own.model.config.get_text_config().num_hidden_layers or 0)
    counted = masks.used if every_layer and not masks.changed else range(len(masks.reaches))
    return min((masks.reaches[place] for place in counted), default=context)


class _Masks:
    """Records the masks that a model requests in a pass, and which of them its layers receive.

    If `marked`, a mask is a row filled with its index in `reaches`; otherwise it is None.
    """

    def __init__(self, context: int, marked: bool) -> None:
        self.context, self.marked = context, marked
        self.reaches: list[int] = []
        self.used: set[int] = set()
        self.layers: set[int] = set()
        self.changed = not marked

    def record(self, own: OwnForward, ids: Tensor) -> None:
        places = torch.arange(min(self.context, _FAR), device=ids.device)
        zero = torch.zeros((), dtype=torch.long, device=ids.device)

        def mask(*_: Any, mask_function: Callable[..., Any], **__: Any) -> Tensor | None:
            hidden = ~torch.as_tensor(mask_function(zero, zero, places, zero)).expand(len(places))
            self.reaches.append(int(hidden.int().argmax()) if hidden.any() else self.context)
            if not self.marked:
                return None
            row = torch.full((1, 1, 1, len(ids)), len(self.reaches) - 1, device=ids.device)
            return row.float()

        def attend(
            module: torch.nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            **options: Any,
        ) -> tuple[Tensor, None]:
            self.layers.add(id(module))
            if attention_mask is not None:
                found = attention_mask.unique().tolist()
                known = len(found) == 1 and found[0] in range(len(self.reaches))
                self.changed |= not known
                self.used.update(map(int, found) if known else ())
            return packed_attention(module, query, key, value, None, **options)

        AttentionInterface.register(_PROBE, attend)
        AttentionMaskInterface.register(_PROBE, mask)
        own.use(_PROBE)
        own.model(input_ids=ids[None], use_cache=False)
