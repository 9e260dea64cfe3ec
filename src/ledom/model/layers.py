"""Where an architecture keeps its layers, whatever it calls them."""

from __future__ import annotations

from itertools import chain

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

__all__ = ["decoder_layers", "layer_matrices"]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the decoder of text: the list of modules that holds most weights."""
    decoder = model.get_decoder()
    inside = chain(decoder.modules(), model.modules())
    lists = [module for module in inside if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    found = max(lists, key=_num_weights)  # the outermost of equals, as it comes first
    return list(found.children())


def layer_matrices(model: PreTrainedModel) -> set[int]:
    """The ids of the weights by which the layers multiply: of linear modules, not of tables."""
    modules = chain.from_iterable(layer.modules() for layer in decoder_layers(model))
    return {id(m.weight) for m in modules if isinstance(m, nn.Linear | Conv1D)}


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
