"""Recipes: one YAML file holds all settings of a training run.

Precedence: command-line overrides (`key.key=value`), then the file, then defaults. An unknown key
is an error that lists the valid ones. Each part's config class is defined where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ledom.core.direction import Direction
from ledom.core.errors import InputError, RecipeError
from ledom.core.files import LARGEST_SEED, write_atomically
from ledom.core.reading import Config, JsonObject, exists, read_text
from ledom.core.strict_yaml import parse_yaml
from ledom.data.prepare import DataConfig
from ledom.data.problems import GENERATOR
from ledom.model.folder import snapshot
from ledom.model.presets import ModelConfig
from ledom.train.distributed import ParallelConfig
from ledom.train.lora import LoraConfig
from ledom.train.objective import ObjectiveConfig
from ledom.train.optim import OptimConfig, reaches_peak

__all__ = ["Recipe", "TrainConfig", "load_recipe", "named_files", "save_recipe"]


_NAME = re.compile(r"\w[\w.-]{0,59}")


class TrainConfig(Config):
    """How the loop runs."""

    batch_size: PositiveInt = 32
    """Windows (documents, or parts of long ones) per step."""
    seq_len: PositiveInt = 512
    """Maximum number of predicted tokens per window."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matmuls. auto is bfloat16 if the device is fast at it, else float32. It is
    chosen when a run starts, and the run can resume only in that precision."""
    validate_every: PositiveInt = 250
    """Steps between validations."""
    checkpoint_every: PositiveInt = 250
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints to keep, regardless of age."""
    keep_hours: NonNegativeFloat = 0.0
    """How long to keep older checkpoints, in hours."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the metrics, in addition to metrics.jsonl."""


class Recipe(Config):
    """All settings of a training run."""

    name: str
    """Name of the run's folder."""
    seed: NonNegativeInt = Field(default=0, le=LARGEST_SEED)
    """Seed of initial weights and data order."""
    init_from: str | None = None
    """A model folder to start from instead of random weights; `{direction}` is replaced by the
    run's direction. A model of the other direction is trained further in the run's direction."""
    data: DataConfig
    model: ModelConfig | None = None
    """The shape of a Llama. With `init_from`, leave it out or give that model's shape."""
    optim: OptimConfig
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; `lora: {}` for the defaults."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        """Refuse a name that would let a run write outside the folder of all runs."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                "it names the run's folder: give 1 to 60 letters, digits, dots, dashes and "
                "underscores, starting with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.model is None and self.init_from is None:
            raise ValueError("key model is missing: give a shape, or a model folder as init_from")
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora adapts a trained model: give its folder as init_from")
        if self.objective.needs_pairs and self.data.train == GENERATOR:
            raise ValueError("objective.target and objective.contrastive need a file as data.train")
        if self.objective.contrastive and self.objective.negatives is None:
            raise ValueError(
                "objective.contrastive needs wrong solutions: give a file as objective.negatives"
            )
        return self

    def data_of(self, direction: Direction) -> DataConfig:
        """The data section, with the tokenizer of `init_from` unless another is set.

        >>> keys = {"name": "twins", "init_from": "runs/tiny/{direction}", "data": {}}
        >>> recipe = Recipe.model_validate(keys | {"optim": {"steps": 1}})
        >>> recipe.data_of(Direction.REVERSE).tokenizer
        'runs/tiny/reverse/tokenizer.json'
        """
        if self.init_from is None or self.data.tokenizer is not None:
            return self.data
        tokenizer = f"{self.init_folder(direction)}/tokenizer.json"
        return self.data.model_copy(update={"tokenizer": tokenizer})

    def init_folder(self, direction: Direction) -> str:
        """The model folder of `init_from`, which must be set; in the hub's cache a commit's."""
        assert self.init_from is not None
        return str(snapshot(Path(self.init_from.replace("{direction}", str(direction)))))


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    files: bool = False,
    note: Callable[[str], object] = lambda line: None,
) -> Recipe:
    """Read a recipe and apply overrides such as `optim.steps=100`.

    With `files`, the files named in it must exist. `note` is called with a message for each key of
    the file that other keys make useless; an override without effect is an error. Raises
    `RecipeError` with the file's line or the override, the key, the value and the valid keys.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
    ...     _ = Path(file.name).write_text("model: tiny")
    ...     load_recipe(file.name, ["optim.step=3"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.RecipeError: override 'optim.step=3': unknown key optim.step; valid here: ...
    """
    path = Path(path)
    tree, origin = _read(path, overrides)
    for override in overrides:
        _apply(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error, origin)) from None
    for location, name in named_files(recipe) if files else ():
        if not exists(name):
            key = ".".join(map(str, location))
            raise RecipeError(f"{origin.place(location)}: key {key} is {name!r}: no such file")
    if not reaches_peak(recipe.optim):
        note(
            f"{origin.place(('optim', 'steps'))}: optim.steps is {recipe.optim.steps}, fewer than "
            "the steps of warm-up and decay: the learning rates never reach their peak"
        )
    for location, reason in _unused_keys(recipe):
        message = f"{origin.place(location)}: {'.'.join(location)} has no effect: {reason}"
        if origin.override(location):
            raise RecipeError(f"{message}; leave it out")
        note(message)
    return recipe


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe with every setting spelled out, so that `load_recipe` returns an equal one.

    >>> import tempfile
    >>> parts = {"name": "a", "model": "tiny", "data": {}, "optim": {"steps": 1}}
    >>> recipe = Recipe.model_validate(parts)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_recipe(recipe, f"{folder}/recipe.yaml")
    ...     load_recipe(f"{folder}/recipe.yaml") == recipe
    True
    """
    tree = recipe.model_dump(mode="json")
    if recipe.data.sources:
        del tree["data"]["train"]  # refused together with them, even with its default
    with write_atomically(path) as out:
        yaml.safe_dump(tree, out, sort_keys=False)


@dataclass(frozen=True)
class _Origin:
    """The file and the overrides that a recipe was read from, to locate its keys in errors."""

    path: Path
    root: yaml.Node
    overrides: Sequence[str]

    def override(self, location: Sequence[int | str], inside: bool = False) -> str | None:
        """The last override that set the key at `location`, or a group around it.

        With `inside`, the last one that set a key below `location`.
        """
        key = ".".join(map(str, location)) + "."
        for override in reversed(self.overrides):
            name = override.partition("=")[0] + "."
            if name.startswith(key) if inside else key.startswith(name):
                return override
        return None

    def place(self, location: Sequence[int | str]) -> str:
        """Where the key at `location` was set: an override, or a line such as `recipe.yaml:7`."""
        if override := self.override(location):
            return f"override {override!r:.200}"
        node, line = self.root, None
        for part in location:
            items = dict(_items(node))
            if part not in items:
                if override := self.override(location, inside=True):
                    return f"override {override!r:.200}"
                break
            named, node = items[part]
            line = named.start_mark.line + 1
        return str(self.path) if line is None else f"{self.path}:{line}"


def _items(node: yaml.Node) -> Iterator[tuple[int | str, tuple[yaml.Node, yaml.Node]]]:
    """The items of a mapping or list: (key or index, (node of the key, node of the value))."""
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, (key, value)) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((number, (item, item)) for number, item in enumerate(node.value))


def _read(path: Path, overrides: Sequence[str]) -> tuple[JsonObject, _Origin]:
    """A recipe's tree of values, and their origin."""
    try:
        tree, root = parse_yaml(read_text(path), path)
    except InputError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(tree, dict) or root is None:
        raise RecipeError(f"{path}: a recipe is a mapping with {', '.join(Recipe.model_fields)}")
    return tree, _Origin(path, root, overrides)


def named_files(recipe: Recipe) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """The files and folders that a recipe reads: (location of the key, path).

    >>> recipe = Recipe.model_validate({"name": "a", "model": "tiny", "optim": {"steps": 1},
    ...                                 "data": {"train": "problems.jsonl"}})
    >>> list(named_files(recipe))
    [(('data', 'train'), 'problems.jsonl')]
    """
    data = recipe.data
    if recipe.init_from is not None and "{direction}" not in recipe.init_from:
        yield ("init_from",), recipe.init_from
    for number, source in enumerate(data.sources):
        yield ("data", "sources", number, "path"), source.path
    if data.sources or data.train != GENERATOR:
        if not data.sources:
            yield ("data", "train"), data.train
        if data.valid is not None:
            yield ("data", "valid"), data.valid
    if data.tokenizer is not None:
        yield ("data", "tokenizer"), data.tokenizer
    if recipe.objective.negatives is not None:
        yield ("objective", "negatives"), recipe.objective.negatives


def _unused_keys(recipe: Recipe) -> Iterator[tuple[tuple[str, str], str]]:
    """Keys that were set but have no effect: (location, reason)."""
    data, optim, objective = recipe.data, recipe.optim, recipe.objective
    generated = not data.sources and data.train == GENERATOR
    started, adapters = recipe.init_from is not None, recipe.lora is not None
    by_another = f"optim.matrix_optimizer is {optim.matrix_optimizer}"
    by_adamw = "lora trains only adapters, by AdamW without decay"
    one_document = data.packing == "documents" or objective.needs_pairs
    apart = "each window holds one document"
    no_decay = optim.schedule != "cosine" and optim.decay_steps == 0
    alone = "without objective.target and objective.contrastive it is the only term"
    rules = (
        ("optim.muon_lr", optim.matrix_optimizer != "muon", by_another),
        ("optim.decay_steps", optim.schedule == "cosine", "optim.schedule is cosine"),
        ("optim.min_lr_ratio", no_decay, "optim.decay_steps is 0"),
        ("optim.matrix_optimizer", adapters, by_adamw),
        ("optim.muon_lr", adapters, by_adamw),
        ("optim.weight_decay", adapters, by_adamw),
        ("model.initializer_range", started and recipe.model, "init_from brings its weights"),
        ("objective.negatives", not objective.contrastive, "objective.contrastive is 0"),
        ("objective.all_tokens", not objective.needs_pairs, alone),
        ("data.num_documents", data.sources, "data.sources are read whole"),
        ("data.num_valid", data.sources, "data.sources are read whole"),
        ("data.equation_only_fraction", not generated, f"it is for {GENERATOR} alone"),
        ("data.seed", not generated, f"it is for {GENERATOR} alone"),
        ("data.mask_across_documents", one_document, apart),
        ("data.reset_position_ids", one_document, apart),
        ("data.valid", generated, f"data.train is {GENERATOR}, which has a valid split"),
        ("data.vocab_size", started or data.tokenizer, "the tokenizer already exists"),
    )
    for key, holds, reason in rules:
        group, name = key.split(".")
        part = getattr(recipe, group)
        if holds and getattr(part, name) != type(part).model_fields[name].default:
            yield (group, name), reason


def _apply(tree: JsonObject, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"override {override!r}: write it as key.key=value")
    *parents, last = parts = key.split(".")
    node: Any = tree
    for depth, parent in enumerate(parents, start=1):
        inner = node.get(parent)
        if isinstance(inner, str) and parents[:depth] == ["model"]:
            inner = {"preset": inner}
        node[parent] = {} if inner is None else inner
        node = node[parent]
        if not isinstance(node, dict) or parts[depth].isdecimal():  # an item of a list
            whole = ".".join(parts[:depth])
            remedy = f"set {whole} as a whole"
            if whole == "model.preset":
                remedy = f"to change one key of the preset, write model.{last}={value}"
            raise RecipeError(
                f"override {override!r:.200}: {whole} is a value, not a group of keys; {remedy}"
            )
    try:
        node[last], root = parse_yaml(value)
        if "#" in value[root.end_mark.index if root else 0 :]:
            raise InputError("what follows # is a comment")
    except InputError as error:
        raise RecipeError(
            f"override {override!r:.200}: {error}; put a text with special characters in its own "
            "quotes"
        ) from None


def _explain(error: ValidationError, origin: _Origin) -> str:
    """The most useful problem, in one line: a mistyped key first, as it explains a missing one."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    location, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
    place, key = origin.place(location), ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        valid = ", ".join(_valid_keys(location[:-1]))
        return f"{place}: unknown key {key}; valid here: {valid}"
    if problem["type"] == "missing":
        return f"{place}: key {key} is missing"
    if not key:  # keys of several groups contradict each other
        return f"{place}: {message}"
    if isinstance(problem["input"], dict):  # keys of one group contradict each other
        return f"{place}: key {key}: {message}"
    is_unquoted = problem["type"] == "string_type" and not isinstance(problem["input"], list | None)
    remedy = "; put it in its own quotes" if is_unquoted else ""
    return f"{place}: key {key} is {problem['input']!r:.80}: {message}{remedy}"


def _valid_keys(location: Sequence[int | str]) -> list[str]:
    config: Any = Recipe
    for part in location:
        if not isinstance(part, str):  # a list index; the previous step found the items' type
            continue
        annotation: Any = config.model_fields[part].annotation
        config = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)
    return list(config.model_fields)
