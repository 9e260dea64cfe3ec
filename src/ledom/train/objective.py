"""Training objectives: the loss of every token, or an objective on (question, solution) pairs.

Token losses do not need the logits of a whole batch in memory. The vocabulary projection and the
cross-entropy are computed in chunks of tokens, and recomputed in the backward pass; only one number
per token is kept in between. The recomputation saves the memory of T x V logits and of their
gradient.

Selection scores one field of a pair: the question, log P(x|y), with a reverse model; the solution,
log P(y|x), with a forward one. That field is called the target here. Its tokens can have their own
term, and right solutions can be contrasted with wrong ones. This module does not know about
optimizers.

Shapes: T tokens, V vocabulary, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus
from transformers import PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import Config
from ledom.core.records import Candidate, Problem, read_records, unique_ids
from ledom.data.packing import Batch
from ledom.model.architectures import has_plain_logits
from ledom.model.attention import IMPLEMENTATION
from ledom.model.native.draws import label_logprobs
from ledom.model.native.products import LEAST_ROWS, multiplier
from ledom.model.own_forward import OwnForward
from ledom.text.answers import extract_answer, is_right
from ledom.text.pair_format import EncodedPair, PairFormat
from ledom.text.tokenizer import Tokenizer

__all__ = [
    "ObjectiveConfig",
    "PairBatches",
    "read_wrong_solutions",
    "token_losses",
    "working_bytes",
]


_LOGITS_BYTES = 2**24  # a chunk of logits in fp32, so that it fits a processor's cache
_LEAST_ROWS = 1024  # rows per chunk, because each chunk updates the whole weight's gradient
_KEPT_BYTES = 2**26  # logits of a whole batch that are kept rather than recomputed


class ObjectiveConfig(Config):
    """A weighted sum of terms, each a mean over the batch.

    With a target or a contrastive term, `data.train` must be a JSONL file of problems with
    solutions. A batch then holds `train.batch_size` problems; pairs of more than `train.seq_len`
    tokens are skipped.
    """

    all_tokens: NonNegativeFloat = 1.0
    """Weight of the loss of all tokens, in nats per token."""
    target: NonNegativeFloat = 0.0
    """Weight of the loss of the tokens that selection scores, in nats per token: those of the
    question for a reverse model, of the solution for a forward one."""
    contrastive: NonNegativeFloat = 0.0
    """Weight of -log p, in nats per pair, where p is the posterior probability of a right solution
    y against a wrong one y'; for a reverse model, P(x|y) / (P(x|y) + P(x|y'))."""
    negatives: str | None = None
    """JSONL file of candidates for the contrastive term; the wrong ones among them are y'."""

    @property
    def needs_pairs(self) -> bool:
        """Whether the objective is on (question, solution) pairs instead of plain text.

        >>> ObjectiveConfig().needs_pairs, ObjectiveConfig(contrastive=1.0).needs_pairs
        (False, True)
        """
        return self.target > 0 or self.contrastive > 0


@dataclass(frozen=True)
class _Example:
    """A pair as ids, and which of its tokens selection scores."""

    ids: NDArray[np.int64]
    """In reading order, with EOS at both ends."""
    target: slice
    """The target's slice of the predicted tokens, which are in model order."""


@dataclass(frozen=True)
class PairBatch(Batch):
    """The pairs of a step: those with right solutions first, then those with wrong ones."""

    config: ObjectiveConfig
    targets: list[slice]
    """Each pair's target, as a slice of its predicted tokens in model order."""
    rivals: list[int]
    """For each wrong pair, the index of the right pair with the same question."""

    def loss(self, losses: Tensor) -> Tensor:
        """The objective's value, from the losses of all tokens of the batch [T]."""
        num_right = len(self.sizes) - len(self.rivals)
        parts = losses.split(self.sizes)
        targets = [part[target] for part, target in zip(parts, self.targets, strict=True)]
        total = self.config.all_tokens * torch.cat(parts[:num_right]).mean()
        total = total + self.config.target * torch.cat(targets[:num_right]).mean()
        if self.rivals:
            sums = torch.stack([target.sum() for target in targets])
            rivals = torch.tensor(self.rivals, device=losses.device)
            margins = sums[num_right:] - sums[rivals]  # log P(x|y) - log P(x|y')
            total = total + self.config.contrastive * softplus(-margins).mean()
        return total


class PairBatches:
    """Batches of pairs, by step, in an order that depends only on `seed`."""

    def __init__(
        self,
        problems: Iterable[Problem],
        wrong: dict[str, list[str]],
        config: ObjectiveConfig,
        direction: Direction,
        tokenizer: Tokenizer,
        pair_format: PairFormat,
        batch_size: PositiveInt,
        seq_len: PositiveInt,
        seed: int,
    ) -> None:
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self._direction, self._seq_len = direction, seq_len
        self._right: list[_Example] = []
        self._wrong: list[list[_Example]] = []
        eos = [tokenizer.eos_id]
        count = skipped = 0
        for problem in problems:
            solutions = _solutions(problem, wrong.get(problem.id, []), pair_format)
            pairs = [(problem.question, solution) for solution in solutions]
            encoded = pair_format.encode(tokenizer, pairs, eos, eos)
            right, *others = map(self._example, encoded)
            count += 1 + len(others)
            skipped += sum(example is None for example in (right, *others))
            if right is not None:
                self._right.append(right)
                self._wrong.append([other for other in others if other is not None])
        if not self._right:
            raise InputError(
                f"none of the pairs fits into the {seq_len} tokens of train.seq_len; raise it"
            )
        if config.contrastive and not any(self._wrong):
            raise InputError("none of the problems has a wrong solution", path=config.negatives)
        if skipped:
            logging.getLogger("ledom").warning(
                "%d of %d pairs have more than the %d tokens of train.seq_len: skipped",
                skipped,
                count,
                seq_len,
            )

    def _example(self, pair: EncodedPair) -> _Example | None:
        """A pair as an example; None if it is too long."""
        num_ids = len(pair.ids)
        if num_ids - 1 > self._seq_len:
            return None
        # As in `score_candidates`: x with the EOS before it, y with the EOS after it.
        reverse = self._direction is Direction.REVERSE
        span = (0, pair.question[1]) if reverse else (pair.solution[0], num_ids)
        start, end = self._direction.span_to_model_order(*span, num_ids)
        # The first token in model order is read, not predicted.
        return _Example(np.array(pair.ids, np.int64), slice(max(start - 1, 0), end - 1))

    def __getitem__(self, step: int) -> PairBatch:
        size = min(self.batch_size, len(self._right))
        epoch, position = divmod(step, len(self._right) // size)
        rng = np.random.default_rng([self.seed, epoch])
        chosen = rng.permutation(len(self._right))[position * size : (position + 1) * size]
        rng = np.random.default_rng([self.seed, epoch, position])
        wrong = [
            (place, self._wrong[i][rng.integers(len(self._wrong[i]))])
            for place, i in enumerate(chosen)
            if self._wrong[i]
        ]
        examples = [*(self._right[i] for i in chosen), *(other for _, other in wrong)]
        return PairBatch(
            windows=[example.ids for example in examples],
            sizes=[len(example.ids) - 1 for example in examples],
            config=self.config,
            targets=[example.target for example in examples],
            rivals=[place for place, _ in wrong],
        )


def _solutions(problem: Problem, wrong: list[str], pair_format: PairFormat) -> list[str]:
    """The problem's own solution and the wrong ones, in the format's style."""
    right = pair_format.restyle(problem.solution or "", problem.answer)
    others = dict.fromkeys(map(pair_format.restyle, wrong))
    others.pop(right, None)  # in this style they are the same
    return [right, *others]


def read_wrong_solutions(path: str | Path, problems: Iterable[Problem]) -> dict[str, list[str]]:
    """The distinct wrong solutions in a file of candidates, by problem id.

    A candidate without a label is judged by its answer, or ignored if its problem has no answer
    either. Candidates of other problems are ignored too. Raises `InputError` if two problems have
    the same id, since a candidate's id would not say which of them it belongs to.

    >>> import tempfile
    >>> from ledom.core.records import write_records
    >>> drawn = [Candidate(problem_id="p", index=i, text=f"#### {i}") for i in (4, 5, 6)]
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     write_records(file.name, drawn)
    ...     read_wrong_solutions(file.name, [Problem(id="p", question="2 + 2?", answer="4")])
    {'p': ['#### 5', '#### 6']}
    """
    by_id: dict[str, Problem] = {}
    check_id = unique_ids()
    for one in problems:
        check_id(one)
        by_id[one.id] = one
    wrong: dict[str, dict[str, None]] = {}
    for candidate in read_records(path, Candidate):
        problem = by_id.get(candidate.problem_id)
        if problem and is_right(candidate, extract_answer(candidate.text), problem) is False:
            wrong.setdefault(candidate.problem_id, {})[candidate.text] = None
    return {problem_id: list(texts) for problem_id, texts in wrong.items()}


def token_losses(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor
) -> Tensor:
    """The cross-entropy [T] in fp32 of `targets` [T], given `ids` [T] at `positions` [T].

    `boundaries` [documents + 1], on the CPU, divide the row into documents that do not see each
    other. A model without ledom's attention (see `model.exactness`) reads the documents one by one,
    each from position 0.
    """
    if model.config._attn_implementation != IMPLEMENTATION:
        own = OwnForward(model)
        sizes = boundaries.diff().tolist()
        logits = torch.cat([own(document) for document in ids.split(sizes)])
        return cross_entropy(logits.float(), targets, reduction="none")
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    plain = getattr(head, "bias", None) is None and has_plain_logits(config)
    run = model.base_model if plain else model
    output = run(
        input_ids=ids[None], position_ids=positions[None], use_cache=False, cu_seq_lens_q=boundaries
    )
    if not plain:
        return cross_entropy(output.logits[0].float(), targets, reduction="none")
    hidden, weight = output.last_hidden_state[0], head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    losses: Tensor = _ProjectedLosses.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return losses


def working_bytes(num_tokens: int, vocab_size: int, width: int, size: int) -> int:
    """Peak bytes of the loss of T tokens, forward or backward, in addition to its inputs.

    `size` is the bytes per number in matmul precision. A chunk of logits is in fp32, and there are
    two copies while its exponentials are summed. The backward pass also holds the chunk's gradient
    in matmul precision, the weight's gradient, and a chunk's contribution to it. The logits of a
    small batch are kept for the backward pass. In fp32, kernels read a copy of the weight, and a
    second one to compute logits again.

    >>> working_bytes(8, vocab_size=100, width=4, size=4)
    9600
    """
    logits = min(num_tokens, _rows(vocab_size)) * vocab_size
    derivative = 0 if size == 4 else size * logits  # in fp32 it takes the logits' place
    is_kept = _is_kept(num_tokens, vocab_size, size)
    kept = size * num_tokens * vocab_size if is_kept else 0
    weight, has_copies = vocab_size * width, size == 4 and num_tokens >= LEAST_ROWS
    forward = 2 * 4 * logits + has_copies * 4 * weight
    backward = 4 * logits + derivative + weight * (4 + size)
    return kept + max(forward, backward + has_copies * (1 if is_kept else 2) * 4 * weight)


def _is_kept(num_tokens: int, vocab_size: int, size: int) -> bool:
    return size * num_tokens * vocab_size <= _KEPT_BYTES


def _rows(vocab_size: int) -> int:
    """The number of tokens in a chunk."""
    return max(_LEAST_ROWS, _LOGITS_BYTES // (4 * vocab_size))


class _ProjectedLosses(torch.autograd.Function):
    """Cross-entropy [T] in fp32 of the logits hidden [T, W] @ weight.T [W, V] and targets [T]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = _rows(len(weight))
        is_kept = _is_kept(len(hidden), len(weight), hidden.element_size())
        kept: list[Tensor] = []
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(losses)
        project = multiplier(weight, len(hidden))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = project(hidden[part])
            if is_kept:
                kept.append(logits)
            logits = logits.float()
            torch.neg(label_logprobs(logits, targets[part]), out=losses[part])
            chosen = logits.gather(1, targets[part, None])[:, 0]
            torch.add(chosen, losses[part], out=normalizers[part])
            del logits  # before the next ones are computed
        ctx.rows = rows
        ctx.save_for_backward(hidden, weight, targets, normalizers, *kept)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, targets, normalizers, *kept = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden)
        project = None if kept else multiplier(weight, len(hidden))
        project_back = multiplier(weight.T, len(hidden))
        weight_grad = None
        if ctx.needs_input_grad[1]:  # adapters leave the weight as it is
            weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        for chunk, start in enumerate(range(0, len(hidden), ctx.rows)):
            part = slice(start, start + ctx.rows)
            share = grads[0][part, None]
            slopes = project(hidden[part]) if project else kept[chunk]
            slopes = slopes.to(torch.float32, copy=project is None)  # kept logits stay as they are
            slopes.sub_(normalizers[part, None]).exp_().mul_(share)
            slopes.scatter_add_(1, targets[part, None], -share)
            slopes = slopes.to(weight.dtype)
            hidden_grad[part] = project_back(slopes)
            if weight_grad is not None:
                weight_grad += slopes.T @ hidden[part]
            del slopes  # before the next ones are computed
        return hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype), None
