"""A program's global settings or changes to a loaded model never silently change results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaPreTrainedModel

import ledom
from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model.checkpoint import save_checkpoint
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

TEXTS = [[0, *range(9, 40)], [0, 77, 3, 5, 70, 12]]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
}


def scores(lm: HFLanguageModel) -> list[np.ndarray]:
    return lm.logprobs([TokenSpan(ids, 1, len(ids)) for ids in TEXTS])


def alone(lm: HFLanguageModel) -> list[np.ndarray]:
    """The same values, computed by the model's own forward pass."""
    found = []
    for ids in TEXTS:
        read = torch.tensor(ids)
        with torch.no_grad():
            logits = lm.model(input_ids=read[None], use_cache=False).logits[0, :-1]
        found.append(logits.log_softmax(-1).gather(1, read[1:, None])[:, 0].numpy())
    return found


@pytest.mark.parametrize("kind", ["llama", "bloom", "mamba"])
@pytest.mark.slow
def test_the_callers_precision_does_not_affect_the_model(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "m"
    save_checkpoint(folder, tiny(kind, tokenizer), tokenizer, Direction.FORWARD, PairFormat())
    lm = ledom.load(folder)
    assert isinstance(lm, HFLanguageModel)

    def everything(lm: HFLanguageModel) -> tuple[list[Any], ...]:
        settings = [Sampling(max_tokens=4, top_p=top_p) for top_p in (1.0, 0.9)]
        return scores(lm), [dict(lm.generate(["12", "3"], each, 2)) for each in settings]

    values, texts = everything(lm)
    for name, around in AROUND.items():
        with around():
            for other in (lm, ledom.load(folder)):
                assert isinstance(other, HFLanguageModel)
                found, written = everything(other)
                for one, value in zip(found, values, strict=True):
                    assert np.array_equal(one, value), name
                assert written == texts, name
                assert other.identity == lm.identity, name


class Quantized(Tensor):
    """An int8 weight with scales that works like torchao's."""

    q: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, q: Tensor, scales: Tensor) -> Quantized:
        return Tensor._make_wrapper_subclass(cls, q.shape, dtype=scales.dtype)  # type: ignore[return-value]

    def __init__(self, q: Tensor, scales: Tensor) -> None:
        self.q, self.scales = q, scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["q", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].q, args[0].scales)

        def plain(x: Any) -> Any:
            return x.q * x.scales if isinstance(x, Quantized) else x

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))

    @classmethod
    def of(cls, weight: Tensor) -> nn.Parameter:
        scales = weight.abs().amax(1, keepdim=True) / 127
        return nn.Parameter(cls((weight / scales).round().to(torch.int8), scales), False)


def loaded() -> HFLanguageModel:
    lm = ledom.load("tiny", "forward")
    assert isinstance(lm, HFLanguageModel)
    scores(lm)
    return lm


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head"])
@pytest.mark.slow
def test_weights_quantized_in_place_are_used(name: str) -> None:
    lm = loaded()
    seen = [lm.identity]
    owner = lm.model.get_submodule(name)
    weight = Quantized.of(owner.weight.data)  # type: ignore[arg-type, union-attr]
    owner.weight = weight
    for _ in range(2):
        for found, expected in zip(scores(lm), alone(lm), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-3)
        assert lm.identity not in seen
        seen.append(lm.identity)
        weight.q[0, 0] += 50  # type: ignore[attr-defined]


@pytest.mark.slow
def test_quantized_models_may_be_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers refuses to convert them to fp32, as a copy of others is to be tested."""
    monkeypatch.setattr(LlamaPreTrainedModel, "is_quantized", True, raising=False)
    lm = ledom.load("tiny", "forward", dtype="bfloat16")
    assert isinstance(lm, HFLanguageModel)
    assert lm._reach == lm.context
    for layer in lm.model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(CheckpointError, match="not run correctly with quantized weights .*plain"):
        scores(lm)


@pytest.mark.slow
def test_a_function_replaced_in_transformers_after_loading_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = loaded()
    before, known = scores(lm), lm.identity
    rotate: Any = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: rotate(q, k, cos, -sin)
    )
    for found, expected, old in zip(scores(lm), alone(lm), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.abs(found - old).max() > 0.1
    assert lm.identity != known
    monkeypatch.undo()
    assert lm.identity == known


class Leaking(nn.Linear):
    """Adds a little of the mean over the row, as bitsandbytes' 8 bits depend on its outliers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.03 * x.mean(-2, keepdim=True))


@pytest.mark.slow
def test_a_leak_smaller_than_rounding_is_found_in_quantized_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LlamaPreTrainedModel, "is_quantized", True, raising=False)
    lm = ledom.load("tiny", "forward", dtype="bfloat16")
    assert isinstance(lm, HFLanguageModel)
    old: Any = lm.model.get_submodule("model.layers.1.mlp.up_proj")
    new = Leaking(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    lm.model.model.layers[1].mlp.up_proj = new
    with pytest.raises(CheckpointError, match="not run correctly with quantized weights .*plain"):
        scores(lm)


class OverTheRow(nn.Linear):
    """A linear module whose result depends on all tokens in the row, like row quantization."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.abs().max())


@pytest.mark.slow
def test_a_module_that_mixes_tokens_is_noticed_after_loading() -> None:
    lm = loaded()
    old: Any = lm.model.get_submodule("model.layers.1.mlp.up_proj")
    new = OverTheRow(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    for module in (new, old):
        lm.model.model.layers[1].mlp.up_proj = module
        for found, expected in zip(scores(lm), alone(lm), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-3)


class Halved(nn.Module):
    """Wraps a layer's attention, as peft's adaption prompts do; it has no settings of its own."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.wrapped = attention

    def forward(self, **given: Any) -> tuple[Tensor, Any]:
        out, weights = self.wrapped(**given)
        return out / 2, weights


@pytest.mark.slow
def test_another_module_in_place_of_the_attention_is_used() -> None:
    lm = loaded()
    before = scores(lm)
    for layer in lm.model.model.layers:
        layer.self_attn = Halved(layer.self_attn)
    for found, expected, old in zip(scores(lm), alone(lm), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.abs(found - old).max() > 0.1


@pytest.mark.slow
def test_hooks_on_all_modules_are_applied() -> None:
    lm, before = loaded(), loaded().identity
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, out: 1.1 * out if isinstance(module, nn.Linear) else None
    )
    try:
        for found, expected in zip(scores(lm), alone(lm), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-3)
        assert lm.identity != before
    finally:
        handle.remove()
    assert lm.identity == before


def at_one_place(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    out = out.clone()
    out[:, 4:5] *= 3
    return out


def by_place(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return out * (1 + 0.1 * torch.arange(out.shape[1])[:, None])


def half_attention(*given: Any, **settings: Any) -> tuple[Tensor, None]:
    return 0.5 * sdpa_attention_forward(*given, **settings)[0], None


def use_half_attention(lm: HFLanguageModel, patch: pytest.MonkeyPatch) -> None:
    for kind, function in (
        (AttentionInterface, half_attention),
        (AttentionMaskInterface, sdpa_mask),
    ):
        patch.setitem(kind._global_mapping, "half", function)
    lm.model.set_attn_implementation("half")


def double_mlp(lm: HFLanguageModel, patch: pytest.MonkeyPatch) -> None:
    forward = LlamaMLP.forward
    patch.setattr(LlamaMLP, "forward", lambda *given: 2 * forward(*given))


def use_a_layer_twice(lm: HFLanguageModel, _: Any) -> None:
    lm.model.transformer.h.append(lm.model.transformer.h[-1])


def scale_attention(lm: HFLanguageModel, _: Any) -> None:
    for number, layer in enumerate(lm.model.transformer.h):
        layer.attn.scaling = 0.1 + number


CHANGES: dict[str, tuple[str, Callable[[HFLanguageModel, pytest.MonkeyPatch], object]]] = {
    "hook at one place": (
        "llama",
        lambda lm, _: lm.model.model.layers[0].register_forward_hook(at_one_place),
    ),
    "hook by place": (
        "qwen3",
        lambda lm, _: lm.model.model.layers[0].register_forward_hook(by_place),
    ),
    "attention": ("llama", use_half_attention),
    "forward of a class": ("llama", double_mlp),
    "layer used twice": ("gpt2", use_a_layer_twice),
    "number of a module": ("gpt2", scale_attention),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.slow
@torch.no_grad()
def test_changes_to_a_loaded_model_are_followed(
    change: str, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in company, and in what the model writes."""
    kind, make = CHANGES[change]
    save_checkpoint(tmp_path, tiny(kind, tokenizer), tokenizer, Direction.FORWARD, PairFormat())
    lm = ledom.load(tmp_path)
    assert isinstance(lm, HFLanguageModel)
    greedy, identity, before = Sampling(temperature=0, max_tokens=12), lm.identity, scores(lm)
    list(lm.generate(["12"], greedy))
    make(lm, monkeypatch)
    for found, expected, old in zip(scores(lm), alone(lm), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.abs(found - old).max() > 0.01
    ((_, (text,)),) = lm.generate(["12"], greedy)
    ids = [*lm.prompt_ids("12", 12), *text.ids]
    likeliest = lm.model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
    written = [*text.ids, lm.tokenizer.eos_id][: greedy.max_tokens]
    assert written == likeliest[len(ids) - len(text.ids) - 1 :][: len(written)]
    assert lm.identity != identity


@pytest.mark.slow
def test_a_model_that_begins_to_see_later_tokens_is_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    save_checkpoint(tmp_path, tiny("gpt2", tokenizer), tokenizer, Direction.FORWARD, PairFormat())
    lm = ledom.load(tmp_path)
    assert isinstance(lm, HFLanguageModel)
    for layer in lm.model.transformer.h:
        layer.attn.is_causal = False
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel sees later tokens"):
        scores(lm)


@pytest.mark.slow
def test_looking_at_hidden_states_changes_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """transformers then adds hooks to the layers and leaves them there."""
    save_checkpoint(tmp_path, tiny("qwen3", tokenizer), tokenizer, Direction.FORWARD, PairFormat())
    lm = ledom.load(tmp_path)
    assert isinstance(lm, HFLanguageModel)
    identity = lm.identity
    lm.model(torch.tensor([TEXTS[0]]), output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in lm.model.modules())
    assert lm.identity == identity
    assert lm._trunk.reach(lm._reach) == lm.context
