import pytest
import torch
from transformers import AutoConfig

from ledom.model.architectures import finish_logits, has_plain_logits

SETTINGS = {
    "cohere": "logit_scale",
    "granite": "logits_scaling",
    "gemma2": "final_logit_softcapping",
}


@pytest.mark.parametrize("family", SETTINGS)
def test_logits_beyond_a_projection_are_recognized(family: str) -> None:
    config = AutoConfig.for_model(family, **{SETTINGS[family]: 3.0})
    assert not has_plain_logits(config)
    logits = torch.tensor([[-30.0, 0.0, 6.0]])
    assert not torch.equal(finish_logits(logits, config), logits)


def test_plain_logits_stay_unchanged() -> None:
    config = AutoConfig.for_model("llama")
    assert has_plain_logits(config)
    logits = torch.tensor([[-30.0, 0.0, 6.0]])
    assert torch.equal(finish_logits(logits, config), logits)
