from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import TokenSpan
from ledom.model.architectures import finish_logits, has_plain_logits
from ledom.model.checkpoint import save_checkpoint
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

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


@pytest.mark.slow
@torch.no_grad()
def test_a_model_may_predict_fewer_tokens_than_it_has_embeddings(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Inkling's embedding has rows for no token."""
    model = tiny("inkling2_text", tokenizer, unpadded_vocab_size=200)
    save_checkpoint(tmp_path, model, tokenizer, Direction.FORWARD, PairFormat())
    lm = HFLanguageModel(tmp_path, device="cpu", dtype="float32")
    assert lm.vocab_size == 200
    ids = [0, 7, 150, 199]
    expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = lm.logprobs([TokenSpan(ids, 1, 4)])[0].tolist()
    assert found == pytest.approx([expected[i, ids[i + 1]].item() for i in range(3)], abs=1e-4)
    with pytest.raises(InputError, match="token id 200 is not in the vocabulary"):
        lm.logprobs([TokenSpan([0, 200], 1, 2)])
