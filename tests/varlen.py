"""A stand-in for torch's attention over segments, which needs a GPU.

It takes the arguments that torch documents and computes one segment after the other.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from ledom.model import kernels


def varlen_attn(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Returns the result [Q, H, D] and, as the real one does, log normalizers [H, Q]."""
    given = inspect.signature(varlen.varlen_attn).bind(*args, **kwargs).arguments
    query, key, value = given["query"], given["key"], given["value"]
    boundaries = [given[name] for name in ("cu_seq_q", "cu_seq_k")]
    assert all(starts.dtype == torch.int32 for starts in boundaries)
    longest = [int(starts.diff().max()) for starts in boundaries]
    assert [given["max_q"], given["max_k"]] == longest
    groups = query.shape[1] // key.shape[1]
    assert groups == 1 or given["enable_gqa"]
    assert given["return_aux"].lse
    scale = given["scale"] or query.shape[-1] ** -0.5
    outs, logs = [], []
    sizes = [starts.diff().tolist() for starts in boundaries]
    for mine, keys, values in zip(
        query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1]), strict=True
    ):
        keys, values = (x.repeat_interleave(groups, dim=1).float() for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", mine.float(), keys) * scale
        if given["window_size"] == (-1, 0):  # aligned at the end
            last = len(keys) - len(mine) + torch.arange(len(mine))
            hidden = torch.arange(len(keys)) > last[:, None]
            scores = scores.masked_fill(hidden, -torch.inf)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(value.dtype))
        logs.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(logs, dim=1)


def use_varlen(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Let a module take the path of a GPU."""
    stand_in = SimpleNamespace(varlen_attn=varlen_attn, AuxRequest=varlen.AuxRequest)
    monkeypatch.setattr(kernels, "varlen", stand_in)
    monkeypatch.setattr(module, "has_varlen", lambda device, dtype: True)
