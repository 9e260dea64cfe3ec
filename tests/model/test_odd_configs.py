"""Values in config.json with which transformers would give nonsense or no named outputs."""

import json
import re
import shutil
from pathlib import Path

import pytest

import ledom
from ledom.core.errors import CheckpointError, LedomError
from ledom.model.checkpoint import load_checkpoint
from ledom.model.foreign.importer import import_model

EMBEDDED = Path(ledom.__file__).parent / "lm" / "embedded" / "forward"


def _with_config(folder: Path, **changed: object) -> Path:
    copied = Path(shutil.copytree(EMBEDDED, folder / "model"))
    config = json.loads((copied / "config.json").read_text()) | changed
    (copied / "config.json").write_text(json.dumps(config))
    return copied


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rms_norm_eps": 1e30}, "rms_norm_eps is 1e+30; it must lie from 0 to 0.1"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must lie from 0 to 0.1"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan; it must lie from 0"),
        ({"text_config": {"norm_eps": 5}}, "norm_eps is 5; it must lie from 0"),
        ({"rope_theta": 0}, "rope_theta is 0; it must lie from 1 to 1e+15"),
        ({"rope_parameters": {"rope_theta": 1e300}}, "rope_theta is 1e+300; it must lie from 1"),
        ({"rope_parameters": {"full_attention": {"rope_theta": -5.0}}}, "rope_theta is -5.0; it"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0; it must lie from 1e-06"),
        ({"final_logit_softcapping": -30.0}, "final_logit_softcapping is -30.0; it must lie"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5; it must be a whole"),
        ({"rotary_dim": 0}, "rotary_dim is 0; it must be a whole number above 0"),
    ],
)
def test_numbers_that_would_make_every_score_wrong_are_refused(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    folder = _with_config(tmp_path, **changed)
    with pytest.raises(CheckpointError, match=re.escape(f"{folder}/config.json: {said}")):
        load_checkpoint(folder)


@pytest.mark.parametrize("factor", [0, -2.0])
def test_meaningless_rotary_frequencies_are_refused(tmp_path: Path, factor: float) -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "linear", "factor": factor}
    with pytest.raises(CheckpointError, match=f"config.json: .*frequencies must be.*{factor}"):
        load_checkpoint(_with_config(tmp_path, rope_parameters=rope))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"intermediate_size": 500},
            "'model.layers.0.mlp.down_proj.weight' has the shape [192, 512], config.json needs "
            "[192, 500]; correct",
        ),
        ({"hidden_act": "nope"}, "cannot be loaded: transformers does not know 'nope'"),
        ({"text_config": {"a": 1}}, "cannot be loaded: "),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
            'cannot be loaded: "Missing required keys',
        ),
        (
            {"rms_norm_eps": 0},
            "cannot be loaded: config.json: rms_norm_eps is 0; it must be of the type float, such "
            "as 0.0",
        ),
        (
            {"model_type": "gptj", "rotary_dim": None},
            "cannot be loaded: config.json: rotary_dim is null; it must be of the type int",
        ),
    ],
)
def test_a_config_for_another_model_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    folder = _with_config(tmp_path, **changed)
    with pytest.raises(CheckpointError, match=re.escape(f"{folder}: {said}")) as refused:
        load_checkpoint(folder)
    assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match="config.json needs|cannot be loaded: "):
        import_model(str(folder), tmp_path / "imported")


def test_a_weight_name_that_is_not_a_name_is_refused(tmp_path: Path) -> None:
    folder = _with_config(tmp_path, transformers_weights=0)
    for read in (load_checkpoint, lambda folder: import_model(str(folder), tmp_path / "imported")):
        with pytest.raises(LedomError):
            read(folder)


@pytest.mark.slow
def test_a_config_cannot_turn_named_outputs_off(tmp_path: Path) -> None:
    ids = [0, 40, 41, 0]
    span = [ledom.TokenSpan(ids, 1, 4)]
    found = ledom.load(_with_config(tmp_path, return_dict=False)).logprobs(span)[0]
    assert found.tolist() == ledom.load(EMBEDDED).logprobs(span)[0].tolist()
