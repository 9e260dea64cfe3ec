"""The report that tests of its pages change."""

from __future__ import annotations

from typing import Any

import pytest

from selection_report import sample_report


@pytest.fixture
def report() -> dict[str, Any]:
    """A report of a selection as JSON, with every section."""
    return sample_report()
