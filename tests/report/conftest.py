"""A sample report that page tests modify."""

from __future__ import annotations

from typing import Any

import pytest

from selection_report import sample_report


@pytest.fixture
def report() -> dict[str, Any]:
    """A selection report as JSON, with every section."""
    return sample_report()
