import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import TokenSpan
from ledom.model.architectures import finish_logits, has_plain_logits
from ledom.model.checkpoint import load_checkpoint, save_checkpoint
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


@pytest.fixture
def folder(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    return Path(shutil.copytree(checkpoints["reverse"], tmp_path / "model"))


def _save_more(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Add tensors to a model folder."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",  # attention_bias is false
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.2.mlp.up_proj.weight",  # the model has two layers
        "lm_head.bias",
    ],
)
def test_weights_without_a_place_in_the_config_are_refused(folder: Path, name: str) -> None:
    """transformers would continue without them."""
    _save_more(folder, {name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=rf"a model without '{re.escape(name)}', which the"):
        load_checkpoint(folder)


def test_weights_for_other_uses_are_skipped_with_a_note(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A value head is not part of the language model; a computed buffer is not a weight."""
    more = ("v_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    _save_more(folder, {name: torch.ones(3) for name in more})
    load_checkpoint(folder)
    (message,) = caplog.messages
    assert message == f"{folder}: 1 tensors are not used; the first is 'v_head.weight'"


@pytest.mark.slow
def test_layers_that_predict_further_tokens_are_not_used(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Those of smaller DeepSeek-V3s, such as GigaChat3; transformers ignores only layer 61."""
    model = tiny("deepseek_v3", tokenizer)
    save_checkpoint(tmp_path, model, tokenizer, Direction.FORWARD, PairFormat())
    weights = load_file(tmp_path / "model.safetensors")
    last = {n.replace(".1.", ".2.", 1): w.clone() for n, w in weights.items() if ".layers.1." in n}
    _save_more(tmp_path, last | {"model.layers.2.eh_proj.weight": torch.ones(32, 64)})
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    with pytest.raises(CheckpointError, match="a model without 'model.layers.2.eh_proj.weight'"):
        load_checkpoint(tmp_path)
    file.write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    found = load_checkpoint(tmp_path).model
    ids = torch.tensor([[0, 40, 41, 42, 99, 7]])
    assert torch.equal(found(ids).logits, model(ids).logits)
