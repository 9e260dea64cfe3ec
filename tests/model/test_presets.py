from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from ledom.model.checkpoint import build_model
from ledom.model.presets import ModelConfig

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_a_valid_shape_is_accepted():
    assert ModelConfig(**SHAPE).hidden_size == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 is not an even multiple of num_attention_heads 4"),
        (
            {"hidden_size": 12},
            "hidden_size 12 is not an even multiple",
        ),  # 3 per head, but RoPE needs pairs
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_va"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_an_invalid_shape_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**SHAPE, **change})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "vocab_size", "num_parameters"),
    [
        ("tiny", 2048, 2_755_008),  # as docs/results.md says of the embedded pair
        ("small", 8192, 30e6),
        ("base", 50257, 124e6),
        ("2b", 64000, 2.24e9),
        ("7b", 64000, 15.59e9 / 2),  # the size of the published bf16 files
    ],
)
def test_a_preset_has_its_published_size(name, vocab_size, num_parameters):
    tokenizer = SimpleNamespace(vocab_size=vocab_size, eos_id=0)
    with torch.device("meta"):
        model = build_model(ModelConfig.model_validate(name), tokenizer, seed=0)
    built = sum(weight.numel() for weight in model.parameters())
    assert built == pytest.approx(num_parameters, rel=0 if name == "tiny" else 0.01)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_preset_may_be_changed_in_part():
    changed = ModelConfig.model_validate({"preset": "7b", "num_hidden_layers": 2})
    assert changed.model_dump() == ModelConfig.model_validate("7b").model_dump() | {
        "num_hidden_layers": 2
    }


@pytest.mark.parametrize("value", ["9b", {"preset": "9b"}, {"preset": ["7b"]}])
def test_the_error_for_an_unknown_preset_lists_the_known_ones(value):
    with pytest.raises(ValidationError, match="the presets are tiny, small, base, 2b, 7b"):
        ModelConfig.model_validate(value)


def test_a_mistyped_key_next_to_a_preset_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ModelConfig.model_validate({"preset": "7b", "num_layers": 2})


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", -1.0), ("rms_norm_eps", 1.0), ("initializer_range", -1.0)]
)
def test_a_number_that_would_make_a_useless_model_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        ModelConfig.model_validate({"preset": "tiny", key: value})
