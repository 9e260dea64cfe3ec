"""A foreign model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ledom.lm import embedded_folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The embedded reverse model, as published without ledom."""
    folder = tmp_path / "foreign"
    shutil.copytree(embedded_folder("reverse"), folder)
    config = json.loads((folder / "config.json").read_text())
    plain = {key: value for key, value in config.items() if "ledom" not in key}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder
