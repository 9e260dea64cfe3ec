"""A model's own forward pass, and a trial at load that shows whether texts may share a row.

Packing is exact if attention is the only way in which the model mixes tokens, and if it is the
attention that ledom computes: causal, over the whole text, without biases. Convolutions,
recurrences, custom attention classes, ALiBi, sliding windows and rotary positions scaled by the
longest text all break this, most of them without an error. So an architecture's name proves
nothing: each model is tried, in eight forward passes over at most 20 tokens, and compared with
plain transformers.

Shapes: T tokens read, N outputs wanted, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from ledom.core.errors import CheckpointError
from ledom.model.architectures import half_precision
from ledom.model.attention import IMPLEMENTATION, packed_attention

__all__ = [
    "OwnForward",
    "PackedRun",
    "packing_reach",
    "scales_with_length",
    "tolerance",
    "vocab_size",
]

PackedRun = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(ids, positions, boundaries, targets) of a packed row -> log P of each target [T]. All are int64
[T], except the boundaries [documents + 1] on the CPU. It may raise any error."""

_PROBE = "ledom-probe"  # our attention, which also records the masks that a model asks for
_SIZES = (12, 7)  # tokens of the two texts
_PREFIX = 6  # first tokens, whose outputs must not depend on later ones
_NOISE = 3  # a correct row may differ by this many times what another length changes
_FAR = 2**20  # a position beyond any text, for models without a limit


@dataclass(frozen=True)
class _Row:
    """Two texts in one row, and the token to predict at each place."""

    ids: Tensor
    targets: Tensor

    def moved(self, first: int) -> Tensor:
        """Position ids [T], which begin at `first` in the first text and at 0 in the second."""
        a, b = (torch.arange(size, device=self.ids.device) for size in _SIZES)
        return torch.cat([a + first, b])


@torch.no_grad()
def packing_reach(own: OwnForward, packed: PackedRun, eos_id: int, context: int) -> int:
    """The longest text, in tokens read, for which `packed` agrees with the model's own pass.

    It is 0 if packing is never exact: such a model runs one text at a time. Otherwise the model is
    left with ledom's attention. Raises `CheckpointError` for a model that cannot run on token ids
    alone, or that sees later tokens.
    """
    model, training = own.model, own.model.training
    model.eval()
    row = _random_row(model, eos_id)
    try:
        expected, noise = _alone(own, row)
        try:
            reach = min(_mask_reach(own, row.ids[: _SIZES[0]], context), context)
            own.use(IMPLEMENTATION)
            reach = min(reach, _checked(model, packed, row, expected, noise, context))
        except Exception:  # an architecture may fail in any way on arguments that it does not know
            reach = 0
        if not reach:
            own.restore()
        return reach
    finally:
        _reset_length(model)
        model.train(training)


def _checked(
    model: PreTrainedModel,
    packed: PackedRun,
    row: _Row,
    expected: Tensor,
    noise: float,
    context: int,
) -> int:
    """The longest text for which the packed run is right; 0 for none."""
    boundaries = torch.tensor([0, _SIZES[0], sum(_SIZES)])

    def run(row: _Row, first: int = 0) -> Tensor:
        return packed(row.ids, row.moved(first), boundaries, row.targets).float()

    found = run(row)
    if not _close(found, expected, tolerance(model.dtype), _NOISE * noise):
        return 0
    other = _Row(row.ids.clone(), row.targets)
    # New tokens rather than a new order of the same ones, which would hide a leak of averages.
    other.ids[1 : _SIZES[0]] = _random_ids(model, _SIZES[0] - 1, seed=1)
    # A different neighbor of the same length leaves all shapes alone, so the second text's results
    # may change only by the order of sums, whatever the precision. Experts are the exception: the
    # shapes of their products depend on the tokens that they get.
    experts = any(name.endswith("experts") for name, _ in model.named_modules())
    limit = tolerance(model.dtype if experts else torch.float32) / 10
    second = slice(_SIZES[0], None)
    if not _close(run(other)[second], found[second], limit):
        return 0
    for reach in (context, *_lengths_in(model)):
        far = min(reach, _FAR) - _SIZES[0]
        if far >= 0 and _close(run(row, far)[second], found[second], limit):
            return reach
    return 0


def _random_row(model: PreTrainedModel, eos_id: int) -> _Row:
    """A row of two texts: the first begins inside a document, as windows may, the second with EOS.

    The global random state is left alone.
    """
    ids = _random_ids(model, sum(_SIZES) + 1)
    ids, targets = ids[:-1].clone(), ids[1:].clone()
    ids[_SIZES[0]] = eos_id
    return _Row(ids, targets)


def _random_ids(model: PreTrainedModel, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size(model), (count,), generator=generator).to(model.device)


def vocab_size(model: PreTrainedModel) -> int:
    """How many ids the model can both read and predict."""
    return int(model.config.get_text_config().vocab_size)


def _alone(own: OwnForward, row: _Row) -> tuple[Tensor, float]:
    """log P of the targets [T] by the model's own pass over each text, and the noise of rounding.

    The noise is how much, in nats, another length changes the results for the same tokens.
    """
    try:
        parts = [own(ids).float().log_softmax(-1) for ids in row.ids.split(_SIZES)]
        # Of the same length: another length rounds differently, which shows in half precision.
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
    # ProphetNet depends on how many tokens follow. Half precision needs room for rounding here.
    other_length = limit if own.model.dtype == torch.float32 else 4 * limit
    first = parts[0][:_PREFIX]
    if not (_close(first, prefix, limit) and _close(first, shorter, other_length)):
        seen = "sees later tokens, so it gives no probability of a text"
        remedy = "give a decoder (some encoders become one with is_decoder: true in config.json)"
        raise own.refusal("other tokens after it change a text's beginning", seen, remedy)
    noise = float((first - shorter).abs().max())  # nats
    return torch.cat(parts).gather(1, row.targets[:, None])[:, 0], noise


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference between two log-probabilities that are both right, in nats.

    In fp32 another order of sums changes about 1e-6, and a leak far more. Half precision rounds
    each layer's output to 8 or 11 bits: the second decimal of log-probabilities near -10. A
    smaller leak shows when the neighboring text is replaced.

    >>> tolerance(torch.float32)
    0.0001
    """
    return {torch.bfloat16: 0.25, torch.float16: 0.03}.get(dtype, 1e-4)


def _close(found: Tensor, expected: Tensor, limit: float, noise: float = 0.0) -> bool:
    """Whether all differences are within `limit`, which grows with values over 10, or `noise`.

    Rounding grows with the logits: a trained model gives random tokens log-probabilities of -30.
    """
    limit = max(limit, limit * float(expected.abs().max()) / 10, noise)
    return bool((found - expected).abs().max() <= limit)  # NaN is not


def _mask_reach(own: OwnForward, ids: Tensor, context: int) -> int:
    """The longest text that every layer attends to in full, according to the model's masks.

    Masks that reach no layer do not count: Qwen2-MoE also requests one with a window of 0 tokens.
    """
    try:
        masks = _Masks(context, marked=True)
        masks.record(own, ids)
    except Exception:  # an architecture that computes with its masks fails on marked ones
        masks = _Masks(context, marked=False)
        masks.record(own, ids)
    every_layer = len(masks.layers) >= (own.model.config.get_text_config().num_hidden_layers or 0)
    counted = masks.used if every_layer and not masks.changed else range(len(masks.reaches))
    return min((masks.reaches[place] for place in counted), default=context)


class _Masks:
    """The masks that a model requests in a pass, and which of them its layers receive.

    When `marked`, a mask is a row filled with its index in `reaches`; otherwise it is None.
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
            return torch.full((1, 1, 1, len(ids)), len(self.reaches) - 1.0, device=ids.device)

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


def _lengths_in(model: PreTrainedModel) -> list[int]:
    """Lengths in the config up to which rotary positions are not scaled, longest first."""

    def values(tree: Any) -> Iterator[int]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from values(value)
            elif key == "original_max_position_embeddings" and isinstance(value, int):
                yield value

    return sorted(set(values(model.config.to_dict())), reverse=True)


class OwnForward:
    """Runs a model as plain transformers does, with the attention that transformers chooses."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        configs = (getattr(module, "config", None) for module in model.modules())
        found = {id(config): config for config in configs if isinstance(config, PretrainedConfig)}
        self._configs = list(found.values())
        default = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        self._names = [default if name == IMPLEMENTATION else name for name in self._current()]
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
            _reset_length(self.model)
            return self.model(input_ids=ids[None], **options)

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Give the model its own attention until the block ends."""
        before = self._current()
        self.restore()
        try:
            yield
        finally:
            self._assign(before)

    def use(self, name: str) -> None:
        """Let every layer run the attention registered with transformers under a name."""
        self._assign([name] * len(self._configs))

    def restore(self) -> None:
        """Give the model its own attention for good."""
        self._assign(self._names)

    def _current(self) -> list[str | None]:
        return [config._attn_implementation for config in self._configs]

    def _assign(self, names: list[str | None]) -> None:
        # The public property would also change nested configs, which get their own names here.
        for config, name in zip(self._configs, names, strict=True):
            config._attn_implementation_internal = name

    @torch.no_grad()
    def check_training(self, longest: int) -> None:
        """Raise `CheckpointError` for a model that cannot be trained on texts of every length.

        Both `longest` tokens and one fewer are tried: some architectures need a multiple.
        """
        training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng():  # dropout draws
                for length in (longest, max(longest - 1, 1)):
                    self(torch.zeros(length, dtype=torch.long, device=self.model.device))
        except Exception as error:
            what = f"cannot be trained on texts of {length} tokens"
            raise self.refusal(error, what, "give another architecture") from error
        finally:
            self.model.train(training)

    def refusal(self, error: object, what: str, remedy: str) -> CheckpointError:
        """The error for a model that cannot be used; in half precision, that may be the cause."""
        kind, half = type(self.model).__name__, half_precision(self.model)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if half:
            what, remedy = f"does not run correctly in {half}", f"try float32, or {remedy}"
        return CheckpointError(f"{kind} {what} ({reason}); {remedy}")


def scales_with_length(model: PreTrainedModel) -> bool:
    """Whether rotary positions depend on the length of the text (LongRoPE, dynamic NTK).

    The keys of earlier tokens then change as a text grows, so they cannot be cached.
    """
    return any(True for _ in _scaling_modules(model))


def _reset_length(model: PreTrainedModel) -> None:
    """Forget earlier texts: dynamic NTK keeps the frequencies of the longest one."""
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
