"""Texts that are written in step: the keys of their prompts once, and as many of their own each.

The texts of a block were admitted together, so each has read its prompt and equally many tokens
since. A step attends to two things: the keys of the prompts, each read once for all samples of its
prompt, and the texts' own keys, which need neither padding nor a mask.

Shapes: A texts, P prompts, n the most texts of one of them, K key-value heads, G query heads of
each, H = K * G, D head width, C columns of the prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Block", "Job", "Prefilled"]

_COLUMN_STEP = 32  # columns by which own keys grow
_DROP_AT = 3 / 4  # share of the prompts still in use at which the others are dropped

Prefilled = tuple[Tensor | None, Tensor, Tensor]
"""Of a prompt: the logits [V] behind it, where it was read whole, and its keys and values
[layers, K, T, D]."""


@dataclass
class Job:
    """One text to write: sample `sample` of prompt `place`, whose ids are in model order."""

    prompt: Sequence[int]
    place: int
    sample: int
    key: tuple[int, ...]
    """Seeds its draws."""
    greedy: bool = False
    """Whether it takes the most likely token each time, whatever the others of its batch do."""
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    uniforms: NDArray[np.float64] | None = None
    kv_cache: tuple[Tensor, Tensor] | None = None
    """Keys and values [layers, K, T, D] of all of the prompt but its last token, where known;
    once the job stopped at the pattern, those of the prompt and of what was written."""
    at_pattern: bool = False
    ended: bool = False
    least: float | None = None
    """The confidence below which it ends; see `lm.confidence`."""
    unsure: bool = False
    """Whether it ended so."""
    certainty: float = 0.0
    """Sum of `_divergence_from_uniform` over the tokens drawn."""
    confidences: list[float] = field(default_factory=list)
    """Of the tokens drawn, where they are asked for; see `lm.confidence`."""


class Block:
    """Texts that were admitted together: each has read its prompt and `age` tokens since."""

    def __init__(self, jobs: list[Job], prompts: Sequence[Prefilled], prompt_of: list[int]) -> None:
        self.jobs = jobs
        self.age = 0
        self._prompt_of = np.array(prompt_of)
        """[A]: which of the prompts each text has."""
        lengths = [keys.shape[2] for _, keys, _ in prompts]
        device = prompts[0][1].device
        self._lengths = torch.tensor(lengths, device=device)
        self._known_keys = _stack([keys for _, keys, _ in prompts])
        self._known_values = _stack([values for _, _, values in prompts])
        columns = torch.arange(max(lengths), device=device)
        self._mask = self._known_keys.new_zeros(len(lengths), 1, 1, max(lengths))
        self._mask.masked_fill_(columns >= self._lengths[:, None, None, None], -torch.inf)
        layers, _, heads, _, width = self._known_keys.shape
        self.keys = self._known_keys.new_empty(layers, len(jobs), heads, 0, width)
        self.values = torch.empty_like(self.keys)
        self._arrange()

    def positions(self) -> Tensor:
        """Of the tokens to be read next [A]."""
        return self._lengths[torch.from_numpy(self._prompt_of).to(self._lengths.device)] + self.age

    def _arrange(self) -> None:
        """Find the cells [P, K, n] that hold the texts' heads [A, K] where prompts are attended to.

        A prompt with fewer than n texts has cells of no use.
        """
        heads = self.keys.shape[2]
        order = np.argsort(self._prompt_of, kind="stable")
        _, first, counts = np.unique(self._prompt_of[order], return_index=True, return_counts=True)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(first, counts)
        self._most = int(counts.max())
        back = (self._prompt_of[:, None] * heads + np.arange(heads)) * self._most + rank[:, None]
        into = np.zeros(len(self._lengths) * heads * self._most, dtype=np.int64)
        into[back.ravel()] = np.arange(back.size)
        device = self._lengths.device
        self._into = torch.from_numpy(into).to(device)
        """[P * K * n]: the place in [A * K] that each cell is of."""
        self._back = torch.from_numpy(back.ravel()).to(device)
        """[A * K]: the cell of each."""

    def reserve(self) -> None:
        """Make room for one more column of own keys."""
        if self.age < self.keys.shape[3]:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            grown = [*old.shape]
            grown[3] += _COLUMN_STEP
            new = old.new_empty(grown)
            new[:, :, :, : self.age] = old
            setattr(self, name, new)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One token of each text: scaled queries [A, H, D], keys and values [A, K, D] -> [A, H, D].

        The query heads that share a key-value head are its queries, so no key is repeated. With so
        few queries plain products take half the time of the fused kernel on a CPU.
        """
        end = self.age + 1
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.age], values[:, :, self.age] = k, v
        keys, values = keys[:, :, :end].flatten(0, 1), values[:, :, :end].flatten(0, 1)
        known_keys = self._known_keys[layer].flatten(0, 1)  # [P * K, C, D]
        known_values = self._known_values[layer].flatten(0, 1)
        prompts, columns = known_keys.shape[:2]
        width = q.shape[-1]
        q = q.reshape(len(keys), -1, width)  # [A * K, G, D]
        group = q.shape[1]

        cells = q.index_select(0, self._into).view(prompts, -1, width)  # [P * K, n * G, D]
        known = torch.bmm(cells, known_keys.transpose(1, 2))
        known.view(len(self._lengths), -1, *known.shape[1:]).add_(self._mask)
        known = known.view(-1, group, columns).index_select(0, self._back)
        scores = torch.cat([known, torch.bmm(q, keys.transpose(1, 2))], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
        cells = weights.index_select(0, self._into).view(prompts, -1, columns + end)
        found = torch.bmm(cells[:, :, :columns], known_values)
        found = found.view(-1, group, width).index_select(0, self._back)
        return torch.baddbmm(found, weights[:, :, columns:], values).view(len(k), -1, width)

    def copy(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, K, T, D] of all tokens that a text has read."""
        prompt = int(self._prompt_of[place])
        known = int(self._lengths[prompt])
        both = (self._known_keys, self.keys), (self._known_values, self.values)
        keys, values = (
            torch.cat([read[:, prompt, :, :known], own[:, place, :, : self.age]], dim=2)
            for read, own in both
        )
        return keys, values

    def drop(self, ended: Sequence[int]) -> None:
        """Forget texts, given their places; the last ones move to the free places before them."""
        gone = set(ended)
        count = len(self.jobs) - len(gone)
        behind = (place for place in range(count, len(self.jobs)) if place not in gone)
        kept = [next(behind) if place in gone else place for place in range(count)]
        moved = [(new, old) for new, old in enumerate(kept) if new != old]
        if moved:
            new, old = torch.tensor(moved, device=self.keys.device).unbind(1)
            for held in (self.keys, self.values):
                held[:, new] = held[:, old]
        self.keys, self.values = self.keys[:, :count], self.values[:, :count]
        self.jobs = [self.jobs[place] for place in kept]
        self._prompt_of = self._prompt_of[kept]
        if count:
            self._drop_prompts()
            self._arrange()

    def _drop_prompts(self) -> None:
        """Forget prompts whose texts have ended, when they are many."""
        used, places = np.unique(self._prompt_of, return_inverse=True)
        if len(used) > _DROP_AT * len(self._lengths):
            return
        self._prompt_of = places
        kept = torch.from_numpy(used).to(self._lengths.device)
        self._lengths = self._lengths[kept]
        columns = int(self._lengths.max())
        self._mask = self._mask[kept][..., :columns]
        self._known_keys = self._known_keys[:, kept, :, :columns]
        self._known_values = self._known_values[:, kept, :, :columns]


def _stack(prompts: Sequence[Tensor]) -> Tensor:
    """[layers, P, K, C, D] of keys or values [layers, K, T, D], padded at the end.

    By zeros, not garbage: a masked column still takes part in the products, and NaN * 0 is NaN.
    """
    layers, heads, _, width = prompts[0].shape
    longest = max(prompt.shape[2] for prompt in prompts)
    stacked = prompts[0].new_zeros(layers, len(prompts), heads, longest, width)
    for place, prompt in enumerate(prompts):
        stacked[:, place, :, : prompt.shape[2]] = prompt
    return stacked
