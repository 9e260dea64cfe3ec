"""A block: texts that are written in lockstep, and share their prompts' keys and values.

The texts of a block are admitted together, so all have read their prompt and the same number of
tokens after it. A step attends to two caches: the prompts' keys, read once for all samples of a
prompt, and the texts' own keys, which have equal length and so need neither padding nor a mask.

Shapes: A texts, P prompts, n the most texts of any prompt, K key-value heads, G query heads per
key-value head, H = K * G, D head width, C tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Block", "GenerationState", "Job", "Prefilled"]

_COLUMN_STEP = 32  # tokens by which the cache of the texts' own keys grows
_DROP_AT = 3 / 4  # unused prompts are dropped when at most this share is still in use

Prefilled = tuple[Tensor | None, Tensor, Tensor]
"""A prompt's next-token logits [V], and its keys and values [layers, K, T, D]. The logits are None
for a job that brings a cache, whose last token is still to be read."""


@dataclass
class Job:
    """One text to write: sample `sample` of prompt `place`, whose ids are in model order."""

    prompt: Sequence[int]
    place: int
    sample: int
    key: tuple[int, ...]
    """Seed of its draws."""
    greedy: bool = False
    """Whether it always takes the most likely token, whatever the batch's sampling settings."""
    ids: list[int] = field(default_factory=list)
    """The tokens written so far, without EOS."""
    stopped: bool = False
    """Whether the model ended it with EOS."""
    uniforms: NDArray[np.float64] | None = None
    """A number in [0, 1) for each draw; None if it is greedy."""
    kv_cache: tuple[Tensor, Tensor] | None = None
    """Keys and values [layers, K, T, D] of all of the prompt but its last token, if known. After
    the job has stopped at the pattern: of the prompt and all written tokens but the last."""
    at_pattern: bool = False
    """Whether it stopped at the pattern."""
    ended: bool = False
    """Whether it is complete, for whatever reason."""
    least: float | None = None
    """The confidence below which it ends; see `lm.confidence`."""
    unsure: bool = False
    """Whether it ended because of low confidence."""
    certainty: float = 0.0
    """Sum of `_divergence_from_uniform` over the sampled tokens."""
    confidences: list[float] = field(default_factory=list)
    """Confidences of the sampled tokens, if requested; see `lm.confidence`."""


@dataclass(frozen=True)
class GenerationState:
    """The state from which a model writes, or continues, a text."""

    context: list[int]
    """The ids that the model has read, in model order."""
    key: int
    """A hash of that text, for seeds."""
    prompt: str
    """The prompt of the first part."""
    written: Sequence[int] = ()
    """The ids written after the prompt, in model order."""
    text: str = ""
    """Their text."""
    kv_cache: tuple[Tensor, Tensor] | None = None
    """Keys and values of all of `context` but its last token, if known; see `Job`."""


class Block:
    """Texts that were admitted together; each has read its prompt and `age` tokens after it."""

    def __init__(self, jobs: list[Job], prompts: Sequence[Prefilled], prompt_of: list[int]) -> None:
        self.jobs = jobs
        self.age = 0
        self._prompt_of = np.array(prompt_of)
        """Index of each text's prompt [A]."""
        lengths = [keys.shape[2] for _, keys, _ in prompts]
        device = prompts[0][1].device
        self._lengths = torch.tensor(lengths, device=device)
        self._known_keys = _stack([keys for _, keys, _ in prompts])
        self._known_values = _stack([values for _, _, values in prompts])
        columns = torch.arange(max(lengths), device=device)
        self._mask = self._known_keys.new_zeros(len(lengths), 1, 1, max(lengths))
        self._mask.masked_fill_(columns >= self._lengths[:, None, None, None], -torch.inf)
        layers, _, heads, _, width = self._known_keys.shape
        empty = self._known_keys.new_empty(len(jobs), heads, 0, width)
        self._keys, self._values = [empty] * layers, [empty] * layers
        """The texts' own keys and values by layer, each [A, K, tokens, D]: a layer at a time can
        grow. One tensor of all layers would be held twice meanwhile, and would leave a gap in
        memory that is too small for its successor."""
        self._arrange()

    def positions(self) -> Tensor:
        """Position ids [A] of the tokens to be read next."""
        return self._lengths[torch.from_numpy(self._prompt_of).to(self._lengths.device)] + self.age

    def _arrange(self) -> None:
        """Map the texts' heads [A, K] to cells [P, K, n], in which they are grouped by prompt.

        A prompt with fewer than n texts has unused cells.
        """
        heads = self._known_keys.shape[2]
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
        """For each cell [P * K * n], its index among the texts' heads [A * K]."""
        self._back = torch.from_numpy(back.ravel()).to(device)
        """For each of the texts' heads [A * K], its cell."""

    def reserve(self) -> None:
        """Make room for the keys and values of one more token per text."""
        if self.age < self._keys[0].shape[2]:
            return
        for held in (self._keys, self._values):
            for layer, old in enumerate(held):
                new = old.new_empty(*old.shape[:2], self.age + _COLUMN_STEP, old.shape[3])
                new[:, :, : self.age] = old
                held[layer] = new

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one token per text: scaled q [A, H, D], k and v [A, K, D] -> [A, H, D].

        Query heads that share a key-value head form one group of queries, so no key is repeated.
        For so few queries, plain products take half the time of the fused kernel on a CPU. In bf16
        they round the scores before the softmax: see `kernels.causal_attention`.
        """
        end = self.age + 1
        keys, values = self._keys[layer], self._values[layer]
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
        """Keys and values [layers, K, T, D] of all tokens that the text at `place` has read."""
        prompt = int(self._prompt_of[place])
        known = int(self._lengths[prompt])
        both = (self._known_keys, self._keys), (self._known_values, self._values)
        keys, values = (
            torch.stack(
                [
                    torch.cat([prompts[prompt, :, :known], texts[place, :, : self.age]], dim=1)
                    for prompts, texts in zip(read, own, strict=True)
                ]
            )
            for read, own in both
        )
        return keys, values

    def drop(self, ended: Sequence[int]) -> None:
        """Remove the texts at these places; the last texts move into the gaps."""
        gone = set(ended)
        count = len(self.jobs) - len(gone)
        behind = (place for place in range(count, len(self.jobs)) if place not in gone)
        kept = [next(behind) if place in gone else place for place in range(count)]
        moved = [(new, old) for new, old in enumerate(kept) if new != old]
        if moved:
            new, old = torch.tensor(moved, device=self._lengths.device).unbind(1)
            for rows in (*self._keys, *self._values):
                rows[new] = rows[old]
        self._keys = [rows[:count] for rows in self._keys]
        self._values = [rows[:count] for rows in self._values]
        self.jobs = [self.jobs[place] for place in kept]
        self._prompt_of = self._prompt_of[kept]
        if count:
            self._drop_prompts()
            self._arrange()

    def _drop_prompts(self) -> None:
        """Remove the prompts whose texts have all ended, once these are many."""
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
    """Stack keys or values [layers, K, T, D] to [layers, P, K, C, D], padded at the end with zeros.

    Uninitialized padding would not do: masked keys still enter the products, and NaN * 0 is NaN.
    """
    layers, heads, _, width = prompts[0].shape
    longest = max(prompt.shape[2] for prompt in prompts)
    stacked = prompts[0].new_zeros(layers, len(prompts), heads, longest, width)
    for place, prompt in enumerate(prompts):
        stacked[:, place, :, : prompt.shape[2]] = prompt
    return stacked
