"""How architectures differ: where they keep their layers, and what they do to their logits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

__all__ = ["decoder_layers", "finish_logits", "has_plain_logits", "layer_matrices"]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the decoder of text: the list of modules that holds most weights.

    >>> from ledom.model.checkpoint import build_model
    >>> from ledom.model.presets import ModelConfig
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> shape = ModelConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    ...                     num_attention_heads=2, num_key_value_heads=1)
    >>> len(decoder_layers(build_model(shape, train_tokenizer([], 257), seed=0)))
    2
    """
    decoder = model.get_decoder()
    inside = chain(decoder.modules(), model.modules())
    lists = [module for module in inside if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    found = max(lists, key=_num_weights)  # the outermost of equals, as it comes first
    return list(found.children())


def layer_matrices(model: PreTrainedModel) -> set[int]:
    """The ids of the weights by which the layers multiply: of linear modules, not of tables.

    >>> from ledom.model.checkpoint import build_model
    >>> from ledom.model.presets import ModelConfig
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> shape = ModelConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    ...                     num_attention_heads=2, num_key_value_heads=1)
    >>> model = build_model(shape, train_tokenizer([], 257), seed=0)
    >>> len(layer_matrices(model))  # 7 of each layer; the embedding is a table
    14
    """
    modules = chain.from_iterable(layer.modules() for layer in decoder_layers(model))
    return {id(m.weight) for m in modules if isinstance(m, nn.Linear | Conv1D)}


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


_FINISH: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": torch.mul,  # Cohere
    "lm_head_multiplier": torch.mul,  # Falcon-H1
    "logits_scaling": torch.div,  # Granite
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma
}
"""By the setting that asks for it."""


def has_plain_logits(config: PretrainedConfig) -> bool:
    """Whether the logits are the projection alone.

    >>> has_plain_logits(PretrainedConfig())
    True
    """
    return not any(getattr(config, name, None) for name in _FINISH)


def finish_logits(logits: Tensor, config: PretrainedConfig) -> Tensor:
    """The model's logits [T, vocabulary] from its projections.

    >>> finish_logits(torch.ones(1, 2), PretrainedConfig(logit_scale=2.0))
    tensor([[2., 2.]])
    """
    for name, finish in _FINISH.items():
        if value := getattr(config, name, None):
            logits = finish(logits, value)
    return logits
