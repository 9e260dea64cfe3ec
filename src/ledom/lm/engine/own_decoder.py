"""Sampling by a model's own forward pass, one text at a time.

This is for architectures that `decoder` does not compute exactly. The model's own cache (keys and
values, or a recurrent state) is used if a trial shows that it changes nothing; otherwise the whole
text is read again for each token. All ids are in model order.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Decoder, Writer
from ledom.lm.engine.trunk import Trunk
from ledom.lm.language_model import Sampling
from ledom.model.exactness import OwnForward, scales_with_length, tolerance, vocab_size

__all__ = ["LoneDecoder", "decodes_exactly", "keeps_exactly"]

_STATES = ("past_key_values", "cache_params", "state")
"""Names under which architectures return their cache, and accept it again."""


class LoneDecoder(Writer):
    """Runs jobs one after the other; `keeps` says whether to use the model's own cache."""

    def __init__(
        self,
        own: OwnForward,
        keeps: bool,
        eos_id: int,
        sampling: Sampling,
        ends_at_pattern: Callable[[list[int]], bool] | None = None,
    ) -> None:
        super().__init__(eos_id, sampling, ends_at_pattern)
        self.own, self.keeps = own, keeps

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield the jobs as they end. Consecutive jobs with equal prompts read the prompt once."""
        prompt: list[int] = []
        for job in jobs:
            if list(job.prompt) != prompt:
                prompt = list(job.prompt)
                reader = _Reader(self.own, self.keeps)
                first = reader(prompt)
            yield self._write(job, deepcopy(reader), first)

    def _write(self, job: Job, reader: _Reader, logits: Tensor) -> Job:
        """Write one text, whose prompt has been read."""
        self._seed(job)
        self._take(logits[None], [job])
        while not job.ended:
            self._take(reader([*job.prompt, *job.ids])[None], [job])
        job.kv_cache = None
        return job


class _Reader:
    """Next-token logits of a growing text."""

    def __init__(self, own: OwnForward, keeps: bool) -> None:
        self.own, self.keeps = own, keeps
        self.num_read = 0
        self.state: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reader:
        """Copy the cache, but not the model."""
        other = _Reader(self.own, self.keeps)
        other.num_read, other.state = self.num_read, deepcopy(self.state, memo)
        return other

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits [V] after the last of `ids`, which must extend the ids of the previous call."""
        device = self.own.model.device
        if not self.keeps:
            last = torch.tensor([len(ids) - 1], device=device)
            return self.own(torch.tensor(ids, device=device), last)[0]
        new = torch.tensor(ids[self.num_read :], device=device)
        output = self.own.run(new, use_cache=True, **self.state)
        self.state = {
            name: kept for name in _STATES if (kept := getattr(output, name, None)) is not None
        }
        self.num_read = len(ids)
        logits: Tensor = output.logits[0, -1]
        return logits


def _text(own: OwnForward, eos_id: int, size: int) -> list[int]:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(vocab_size(own.model), (size - 1,), generator=generator)
    return [eos_id, *ids.tolist()]


@torch.inference_mode()
def keeps_exactly(own: OwnForward, eos_id: int) -> bool:
    """Whether reading a text token by token with the model's cache gives the same logits."""
    if scales_with_length(own.model):
        return False
    ids = _text(own, eos_id, 12)
    try:
        reader = _Reader(own, keeps=True)
        found = torch.stack([reader(ids[:end]) for end in range(8, len(ids) + 1)])
        if not reader.state:
            return False
        expected = own(torch.tensor(ids, device=own.model.device))[7:]
    except Exception:  # an architecture's own cache may fail in any way
        return False
    return _close(found, expected, own.model.dtype)


@torch.inference_mode()
def decodes_exactly(trunk: Trunk, own: OwnForward, eos_id: int) -> bool:
    """Whether `Decoder`, writing greedily, agrees with the model's own pass over the same text."""
    sampling = Sampling(temperature=0, max_tokens=4)
    jobs = [Job(_text(own, eos_id, size), size, 0, ()) for size in (9, 5)]
    try:
        done = list(Decoder(trunk, eos_id, sampling, len(jobs)).run(jobs))
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


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    difference = found.float().log_softmax(-1) - expected.float().log_softmax(-1)
    return bool(difference.abs().max() <= tolerance(dtype))
