"""Sampling on one device: many texts at once, the batch kept full.

Every text has a row in a preallocated cache of keys and values. A step feeds each row its last
token at the row's own position, writes one column per row in place, and attends over the columns
written so far; a row that has ended is given to the next text in the queue. Neighboring rows attend
together, over no more columns than the longest of them has; texts with prompts of like length are
therefore neighbors. Nothing is copied, except when the queue is empty and the batch shrinks.
Everything here is in model order; the caller flips it.

Shapes: R rows, K key-value heads, D head width, C columns, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ledom.lm.engine.prefix_tree import PrefixTree, TreeAttention
from ledom.lm.engine.trunk import Trunk
from ledom.lm.language_model import Sampling

__all__ = ["Decoder", "Job", "Writer"]

_COLUMN_STEP = 256  # columns by which the cache grows
_ADMIT_AT = 1 / 16  # share of rows that must be free before new texts are let in together
_SHRINK_AT = 1 / 4  # share of free rows above which a batch with nothing waiting is made smaller
_NEIGHBORS = 32  # rows that attend together

_Prefilled = tuple[Tensor, Tensor, Tensor]


@dataclass
class Job:
    """One text to write: sample `sample` of prompt `place`, whose ids are in model order."""

    prompt: Sequence[int]
    place: int
    sample: int
    key: tuple[int, ...]
    """Seeds its draws."""
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    uniforms: NDArray[np.float64] | None = None
    kv_cache: tuple[Tensor, Tensor] | None = None
    """Keys and values [layers, K, T, D] of all of the prompt but its last token, where known;
    once the job stopped at the pattern, those of the prompt and of what was written."""
    at_pattern: bool = False
    ended: bool = False
    certainty: float = 0.0
    """Sum of `_divergence_from_uniform` over the tokens drawn."""
    confidences: list[float] = field(default_factory=list)
    """Of the tokens drawn, where they are asked for; see `lm.confidence`."""


class _Rows:
    """The batch: each row's job, newest token [R], and keys and values [layers][R, K, C, D].

    The cache is as wide as the keys that are placed in it first.
    """

    def __init__(self, model: PreTrainedModel, rows: int, token: int) -> None:
        self.jobs: list[Job | None] = [None] * rows
        self.tokens = torch.full((rows,), token, device=model.device)
        self.keys = torch.empty((0, rows, 0, 0, 0), dtype=model.dtype, device=model.device)
        self.values = torch.empty_like(self.keys)
        self._neighbors: list[tuple[slice, int, Tensor]] = []
        """Rows that attend together: which, over how many columns, and what is added there to the
        scores [rows, 1, 1, columns]: 0 where a row has written."""
        self.index = torch.arange(rows, device=model.device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=model.device)

    @property
    def free(self) -> list[int]:
        """The rows without a job."""
        return [i for i, job in enumerate(self.jobs) if job is None]

    @property
    def active(self) -> list[tuple[int, Job]]:
        """The other rows, each with its job."""
        return [(i, job) for i, job in enumerate(self.jobs) if job is not None]

    def place(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Give a row the keys and values [layers, K, T, D] of the tokens that it has read."""
        length = keys.shape[2]
        if not len(self.keys):
            columns = self.keys.shape[3]
            self.keys = self._room(keys, columns)
            self.values = self._room(values, columns)
        self.keys[:, row, :, :length] = keys
        self.values[:, row, :, :length] = values
        self.positions[row] = length

    def _room(self, like: Tensor, columns: int) -> Tensor:
        layers, heads, _, width = like.shape
        # Zeros, not garbage: a masked column still takes part in the products, and NaN * 0 is NaN.
        return like.new_zeros(layers, len(self.index), heads, columns, width)

    def reserve(self, columns: int) -> None:
        """Make room for at least so many columns."""
        have = self.keys.shape[3]
        if columns <= have:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            grown = [*old.shape]
            grown[3] = -(-columns // _COLUMN_STEP) * _COLUMN_STEP
            new = torch.zeros(grown, dtype=old.dtype, device=old.device)
            new[:, :, :, :have] = old
            setattr(self, name, new)

    def shrink(self) -> None:
        """Drop the free rows; the last ones move to the free places before them."""
        count = len(self.active)
        behind = (i for i, _ in self.active if i >= count)
        kept = [i if self.jobs[i] is not None else next(behind) for i in range(count)]
        self._keep(kept)
        self.jobs = [self.jobs[i] for i in kept]
        self.tokens = self.tokens[torch.tensor(kept, device=self.tokens.device)]

    def _keep(self, rows: Sequence[int]) -> None:
        """Keep only some rows, in the given order; those that stay in place are not copied."""
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            new, old = torch.tensor(moved, device=self.positions.device).unbind(1)
            for held in (self.keys, self.values):
                held[:, new] = held[:, old]
            self.positions[new] = self.positions[old]
        count = len(rows)
        self.keys, self.values = self.keys[:, :count], self.values[:, :count]
        self.positions, self.index = self.positions[:count], self.index[:count]

    def copy(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, K, length, D] of a row's first tokens."""
        return self.keys[:, row, :, :length].clone(), self.values[:, row, :, :length].clone()

    def look_back(self) -> None:
        """Let each row attend, until the next call, to the columns up to its position."""
        # Free rows are computed too; where they stopped may lie behind the last column.
        self.positions[self.free] = 0
        self.reserve(int(self.positions.max()) + 1)
        ends = self.positions.cpu().numpy() + 1
        self._neighbors = []
        for start in range(0, len(ends), _NEIGHBORS):
            rows = slice(start, start + _NEIGHBORS)
            columns = int(ends[rows].max())
            hidden = torch.arange(columns, device=self.keys.device) > self.positions[rows, None]
            mask = torch.zeros(hidden.shape, dtype=self.keys.dtype, device=hidden.device)
            mask.masked_fill_(hidden, -torch.inf)
            self._neighbors.append((rows, columns, mask[:, None, None]))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One token per row, an `Attend` of `model.attention`: writes a column, reads its row.

        The query heads that share a key-value head are its queries, so no key is repeated.
        With so few queries plain products take half the time of the fused kernel on a CPU.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[self.index, :, self.positions] = k
        values[self.index, :, self.positions] = v
        q = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))
        parts = []
        for rows, columns, mask in self._neighbors:
            scores = q[rows] @ keys[rows, :, :columns].transpose(-1, -2)
            weights = torch.softmax(scores.add_(mask), dim=-1, dtype=torch.float32)
            parts.append(weights.to(values.dtype) @ values[rows, :, :columns])
        return torch.cat(parts).flatten(1, 2)


class Writer:
    """What every way of sampling shares: how a token is drawn, and when a text ends."""

    def __init__(
        self,
        eos_id: int,
        sampling: Sampling,
        ends_at_pattern: Callable[[list[int]], bool] | None = None,
    ) -> None:
        self.ends_at_pattern = ends_at_pattern
        self.eos_id = eos_id
        self.sampling = sampling

    def _seed(self, job: Job) -> None:
        if self.sampling.temperature > 0:
            job.uniforms = np.random.default_rng(job.key).random(self.sampling.max_tokens)

    def _take(self, logits: Tensor, jobs: Sequence[Job]) -> Tensor:
        """Draw a token for each job from its logits [jobs, V]; returns the tokens [jobs]."""
        logits = logits.float()
        drawn = self._draw(logits, jobs)
        certainties = _divergence_from_uniform(logits).tolist()
        if (asked := self.sampling.confidence) is not None:
            confidences = _confidences(logits, asked.top_k).tolist()
            for job, confidence in zip(jobs, confidences, strict=True):
                job.confidences.append(confidence)
        for job, token, certainty in zip(jobs, drawn.tolist(), certainties, strict=True):
            job.certainty += certainty
            if token == self.eos_id:
                job.stopped = True
            else:
                job.ids.append(token)
                job.at_pattern = self.ends_at_pattern is not None and self.ends_at_pattern(job.ids)
            at_limit = len(job.ids) == self.sampling.max_tokens
            job.ended = job.stopped or job.at_pattern or at_limit
        return drawn

    def _draw(self, logits: Tensor, jobs: Sequence[Job]) -> Tensor:
        """A token for each row of logits [rows, V], by the inverse of the cumulative probability.

        One uniform number per token, fixed by the job's key: a draw does not depend on the batch.
        """
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self.sampling.temperature, dim=-1)
        probabilities = _truncate(probabilities, self.sampling.top_k, self.sampling.top_p)
        cumulative = probabilities.double().cumsum(-1)
        uniforms = [job.uniforms[len(job.ids)] for job in jobs if job.uniforms is not None]
        levels = torch.tensor(uniforms, device=logits.device)[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, levels, right=True)[:, 0]
        return drawn.clamp_(max=logits.shape[-1] - 1)


class Decoder(Writer):
    """Runs jobs through a model; see the module's docstring."""

    def __init__(
        self,
        trunk: Trunk,
        eos_id: int,
        sampling: Sampling,
        rows: int,
        ends_at_pattern: Callable[[list[int]], bool] | None = None,
    ) -> None:
        super().__init__(eos_id, sampling, ends_at_pattern)
        self.trunk = trunk
        self.model = trunk.model
        self.max_rows = rows
        self._prefilled: dict[tuple[int, ...], _Prefilled] = {}

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield the jobs as they end. Jobs with the same prompt share its prefill."""
        # Taken from the end: the longest prompts first, else in the order given.
        waiting = sorted(jobs, key=lambda job: len(job.prompt), reverse=True)[::-1]
        rows = _Rows(self.model, min(self.max_rows, len(jobs)), self.eos_id)
        while waiting or rows.active:
            num_rows, num_free = len(rows.jobs), len(rows.free)
            if waiting and num_free >= _ADMIT_AT * num_rows:
                yield from self._admit(waiting, rows)
            elif not waiting and num_free > _SHRINK_AT * num_rows:
                rows.shrink()
            if rows.active:
                yield from self._advance(rows)

    def _admit(self, waiting: list[Job], rows: _Rows) -> Iterator[Job]:
        """Give waiting jobs the free rows, and draw the first token of those with a new prompt."""
        admitted = [(i, waiting.pop()) for i in rows.free[: len(waiting)]]
        rows.reserve(max(len(job.prompt) for _, job in admitted) + 1)
        fresh = []
        for i, job in admitted:
            rows.jobs[i] = job
            self._seed(job)
            if job.kv_cache is None:
                fresh.append((i, job))
            else:  # it is fed its last token with the other rows
                rows.place(i, *job.kv_cache)
                rows.tokens[i] = job.prompt[-1]
        if fresh:
            logits = self._read_prompts(fresh, rows)
            following = tuple(waiting[-1].prompt) if waiting else None
            self._prefilled = {p: kept for p, kept in self._prefilled.items() if p == following}
            yield from self._write(rows, fresh, logits)

    def _read_prompts(self, fresh: Sequence[tuple[int, Job]], rows: _Rows) -> Tensor:
        """Fill rows with their jobs' prompts, each read once; returns the last logits [jobs, V]."""
        prompts = [tuple(job.prompt) for _, job in fresh]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prefilled]
        if new:
            self._prefilled.update(zip(new, self._prefill(new), strict=True))
        for (i, _), prompt in zip(fresh, prompts, strict=True):
            rows.place(i, *self._prefilled[prompt][1:])
        return torch.stack([self._prefilled[prompt][0] for prompt in prompts])

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[_Prefilled]:
        """Last logits [V], keys and values [layers, K, T, D] of each of some packed prompts."""
        device = self.model.device
        order = sorted(range(len(prompts)), key=lambda place: list(prompts[place]))
        tree = PrefixTree.build([prompts[place] for place in order])
        ends = np.array([places[-1] for places in tree.places])
        wanted, row = np.unique(ends, return_inverse=True)
        attention = TreeAttention(tree, wanted, device, self.model.dtype)
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(k.transpose(0, 1))
            values.append(v.transpose(0, 1))
            return attention(layer, q, k, v)

        hidden = self.trunk(
            torch.tensor(tree.ids, device=device),
            torch.tensor(tree.positions, device=device),
            attend,
            torch.from_numpy(wanted).to(device),
        )
        logits = self.trunk.logits(hidden)
        all_keys, all_values = torch.stack(keys), torch.stack(values)
        found: dict[int, _Prefilled] = {}
        for place, own, at in zip(order, tree.places, row.tolist(), strict=True):
            columns = torch.from_numpy(own).to(device)
            found[place] = (logits[at], all_keys[:, :, columns], all_values[:, :, columns])
        return [found[place] for place in range(len(prompts))]

    def _advance(self, rows: _Rows) -> Iterator[Job]:
        """Feed every row its last token and draw the next."""
        rows.look_back()
        hidden = self.trunk(rows.tokens, rows.positions, rows.attend)
        active = rows.active
        at = [i for i, _ in active]
        rows.positions[at] += 1
        if len(active) < len(rows.jobs):
            hidden = hidden[at]
        yield from self._write(rows, active, self.trunk.logits(hidden))

    def _write(
        self, rows: _Rows, active: Sequence[tuple[int, Job]], logits: Tensor
    ) -> Iterator[Job]:
        """Draw a token for some rows from their logits; yields the jobs that this ends."""
        at = torch.tensor([i for i, _ in active], device=logits.device)
        rows.tokens[at] = self._take(logits, [job for _, job in active])
        for i, job in active:
            if job.ended:
                rows.jobs[i] = None
                if job.at_pattern:  # the last token was not fed yet
                    job.kv_cache = rows.copy(i, len(job.prompt) + len(job.ids) - 1)
                yield job


def _divergence_from_uniform(logits: Tensor) -> Tensor:
    """KL(uniform || p) in nats for each row of logits [rows, V], at temperature 1 and untruncated.

    It is -mean(log p) - log V, and log p the logits less their logsumexp.
    """
    return logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])


def _confidences(logits: Tensor, top_k: int) -> Tensor:
    """Minus the mean log-probability of the k most likely tokens, for each row [rows, V]."""
    top = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values
    return logits.logsumexp(-1) - top.mean(-1)


def _truncate(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to 0 what top-k and then top-p leave out; rows need not sum to 1 afterwards."""
    if top_k and top_k < probabilities.shape[-1]:
        smallest = probabilities.topk(top_k, dim=-1).values[:, -1:]
        probabilities = probabilities * (probabilities >= smallest)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered * (before < top_p * ordered.sum(-1, keepdim=True))
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return probabilities
