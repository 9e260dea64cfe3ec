"""Changes to a model in memory are noticed, however they are made."""

from __future__ import annotations

from functools import partial, wraps
from operator import attrgetter
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from architectures import tiny
from ledom.core.errors import CheckpointError
from ledom.lm import load
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model import changes
from ledom.model.changes import Changes, evaluating, modules_state, weights_state
from ledom.model.native import library
from ledom.text.tokenizer import Tokenizer

KERNELS = pytest.mark.parametrize("kernels", [True, False])


def without_kernels(monkeypatch: pytest.MonkeyPatch, kernels: bool) -> None:
    if not kernels:
        monkeypatch.setattr(library, "_library", lambda: None)


@pytest.mark.slow
@KERNELS
@pytest.mark.parametrize("made_in", ["inference mode", "torch"])
def test_the_state_of_weights_shows_changes_that_torch_does_not_count(
    made_in: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels(monkeypatch, kernels)
    with torch.inference_mode(made_in == "inference mode"):
        wide, tall, vector = torch.ones(3, 150), torch.ones(70, 4).t(), torch.ones(90)[::2]
        one, half = torch.ones(()), torch.ones(5, 3, dtype=torch.bfloat16)
        several = [wide, tall, vector, one, half, torch.ones(0, 2)]
        weights = {str(number): weight for number, weight in enumerate(several)}
        seen = [weights_state(weights)]
        assert weights_state(weights) == seen[0]
        for weight in several:
            for place in range(weight.numel()):  # every single number
                weight.data[tuple(torch.unravel_index(torch.tensor(place), weight.shape))] += 1
                now = weights_state(weights)
                assert now != seen[-1]
                seen.append(now)


@KERNELS
@pytest.mark.slow
def test_the_contents_reveal_exactly_what_has_changed(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels(monkeypatch, kernels)
    lm = load("tiny", "forward")
    model, contents, loaded = lm.model, Changes(lm.model), lm.identity
    weight = model.model.layers[2].mlp.up_proj.weight
    assert contents.mark() == ""

    def changed() -> str:
        found = contents.mark()
        assert found
        assert lm.identity == {"name": loaded["name"], "hash": loaded["hash"] + found}
        return found

    before = weight.detach().clone()
    weight.data[5, 6] += 1
    first = changed()
    weight.data[5, 6] += 1
    second = changed()
    weight.data[5, 6] -= 1
    assert changed() == first != second
    again = load("tiny", "forward")
    fresh = Changes(again.model)
    again.model.load_state_dict(model.state_dict())
    assert fresh.mark() == first, "the same change of another copy of the model"
    weight.data.copy_(before)
    assert lm.identity == loaded

    hook = model.model.norm.register_forward_hook(lambda *_: None)
    assert changed()
    hook.remove()
    model.config.num_hidden_layers -= 1
    assert changed()
    model.config.num_hidden_layers += 1
    model.model.norm.variance_epsilon *= 10
    assert changed()
    model.model.norm.variance_epsilon /= 10
    kept, model.model.norm = model.model.norm, torch.nn.Identity()
    assert changed()
    model.model.norm = kept
    assert lm.identity == loaded
    model.to(torch.bfloat16)
    assert changed()


@pytest.mark.slow
def test_hooks_in_another_process_do_not_count_as_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load("tiny", "forward").model
    contents = Changes(model)
    model.model.norm.register_forward_hook(lambda *_: None)
    here = contents.mark()
    assert contents.mark() == here
    monkeypatch.setattr(changes, "_PROCESS", "another")
    assert contents.mark() not in ("", here)


def test_functions_that_transformers_imports_are_the_same_in_another_process(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    """Gemma 4's file has one of accelerate, which PEFT installs."""
    monkeypatch.setattr(changes, "_PROCESS", "here alone")
    assert "here alone" not in str(modules_state(tiny("gemma4_text", tokenizer)))


@pytest.mark.parametrize("place", ["apply_rotary_pos_emb", "LlamaMLP.forward"])
def test_a_replacement_that_takes_the_name_of_the_original_counts(
    place: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    model = tiny("llama", tokenizer)
    before, real = modules_state(model), attrgetter(place)(modeling_llama)
    with monkeypatch.context() as patch:
        patch.setattr(f"{modeling_llama.__name__}.{place}", wraps(real)(lambda *_: None))
        assert modules_state(model) != before
    assert modules_state(model) == before


def gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "module", "name", "value"),
    [
        ("llama", "model.rotary_emb", "inv_freq", lambda old: 1.01 * old),
        ("llama", "model.rotary_emb", "attention_scaling", lambda _: 1.01),
        ("llama", "model.layers.0.self_attn", "num_key_value_groups", lambda _: 1),
        ("llama", "model.layers.1.mlp", "act_fn", lambda _: torch.nn.GELU("tanh")),
        ("gemma", "model.embed_tokens", "embed_scale", lambda old: 2 * old),
        ("gemma", "model.layers.1.mlp.act_fn", "act", lambda old: partial(old.func)),
        ("gemma", "model.layers.1.mlp.act_fn", "act", lambda old: partial(gelu)),
        ("gpt2", "transformer.h.0.attn", "scaling", lambda old: 2 * old),
        ("bloom", "transformer.h.0.mlp", "gelu_impl", lambda _: torch.nn.GELU()),
        ("xglm", "model.layers.0", "activation_fn", lambda _: gelu),
    ],
)
def test_every_number_and_function_of_a_module_counts(
    kind: str, module: str, name: str, value: Any, tokenizer: Tokenizer
) -> None:
    model = tiny(kind, tokenizer)
    if kind == "xglm":
        for layer in model.model.layers:
            del layer._modules["activation_fn"]
            layer.activation_fn = torch.nn.functional.relu
    contents, owner = Changes(model), model.get_submodule(module)
    before = getattr(owner, name)
    setattr(owner, name, value(before))
    assert contents.mark()
    setattr(owner, name, before)
    assert contents.mark() == ""


@pytest.mark.parametrize(("old", "new"), [(3, 4), ("none", "tanh")])
def test_the_settings_of_an_activation_count(old: Any, new: Any, tokenizer: Tokenizer) -> None:
    model = tiny("gpt2", tokenizer)
    act: Any = torch.nn.Softplus(beta=old) if old == 3 else torch.nn.GELU(approximate=old)
    model.transformer.h[1].mlp.act, name = act, "beta" if old == 3 else "approximate"
    contents = Changes(model)
    setattr(act, name, new)
    assert contents.mark()
    setattr(act, name, old)
    assert contents.mark() == ""


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_long_text_does_not_change_a_model(rope_type: str, tokenizer: Tokenizer) -> None:
    """Its frequencies depend on the longest text seen."""
    rope: dict[str, Any] = {"rope_type": rope_type, "factor": 4.0, "rope_theta": 10000.0}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 16}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        sizes |= {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
        rope |= {"original_max_position_embeddings": 16}
    model = tiny("llama", tokenizer, rope_parameters=rope, **sizes)
    contents, rotary = Changes(model), model.model.rotary_emb
    before = rotary.inv_freq.clone()
    model(torch.zeros(1, 40, dtype=torch.long))
    assert not torch.equal(rotary.inv_freq, before)
    assert contents.mark() == ""
    model(torch.zeros(1, 5, dtype=torch.long))
    assert contents.mark() == ""
    rotary.attention_scaling *= 2
    assert contents.mark()
    rotary.attention_scaling /= 2
    assert contents.mark() == ""
    rotary.original_inv_freq.mul_(1.01)
    assert contents.mark()


@pytest.mark.slow
def test_using_a_model_does_not_change_it() -> None:
    lm = load("tiny", "reverse")
    loaded = lm.identity
    ids = lm.tokenizer.encode("a text, and one more").ids
    lm.logprobs([TokenSpan(ids, 0, len(ids) - 1)])
    list(lm.generate(["a text"], Sampling(max_tokens=5)))
    lm.model.to(torch.float32)
    assert lm.identity == loaded


@pytest.mark.slow
def test_weights_that_are_not_in_memory_are_refused() -> None:
    lm = load("tiny", "forward")
    lm.model.model.norm.to("meta")  # as after accelerate's cpu_offload
    for use in (lambda: lm.logprobs([TokenSpan([0, 9], 1, 2)]), lambda: lm.identity):
        with pytest.raises(CheckpointError, match="'model.norm.weight' is on torch's meta"):
            use()


class Repacking(torch.nn.Linear):
    """Like bitsandbytes' 4-bit layer on a CPU: its state_dict changes the weights."""

    def _save_to_state_dict(self, *given: Any) -> None:
        self.weight.data.mul_(2)
        super()._save_to_state_dict(*given)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
def test_looking_for_changes_makes_none() -> None:
    model = load("tiny", "forward").model
    model.lm_head = Repacking(2, 3)
    before, contents = model.lm_head.weight.clone(), Changes(model)
    assert contents.mark() == ""
    assert (model.lm_head.weight == before).all()
    seen = []
    for scale in (1, 2):  # weights that are no parameters
        torch.nn.init.constant_(model.model.layers[0].mlp.up_proj.weight, scale)
        seen.append(Changes(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})))
    assert seen[0]._now() != seen[1]._now()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")
def test_other_outputs_and_gradient_checkpointing_do_not_count() -> None:
    lm = load("tiny", "forward")
    ids, loaded = lm.tokenizer.encode("a text, and one more").ids, lm.identity
    before = lm.logprobs([TokenSpan(ids, 1, len(ids))])[0]
    config = lm.model.config
    lm.model.set_attn_implementation("eager")
    config.output_attentions = config.output_hidden_states = True
    config.return_dict = config.use_cache = False
    lm.model.gradient_checkpointing_enable()
    lm.model.enable_input_require_grads()
    assert lm.identity == loaded
    assert (lm.logprobs([TokenSpan(ids, 1, len(ids))])[0] == before).all()


def test_dropout_is_off_until_the_last_of_several_blocks_ends() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5))
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model[0].training
    second.__exit__(None, None, None)
    assert model.training
    assert model[0].training
