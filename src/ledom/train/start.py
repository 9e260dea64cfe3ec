"""The start of a run: checks before any work, hashes of the inputs, the model and the batches.

    recipe, prepared data -> initial_model, training_batches -> the loop
    runs/<name>/inputs.json     recipe key -> hash of the file, model folder or token store

A resumed run must have the inputs that it began with, and twins must have the same ones. The hash
of a token store is computed from the checksums in its manifest, so it is fast at any size. This
module does not know about steps or optimizers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, OutputError, RecipeError, in_one_line
from ledom.core.files import lock_folder, write_json
from ledom.core.reading import read_json
from ledom.core.records import Problem
from ledom.data.packing import Batches, Windows
from ledom.data.prepare import PreparedData, read_split
from ledom.data.store import MANIFEST, TokenStore
from ledom.model.architectures import longest_text
from ledom.model.checkpoint import build_model, load_checkpoint, load_config
from ledom.model.device import fast_bfloat16
from ledom.model.exactness import packing_reach
from ledom.model.folder import file_digest, hash_files, loaded_files
from ledom.model.own_forward import OwnForward
from ledom.text.tokenizer import Tokenizer
from ledom.train.distributed import ProcessGroup
from ledom.train.lora import load_peft
from ledom.train.metrics import load_tracker
from ledom.train.objective import PairBatches, read_wrong_solutions, token_losses
from ledom.train.recipe import Recipe, named_files

__all__ = [
    "check_inputs",
    "check_lengths",
    "check_packages",
    "check_pairs",
    "check_shareable",
    "check_tokenizers",
    "choose_packing",
    "choose_precision",
    "has_begun",
    "initial_model",
    "is_training",
    "training_batches",
]


def check_lengths(recipe: Recipe, direction: Direction) -> None:
    """Raise `RecipeError` if windows are longer than the model's context, or if the recipe gives a
    shape other than that of `init_from`.

    This is quick and needs no data: call it before any work.
    """
    contexts = []
    if recipe.model is not None:
        contexts.append(recipe.model.max_position_embeddings)
    if recipe.init_from is not None:
        config = load_config(Path(recipe.init_folder(direction)))
        _check_shape(recipe, config)
        contexts.append(longest_text(config))
    if recipe.train.seq_len > min(contexts):
        raise RecipeError(
            f"key train.seq_len is {recipe.train.seq_len}: the model's context is {min(contexts)} "
            "tokens; lower it, or set model.max_position_embeddings for random weights"
        )


def check_packages(recipe: Recipe) -> None:
    """Raise `MissingExtraError` if a tracker or peft, which the recipe needs, is not installed."""
    for tracker in recipe.train.trackers:
        load_tracker(tracker)
    if recipe.lora is not None:
        load_peft()


def initial_model(recipe: Recipe, direction: Direction, data: PreparedData) -> PreTrainedModel:
    """A model with random weights, or with those of `init_from`; the same in every process.

    `init_from` may have the other direction, and may be of any architecture. Raises `RecipeError`
    if it does not have the data's tokenizer.
    """
    if recipe.init_from is None:
        assert recipe.model is not None  # checked by the recipe
        return build_model(recipe.model, data.tokenizer, recipe.seed)
    folder, eos_token = recipe.init_folder(direction), recipe.data.eos_token
    start = load_checkpoint(folder, direction, eos_token=eos_token, turn=True)
    _check_tokenizer(start.tokenizer, data.tokenizer, folder)
    # transformers gives no gradient to the padding token, which is often EOS. But every document
    # begins with EOS, so the model would not learn how documents begin.
    embedding: Any = start.model.get_input_embeddings()
    embedding.padding_idx = None
    return start.model


def check_tokenizers(recipe: Recipe, directions: Sequence[Direction]) -> None:
    """Raise `RecipeError` if a model of `init_from` does not have the tokenizer of the data.

    Both directions read the same data, so the second would be refused only when the first is done.
    """
    if recipe.init_from is not None:
        data = recipe.data_of(directions[0])
        assert data.tokenizer is not None  # by default that of `init_from`
        of_data = Tokenizer.load(data.tokenizer, data.eos_token)
        for folder in map(recipe.init_folder, directions):
            _check_tokenizer(Tokenizer.load(folder, data.eos_token), of_data, folder)


def _check_tokenizer(tokenizer: Tokenizer, of_data: Tokenizer, folder: str) -> None:
    if tokenizer.fingerprint != of_data.fingerprint:
        raise RecipeError(
            f"key init_from: the tokenizer of {folder} is not the data's; set data.tokenizer to "
            "its tokenizer.json or leave it out; models with other tokenizers need separate runs"
        )


def _check_shape(recipe: Recipe, config: PretrainedConfig) -> None:
    """Raise `RecipeError` if the recipe gives a shape other than that of `init_from`.

    The model itself is trained, not a new Llama with its weights, since many architectures share
    weight names but compute differently.
    """
    asked = {} if recipe.model is None else recipe.model.model_dump(exclude={"initializer_range"})
    shape = config.get_text_config()
    for key, value in asked.items():
        found = getattr(shape, key, None)
        if found != value:
            raise RecipeError(
                f"key model.{key} is {value}: {recipe.init_from} has another shape, {found} there; "
                "leave model out (model=null), since init_from brings its own"
            )


def choose_packing(
    model: PreTrainedModel, recipe: Recipe, eos_id: int, world: ProcessGroup
) -> None:
    """Set the model up to read packed rows if that is exact for it, else one document at a time.

    Raises `RecipeError` for settings that reading one at a time does not support.
    """

    def packed(ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor) -> Tensor:
        return -token_losses(model, ids, positions, boundaries, targets)

    own, kind, longest = OwnForward(model), type(model).__name__, recipe.train.seq_len
    reach = packing_reach(own, packed, eos_id, longest)
    if reach >= longest:
        return
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
    if world.is_first:
        logging.getLogger("ledom").warning(
            "%s: packed rows are not exact for it%s, so it reads one document at a time (slower)",
            kind,
            f" above a train.seq_len of {reach}" if reach else "",
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


def check_shareable(recipe: Recipe, num_processes: int) -> None:
    """Raise `RecipeError` if this many processes cannot share the run.

    Like `check_lengths`, this is quick and needs no data. An objective on pairs, which needs whole
    batches, and adapters are split neither over processes nor over micro-batches.
    """
    if (size := recipe.train.batch_size) < num_processes:
        raise RecipeError(
            f"key train.batch_size is {size}: too few windows for {num_processes} processes or "
            "GPUs; raise it, or use fewer"
        )
    if num_processes > 1 and num_processes % (shards := recipe.parallel.shard_size or 1):
        raise RecipeError(
            f"key parallel.shard_size is {shards}, which does not divide the {num_processes} "
            "processes or GPUs"
        )
    shared = num_processes > 1 or recipe.parallel.tokens_per_microbatch is not None
    if shared and (recipe.objective.needs_pairs or recipe.lora is not None):
        raise RecipeError(
            "objective.target, objective.contrastive and lora run in one process, without "
            "parallel.tokens_per_microbatch"
        )


def training_batches(
    recipe: Recipe, direction: Direction, data: PreparedData
) -> Batches | PairBatches:
    """Batches of windows of the token stores, or of pairs if the objective needs them."""
    if not recipe.objective.needs_pairs:
        sources = [
            (Windows(source.store, recipe.train.seq_len, recipe.data.packing), source.weight)
            for source in data.sources
        ]
        return Batches(sources, recipe.train.batch_size, recipe.seed)
    return PairBatches(
        *_read_pairs(recipe),
        recipe.objective,
        direction,
        data.tokenizer,
        recipe.data.pairs,
        recipe.train.batch_size,
        recipe.train.seq_len,
        recipe.seed,
    )


def check_pairs(recipe: Recipe) -> None:
    """Raise the errors of an objective's files of pairs, such as that no solution is wrong.

    This needs no prepared data: call it before any work.
    """
    if recipe.objective.needs_pairs:
        _read_pairs(recipe)


def _read_pairs(recipe: Recipe) -> tuple[list[Problem], dict[str, list[str]]]:
    """The problems to train on, and their wrong solutions by problem id."""
    problems = [record for record in read_split(recipe.data)[0] if isinstance(record, Problem)]
    if not problems:
        raise RecipeError(
            f"key data.train is {recipe.data.train!r}, which holds documents; objective.target and "
            "objective.contrastive need problems with solutions"
        )
    wrong, file = {}, recipe.objective.negatives
    if recipe.objective.contrastive and file is not None:
        wrong = read_wrong_solutions(file, problems)
        if not wrong:
            raise InputError("none of the problems has a wrong solution", path=file)
    return problems, wrong


def has_begun(folder: Path) -> bool:
    """Whether a direction of the run in `folder` has a checkpoint.

    >>> has_begun(Path("no-run"))
    False
    """
    return any(folder.glob("*/checkpoints/*"))


def check_inputs(recipe: Recipe, directions: Sequence[Direction], folder: Path) -> None:
    """Compare the inputs' hashes with those in the run's inputs.json, then write that file.

    Nothing is compared unless the run has a checkpoint, or the twin is training now. Twins that
    start together do this one after the other, so neither drops what the other adds. Raises
    `CheckpointError` with the key of an input that has changed, and for an input that cannot be
    read.
    """
    file = folder / "inputs.json"
    found = {key: (name, content_hash(Path(name))) for key, name in _inputs(recipe, directions)}
    with lock_folder(folder, "compares its inputs", wait=True, name=".inputs.lock"):
        known = read_json(file) if file.is_file() else {}
        began = has_begun(folder) or any(is_training(folder / str(way)) for way in Direction)
        for key, (name, digest) in found.items() if began else ():
            if known.get(key, digest) != digest:
                raise CheckpointError(
                    f"{folder}: {key} ({name}) has changed since this run began; restore it, or "
                    "give this run another name"
                )
        write_json(file, known | {key: digest for key, (_, digest) in found.items()})


def is_training(folder: Path) -> bool:
    """Whether another process is training in the folder of a direction.

    >>> is_training(Path("no-run/forward"))
    False
    """
    if not (folder / ".lock").is_file():
        return False
    try:
        with lock_folder(folder, "compares its inputs"):
            return False
    except OutputError:
        return True


def _inputs(recipe: Recipe, directions: Sequence[Direction]) -> Iterator[tuple[str, str]]:
    """(key, path) of each input of a recipe; `init_from` once per direction."""
    for location, name in named_files(recipe):
        if location != ("init_from",):
            yield ".".join(map(str, location)), name
    for direction in directions if recipe.init_from is not None else ():
        yield f"init_from.{direction}", recipe.init_folder(direction)


def content_hash(path: Path) -> str:
    """A hash of the contents of a file, a token store, a model's loaded files, or a folder."""
    if (path / MANIFEST).is_file():
        store = TokenStore(path)
        shards = [f"{shard.entry.sha256} {shard.entry.index_sha256}" for shard in store.shards]
        content = "\n".join([f"{store.manifest.tokenizer} {store.eos_id}", *shards])
    elif (path / "config.json").is_file():
        return hash_files(loaded_files(path))  # a model may get a README.md
    elif path.is_dir():
        return hash_files([file for file in sorted(path.iterdir()) if file.is_file()])
    else:
        content = f" {file_digest(path)}\n"
    return hashlib.sha256(content.encode()).hexdigest()
