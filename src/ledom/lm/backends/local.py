"""Runs a model folder in this process: plain torch on transformers' modules.

Texts are packed end to end into rows of bounded size, without padding; shared prefixes are computed
once (`model.prefix_tree`). The vocabulary projection is computed only for the tokens whose
log-probabilities are wanted, in chunks. Sampling is in `decoder`. If a test at load shows that
packing is not exact for a model (`longest_packed`), each text runs alone through the model's own
forward pass.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import Literal
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from transformers import PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import digest
from ledom.core.processes import merged, survive_forks
from ledom.core.reading import check_counts
from ledom.core.stage import even_groups
from ledom.lm.confidence import confidence_of
from ledom.lm.engine.block import GenerationState, Job
from ledom.lm.engine.decoder import Decoder, decodes_exactly
from ledom.lm.engine.own_decoder import LoneDecoder, keeps_exactly
from ledom.lm.engine.pattern import PatternSearch
from ledom.lm.engine.trunk import build_trunk, longest_packed, round_weights
from ledom.lm.generation import ModelSpan, Prompts, PromptTexts
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.model.architectures import num_weights
from ledom.model.attention import turn
from ledom.model.changes import Changes, is_extended, modules_state
from ledom.model.checkpoint import Checkpoint, load_checkpoint
from ledom.model.device import configure_memory, default_device, torch_device
from ledom.model.exactness import vocab_size
from ledom.model.native.draws import label_logprobs
from ledom.model.precision import INT8, load_in
from ledom.model.prefix_tree import PrefixTree, batches

__all__ = ["HFLanguageModel"]

_LOGITS_BYTES = 64 * 2**20  # maximum memory for a chunk of logits
_LOGITS_ROWS = 512  # maximum rows in a chunk, so that it stays in cache if the vocabulary is small
_FEWEST_JOBS = 16  # per thread; fewer are no faster, because each step reads all weights
_LOADING = RLock()  # transformers' own loading is not safe in several threads
_Reader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits [T, V] and the labels [T] that they predict to values [..., T]."""
_NOTHING = torch.empty(0, 1), torch.empty(0, dtype=torch.long)  # logits and labels of zero tokens


class HFLanguageModel(LanguageModel):
    """A causal language model from a Hugging Face folder; see `ledom.load`.

    `dtype` is auto (see `model.precision`), float32, bfloat16, float16 or, on a CPU, int8. Raises
    `InputError` for any other dtype and for a device that is not available.
    """

    stops_at_patterns = True
    reports_certainty = True
    reports_confidence = True
    stops_when_unsure = True
    reports_hits = True

    def __init__(
        self,
        path: str | Path,
        direction: Direction | str | None = None,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        eos_token: str | None = None,
        bos_token: str | None = None,
        tokens_per_batch: PositiveInt = 4096,
        rows: PositiveInt = 128,
    ) -> None:
        check_counts(1, rows=rows, tokens_per_batch=tokens_per_batch)
        survive_forks()
        _fork_between_loads()
        place = torch_device(device or default_device())
        if place.type == "cpu":
            configure_memory()

        def load(precision: torch.dtype | Literal["auto"]) -> Checkpoint:
            with _LOADING:
                found = load_checkpoint(path, direction, precision, eos_token, bos_token=bos_token)
            found.model.to(place)
            return found

        checkpoint, self.precision = load_in(dtype, place, load)
        # Results of different precisions must not be mixed.
        mark = "" if self.precision == "float32" else f"-{self.precision}"
        super().__init__(
            name=str(path),
            direction=checkpoint.direction,
            tokenizer=checkpoint.tokenizer,
            pair_format=checkpoint.pair_format,
            bos_ids=checkpoint.bos_ids,
            context=checkpoint.context,
            fingerprint=checkpoint.fingerprint + mark,
            num_parameters=num_weights(checkpoint.model),
            stop_ids=checkpoint.stop_ids,
        )
        self._model = checkpoint.model
        self._trunk = build_trunk(self.model)
        self._modules: object = None
        self._refresh()
        self._warned = False
        if self.precision == INT8:
            round_weights(self._trunk, self._reach == self.context and self._decodes, self.name)
        self.tokens_per_batch = tokens_per_batch
        self.rows = rows
        self._key = uuid4().hex
        self._changes = Changes(self.model)

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model; its weights and modules may be changed in place, but it cannot be
        replaced. What only wraps it, as PEFT's prompt tuning does, has no effect on results."""
        return self._model

    def _changed(self) -> str:
        return super()._changed() + self._changes.mark()

    @property
    def vocab_size(self) -> int:
        return vocab_size(self.model)

    def _refresh(self) -> None:
        """Notice changes to the model; if its modules or settings changed, repeat the test made at
        load."""
        self._trunk.refresh()
        if modules_state(self.model) != self._modules:
            with turn(self.model):
                self._reach = longest_packed(self._trunk, self.tokenizer.eos_id, self.context)
            self._modules = modules_state(self.model)  # the test may have changed it (RWKV)
            self._trunk.version += 1
            for trial in ("_decodes", "_keeps"):
                vars(self).pop(trial, None)

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        return self._evaluate(targets, label_logprobs)

    def logprobs_and_hits(
        self, targets: Sequence[TokenSpan]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        both = self._evaluate(targets, _logprobs_and_hits)
        return [(values[0], values[1] > 0) for values in both]

    def _evaluate(self, targets: Sequence[TokenSpan], read: _Reader) -> list[NDArray[np.float32]]:
        """Apply `read` to each target's logits; values are in reading order along the last axis."""
        spans = self.check_targets(targets)
        self._refresh()
        results = [read(*_NOTHING).numpy()] * len(targets)
        asked = [place for place, (_, start, end) in enumerate(spans) if end > start]
        reach = self._trunk.reach(self._reach)
        packed = [p for p in asked if len(spans[p][0]) - 1 <= reach]  # the last is never read
        workers = 1 if self._trunk.shares_rows else self._trunk.num_workers
        rows = [spans[place][0][:-1] for place in packed]
        together = deque(batches(rows, self.tokens_per_batch, workers))

        def scored() -> Iterator[tuple[int, NDArray[np.float32]]]:
            while together:
                try:
                    places = [packed[i] for i in together.popleft()]
                except IndexError:  # another thread took the last batch
                    return
                values = self._score([spans[place] for place in places], read)
                yield from zip(places, values, strict=True)

        with self._trunk.computing():
            for place, values in merged([scored() for _ in range(min(workers, len(together)))]):
                results[place] = values
            for place in sorted({*asked}.difference(packed)):
                results[place] = self._score_alone(spans[place], read)
        return results

    @torch.no_grad()
    def _score_alone(self, span: ModelSpan, read: _Reader) -> NDArray[np.float32]:
        """Like `_evaluate`, but by the model's own forward pass."""
        self._warn_of_slowness()
        device, (ids, start, end) = self.model.device, span
        wanted = torch.arange(start - 1, end - 1, device=device)
        logits = self._trunk.own(torch.tensor(ids[:-1], device=device), wanted).float()
        labels = torch.tensor(ids[start:end], device=device)
        values = read(logits, labels).cpu().numpy()
        return np.ascontiguousarray(self.direction.to_reading_order(values))

    def alternatives(self, target: TokenSpan, count: int) -> list[list[tuple[int, float]]]:
        check_counts(count=count)

        def most_likely(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            best = logits.log_softmax(-1).topk(min(int(count), logits.shape[-1]), dim=-1)
            both = torch.stack([best.indices.float(), best.values])  # ids below 2^24 stay exact
            return both.movedim(1, -1)

        ((ids, values),) = self._evaluate([target], most_likely)
        rows = zip(ids.T.astype(int).tolist(), values.T.tolist(), strict=True)
        return [list(zip(tokens, logprobs, strict=True)) for tokens, logprobs in rows]

    def _warn_of_slowness(self) -> None:
        """Log once that texts run one by one, and why."""
        if self._warned:
            return
        self._warned = True
        reach = self._trunk.reach(self._reach)
        which = f"texts of more than {reach} tokens" if reach else "texts"
        message = "%s: %s run one by one in the model's own pass; ledom's is not exact for them"
        logging.getLogger("ledom").warning(message, self.name, which)

    @torch.no_grad()
    def _score(self, spans: Sequence[ModelSpan], read: _Reader) -> list[NDArray[np.float32]]:
        """Like `_evaluate`, for one batch, sorted by ids."""
        device = self.model.device
        tree = PrefixTree.build([ids[:-1] for ids, _, _ in spans])
        # The output at index i - 1 in model order predicts the token at index i.
        predicting = [
            places[start - 1 : end - 1]
            for (_, start, end), places in zip(spans, tree.places, strict=True)
        ]
        wanted, order = np.unique(np.concatenate(predicting), return_inverse=True)
        hidden = self._trunk.read(tree, wanted)
        answers = [ids[start:end] for ids, start, end in spans]
        labels = torch.tensor([i for ids in answers for i in ids], device=device, dtype=torch.long)
        flat = self._gather(hidden[torch.from_numpy(order).to(device)], labels, read)
        counts = np.cumsum([end - start for _, start, end in spans])[:-1]
        return [
            np.ascontiguousarray(self.direction.to_reading_order(part))
            for part in np.split(flat, counts, axis=-1)
        ]

    def _gather(
        self, hidden: torch.Tensor, labels: torch.Tensor, read: _Reader
    ) -> NDArray[np.float32]:
        """Apply `read` to outputs [T, width] and labels [T], with the logits in bounded chunks."""
        rows = min(max(1, _LOGITS_BYTES // (4 * self.vocab_size)), _LOGITS_ROWS)
        parts = [
            read(self._trunk.logits(outputs).float(), chunk)
            for outputs, chunk in zip(hidden.split(rows), labels.split(rows), strict=True)
        ]
        found: NDArray[np.float32] = torch.cat(parts, dim=-1).cpu().numpy()
        return found

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        numbers = self.sample_numbers(num_samples, first_sample)
        return chain.from_iterable(self._generate(prompts, sampling, numbers))

    def generate_in_steps(
        self, prompts: Sequence[str], sampling: Sampling, num_samples: int = 1
    ) -> Iterator[list[PromptTexts]]:
        return self._generate(prompts, sampling, self.sample_numbers(num_samples))

    def generate_with_greedy(
        self, prompts: Sequence[str], sampling: Sampling, num_samples: int
    ) -> Iterator[PromptTexts]:
        # In one batch, because greedy texts alone would leave it nearly empty toward the end.
        numbers = self.sample_numbers(num_samples)
        return chain.from_iterable(self._generate(prompts, sampling, numbers, with_greedy=True))

    def _generate(
        self, prompts: Prompts, sampling: Sampling, numbers: range, with_greedy: bool = False
    ) -> Iterator[list[PromptTexts]]:
        """Write each prompt's samples with these numbers, then its greedy text if requested.

        Yields after each step; see `generate_in_steps`.
        """
        self.check_request(prompts, sampling)
        self._refresh()
        starts = [self._start(prompt, sampling) for prompt in prompts]
        asked, pattern = sampling.confidence, sampling.stop_pattern
        least = asked.thresholds(len(starts)) if asked else [None] * len(starts)
        known = self.tokenizer, self.direction
        jobs = [
            Job(
                start.context,
                place,
                sample,
                (sampling.seed, start.key, sample),
                greedy=sample not in numbers,
                least=least[place],
                kv_cache=start.kv_cache,
                search=None if pattern is None else PatternSearch(pattern, *known),
            )
            for place, start in enumerate(starts)
            for sample in [*numbers, numbers.stop][: len(numbers) + with_greedy]
        ]
        done: dict[int, dict[int, Generation]] = {}
        with self._trunk.computing():
            for ended in self._write(jobs, sampling):
                complete = []
                for job in ended:
                    texts = done.setdefault(job.place, {})
                    texts[job.sample] = self._generation(job, starts[job.place], sampling)
                    if len(texts) == len(numbers) + with_greedy:
                        del done[job.place]
                        complete.append((job.place, [texts[sample] for sample in sorted(texts)]))
                yield complete

    def _write(self, jobs: Sequence[Job], sampling: Sampling) -> Iterator[list[Job]]:
        """Run the jobs, each by the fastest method that is exact for it; see `Decoder.steps`."""
        reach = self._trunk.reach(self._reach)
        reach = reach if reach and self._decodes else 0
        together = [job for job in jobs if len(job.prompt) + sampling.max_tokens <= reach]
        alone = [job for job in jobs if len(job.prompt) + sampling.max_tokens > reach]
        workers = max(1, min(self._trunk.num_workers, len(together) // _FEWEST_JOBS))
        # Stepwise, because `merged` can end a stream only where it yields.
        streams = [
            Decoder(self._trunk, self.stop_ids, sampling, self.rows).steps(share)
            for share in even_groups(together, max(1, math.ceil(len(together) / workers)))
        ]
        written = merged(streams)
        if not alone:
            return written
        self._warn_of_slowness()
        keeps = not is_extended(self.model) and self._keeps  # hooks must see whole texts
        lone = LoneDecoder(self._trunk.own, keeps, self.stop_ids, sampling)
        return chain(written, lone.steps(alone))

    @cached_property
    def _decodes(self) -> bool:
        return self._reach > 0 and decodes_exactly(self._trunk, self.tokenizer.eos_id)

    @cached_property
    def _keeps(self) -> bool:
        return keeps_exactly(self._trunk, self.tokenizer.eos_id)

    def _start(self, prompt: str | Generation, sampling: Sampling) -> GenerationState:
        """The state from which the model begins to write for a prompt."""
        if isinstance(prompt, Generation):
            if not isinstance(prompt.state, GenerationState) or prompt.state.model != self._key:
                raise InputError(
                    "only a generation that stopped at a pattern can be continued, and only by the "
                    "model that wrote it"
                )
            start, version = prompt.state, self._trunk.version
            self.check_room(prompt.text, len(start.context), sampling.max_tokens)
            if start.version != version:  # the model has changed since
                return replace(start, kv_cache=None, version=version)
            return start
        ids = self.prompt_ids(prompt, sampling.max_tokens)
        return GenerationState(self._key, ids, digest(prompt), prompt, version=self._trunk.version)

    def _generation(self, job: Job, start: GenerationState, sampling: Sampling) -> Generation:
        ids = self.direction.to_reading_order(job.ids)
        written = [*start.written, *job.ids]
        whole = self.written_text(start.prompt, self.direction.to_reading_order(written))
        forward, known = self.direction is Direction.FORWARD, len(start.text)
        text = whole[known:] if forward else whole[: len(whole) - known]
        certainty = job.certainty / (len(ids) + (job.finish_reason == "stop"))
        asked = sampling.confidence
        confidence = confidence_of(job.confidences, asked.window) if asked else None
        reason, state = job.finish_reason, None
        assert reason is not None
        if reason == "pattern":
            key, context = digest(f"{start.key} {text}"), [*job.prompt, *job.ids]
            kept = job.kv_cache, start.version
            state = GenerationState(self._key, context, key, start.prompt, written, whole, *kept)
        return Generation(text, ids, reason, state, certainty, confidence)


@cache
def _fork_between_loads() -> None:
    """Make later forks of this process wait until no other thread loads a model."""
    done = _LOADING.release
    os.register_at_fork(before=_LOADING.acquire, after_in_parent=done, after_in_child=done)


def _logprobs_and_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[2, T]: log P(label), and 1 where the label is the most likely token."""
    return torch.stack([label_logprobs(logits, labels), (logits.argmax(-1) == labels).float()])
