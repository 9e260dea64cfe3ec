"""A block: texts that are written in lockstep and share their prompts' keys and values.

The texts of a block are admitted together, so all have read their prompt and the same number of
tokens after it. A step attends to two caches: the prompts' keys, read once for all samples of a
prompt, and the texts' own keys, which have equal length and so need neither padding nor a mask.
Ledom's own kernel addresses each text's keys directly, so one call handles all blocks.

Shapes: A texts, P prompts, n the maximum number of texts per prompt, K key-value heads, G query
heads per key-value head, H = K * G, D head width, C tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ledom.lm.language_model import FinishReason
from ledom.model.attention import Attend
from ledom.model.native.attention import LANES, cache_attention, has_native

__all__ = ["Block", "GenerationState", "Job", "Prefilled", "attend_to"]

_COLUMN_STEP = 32  # tokens by which the cache of the texts' own keys grows
_DROP_AT = 3 / 4  # stacked prompts are compacted when at most this share of them is still in use

Prefilled = tuple[Tensor | None, Tensor, Tensor]
"""A prompt's next-token logits [V], and its keys and values [layers, K, T, D]. The logits are None
for a job that comes with a cache, because its last token has not been read yet."""


@dataclass
class Job:
    """One text to write: sample `sample` of prompt `place`, whose ids are in model order."""

    prompt: Sequence[int]
    place: int
    sample: int
    key: tuple[int, ...]
    """The seed of its draws."""
    greedy: bool = False
    """Whether to always choose the most likely token, regardless of the sampling settings."""
    ids: list[int] = field(default_factory=list)
    """The tokens written so far, without EOS."""
    uniforms: NDArray[np.float64] | None = None
    """A number in [0, 1) for each draw; None for a greedy text."""
    kv_cache: tuple[Tensor, Tensor] | None = None
    """Keys and values [layers, K, T, D] of the prompt except its last token, if known. After the
    job has stopped at the pattern: of the prompt and all written tokens except the last."""
    search: Callable[[list[int]], bool] | None = None
    """Checks after each token whether the text ends at the pattern; see `lm.engine.pattern`."""
    finish_reason: FinishReason | None = None
    """Why it is complete; None while it is being written."""
    least: float | None = None
    """The confidence below which the text ends; see `lm.confidence`."""
    certainty: float = 0.0
    """The sum of `_divergence_from_uniform` over the sampled tokens."""
    confidences: list[float] = field(default_factory=list)
    """The confidences of the sampled tokens, if requested; see `lm.confidence`."""


@dataclass(frozen=True)
class GenerationState:
    """The state from which a model starts or continues a text."""

    model: str
    """Identifies the model that wrote it, the only one that can use its keys and values."""
    context: list[int]
    """The ids that the model has read, in model order."""
    key: int
    """A hash of the context's text, for seeds."""
    prompt: str
    """The prompt of the first part."""
    written: Sequence[int] = ()
    """The ids written after the prompt, in model order."""
    text: str = ""
    """The text of `written`."""
    kv_cache: tuple[Tensor, Tensor] | None = None
    """Keys and values of `context` except its last token, if known; see `Job`."""
    version: int = 0
    """The version of the model that computed them; see `Trunk`."""


class Block:
    """Texts that were admitted together; each has read its prompt and `age` tokens after it."""

    def __init__(self, jobs: list[Job], prompts: Sequence[Prefilled], prompt_of: list[int]) -> None:
        self.jobs = jobs
        self.age = 0
        self.prompt_of = np.array(prompt_of)
        """The index of each text's prompt [A]."""
        self._device = prompts[0][1].device
        layers, heads, _, width = prompts[0][1].shape
        known = [(keys, values) for _, keys, values in prompts]
        self.prompts: _Apart | _Stacked
        self.prompts = _Apart(known) if has_native(*known[0]) else _Stacked(known)
        empty = known[0][0].new_empty(len(jobs), heads, 0, width)
        self.own: list[_Pair] = [(empty.mT, empty)] * layers
        """The texts' own keys [rows, K, D, room] and values [rows, K, room, D] by layer, so that
        one layer can grow at a time. A tensor of all layers would be held twice while it grows, and
        would leave a gap in memory that is too small for its successor."""
        self._rows = np.arange(len(jobs))
        """The row of each text [A]; plain matmuls need them in order, without gaps."""

    def positions(self) -> Tensor:
        """Position ids [A] of the tokens to be read next."""
        lengths = self.prompts.lengths[self.prompt_of]
        return torch.from_numpy(lengths + self.age).to(self._device)

    def reserve(self) -> None:
        """Make room for the keys and values of one more token per text.

        Ledom's own kernel reads keys in whole vectors, from any token on: up to `LANES` in all.
        """
        room = self.own[0][1].shape[2]
        if self.age + LANES <= room:
            return
        kept = torch.from_numpy(self._rows).to(self._device)
        for layer, (keys, values) in enumerate(self.own):
            _, heads, _, width = values.shape
            new_keys = keys.new_empty(len(kept), heads, width, room + _COLUMN_STEP)
            new_values = values.new_empty(len(kept), heads, room + _COLUMN_STEP, width)
            new_keys[..., :room], new_values[:, :, :room] = keys[kept], values[kept]
            self.own[layer] = new_keys, new_values
        self._rows = np.arange(len(kept))
        vars(self).pop("_addresses", None)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention by plain matmuls; see `attend_to`."""
        assert isinstance(self.prompts, _Stacked)
        return self.prompts.attend(q, k, v, layer, self.own[layer], self.age, self.prompt_of)

    def addresses(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The arguments `own` (for all layers) and `about` of `cache_attention`."""
        own, about = self._addresses
        about[1] = self.age
        return own, about

    @cached_property
    def _addresses(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        prompts, of = self.prompts, self.prompt_of
        assert isinstance(prompts, _Apart)
        own = [
            [x.data_ptr() + self._rows * x.stride(0) * x.element_size() for x in pair]
            for pair in self.own
        ]
        about = np.empty((5, len(of)), dtype=np.int64)
        about[0] = self.own[0][1].shape[2]
        about[2:] = prompts.keys_at[of], prompts.values_at[of], prompts.lengths[of]
        return np.array(own), about

    def copy(self, place: int) -> _Pair:
        """Keys and values [layers, K, T, D] of all tokens that the text at `place` has read."""
        keys, values = self.prompts.one(int(self.prompt_of[place]))
        row, age = self._rows[place], self.age
        own_keys = torch.stack([own[row, :, :, :age].mT for own, _ in self.own])
        own_values = torch.stack([own[row, :, :age] for _, own in self.own])
        return torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)

    def drop(self, ended: Sequence[int]) -> None:
        """Remove the texts at these places; the last texts take their places."""
        gone = set(ended)
        count = len(self.jobs) - len(gone)
        behind = (place for place in range(count, len(self.jobs)) if place not in gone)
        kept = np.array([next(behind) if at in gone else at for at in range(count)], dtype=np.int64)
        self.jobs = [self.jobs[place] for place in kept]
        self.prompt_of = self.prompt_of[kept]
        if isinstance(self.prompts, _Apart):
            self._rows = self._rows[kept]
        else:
            self._move(kept)
        used, places = np.unique(self.prompt_of, return_inverse=True)
        known = len(self.prompts.lengths)
        if 0 < len(used) <= (known - 1 if isinstance(self.prompts, _Apart) else _DROP_AT * known):
            self.prompt_of = places
            self.prompts = self.prompts.only(used)
        vars(self).pop("_addresses", None)

    def _move(self, kept: NDArray[np.int64]) -> None:
        """Move the texts to the first rows, because plain matmuls do not allow gaps."""
        new = np.flatnonzero(kept != np.arange(len(kept)))
        into, old = (torch.from_numpy(x).to(self._device) for x in (new, kept[new]))
        for pair in self.own if len(new) else ():
            for rows in pair:
                rows[into] = rows[old]
        self.own = [(keys[: len(kept)], values[: len(kept)]) for keys, values in self.own]
        self._rows = np.arange(len(kept))


def attend_to(blocks: Sequence[Block]) -> Attend:
    """The attention of one token per text of these blocks: q [A, H, D], k and v [A, K, D].

    Each token's key and value are added to its text's own. Valid for one step, at the blocks' age.
    """
    if all(isinstance(block.prompts, _Apart) for block in blocks):
        own, about = zip(*(block.addresses() for block in blocks), strict=True)
        all_own, all_about = np.concatenate(own, axis=2), np.concatenate(about, axis=1)
        return lambda layer, q, k, v: cache_attention(q, k, v, all_own[layer], all_about, layer)
    sizes = [len(block.jobs) for block in blocks]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(blocks, *(x.split(sizes) for x in (q, k, v)), strict=True)
        return torch.cat([block.attend(layer, *qkv) for block, *qkv in parts])

    return attend


_Pair = tuple[Tensor, Tensor]
_Places = NDArray[np.int64]


class _Apart:
    """Prompts' keys [layers, K, D, C] and values [layers, K, T, D], in separate tensors.

    C is a prompt's length T, rounded up to a multiple of `LANES`. Used by ledom's own kernel, which
    reads them by address. It reads nothing past a prompt's end, so more of them fit into the
    processor's cache than if they were stacked.
    """

    def __init__(self, prompts: Sequence[_Pair]) -> None:
        self.lengths = np.array([keys.shape[2] for keys, _ in prompts])
        self._prompts = [
            (functional.pad(keys.mT, (0, -keys.shape[2] % LANES)).contiguous(), values.contiguous())
            for keys, values in prompts
        ]
        self._find()

    def _find(self) -> None:
        addresses = [(keys.data_ptr(), values.data_ptr()) for keys, values in self._prompts]
        self.keys_at, self.values_at = np.array(addresses, dtype=np.int64).T

    def one(self, prompt: int) -> _Pair:
        """A prompt's keys and values [layers, K, T, D]."""
        keys, values = self._prompts[prompt]
        return keys[..., : self.lengths[prompt]].mT, values

    def only(self, kept: _Places) -> _Apart:
        """The prompts at the indices `kept`, which may share memory with these."""
        found = copy(self)
        found.lengths = self.lengths[kept]
        found._prompts = [self._prompts[place] for place in kept]
        found._find()
        return found


class _Stacked:
    """Prompts' keys [layers, P, K, D, C] and values [layers, P, K, C, D], for plain matmuls.

    They are padded with zeros. The padding must be initialized, because masked keys still enter the
    matmuls, and NaN * 0 is NaN.
    """

    def __init__(self, prompts: Sequence[_Pair]) -> None:
        self.lengths = np.array([keys.shape[2] for keys, _ in prompts])
        first = prompts[0][0]
        layers, heads, _, width = first.shape
        shape = layers, len(prompts), heads, int(self.lengths.max()), width
        self._keys, self._values = first.new_zeros(shape).mT.contiguous(), first.new_zeros(shape)
        for place, (keys, values) in enumerate(prompts):
            self._keys[:, place, ..., : keys.shape[2]] = keys.mT
            self._values[:, place, :, : values.shape[2]] = values

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, own: _Pair, age: int, prompt_of: _Places
    ) -> Tensor:
        """See `attend_to`; text a has prompt `prompt_of[a]` and `age` tokens of its own.

        Query heads that share a key-value head form one group of queries, so no key is repeated.
        For so few queries, plain matmuls take half the time of torch's fused kernel on a CPU. In
        bf16 they round the scores before the softmax; see `kernels.causal_attention`.
        """
        end = age + 1
        keys, values = own
        keys[..., age], values[:, :, age] = k, v
        keys, values = keys[..., :end].flatten(0, 1), values[:, :, :end].flatten(0, 1)
        known_keys, known_values = (
            self._keys[layer].flatten(0, 1),
            self._values[layer].flatten(0, 1),
        )
        prompts, columns, width = known_values.shape  # [P * K, C, D]
        into, back = self._cells(prompt_of)
        q = (q * width**-0.5).reshape(len(keys), -1, width)  # [A * K, G, D]
        group = q.shape[1]

        cells = q.index_select(0, into).view(prompts, -1, width)  # [P * K, n * G, D]
        known = torch.bmm(cells, known_keys)
        known.view(len(self.lengths), -1, *known.shape[1:]).add_(self._mask)
        known = known.view(-1, group, columns).index_select(0, back)
        scores = torch.cat([known, torch.bmm(q, keys)], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
        cells = weights.index_select(0, into).view(prompts, -1, columns + end)
        found = torch.bmm(cells[:, :, :columns], known_values)
        found = found.view(-1, group, width).index_select(0, back)
        return torch.baddbmm(found, weights[:, :, columns:], values).reshape(
            len(prompt_of), -1, width
        )

    @cached_property
    def _mask(self) -> Tensor:
        """A mask [P, 1, 1, C]: zeros, and -inf after a prompt's end."""
        lengths = torch.from_numpy(self.lengths).to(self._keys.device)[:, None, None, None]
        unseen = torch.arange(self._keys.shape[-1], device=lengths.device) >= lengths
        return torch.where(unseen, -torch.inf, 0.0).to(self._keys.dtype)

    def _cells(self, prompt_of: _Places) -> tuple[Tensor, Tensor]:
        """Map the texts' heads [A, K] to cells [P, K, n], which are grouped by prompt.

        Returns each cell's index among the texts' heads [P * K * n] and each head's cell [A * K]. A
        prompt with fewer than n texts has unused cells.
        """
        if self._grouped is None or self._grouped[0] is not prompt_of:
            self._grouped = (prompt_of, *self._group(prompt_of))
        return self._grouped[1:]

    _grouped: tuple[_Places, Tensor, Tensor] | None = None

    def _group(self, prompt_of: _Places) -> tuple[Tensor, Tensor]:
        heads = self._keys.shape[2]
        order = np.argsort(prompt_of, kind="stable")
        _, first, counts = np.unique(prompt_of[order], return_index=True, return_counts=True)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(first, counts)
        most = int(counts.max())
        back = (prompt_of[:, None] * heads + np.arange(heads)) * most + rank[:, None]
        into = np.zeros(len(self.lengths) * heads * most, dtype=np.int64)
        into[back.ravel()] = np.arange(back.size)
        device = self._keys.device
        return torch.from_numpy(into).to(device), torch.from_numpy(back.ravel()).to(device)

    def one(self, prompt: int) -> _Pair:
        """A prompt's keys and values [layers, K, T, D]."""
        end = self.lengths[prompt]
        return self._keys[:, prompt, ..., :end].mT, self._values[:, prompt, :, :end]

    def only(self, kept: _Places) -> _Stacked:
        """The prompts at the places `kept`."""
        found = copy(self)
        found.__dict__.pop("_mask", None)
        found.lengths = self.lengths[kept]
        columns, places = int(found.lengths.max()), torch.from_numpy(kept).to(self._keys.device)
        found._keys = self._keys[..., :columns].index_select(1, places)
        found._values = self._values[..., :columns, :].index_select(1, places)
        return found
