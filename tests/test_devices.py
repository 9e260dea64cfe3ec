"""Checks without a GPU that no operation mixes CPU tensors with those of another device.

The other device is torch's `meta`, which computes nothing. Values read from it are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ledom.core.direction import Direction
from ledom.data.packing import pack
from ledom.lm import load
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine.trunk import Trunk, build_trunk
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model import attention, changes
from ledom.train.loop import packed_losses
from ledom.train.optim import OptimConfig, build_optimizers

META = torch.device("meta")
MAY_MIX = ("_to_copy", "copy_", "_has_compatible_shallow_copy_type")


class OneDevice(TorchDispatchMode):
    """Raise for any operation that a GPU would refuse because of a CPU tensor."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in given if x.dim()}  # scalars may be anywhere
        if len(devices) > 1 and operation.__name__.split(".")[0] not in MAY_MIX:
            raise AssertionError(f"{operation} mixes {sorted(devices)}")
        return operation(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def read_as_zero(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Values read from the other device are zero, and no operation mixes devices."""

    def patch(name: str, read: Callable[[torch.Tensor], Any]) -> None:
        real = getattr(torch.Tensor, name)

        def patched(x: torch.Tensor, *rest: Any) -> Any:
            return read(torch.zeros(x.shape, dtype=x.dtype)) if x.is_meta else real(x, *rest)

        monkeypatch.setattr(torch.Tensor, name, patched)

    patch("cpu", lambda x: x)
    patch("tolist", lambda x: x.tolist())
    patch("item", lambda x: x.item())
    patch("__int__", int)
    patch("__bool__", bool)
    with OneDevice():
        yield


def test_the_check_detects_mixed_devices() -> None:
    with pytest.raises(AssertionError, match=r"mm.* mixes \['cpu', 'meta'\]"):
        torch.ones(2, 2, device=META) @ torch.ones(2, 2)


@pytest.mark.parametrize(
    ("direction", "trunk"), [(Direction.FORWARD, Trunk), (Direction.REVERSE, build_trunk)]
)
@pytest.mark.slow
def test_scoring_and_sampling_use_one_device(
    direction: Direction,
    trunk: Callable[[Any], Trunk],
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes, "_dense", lambda weight, name: [weight])  # refuses the meta device
    lm = load(checkpoints[direction])
    assert isinstance(lm, HFLanguageModel)
    lm.model.to("meta")
    lm._trunk = trunk(lm.model)
    ids = list(range(1, 9))
    spans = [TokenSpan(ids, 1, 6), TokenSpan([*ids[:4], 30], 1, 4)]
    assert [len(values) for values in lm.logprobs(spans)] == [5, 3]
    assert len(lm.logprobs_and_hits(spans)) == 2
    assert len(lm.alternatives(spans[0], 3)) == 5
    lm._reach = 0  # use the model's own pass
    assert [len(values) for values in lm.logprobs(spans)] == [5, 3]
    lm._reach = lm.context
    lm.stop_ids = frozenset()  # every token read is 0, which is EOS
    for sampling in (
        Sampling(max_tokens=4),
        Sampling(max_tokens=4, top_k=5, top_p=0.9, stop_pattern="x"),
        Sampling(max_tokens=4, temperature=0),
    ):
        for _, written in lm.generate(["a", "bc"], sampling, 3):
            assert [one.ids for one in written] == [[0] * 4] * 3
    assert lm.identity["hash"] != load(checkpoints[direction]).identity["hash"]


@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.slow
def test_training_uses_one_device(
    one_call: bool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if one_call:  # as on a GPU

        def varlen_attention(q: Any, k: Any, v: Any, starts: Any, *_: Any) -> Any:
            assert {x.device for x in (q, k, v, *starts)} == {META}
            return q + (k + v).repeat_interleave(q.shape[1] // k.shape[1], 1), None

        monkeypatch.setattr(attention, "has_varlen", lambda *_: True)
        monkeypatch.setattr(attention, "varlen_attention", varlen_attention)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # fails for `meta`
    lm = load(checkpoints["reverse"])
    assert isinstance(lm, HFLanguageModel)
    model = lm.model.to("meta")
    batch = pack([np.arange(40), np.arange(30)], lm.direction, lm.tokenizer.eos_id)
    packed_losses(model, batch).mean().backward()
    muon, adamw = build_optimizers(model, OptimConfig(steps=10))
    for group in adamw.param_groups:
        group["fused"] = False  # only for real devices
    muon.step()
    adamw.step()
    assert all(weight.grad is not None for weight in model.parameters())
