"""Processes of a group that wait for each other, and for one that has stopped or is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from threading import Timer

import pytest
from torch.distributed import HashStore, TCPStore

from ledom.core import processes
from ledom.core.errors import WorkerError

Join = Callable[[HashStore | TCPStore], None]


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Join:
    """Makes this process the first of two, which share a store."""

    def join(store: HashStore | TCPStore) -> None:
        monkeypatch.setattr(processes, "size", lambda: 2)
        monkeypatch.setattr(processes, "_barriers", iter(["x"]))
        monkeypatch.setattr(processes, "_store", lambda: store)

    return join


@pytest.mark.slow
def test_the_first_process_says_that_it_waits(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = HashStore()
    join(store)
    monkeypatch.setattr(processes, "_LOG_EVERY", timedelta(seconds=0.1))
    other = Timer(0.5, lambda: store.set("ledom-barrier-x-all", "here"))  # it came late
    with caplog.at_level(logging.WARNING, "ledom"):
        other.start()
        processes.wait()
    assert caplog.messages
    assert caplog.messages[0] == (
        "waiting for 1 of 2 processes; if one has stopped, end the run and start it again to resume"
    )


@pytest.mark.parametrize("call", [processes.wait, lambda: processes.from_first("text")])
def test_the_loss_of_the_store_is_one_clear_error(join: Join, call: Callable[[], object]) -> None:
    keeper = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    join(TCPStore("127.0.0.1", keeper.port, None, False, wait_for_workers=False))
    del keeper  # as when torchrun is killed
    with pytest.raises(WorkerError, match="process 0 of 2 lost contact with torchrun, or with pr"):
        call()
