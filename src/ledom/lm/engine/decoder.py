"""Sampling with continuous batching on one device.

Texts are admitted in blocks (`block`) whenever a quarter of the batch's rows is free. A step
attends block by block; the layers' matmuls process the rows of all blocks together. When a text
ends, the last text of its block takes over its row, so no computation is wasted on it. All ids are
in model order; the caller flips them.

Shapes: H query heads, K key-value heads, D head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ledom.core.errors import InputError
from ledom.lm.engine.block import Block, Job, Prefilled, attend_to
from ledom.lm.engine.trunk import Trunk, trials
from ledom.lm.language_model import FinishReason, Sampling
from ledom.model.exactness import random_text, tolerance
from ledom.model.native.draws import draw
from ledom.model.prefix_tree import PrefixTree, batches

__all__ = ["Decoder", "Writer", "decodes_exactly"]

_READ_TOGETHER = 4096  # prompt tokens; more at once would take more memory and save no time
_ADMIT_AT = 1 / 4  # the share of rows that must be free before a new block is admitted


class Writer:
    """The base class of decoders: draws tokens and decides when a text ends."""

    def __init__(self, stop_ids: Collection[int], sampling: Sampling) -> None:
        self.stop_ids = stop_ids
        self.sampling = sampling

    def _seed(self, job: Job) -> None:
        if self.sampling.temperature > 0 and not job.greedy:
            job.uniforms = np.random.default_rng(job.key).random(self.sampling.max_tokens)

    def _take(self, logits: Tensor, jobs: Sequence[Job]) -> None:
        """Draw a token for each job from its logits [jobs, V]; mark jobs that are complete.

        Raises `InputError` for logits that are not finite.
        """
        logits = logits.float()
        drawn, certainties, highest = self._draw(logits, jobs)
        if not all(map(math.isfinite, [*certainties, *highest])):
            raise InputError(
                "the model's logits are not finite, or overflow when divided by the temperature; "
                "try --dtype float32 or a higher temperature"
            )
        if (asked := self.sampling.confidence) is not None:
            top = logits.topk(min(asked.top_k, logits.shape[-1]), dim=-1).values
            confidences = logits.logsumexp(-1) - top.mean(-1)
            for job, confidence in zip(jobs, confidences.tolist(), strict=True):
                job.confidences.append(confidence)
        for job, token, certainty in zip(jobs, drawn, certainties, strict=True):
            job.certainty += certainty
            if token in self.stop_ids:
                job.finish_reason = "stop"
            else:
                job.ids.append(token)
                job.finish_reason = self._finish_reason(job)

    def _finish_reason(self, job: Job) -> FinishReason | None:
        """Why a text ends after its newest token; None if it continues."""
        if job.search is not None and job.search(job.ids):
            return "pattern"
        asked = self.sampling.confidence
        if asked is not None and job.least is not None:
            window = job.confidences[-asked.window :]
            if len(window) == asked.window and np.mean(window) < job.least:
                return "unsure"
        return "length" if len(job.ids) == self.sampling.max_tokens else None

    def _draw(
        self, logits: Tensor, jobs: Sequence[Job]
    ) -> tuple[list[int], list[float], list[float]]:
        """Draw tokens from logits [jobs, V]; returns the same as `native.draws.draw`.

        Each draw uses one uniform number, fixed by the job's key, so it does not depend on the
        batch.
        """
        sampling, temperature = self.sampling, self.sampling.temperature or 1.0
        levels = [-1.0 if job.uniforms is None else job.uniforms[len(job.ids)] for job in jobs]
        if (
            not sampling.top_k
            and sampling.top_p == 1
            and (found := draw(logits, temperature, levels))
        ):
            return found
        wanted = torch.tensor(levels, device=logits.device, dtype=torch.float32)
        probabilities = torch.softmax(logits / temperature, dim=-1)
        probabilities = _truncate(probabilities, sampling.top_k, sampling.top_p)
        drawn = torch.where(
            wanted < 0, logits.argmax(-1), _at_level(probabilities, wanted.clamp(min=0))
        )
        certainties, highest = _divergence_from_uniform(logits), logits.amax(-1) / temperature
        return drawn.tolist(), certainties.tolist(), highest.tolist()


class Decoder(Writer):
    """Samples with continuous batching; see the module's docstring."""

    def __init__(
        self, trunk: Trunk, stop_ids: Collection[int], sampling: Sampling, rows: int
    ) -> None:
        super().__init__(stop_ids, sampling)
        self.trunk = trunk
        self.model = trunk.model
        self.max_rows = rows
        self._prefilled: dict[tuple[int, ...], Prefilled] = {}

    @torch.no_grad()
    def steps(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Yield the list of jobs that ended in each step. Equal prompts are read once."""
        waiting = [*reversed(jobs)]  # jobs are popped from the end
        if not self.trunk.shares_rows:
            # Longest first, so that prompts of similar length are stacked with little padding. The
            # compiled kernels do not pad; with all long prompts together, caches would be larger.
            waiting.sort(key=lambda job: len(job.prompt))
        blocks: list[Block] = []
        while waiting or blocks:
            free = self.max_rows - sum(len(block.jobs) for block in blocks)
            if waiting and free >= _ADMIT_AT * self.max_rows:
                admitted = [waiting.pop() for _ in range(min(free, len(waiting)))]
                yield [*self._admit(admitted, blocks)]
                following = tuple(waiting[-1].prompt) if waiting else None
                self._prefilled = {p: kept for p, kept in self._prefilled.items() if p == following}
            if blocks:
                yield [*self._advance(blocks)]
            # Before the next block is built, because an empty block still holds its cache.
            blocks = [block for block in blocks if block.jobs]

    def _admit(self, jobs: list[Job], blocks: list[Block]) -> Iterator[Job]:
        """Admit jobs as a new block, and draw the first token of those without a cache.

        A job with a cache reads its last token in the next step.
        """
        for job in jobs:
            self._seed(job)
        prompts, prompt_of = self._read_prompts(jobs)
        fresh = [place for place, which in enumerate(prompt_of) if prompts[which][0] is not None]
        if fresh:
            known = [prompts[prompt_of[place]][0] for place in fresh]
            logits = torch.stack([one for one in known if one is not None])
            self._take(logits, [jobs[place] for place in fresh])
        block = Block(jobs, prompts, prompt_of)
        yield from self._release(block)
        if block.jobs:
            blocks.append(block)

    def _read_prompts(self, jobs: Sequence[Job]) -> tuple[list[Prefilled], list[int]]:
        """The distinct prompts of the jobs, and the index of each job's prompt."""
        new = dict.fromkeys(tuple(job.prompt) for job in jobs if job.kv_cache is None)
        unread = [prompt for prompt in new if prompt not in self._prefilled]
        for batch in batches(unread, _READ_TOGETHER):
            texts = [unread[place] for place in batch]
            self._prefilled.update(zip(texts, self._prefill(texts), strict=True))
        prompts: dict[object, Prefilled] = {}
        keys: list[object] = []
        for job in jobs:
            prompt, kept = tuple(job.prompt), job.kv_cache
            keys.append(prompt if kept is None else id(kept[0]))
            prompts[keys[-1]] = self._prefilled[prompt] if kept is None else (None, *kept)
        places = {key: place for place, key in enumerate(prompts)}
        return [*prompts.values()], [places[key] for key in keys]

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[Prefilled]:
        """Read sorted prompts in one packed row; returns a `Prefilled` for each."""
        device = self.model.device
        tree = PrefixTree.build(prompts)
        ends = np.array([places[-1] for places in tree.places])
        wanted, row = np.unique(ends, return_inverse=True)
        attention = self.trunk.attention(tree, wanted)
        layers: int = self.model.config.get_text_config().num_hidden_layers
        kept: list[Tensor] = []  # keys [layers, K, T, D] and values of all layers

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not kept:
                kept.extend(x.new_empty(layers, x.shape[1], len(x), x.shape[2]) for x in (k, v))
            for all_layers, x in zip(kept, (k, v), strict=True):
                all_layers[layer] = x.transpose(0, 1)
            return attention(layer, q, k, v)

        logits = self.trunk.logits(self.trunk.read(tree, wanted, attend))
        all_keys, all_values = kept
        found: list[Prefilled] = []
        for own, at in zip(tree.places, row.tolist(), strict=True):
            columns = torch.from_numpy(own).to(device)
            found.append((logits[at].clone(), all_keys[:, :, columns], all_values[:, :, columns]))
        return found

    def _advance(self, blocks: Sequence[Block]) -> Iterator[Job]:
        """Feed every text its last token and draw the next; yields the jobs that ended."""
        jobs = [job for block in blocks for job in block.jobs]
        newest = [job.ids[-1] if job.ids else job.prompt[-1] for job in jobs]
        for block in blocks:
            block.reserve()
        hidden = self.trunk(
            torch.tensor(newest, device=self.model.device),
            torch.cat([block.positions() for block in blocks]),
            attend_to(blocks),
        )
        self._take(self.trunk.logits(hidden), jobs)
        for block in blocks:
            block.age += 1
            yield from self._release(block)

    def _release(self, block: Block) -> Iterator[Job]:
        """Yield the ended jobs of a block, then drop them from it."""
        ended = [place for place, job in enumerate(block.jobs) if job.finish_reason]
        for place in ended:
            job = block.jobs[place]
            # without the last token, which has not been fed yet
            job.kv_cache = block.copy(place) if job.finish_reason == "pattern" else None
            yield job
        if ended:
            block.drop(ended)


def decodes_exactly(trunk: Trunk, eos_id: int) -> bool:
    """Whether `Decoder`, writing greedily, agrees with the model's own pass over the same text."""
    return all(_decodes(each, eos_id) for each in trials(trunk))


@torch.no_grad()
def _decodes(trunk: Trunk, eos_id: int) -> bool:
    own, sampling = trunk.own, Sampling(temperature=0, max_tokens=4)
    jobs = [Job(random_text(own.model, eos_id, size), size, 0, ()) for size in (9, 5)]
    try:
        done = [*chain(*Decoder(trunk, [eos_id], sampling, len(jobs)).steps(jobs))]
    except Exception:  # for example, different layers have keys of different shapes
        return False
    for job in done:
        ids = [*job.prompt, *job.ids]
        logits = own(torch.tensor(ids, device=own.model.device))[len(job.prompt) - 1 :].float()
        drawn = torch.tensor([*job.ids, eos_id][: sampling.max_tokens], device=logits.device)
        log_p = logits[: len(drawn)].log_softmax(-1)
        chosen = log_p.gather(1, drawn[:, None])[:, 0]
        certainty = _divergence_from_uniform(logits[: len(drawn)]).sum().item()
        limit = tolerance(own.model.dtype)
        if (log_p.max(-1).values - chosen).max() > limit or abs(
            certainty - job.certainty
        ) > 10 * limit:
            return False
    return True


def _divergence_from_uniform(logits: Tensor) -> Tensor:
    """KL(uniform || p) = -mean(log p) - log V in nats, for each row of logits [rows, V].

    p is the distribution at temperature 1, without truncation.
    """
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


def _at_level(weights: Tensor, levels: Tensor) -> Tensor:
    """For each row of weights [rows, V] and each level in [0, 1), the token at that level.

    That is the first one at which the cumulative sum exceeds level * total; the weights need not
    sum to 1. The search has two steps: over the sums of parts, then inside one part. A cumulative
    sum over whole rows would take longer than the rest of a draw.
    """
    width = math.isqrt(weights.shape[-1])
    weights = functional.pad(weights, (0, -weights.shape[-1] % width)).unflatten(-1, (-1, width))
    sums = weights.sum(-1).double()
    cumulative = sums.cumsum(-1)
    wanted = levels.double()[:, None] * cumulative[:, -1:]
    part = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=sums.shape[-1] - 1)
    inside = weights.take_along_dim(part[..., None], dim=1)[:, 0].double().cumsum(-1)
    wanted -= cumulative.gather(-1, part) - sums.gather(-1, part)
    # The two ways to sum a part may differ in the last digit, so clamp to the part.
    wanted = torch.minimum(wanted.clamp_(min=0), inside[:, -1:] * (1 - 1e-12))
    return (part * width + torch.searchsorted(inside, wanted, right=True))[:, 0]


def _truncate(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Zero the tokens that top-k and then top-p exclude; rows are not renormalized."""
    if top_k and top_k < probabilities.shape[-1]:
        smallest = probabilities.topk(top_k, dim=-1).values[:, -1:]
        probabilities = probabilities * (probabilities >= smallest)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        left = before < top_p * ordered.sum(-1, keepdim=True)
        left[:, 0] = True  # keep the most likely token even if top_p rounds to 0
        ordered = ordered * left
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return probabilities
