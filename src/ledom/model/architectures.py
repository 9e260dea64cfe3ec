"""Differences between architectures: where layers are and how logits are post-processed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from ledom.core.errors import CheckpointError
from ledom.model.changes import does_more
from ledom.model.folder import CONTEXT_KEYS

__all__ = [
    "COMPUTED_BUFFERS",
    "NO_LIMIT",
    "check_unused",
    "check_vocabulary",
    "decoder_layers",
    "finish_logits",
    "half_precision",
    "has_plain_logits",
    "is_linear",
    "is_llama_shaped",
    "is_quantized",
    "layer_list",
    "layer_matrices",
    "longest_text",
    "num_weights",
    "used_layers",
]

COMPUTED_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""Names of buffers that older versions of transformers saved and newer ones compute."""
NO_LIMIT = 2**31 - 1
"""The context of a model whose config does not specify one, such as a recurrent model."""
_LLAMA_SHAPED = ("llama", "mistral", "qwen2")
_ACTIVATION = type(ACT2FN["silu"])
_PADDED_POSITIONS = (
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"),
    *("xlm-roberta-xl", "xmod"),
)
"""Architectures whose first position is the id of the padding token + 1."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the text decoder: the module list with the most weights, or an empty list.

    >>> from ledom.lm import load
    >>> len(decoder_layers(load("tiny", "forward").model))
    6
    """
    found = layer_list(model)
    return [] if found is None else list(found.children())


def layer_list(model: PreTrainedModel) -> nn.ModuleList | None:
    """The list of `decoder_layers` itself; None if there is none."""
    inside = chain(model.get_decoder().modules(), model.modules())
    lists = [module for module in inside if isinstance(module, nn.ModuleList)]
    # of equal lists, the outermost, which comes first
    return max(lists, key=num_weights) if lists else None


def longest_text(config: PretrainedConfig) -> int:
    """The context: the longest text in tokens, from whichever config key the architecture uses.

    `NO_LIMIT` if there is no such key.

    >>> from transformers import RobertaConfig
    >>> longest_text(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    512
    """
    config = config.get_text_config()
    found = (getattr(config, name, None) for name in CONTEXT_KEYS)
    length = next((n for n in found if isinstance(n, int) and n > 0), NO_LIMIT)
    if config.model_type in _PADDED_POSITIONS:
        length = max(1, length - (config.pad_token_id or 0) - 1)
    return length


def half_precision(model: PreTrainedModel) -> str:
    """bfloat16 or float16 if any of a model's weights have it (a few may be fp32), else ""."""
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}
    return next((name for name in ("bfloat16", "float16") if name in dtypes), "")


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether transformers loaded quantized weights, which it neither converts nor trains."""
    return bool(getattr(model, "is_quantized", False))


def layer_matrices(model: PreTrainedModel) -> set[int]:
    """The `id()`s of the layers' weight matrices: those of linear modules, not embeddings.

    >>> from ledom.lm import load
    >>> len(layer_matrices(load("tiny", "forward").model))  # 7 in each of 6 layers
    42
    """
    modules = chain.from_iterable(layer.modules() for layer in decoder_layers(model))
    return {id(m.weight) for m in modules if isinstance(m, nn.Linear | Conv1D)}


def num_weights(module: nn.Module) -> int:
    """The number of weights; shared ones count once.

    >>> num_weights(nn.Linear(2, 3))
    9
    """
    return sum(weight.numel() for weight in module.parameters())


def check_unused(folder: Path, model: PreTrainedModel, unused: Iterable[str]) -> None:
    """Raise `CheckpointError` if weights of the decoder were not loaded; log any other unused ones.

    An additional bias, norm or layer means that config.json describes another model. Modules with
    another purpose, such as a value head or an image encoder, are not part of the decoder; nor are
    layers after the last one for multi-token prediction, if the config gives their number.
    """
    config: Any = model.config.get_text_config()
    more = getattr(config, "num_nextn_predict_layers", None) or 0
    later = [f".layers.{config.num_hidden_layers + number}." for number in range(more)]
    modules = {name for name, _ in model.named_modules()} - {model.base_model_prefix, ""}
    inside, beside = list[str](), list[str]()
    for name in sorted(unused):
        if not COMPUTED_BUFFERS.search(name):
            parts = name.split(".")
            owners = (".".join(parts[:count]) for count in range(1, len(parts)))
            is_inside = modules.intersection(owners) and not any(part in name for part in later)
            (inside if is_inside else beside).append(name)
    if inside:
        raise CheckpointError(
            f"{folder}: config.json describes a model without {inside[0]!r}, which the weights "
            f"have ({len(inside)} such tensors); correct config.json, or give its own weights"
        )
    if beside:
        logging.getLogger("ledom").warning(
            "%s: %d tensors are not used; the first is %r", folder, len(beside), beside[0]
        )


def check_vocabulary(
    place: object, num_tokens: int, special_ids: set[int], config: PretrainedConfig
) -> None:
    """Raise `CheckpointError` if a tokenizer has more tokens than the model.

    Special tokens may lie beyond the model's, as that for images of Gemma 3's smallest models; a
    text that holds one is refused when it is read.

    >>> check_vocabulary("folder", 50_257, set(), PretrainedConfig(vocab_size=50_304))
    """
    vocab_size = config.get_text_config().vocab_size
    if not special_ids.issuperset(range(vocab_size, num_tokens)):
        raise CheckpointError(
            f"{place}: the tokenizer has {num_tokens} tokens, the model only {vocab_size}; they do "
            "not belong together"
        )


_FINISH: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": torch.mul,  # Cohere
    "lm_head_multiplier": torch.mul,  # Falcon-H1
    "logits_scaling": torch.div,  # Granite
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma
}
"""Post-processing of logits, by the config key that holds its parameter."""


def has_plain_logits(config: PretrainedConfig) -> bool:
    """Whether the logits are the output of the vocabulary projection, without post-processing.

    >>> has_plain_logits(PretrainedConfig())
    True
    """
    return not any(getattr(config, name, None) for name in _FINISH)


def finish_logits(logits: Tensor, config: PretrainedConfig) -> Tensor:
    """The model's logits [T, vocabulary] from the outputs of its vocabulary projection.

    >>> finish_logits(torch.ones(1, 2), PretrainedConfig(logit_scale=2.0))
    tensor([[2., 2.]])
    """
    for name, finish in _FINISH.items():
        if value := getattr(config, name, None):
            logits = finish(logits, value)
    return logits


def is_llama_shaped(model: PreTrainedModel) -> bool:
    """Whether a model computes what Llama does, judging by its config and its unmodified modules.

    An adapter or a hook added later makes it a different model.

    >>> from ledom.lm import load
    >>> is_llama_shaped(load("tiny", "forward").model)
    True
    """
    config, base = model.config, cast(Any, model.base_model)
    return (
        config.model_type in _LLAMA_SHAPED
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "mlp_bias", False)
        and is_linear(model.get_output_embeddings())
        and all(_is_plain(module, base) for module in (base, base.norm))
        and all(_is_plain_layer(layer, base) for layer in used_layers(base))
    )


def used_layers(base: Any) -> list[Any]:
    """The layers of a Llama-shaped model that run; the config gives their number.

    >>> from ledom.lm import load
    >>> len(used_layers(load("tiny", "forward").model.base_model))
    6
    """
    return list(base.layers[: base.config.num_hidden_layers])


def is_linear(module: nn.Module) -> bool:
    """Whether a module only multiplies by its weight, a plain tensor: no adapter, no hooks.

    >>> is_linear(nn.Linear(2, 3)), is_linear(nn.Identity())
    (True, False)
    """
    if type(module) is not nn.Linear or does_more(module):
        return False
    return type(module.weight.data) is Tensor  # quantized ones are not


def _is_plain_layer(layer: Any, base: nn.Module) -> bool:
    if not all(_is_plain(module, base) for module in layer.modules()):
        return False  # what replaced the attention may not have its settings
    attention = layer.self_attn
    scaled: bool = attention.scaling == attention.head_dim**-0.5
    return scaled


def _is_plain(module: nn.Module, base: nn.Module) -> bool:
    """Whether a module is part of `base`'s architecture, a linear layer or its activation."""
    kind = type(module)
    own = kind.__module__ == type(base).__module__ or kind is _ACTIVATION
    return is_linear(module) or (own and not does_more(module))
