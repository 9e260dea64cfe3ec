"""Fixtures for the processes that run tests."""

from __future__ import annotations

import gc
import os

import pytest

from ledom.core.processes import available_cpus

# One thread per process: xdist keeps every core busy, the models are small, and a test that forks
# hangs if torch has used more. Processes that the tests start inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
# No test uses TLS, but every HTTP client loads all root certificates (20 ms) unless a folder is
# named: then it loads those that it needs.
os.environ["SSL_CERT_DIR"] = os.devnull
os.environ.pop("SSL_CERT_FILE", None)
os.environ["TOKENIZERS_PARALLELISM"] = "true"  # otherwise tokenizers warns at every fork


@pytest.hookimpl(optionalhook=True)  # not called if xdist is not loaded
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One per CPU, and one more for the slow tests, which spend a quarter of their time waiting."""
    return available_cpus() + (config.option.markexpr != "not slow")


def pytest_configure(config: pytest.Config) -> None:
    """Load what many tests share, unless xdist's workers run the tests.

    The imports (torch, transformers) take six seconds, which would delay the start of the workers.
    """
    if config.getoption("dist", "no") == "no":
        gc.disable()  # imported objects never become garbage
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but do not rescan all imported objects each time."""
    gc.freeze()
    gc.set_threshold(10_000)  # less often: it took 3% of the time of tests that build models
    gc.enable()
