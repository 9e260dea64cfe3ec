"""A model's work split among threads: same results, and no wait after the caller leaves."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from ledom.core.direction import Direction
from ledom.lm import embedded_folder
from ledom.lm.backends import local
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Decoder
from ledom.lm.engine.trunk import Trunk
from ledom.lm.language_model import Sampling
from ledom.model.native import library
from made import whole_text
from waiting import SECONDS

pytestmark = pytest.mark.usefixtures("four_threads")


@pytest.mark.slow
def test_narrow_models_with_our_trunk_use_several_threads(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = HFLanguageModel(checkpoints["forward"])
    assert lm._trunk.num_workers == 4
    assert Trunk(lm.model).num_workers == 1, "transformers' modules may keep state"
    hook = lm.model.base_model.norm.register_forward_hook(lambda *_: None)
    lm._trunk.refresh()
    assert lm._trunk.num_workers == 1, "as may hooks"
    hook.remove()
    lm._trunk.refresh()
    assert lm._trunk.num_workers == 4
    monkeypatch.setattr(lm.model.config, "hidden_size", 513)
    assert lm._trunk.num_workers == 1


@pytest.mark.slow
def test_endless_texts_do_not_hold_up_a_caller_that_leaves(
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
            assert stops[-1].wait(SECONDS)  # until the others have been notified
        for job in jobs:
            job.ids.append(5)

    assert lm._decodes, "found out by the real one"
    monkeypatch.setattr("ledom.core.processes.Event", remembered)
    monkeypatch.setattr(Decoder, "_take", endless)
    with pytest.raises(KeyboardInterrupt):
        list(lm.generate(["Ava"] * 64, Sampling(max_tokens=100)))
    assert next(taken) < 20


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.slow
def test_results_without_kernels_equal_those_of_one_thread(
    direction: Direction, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_library", lambda: None)
    lm = HFLanguageModel(checkpoints[str(direction)], tokens_per_batch=40)
    assert not lm._trunk.shares_rows
    check_threads(lm)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.slow
def test_threads_that_share_rows_change_nothing(direction: Direction) -> None:
    lm = HFLanguageModel(embedded_folder(direction), tokens_per_batch=400)
    assert lm._trunk.shares_rows
    check_threads(lm)


@pytest.mark.slow
def test_models_can_be_loaded_by_several_threads_at_once(checkpoints: dict[str, Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(HFLanguageModel, [*checkpoints.values()] * 2))
    assert loaded[0].fingerprint == loaded[2].fingerprint != loaded[1].fingerprint


@pytest.mark.slow
def test_a_model_works_in_a_forked_process(checkpoints: dict[str, Path]) -> None:
    lm = HFLanguageModel(checkpoints["forward"])
    span = whole_text(lm, "Ava has 3 pens.")
    torch.ones(800, 800) @ torch.ones(800, 800)  # starts OpenMP's threads
    (expected,), fingerprint = lm.logprobs([span]), lm.fingerprint
    receiver, sender = get_context("fork").Pipe()

    def work() -> None:
        assert lm.fingerprint == fingerprint
        sender.send(HFLanguageModel(checkpoints["forward"]).logprobs([span])[0])
        sender.send(lm.logprobs([span] * 200)[0])

    forked = get_context("fork").Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of a fork with threads
        forked.start()
    try:
        for _ in range(2):
            assert receiver.poll(SECONDS), "torch waits for threads that do not exist"
            np.testing.assert_allclose(receiver.recv(), expected, atol=1e-5)
    finally:
        forked.kill()
        forked.join()


@pytest.mark.slow
def test_a_fork_waits_until_no_other_thread_loads(checkpoints: dict[str, Path]) -> None:
    HFLanguageModel(checkpoints["forward"])
    holds = Event()

    def load() -> None:
        with local._LOADING:
            holds.set()
            time.sleep(0.3)

    loading = Thread(target=load)
    loading.start()
    holds.wait()
    forked = get_context("fork").Process(target=HFLanguageModel, args=[checkpoints["forward"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of a fork with threads
        forked.start()
    loading.join()
    forked.join(SECONDS)
    code = forked.exitcode
    forked.kill()
    assert code == 0, "it waits for a thread that does not exist"


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
