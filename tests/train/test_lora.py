import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import MissingExtraError, RecipeError
from ledom.model.checkpoint import build_model, save_checkpoint
from ledom.text.pair_format import PairFormat
from ledom.train.distributed import ParallelConfig
from ledom.train.loop import train, validate
from ledom.train.lora import LoraConfig, add_adapters
from ledom.train.metrics import read_metrics

REVERSE = Direction.REVERSE


@pytest.fixture
def tuned(recipe, data, tmp_path):
    """A recipe that fine-tunes a given model with adapters."""
    given = build_model(recipe.model, data.tokenizer, seed=3)
    save_checkpoint(tmp_path / "given", given, data.tokenizer, REVERSE, PairFormat())
    return recipe.model_copy(
        update={"init_from": str(tmp_path / "given"), "model": None, "lora": LoraConfig(rank=4)}
    )


@pytest.mark.slow
def test_adapters_are_merged_into_a_plain_model(tuned, data, tmp_path):
    """The finished folder, loaded by transformers alone, is better than the initial model."""

    short = tuned.optim.model_copy(update={"steps": 14, "decay_steps": 6})
    tuned = tuned.model_copy(update={"optim": short})

    def interrupt(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tuned, REVERSE, data, tmp_path / "run", interrupt)
    finished = train(tuned, REVERSE, data, tmp_path / "run")
    whole = train(tuned, REVERSE, data, tmp_path / "whole")
    names = "model.safetensors"
    assert (finished / names).read_bytes() == (whole / names).read_bytes()
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="ledom").float()
        for folder in (tmp_path / "given", finished)
    )
    changed = {
        name
        for name, weight in after.state_dict().items()
        if not torch.equal(weight, before.state_dict()[name].bfloat16().float())
    }
    assert changed
    assert all(".layers." in name and "proj" in name for name in changed)
    losses = [validate(model, data, REVERSE, tuned)["valid_loss"] for model in (before, after)]
    assert losses[1] < losses[0] - 0.01


@pytest.mark.slow
def test_micro_batches_give_the_same_adapters(tuned, data, tmp_path):
    """Gradients accumulate: losses, norms and the merged weights are those of whole batches."""
    short = tuned.optim.model_copy(update={"steps": 3, "warmup_steps": 1, "decay_steps": 1})
    whole = tuned.model_copy(update={"optim": short})
    divided = whole.model_copy(update={"parallel": ParallelConfig(tokens_per_microbatch=100)})
    rows, weights = [], []
    for name, recipe in (("whole", whole), ("divided", divided)):
        finished = train(recipe, REVERSE, data, tmp_path / name)
        rows.append(read_metrics(tmp_path / name / "metrics.jsonl"))
        weights.append(load_file(finished / "model.safetensors"))
    for one, other in zip(*rows, strict=True):
        for key in ("loss", "gradient_norm", "tokens"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-3, rtol=0.01)


@pytest.mark.slow
def test_only_adapters_are_trained(recipe, data):
    model = build_model(recipe.model, data.tokenizer, seed=3)
    add_adapters(model, LoraConfig(rank=2), seed=0)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 7  # two factors, two layers, seven matrices
    assert all("lora_" in name for name in trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_unusual_layers_take_adapters_without_a_warning(tokenizer, kind):
    """GPT-2's are stored transposed, Mixtral's experts as one. Merging at once changes nothing."""
    model = tiny(kind, tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_adapters(model, LoraConfig(rank=2), seed=0).merge_and_unload()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("zamba", "layers share weights"),  # merging would add the updates of both to one weight
        ("phimoe", "tuple"),  # its router, a linear layer, returns two tensors
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_before_the_first_step(tokenizer, kind, reason):
    with pytest.raises(RecipeError, match=rf"^key lora: \w+ does not .*{reason}.*leave lora out"):
        add_adapters(tiny(kind, tokenizer), LoraConfig(rank=2), seed=0)
    with pytest.raises(RecipeError, match=r"^key lora: Mixtral\w+ .*; set lora.dropout to 0$"):
        add_adapters(tiny("mixtral", tokenizer), LoraConfig(rank=2, dropout=0.1), seed=0)


def test_without_peft_the_error_names_the_remedy(recipe, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = build_model(recipe.model, data.tokenizer, seed=3)
    with pytest.raises(MissingExtraError, match=r"^key lora: peft .*pip install 'ledom\[lora\]'"):
        add_adapters(model, LoraConfig(), seed=0)
