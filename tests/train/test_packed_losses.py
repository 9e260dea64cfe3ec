"""Losses of packed windows, compared with plain transformers on ids flipped by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from ledom.core.direction import Direction
from ledom.data.packing import Windows, pack
from ledom.model.checkpoint import build_model
from ledom.train.loop import packed_losses, validate

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


@torch.no_grad()
def plain_losses(model, windows, flip):
    """Losses of each window alone with transformers' own attention; ids flipped by hand."""
    config = type(model.config)(**{**model.config.to_dict(), "attn_implementation": "sdpa"})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    plain.load_state_dict(model.state_dict())
    losses = []
    for window in windows:
        ids = window.tolist()
        ids = torch.tensor([ids[len(ids) - 1 - i] for i in range(len(ids))] if flip else ids)
        logits = plain(input_ids=ids[None, :-1], use_cache=False).logits[0]
        losses.append(cross_entropy(logits, ids[1:], reduction="none"))
    return torch.cat(losses)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("direction", Direction)
def test_documents_within_a_window_do_not_see_each_other(data, tiny_config, direction):
    """In fixed windows, the losses equal those of each document alone, or of the whole row."""
    model = build_model(tiny_config, data.tokenizer, 5).eval()
    store = data.sources[0].store
    windows = [Windows(store, 400, "fixed")[i] for i in (0, 3, 4)]
    pieces = []  # in model order: in reverse, a window's last document comes first
    for window in windows:
        ends = np.flatnonzero(window[1:-1] == store.eos_id) + 1
        found = [p for p in split_overlapping(window, ends) if len(p) > 1]
        pieces += found[::-1] if direction is REVERSE else found
    assert len(pieces) > 3
    expected = plain_losses(model, pieces, flip=direction is REVERSE)
    losses = packed_losses(model, pack(windows, direction, store.eos_id))
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    across = pack(
        windows, direction, store.eos_id, mask_across_documents=False, reset_position_ids=False
    )
    whole = plain_losses(model, windows, flip=direction is REVERSE)
    torch.testing.assert_close(packed_losses(model, across), whole, atol=1e-5, rtol=0)
    assert (whole - expected).abs().max() > 0.1


def split_overlapping(window, ends):
    """The segments between document ends; an end belongs to both of its neighbors."""
    edges = [0, *ends.tolist(), len(window) - 1]
    return [window[start : end + 1] for start, end in pairwise(edges)]


@torch.no_grad()
@pytest.mark.parametrize("direction", Direction)
def test_packed_losses_equal_those_of_plain_transformers(data, tiny_config, direction):
    model = build_model(tiny_config, data.tokenizer, 5).eval()
    store = data.sources[0].store
    windows = [Windows(store, 100)[i] for i in range(6)]
    expected = plain_losses(model, windows, flip=direction is REVERSE)
    losses = packed_losses(model, pack(windows, direction, store.eos_id))
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    opposite = FORWARD if direction is REVERSE else REVERSE
    other = packed_losses(model, pack(windows, opposite, store.eos_id))
    assert (other - expected).abs().max() > 0.1


def test_validation_loss_is_the_mean_over_tokens(recipe, data, tiny_config):
    model = build_model(tiny_config, data.tokenizer, 5)
    every = list(Windows(data.valid, 64))
    assert len(every) % 4  # the last batch is not full
    expected = plain_losses(model, every, flip=True).mean().item()
    found = validate(model, data, REVERSE, recipe)
    assert found["valid_loss"] == pytest.approx(expected, abs=1e-5)
