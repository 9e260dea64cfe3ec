"""Draws tokens and computes labels' log-probabilities in kernels that do not copy logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ledom.model.native.library import library_for

__all__ = ["draw", "label_logprobs"]


def draw(
    logits: Tensor, temperature: float, levels: Sequence[float]
) -> tuple[list[int], list[float], list[float]] | None:
    """Draw a token for each row of logits [rows, V] by inverting the cumulative distribution.

    It is the first token at which the sum of the probabilities at this temperature exceeds the
    row's level in [0, 1), or the most likely token if the level is negative. Also returns, for each
    row, KL(uniform || p) in nats at temperature 1, and the highest logit divided by the
    temperature; neither is finite if a logit is not. Returns None without the compiled kernels.

    >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    >>> found = draw(logits, 1.0, [0.6, -1.0])
    >>> found[0] if found else [2, 3]
    [2, 3]
    """
    native = library_for(logits)
    if native is None:
        return None
    logits, (rows, vocabulary) = logits.contiguous(), logits.shape
    wanted, tokens = np.array(levels, np.float64), np.empty(rows, np.int64)
    certainties, highest = np.empty(rows, np.float32), np.empty(rows, np.float32)
    native.draw(
        *(logits.data_ptr(), rows, vocabulary, temperature, wanted.ctypes.data),
        *(tokens.ctypes.data, certainties.ctypes.data, highest.ctypes.data),
        min(torch.get_num_threads(), rows),
    )
    return tokens.tolist(), certainties.tolist(), highest.tolist()


def label_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """log P [T] in nats of the labels [T], from logits [T, V]; plain torch without the kernels.

    >>> label_logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([-0.6931])
    """
    native = library_for(logits)
    if native is None:
        return -cross_entropy(logits, labels, reduction="none")
    logits, labels, out = logits.contiguous(), labels.contiguous(), logits.new_empty(len(labels))
    native.label_logprobs(
        *(logits.data_ptr(), *logits.shape, labels.data_ptr(), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out
