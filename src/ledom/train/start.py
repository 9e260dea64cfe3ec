"""The start of a run: checks before any work, hashes of the inputs, and the batches.

    recipe, prepared data -> training_batches -> the loop
    runs/<name>/inputs.json     recipe key -> hash of the file, model folder or token store

A resumed run must have the inputs that it began with, and twins must have the same ones. The hash
of a token store is computed from the checksums in its manifest, so it is fast at any size. This
module does not know about steps or optimizers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PretrainedConfig

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, OutputError, RecipeError
from ledom.core.files import lock_folder, write_json
from ledom.core.reading import read_json
from ledom.core.records import Problem
from ledom.data.packing import Batches, Windows
from ledom.data.prepare import PreparedData, read_split
from ledom.data.store import MANIFEST, TokenStore
from ledom.model.architectures import longest_text
from ledom.model.checkpoint import load_config
from ledom.model.folder import file_digest, hash_files, loaded_files
from ledom.train.lora import load_peft
from ledom.train.metrics import load_tracker
from ledom.train.objective import PairBatches, read_wrong_solutions
from ledom.train.recipe import Recipe, named_files

__all__ = [
    "check_inputs",
    "check_lengths",
    "check_packages",
    "check_pairs",
    "check_shareable",
    "has_begun",
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


def check_shareable(recipe: Recipe, num_processes: int) -> None:
    """Raise `RecipeError` if this many processes cannot share the run.

    Like `check_lengths`, this is quick and needs no data. An objective on pairs needs whole
    batches: neither processes nor micro-batches divide them. Adapters need a single process.
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
    if num_processes > 1 and recipe.lora is not None:
        raise RecipeError("lora runs in one process; start it without torchrun")
    shared = num_processes > 1 or recipe.parallel.tokens_per_microbatch is not None
    if shared and recipe.objective.needs_pairs:
        raise RecipeError(
            "objective.target and objective.contrastive run in one process, without "
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
    """Whether a direction of the run in `folder` has a checkpoint or a finished model.

    >>> has_begun(Path("no-run"))
    False
    """
    return any(folder.glob("*/checkpoints/*")) or any(folder.glob("*/model"))


def check_inputs(recipe: Recipe, directions: Sequence[Direction], folder: Path) -> None:
    """Compare the inputs' hashes with those in the run's inputs.json, then write that file.

    Nothing is compared unless the run has begun, or the twin is training now. Twins that
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
    if not (folder / ".ledom.lock").is_file():
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
