"""Memory that passes use again: by name, by thread, and only for large tensors."""

from __future__ import annotations

from threading import Thread

import torch

from ledom.model.device import LARGE
from ledom.model.native.workspace import workspace

_SIZE = LARGE // 4  # numbers in fp32


def test_a_large_tensor_takes_the_memory_of_the_one_before() -> None:
    first = workspace("test", 2, _SIZE)
    assert workspace("test", _SIZE).data_ptr() == first.data_ptr()
    assert workspace("another test", _SIZE).data_ptr() != first.data_ptr()


def test_a_small_tensor_has_memory_of_its_own() -> None:
    small = [workspace("test", _SIZE - 1).fill_(i) for i in range(2)]
    assert [tensor[0].item() for tensor in small] == [0, 1]


def test_threads_do_not_share_memory() -> None:
    here, there = workspace("test", _SIZE).fill_(1), []
    thread = Thread(target=lambda: there.append(workspace("test", _SIZE).fill_(2)))
    thread.start()
    thread.join()
    assert here.data_ptr() != there[0].data_ptr()
    assert here.eq(1).all()


def test_memory_made_in_inference_can_be_written_outside() -> None:
    with torch.inference_mode():
        made = workspace("inference", _SIZE).data_ptr()
    again = workspace("inference", _SIZE)
    assert again.data_ptr() == made
    assert not again.is_inference()
    assert again.fill_(1).eq(1).all()
