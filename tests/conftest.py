"""Fixtures for the processes that run tests."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load what many tests share, except where xdist's workers run the tests.

    Its imports (torch, transformers) take six seconds, in which no worker has started yet.
    """
    if config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared_fixtures")
