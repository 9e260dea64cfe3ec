from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ledom.model.native import library


@pytest.fixture(params=["AVX512", "AVX2", "DEFAULT", "none"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Use each vector width of this processor, or no kernels; yields whether any are used."""
    capability, levels = torch.backends.cpu.get_cpu_capability(), ["DEFAULT", "AVX2", "AVX512"]
    if request.param == "none":
        monkeypatch.setattr(library, "_library", lambda: None)
        yield False
        return
    if request.param not in levels or levels.index(request.param) > levels.index(capability):
        pytest.skip(f"this processor has {capability}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    library._library.cache_clear()
    assert library._library() is not None
    yield True
    library._library.cache_clear()
