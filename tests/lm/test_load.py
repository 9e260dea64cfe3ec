"""`ledom.load` and the embedded pair."""

from __future__ import annotations

from pathlib import Path

import pytest

import ledom
from ledom.errors import CheckpointError, DirectionError


def test_direction_is_read_from_the_checkpoint(checkpoints: dict[str, Path]) -> None:
    assert ledom.load(checkpoints["reverse"]).direction is ledom.Direction.REVERSE
    with pytest.raises(DirectionError, match="asked for as forward"):
        ledom.load(checkpoints["reverse"], direction="forward")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        ledom.load(tmp_path / "nowhere", direction="forward")


def test_the_embedded_name_needs_a_direction() -> None:
    with pytest.raises(DirectionError, match="forward.*reverse"):
        ledom.load("tiny")


def test_fingerprints_tell_models_apart(checkpoints: dict[str, Path]) -> None:
    forward, reverse = (ledom.load(folder) for folder in checkpoints.values())
    assert forward.fingerprint != reverse.fingerprint
    assert forward.fingerprint == ledom.load(checkpoints["forward"]).fingerprint
