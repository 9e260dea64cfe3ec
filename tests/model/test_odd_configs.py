"""Values in config.json with which transformers would give nonsense, or no results by name."""

import json
import shutil
from pathlib import Path

import pytest

import ledom
from ledom.core.errors import CheckpointError
from ledom.model.checkpoint import load_checkpoint

EMBEDDED = Path(ledom.__file__).parent / "lm" / "embedded" / "forward"


def _with_config(folder: Path, **changed: object) -> Path:
    copied = Path(shutil.copytree(EMBEDDED, folder / "model"))
    config = json.loads((copied / "config.json").read_text()) | changed
    (copied / "config.json").write_text(json.dumps(config))
    return copied


@pytest.mark.parametrize("theta", [0, -5.0])
def test_rotary_frequencies_that_are_not_finite_are_refused(tmp_path: Path, theta: float) -> None:
    rope = {"rope_theta": theta, "rope_type": "default"}
    with pytest.raises(CheckpointError, match=f"config.json: .*not finite.*{theta}"):
        load_checkpoint(_with_config(tmp_path, rope_parameters=rope))


def test_a_config_cannot_turn_outputs_by_name_off(tmp_path: Path) -> None:
    ids = [0, 40, 41, 0]
    span = [ledom.TokenSpan(ids, 1, 4)]
    found = ledom.load(_with_config(tmp_path, return_dict=False)).logprobs(span)[0]
    assert found.tolist() == ledom.load(EMBEDDED).logprobs(span)[0].tolist()
