import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ledom.lm.engine import trunk as trunk_module
from ledom.lm.engine.trunk import LlamaTrunk, Trunk, build_trunk
from ledom.model import attention, kernels, tree_attention
from ledom.model.attention import attending
from ledom.model.native import library
from ledom.model.own_forward import OwnForward
from ledom.model.prefix_tree import PrefixTree
from ledom.model.tree_attention import TreeAttention
from varlen import use_varlen

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CPU = torch.device("cpu")
FAMILIES = {
    "llama": {},
    "llama, biases": {"attention_bias": True},
    "llama, wide heads": {"head_dim": 16},
    "llama, tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
}


def pair_of_models(family):
    """The same random weights with our attention and with transformers' own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split(",")[0], **SHAPE, **FAMILIES[family])
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in plain.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, std=0.2)
    config = AutoConfig.for_model(family.split(",")[0], **SHAPE, **FAMILIES[family])
    ours = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention.IMPLEMENTATION
    ).eval()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def some_texts():
    rng = np.random.default_rng(0)
    shots = rng.integers(40, size=150).tolist()
    questions = [rng.integers(40, size=40).tolist() for _ in range(2)]
    tails = [rng.integers(40, size=n).tolist() for n in (70, 3, 140, 1)]
    return sorted([[1, 2, 3], *(shots + q + tail for q in questions for tail in tails)])


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["compiled", "avx2", "avx512", "gpu"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_outputs_equal_transformers_text_by_text(family, processor, monkeypatch):
    """With AVX-512, rows are padded; on a GPU, attention takes few calls. Only the first case uses
    the compiled kernels."""
    if processor != "compiled":
        monkeypatch.setattr(library, "_library", lambda: None)
    monkeypatch.setattr(kernels, "_WIDE", processor == "avx512")
    if processor == "gpu":
        use_varlen(monkeypatch, tree_attention)
    plain, ours = pair_of_models(family)
    trunk = build_trunk(ours)
    assert type(trunk) is (Trunk if family == "qwen3" else LlamaTrunk)
    texts = some_texts()
    tree = PrefixTree.build(texts)
    assert len(tree.ids) < 0.4 * sum(map(len, texts))
    ids, positions = torch.tensor(tree.ids), torch.tensor(tree.positions)
    everything = TreeAttention(tree, None, CPU, torch.float32)
    hidden = trunk(ids, positions, everything)
    wanted = np.arange(0, len(tree.ids), 3)[5:]  # with gaps, not from the start
    some = trunk(
        ids,
        positions,
        TreeAttention(tree, wanted, CPU, torch.float32),
        torch.from_numpy(wanted),
    )
    torch.testing.assert_close(some, hidden[wanted], atol=1e-5, rtol=1e-5)
    for text, places in zip(texts, tree.places, strict=True):
        alone = plain.base_model(torch.tensor([text])).last_hidden_state[0]
        torch.testing.assert_close(hidden[places], alone, atol=2e-5, rtol=1e-4)
        logits = trunk.logits(hidden[places])
        torch.testing.assert_close(logits, plain.lm_head(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_rows_of_any_length_give_onednn_few_shapes(monkeypatch):
    """oneDNN keeps memory per shape, so 40 row lengths give five shapes of each matmul."""
    monkeypatch.setattr(library, "_library", lambda: None)
    _, ours = pair_of_models("llama")
    trunk = build_trunk(ours)
    seen = set()

    def watched(x, weight):
        seen.add((filled := kernels_filled_rows(x, weight), *weight.shape))
        return filled

    kernels_filled_rows = kernels.filled_rows
    monkeypatch.setattr(kernels, "_WIDE", True)
    for module in (kernels, trunk_module):
        monkeypatch.setattr(module, "filled_rows", watched)
    for length in range(217, 257):
        tree = PrefixTree.build([[*range(4), *([7] * (length - 4))]])
        everything = TreeAttention(tree, None, CPU, torch.float32)
        hidden = trunk(torch.tensor(tree.ids), torch.tensor(tree.positions), everything)
        assert hidden.shape == (length, SHAPE["hidden_size"])
    assert {rows for rows, *_ in seen} == {224, 232, 240, 248, 256}
    assert len(seen) == 5 * 4  # queries, keys and values; attention; two in the feed-forward


@pytest.mark.slow
@pytest.mark.parametrize("products", ["compiled", "torch's", "int8", "int8, not compiled"])
@torch.inference_mode()
def test_changed_weights_are_read_again(products, monkeypatch):
    """The trunk keeps copies and views of weights; a changed model must not use old ones."""
    if products in ("torch's", "int8, not compiled"):
        monkeypatch.setattr(library, "_library", lambda: None)
    _, ours = pair_of_models("llama")
    attention = TreeAttention(PrefixTree.build([list(range(30))]), None, CPU, torch.float32)

    def built():
        trunk = build_trunk(ours)
        if "int8" in products:
            trunk.round_weights()
        return trunk

    def outputs(trunk):
        trunk.refresh()
        return trunk.logits(trunk(torch.arange(30), torch.arange(30), attention))

    trunk = built()
    first = outputs(trunk)
    mlp = ours.model.layers[1].mlp
    mlp.up_proj.weight.mul_(2)
    second = outputs(trunk)
    assert not torch.allclose(second, first)
    assert torch.equal(outputs(trunk), outputs(built()))
    mlp.down_proj.weight.data[:, 7] += 1  # torch does not count this
    assert torch.equal(outputs(trunk), outputs(built()))
    assert not torch.allclose(outputs(trunk), second)
    mlp.down_proj.weight.data[:, 7] -= 1
    ours.get_output_embeddings().weight.data *= 2
    third = outputs(trunk)
    assert not torch.allclose(third, second)
    mlp.up_proj.weight = torch.nn.Parameter(mlp.up_proj.weight / 2)
    torch.testing.assert_close(outputs(trunk), 2 * first)
    assert torch.equal(outputs(trunk), outputs(built()))


def test_changed_weights_are_read_by_one_thread_into_one_copy(monkeypatch):
    _, ours = pair_of_models("llama")
    trunk = build_trunk(ours)
    before, made = [], trunk_module.PackedLayers.__init__

    def slowly(self, *given):
        before.append(trunk._packed)
        time.sleep(0.1)
        made(self, *given)

    monkeypatch.setattr(trunk_module.PackedLayers, "__init__", slowly)
    with torch.no_grad():
        ours.lm_head.weight.mul_(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: trunk.refresh(), range(2)))
    assert before == [None]  # once, after the old copy was freed


@pytest.mark.parametrize("rounded", [False, True])
@torch.inference_mode()
def test_a_model_may_move_to_another_precision_and_back(rounded):
    _, ours = pair_of_models("llama")
    trunk = build_trunk(ours)
    if rounded:
        trunk.round_weights()
    ids, texts = torch.arange(30), PrefixTree.build([list(range(30))])
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        ours.to(dtype)
        trunk.refresh()
        everything = TreeAttention(texts, None, CPU, dtype)
        found = trunk.logits(trunk(ids, ids, everything))
        assert found.dtype == dtype
        with attending(everything):
            own = ours(ids[None], use_cache=False).logits[0]
        exact = dtype == torch.float64 or (dtype == torch.float32 and not rounded)
        torch.testing.assert_close(found, own, atol=1e-5 if exact else 0.05, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_version_counts_changes(family):
    _, ours = pair_of_models(family)
    trunk = build_trunk(ours)
    trunk.refresh()
    assert trunk.version == 0
    with torch.no_grad():
        ours.model.layers[0].mlp.up_proj.weight.mul_(2)
    trunk.refresh()
    trunk.refresh()
    assert trunk.version == 1


@pytest.mark.slow
def test_a_pass_of_the_model_itself_in_another_thread_changes_nothing():
    """It changes the attention in the config, where the modules look it up."""
    _, ours = pair_of_models("qwen3")
    trunk, own, ids = build_trunk(ours), OwnForward(ours), torch.arange(30)
    tree = PrefixTree.build([[1, 2, 3], list(range(3, 30))])

    @torch.inference_mode()
    def run():
        places = torch.tensor(tree.positions)
        return trunk(ids, places, TreeAttention(tree, None, CPU, torch.float32))

    expected, begun = run(), threading.Event()

    def wait(*_):
        if not begun.is_set():
            begun.set()
            time.sleep(0.3)

    hook = ours.get_input_embeddings().register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(torch.inference_mode()(own), ids)
        assert begun.wait(60)
        assert torch.equal(run(), expected)
        alone.result()
    hook.remove()


class Twice(torch.nn.Linear):
    """A linear module that does more, like an adapter."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("products", ["compiled", "torch's", "int8"])
@torch.inference_mode()
def test_adapters_and_hooks_are_applied(products, monkeypatch):
    if products == "torch's":
        monkeypatch.setattr(library, "_library", lambda: None)
    _, ours = pair_of_models("llama")
    trunk = build_trunk(ours)
    if products == "int8":
        trunk.round_weights()
    everything = TreeAttention(PrefixTree.build([list(range(30))]), None, CPU, torch.float32)

    def outputs():
        trunk.refresh()
        return trunk.logits(trunk(torch.arange(30), torch.arange(30), everything))

    def check():
        """The model's own pass does not read the trunk's copies."""
        with attending(everything):
            own = ours(torch.arange(30)[None], use_cache=False).logits[0]
        close = 0.05 if trunk.layers and products == "int8" else 1e-4
        torch.testing.assert_close(outputs(), own, atol=close, rtol=1e-4)
        assert not torch.allclose(own, first, atol=1e-3)

    def double(module, given, output):
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    first, layer = outputs(), ours.model.layers[1]
    for module in (layer, layer.mlp.down_proj, layer.self_attn, ours.model.norm, ours.lm_head):
        hook = module.register_forward_hook(double)
        check()
        hook.remove()
        assert torch.equal(outputs(), first)
    for parent, name in ((layer.mlp, "up_proj"), (layer.self_attn, "q_proj"), (ours, "lm_head")):
        plain = getattr(parent, name)
        adapted = Twice(*plain.weight.shape[::-1], bias=False)
        adapted.weight = plain.weight
        setattr(parent, name, adapted)
        check()
        assert type(build_trunk(ours)) is Trunk  # a plain Trunk, which round_weights refuses
        setattr(parent, name, plain)
        assert torch.equal(outputs(), first)
    attention, norm = layer.self_attn, layer.input_layernorm
    for changed, name, value in (
        (ours.config, "num_hidden_layers", 1),
        (norm, "variance_epsilon", 10.0),
        (attention, "scaling", 2.0),
        (layer.mlp, "act_fn", torch.nn.GELU()),
        (ours.model, "norm", torch.nn.LayerNorm(SHAPE["hidden_size"])),
        (layer.mlp, "forward", lambda x: 2 * x),
    ):
        before = getattr(changed, name)
        setattr(changed, name, value)
        check()
        if name == "forward":
            del layer.mlp.forward
        else:
            setattr(changed, name, before)
        assert torch.equal(outputs(), first)
    layer.mlp.down_proj.weight.data[3, 5] += 30  # torch does not count this
    check()


@pytest.mark.parametrize("compiled", [True, False])
@torch.inference_mode()
def test_a_new_output_layer_may_be_larger_and_have_a_bias(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(library, "_library", lambda: None)
    _, ours = pair_of_models("llama")
    trunk = build_trunk(ours)
    ours.lm_head = torch.nn.Linear(SHAPE["hidden_size"], 131)
    trunk.refresh()
    x = torch.randn(7, SHAPE["hidden_size"])
    torch.testing.assert_close(trunk.logits(x), ours.lm_head(x))
    ours.lm_head.bias.data[130] += 9
    trunk.refresh()
    torch.testing.assert_close(trunk.logits(x), ours.lm_head(x))


LOGITS = {  # architectures that do more than project, with settings that show it
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None, "head_dim": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", LOGITS)
@torch.inference_mode()
def test_logits_get_the_models_own_final_steps(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE, **LOGITS[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.arange(36)[None]
    found = build_trunk(model).logits(model.base_model(ids).last_hidden_state[0])
    plain = model.get_output_embeddings()(model.base_model(ids).last_hidden_state[0])
    assert (found - plain).abs().max() > 0.1
    torch.testing.assert_close(found, model(ids).logits[0], atol=1e-4, rtol=1e-4)


def test_unsupported_shapes_keep_their_own_modules():
    for change in ({"hidden_act": "gelu"}, {"mlp_bias": True}):
        config = AutoConfig.for_model("llama", **SHAPE, **change)
        model = AutoModelForCausalLM.from_config(config)
        assert type(build_trunk(model)) is Trunk
    config = AutoConfig.for_model("mistral", **SHAPE, sliding_window=64)
    assert type(build_trunk(AutoModelForCausalLM.from_config(config))) is Trunk


def test_joined_weights_take_no_extra_memory():
    _, ours = pair_of_models("llama")
    before = {name: p.clone() for name, p in ours.named_parameters()}
    layer = LlamaTrunk(ours).layers[0]
    own = ours.base_model.layers[0]
    for module, joined in ((own.self_attn.k_proj, layer.qkv), (own.mlp.up_proj, layer.up)):
        assert module.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, before[name])
