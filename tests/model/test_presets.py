import pytest
from pydantic import ValidationError

from ledom.model.presets import ModelConfig

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_a_shape_that_fits():
    assert ModelConfig(**SHAPE).hidden_size == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 is no even multiple of num_attention_heads 4"),
        ({"hidden_size": 12}, "hidden_size 12 is no even multiple"),  # 3 a head: RoPE needs pairs
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_he"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**SHAPE, **change})
