"""Fixtures for the processes that run tests."""

from __future__ import annotations

import gc
import os

import pytest

from ledom.core.processes import available_cpus

# One thread per process: xdist keeps every core busy, the models are small, and a test that forks
# hangs where torch has used more. What the tests start inherits it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"  # or tokenizers warns at every fork


@pytest.hookimpl(optionalhook=True)  # where xdist is not loaded, nobody asks
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are CPUs: tests wait a quarter of their time for other processes."""
    return available_cpus() + 1


def pytest_configure(config: pytest.Config) -> None:
    """Load what many tests share, except where xdist's workers run the tests.

    Its imports (torch, transformers) take six seconds, in which no worker has started yet.
    """
    if config.getoption("dist", "no") == "no":
        gc.disable()  # nothing that is imported becomes garbage
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not again and again among all that was imported."""
    gc.freeze()
    gc.set_threshold(10_000)  # and less often: it took 3% of the time of tests that build models
    gc.enable()
