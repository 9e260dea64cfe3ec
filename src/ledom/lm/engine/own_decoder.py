"""Sampling with a model's own forward pass, one text at a time.

This is for architectures that `decoder` does not compute exactly. The model's own cache (keys and
values, or a recurrent state) is used if a test shows that it is exact (`keeps_exactly`); otherwise
the whole text is read again for each token. All ids are in model order.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor

from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Writer
from ledom.lm.engine.trunk import Trunk, trials
from ledom.lm.language_model import Sampling
from ledom.model.changes import follows_length
from ledom.model.exactness import close, random_text, rounded, tolerance
from ledom.model.own_forward import OwnForward

__all__ = ["LoneDecoder", "keeps_exactly"]

_STATES = ("cache", "past_key_values", "cache_params", "state")
"""Names under which architectures return and accept their cache, newest first. In transformers 5.24
the others still work, with a warning."""


class LoneDecoder(Writer):
    """Runs jobs one after another; `keeps` says whether to use the model's own cache."""

    def __init__(
        self, own: OwnForward, keeps: bool, stop_ids: Collection[int], sampling: Sampling
    ) -> None:
        super().__init__(stop_ids, sampling)
        self.own, self.keeps = own, keeps

    @torch.no_grad()
    def steps(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Yield, after each token, the job that it ended, if any.

        Consecutive jobs with equal prompts read the prompt once.
        """
        prompt: list[int] = []
        for job in jobs:
            if list(job.prompt) != prompt:
                prompt = list(job.prompt)
                reader = Reader(self.own, self.keeps)
                first = reader(prompt)
            yield from self._write(job, reader.copy(), first)

    def _write(self, job: Job, reader: Reader, logits: Tensor) -> Iterator[list[Job]]:
        """Write one text, whose prompt has been read."""
        self._seed(job)
        self._take(logits[None], [job])
        while not job.finish_reason:
            yield []
            self._take(reader([*job.prompt, *job.ids])[None], [job])
        job.kv_cache = None
        yield [job]


class Reader:
    """Next-token logits of a growing text."""

    def __init__(self, own: OwnForward, keeps: bool) -> None:
        self.own, self.keeps = own, keeps
        self.num_read = 0
        self.state: dict[str, Any] = {}

    def copy(self) -> Reader:
        """A copy with its own cache."""
        other = copy(self)
        other.state = deepcopy(self.state)
        return other

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits [V] after the last of `ids`, which must extend the ids of the previous call."""
        device = self.own.model.device
        if not self.keeps:
            last = torch.tensor([len(ids) - 1], device=device)
            return self.own(torch.tensor(ids, device=device), last)[0]
        new = torch.tensor(ids[self.num_read :], device=device)
        output = self.own.run(new, use_cache=True, **self.state)
        name = next((n for n in _STATES if getattr(output, n, None) is not None), None)
        self.state = {} if name is None else {name: getattr(output, name)}
        self.num_read = len(ids)
        logits: Tensor = output.logits[0, -1]
        return logits


def keeps_exactly(trunk: Trunk, eos_id: int) -> bool:
    """Whether reading a text token by token with the model's cache gives the same logits."""
    return all(_keeps(each.own, eos_id) for each in trials(trunk))


@torch.no_grad()
def _keeps(own: OwnForward, eos_id: int) -> bool:
    if any(map(follows_length, own.model.modules())):  # earlier keys change as a text grows
        return False
    ids = random_text(own.model, eos_id, 12)
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
