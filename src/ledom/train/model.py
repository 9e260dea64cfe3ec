"""The model that a run trains: random weights or those of `init_from`, ready for the first step.

It reads packed rows if that is exact for it, computes in a precision in which it runs, and has the
recipe's adapters. This module does not know about data, steps or optimizers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import RecipeError, in_one_line
from ledom.model.architectures import is_quantized
from ledom.model.checkpoint import build_model, load_checkpoint
from ledom.model.device import fast_bfloat16
from ledom.model.exactness import packing_reach
from ledom.model.own_forward import OwnForward
from ledom.text.tokenizer import Tokenizer
from ledom.train.distributed import ProcessGroup, checkpoint_activations
from ledom.train.lora import add_adapters
from ledom.train.objective import token_losses
from ledom.train.recipe import Recipe

__all__ = ["check_models", "trainable_model"]


@dataclass(frozen=True)
class TrainableModel:
    """A model that is ready to be distributed and trained."""

    model: PreTrainedModel
    adapters: Any
    """peft's wrapper, which merges the adapters; None without `lora`."""
    recipe: Recipe
    """The recipe with the precision that was chosen."""
    notice: str | None
    """A message for the user, if training will be slower than usual."""


def trainable_model(
    recipe: Recipe, direction: Direction, tokenizer: Tokenizer, world: ProcessGroup
) -> TrainableModel:
    """The model of a run whose data has this tokenizer; the same in every process.

    Raises `RecipeError` for settings that the model does not support, and `CheckpointError` for
    an `init_from` that cannot be loaded.
    """
    model = _initial_model(recipe, direction, tokenizer)
    notice = choose_packing(model, recipe, tokenizer.eos_id, world)
    recipe = choose_precision(model, recipe, world)
    lora = recipe.lora
    adapters = None if lora is None else add_adapters(model, lora, recipe.seed)
    if recipe.parallel.activation_checkpointing:
        checkpoint_activations(model)
    return TrainableModel(model, adapters, recipe, notice)


def check_models(recipe: Recipe, directions: Sequence[Direction], world: ProcessGroup) -> None:
    """Raise the errors of `trainable_model` for each model of `init_from`.

    Otherwise the first would come after the data is prepared, and the second after the first model
    is trained. This takes as long as loading the models. All processes must call it.
    """
    if recipe.init_from is None:
        return  # ledom's own shapes support every setting
    data = recipe.data_of(directions[0])  # both directions read the same data
    assert data.tokenizer is not None  # by default that of `init_from`
    tokenizer = Tokenizer.load(data.tokenizer, data.eos_token)
    for direction in {recipe.init_folder(one): one for one in directions}.values():
        trainable_model(recipe, direction, tokenizer, world)


def _initial_model(recipe: Recipe, direction: Direction, tokenizer: Tokenizer) -> PreTrainedModel:
    """A model with random weights, or with those of `init_from`; the same in every process.

    `init_from` may have the other direction, and may be of any architecture. Raises `RecipeError`
    if its weights are quantized, or if it does not have `tokenizer`, the data's.
    """
    if recipe.init_from is None:
        assert recipe.model is not None  # checked by the recipe
        return build_model(recipe.model, tokenizer, recipe.seed)
    folder, eos_token = recipe.init_folder(direction), recipe.data.eos_token
    start = load_checkpoint(folder, direction, eos_token=eos_token, turn=True)
    if start.tokenizer.fingerprint != tokenizer.fingerprint:
        raise RecipeError(
            f"key init_from: the tokenizer of {folder} is not the data's; set data.tokenizer to "
            "its tokenizer.json or leave it out; models with other tokenizers need separate runs"
        )
    if is_quantized(start.model):  # some of them are frozen, or not written back
        raise RecipeError(f"key init_from: the weights of {folder} are quantized; give plain ones")
    # transformers gives no gradient to the padding token, which is often EOS. But every document
    # begins with EOS, so the model would not learn how documents begin. Gemma 4 has several tables.
    for module in start.model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    return start.model


def choose_packing(
    model: PreTrainedModel, recipe: Recipe, eos_id: int, world: ProcessGroup
) -> str | None:
    """Set the model up to read packed rows if that is exact for it, else one document at a time.

    Returns a message about the latter, which is slower. Raises `RecipeError` for settings that
    reading one at a time does not support.
    """

    def packed(ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor) -> Tensor:
        return -token_losses(model, ids, positions, boundaries, targets)

    own, kind, longest = OwnForward(model), type(model).__name__, recipe.train.seq_len
    reach = packing_reach(own, packed, eos_id, longest)
    if reach >= longest:
        return None
    own.use(None)
    own.check_training(longest)
    if recipe.data.mask_across_documents != recipe.data.reset_position_ids:
        raise RecipeError(
            f"key data.mask_across_documents: {kind} reads one document at a time, each from "
            "position 0; give it the same value as data.reset_position_ids"
        )
    if world.size > 1:
        shorter = f" of more than {reach} tokens" if reach else ""
        remedy = f", or lower train.seq_len to {reach}" if reach else ""
        raise RecipeError(
            f"{kind} reads texts{shorter} one at a time, which works in one process only; start it "
            f"without torchrun{remedy}"
        )
    above = f" above a train.seq_len of {reach}" if reach else ""
    return (
        f"{kind}: packed rows are not exact for it{above}, so it reads one document at a time "
        "(slower)"
    )


def choose_precision(model: PreTrainedModel, recipe: Recipe, world: ProcessGroup) -> Recipe:
    """The recipe with `auto` replaced: bfloat16 if every process is fast at it and the model runs
    in it, else float32. Raises `RecipeError` if bfloat16 is named and the model does not run in it.

    A run's checkpoints record the choice, so the run cannot resume in another precision.
    """
    asked = recipe.train.precision
    fast = world.total(fast_bfloat16(world.device)) == [world.size]
    chosen = ("bfloat16" if fast else "float32") if asked == "auto" else asked
    if chosen == "bfloat16" and world.size == 1 and (reason := _autocast_error(model)):
        refusal = f"{type(model).__name__} does not run in bfloat16 ({reason})"
        if asked == "bfloat16":
            raise RecipeError(f"key train.precision: {refusal}; set float32")
        logging.getLogger("ledom").info("float32: %s", refusal)
        chosen = "float32"
    train = recipe.train.model_copy(update={"precision": chosen})
    return recipe.model_copy(update={"train": train})


@torch.no_grad()
def _autocast_error(model: PreTrainedModel) -> str | None:
    """Why a model fails on a short text with bf16 matmuls, as some do that mix precisions."""
    ids = torch.arange(4, device=model.device)
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16)
    try:
        with torch.random.fork_rng(), autocast:  # dropout draws
            token_losses(model, ids, ids, torch.tensor([0, len(ids)]), ids)
    except Exception as error:
        return in_one_line(error)
    return None
