"""Work dealt to threads: nothing is lost, an error ends all, torch's own number returns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from ledom.core.direction import Direction
from ledom.lm import embedded_folder
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Decoder
from ledom.lm.engine.threads import merged, num_workers
from ledom.lm.engine.trunk import Trunk
from ledom.lm.language_model import Sampling
from made import whole_text
from waiting import SECONDS


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


def counting(start: int, seen: list[int]) -> Iterator[int]:
    for number in range(start, start + 100):
        seen.append(torch.get_num_threads())
        yield number


def test_all_items_come_and_each_thread_computes_with_one() -> None:
    seen: list[int] = []
    found = sorted(merged([counting(start, seen) for start in (0, 100, 200)]))
    assert found == list(range(300))
    assert set(seen) == {1}
    assert list(merged([counting(0, [])])) == list(range(100))
    assert list(merged([])) == []


def test_an_error_in_one_ends_all() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        list(merged([fails(), counting(0, [])]))


def test_a_listener_that_leaves_ends_them() -> None:
    ended: list[int] = []

    def endless(number: int) -> Iterator[int]:
        try:
            while True:
                time.sleep(0.001)
                yield number
        finally:
            ended.append(number)

    both = merged([endless(1), endless(2)])
    next(both)
    assert torch.get_num_threads() == 1
    both.close()  # type: ignore[attr-defined]
    assert sorted(ended) == [1, 2]


def test_two_at_once_leave_the_number_of_threads_as_it_was() -> None:
    first, second = (merged([counting(0, []), counting(0, [])]) for _ in range(2))
    next(first), next(second)
    first.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 1, "the other still runs"
    second.close()  # type: ignore[attr-defined]


def test_narrow_models_of_our_own_trunk_are_dealt_out(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = HFLanguageModel(checkpoints["forward"])
    assert num_workers(lm._trunk) == 4
    assert num_workers(Trunk(lm.model)) == 1, "transformers' modules may keep state"
    hook = lm.model.base_model.norm.register_forward_hook(lambda *_: None)
    lm._trunk.refresh()
    assert num_workers(lm._trunk) == 1, "as may hooks"
    hook.remove()
    lm._trunk.refresh()
    assert num_workers(lm._trunk) == 4
    monkeypatch.setattr(lm.model.config, "hidden_size", 513)
    assert num_workers(lm._trunk) == 1


def test_texts_that_never_end_do_not_hold_up_one_who_leaves(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = HFLanguageModel(checkpoints["forward"])
    taken, stops = count(1), list[Event]()

    def remembered() -> Event:
        stops.append(Event())
        return stops[-1]

    def endless(self: Decoder, logits: torch.Tensor, jobs: list[Job]) -> None:
        number = next(taken)
        if number == 10:
            raise KeyboardInterrupt
        if number > 10:
            assert stops[-1].wait(SECONDS)  # until the others have been told
        for job in jobs:
            job.ids.append(5)

    assert lm._decodes, "found out by the real one"
    monkeypatch.setattr("ledom.lm.engine.threads.Event", remembered)
    monkeypatch.setattr(Decoder, "_take", endless)
    with pytest.raises(KeyboardInterrupt):
        list(lm.generate(["Ava"] * 64, Sampling(max_tokens=100)))
    assert next(taken) < 20


@pytest.mark.parametrize("direction", list(Direction))
def test_results_are_those_of_one_thread(
    direction: Direction, checkpoints: dict[str, Path]
) -> None:
    lm = HFLanguageModel(checkpoints[str(direction)], tokens_per_batch=40)
    assert not lm._trunk.shares_rows, "its heads are too narrow for the compiled kernels"
    check_threads(lm)


@pytest.mark.parametrize("direction", list(Direction))
def test_threads_that_share_rows_change_nothing(direction: Direction) -> None:
    lm = HFLanguageModel(embedded_folder(direction), tokens_per_batch=400)
    assert lm._trunk.shares_rows
    check_threads(lm)


def check_threads(lm: HFLanguageModel) -> None:
    texts = [f"Ava has {n} pens and {n + 1} cups." for n in range(40)]
    spans = [whole_text(lm, text) for text in texts]
    sampling = Sampling(max_tokens=12, seed=3)
    together = lm.logprobs(spans), dict(lm.generate(texts, sampling, 2))
    torch.set_num_threads(1)
    alone = lm.logprobs(spans), dict(lm.generate(texts, sampling, 2))
    torch.set_num_threads(4)
    for one, other in zip(together[0], alone[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert together[1] == alone[1]
