"""Exports a trained model as a folder that others can use without ledom; writes cards for stores.

A model becomes a plain Hugging Face folder: safetensors, tokenizer, config (with the direction),
generation config, and a model card that documents how it was trained and how to use it. A token
store needs only a card, which documents the source of the text, its size, and hashes.

The folder of a run, runs/<name>:

    recipe.yaml                 all settings
    data/train, data/valid      token stores
    <direction>/metrics.jsonl   a row per step
    <direction>/model           the finished model

A model folder on its own counts as a run without metrics, recipe and data.
"""

from __future__ import annotations

import glob
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, OutputError
from ledom.core.files import write_atomically, write_json
from ledom.core.folders import write_folder
from ledom.core.hub import render_card
from ledom.core.reading import JsonObject, as_type, exists, read_json
from ledom.core.strict_yaml import read_yaml
from ledom.data.store import MANIFEST, Manifest, read_manifests
from ledom.model.architectures import NO_LIMIT
from ledom.model.checkpoint import (
    BOS_KEY,
    DIRECTION_KEY,
    CheckpointInfo,
    load_config,
    read_checkpoint_info,
)
from ledom.model.folder import count_parameters, read_config, weight_files
from ledom.train.checkpoints import RUN
from ledom.train.metrics import Row, read_metrics, thinned

__all__ = ["Run", "export_model", "find_run", "write_dataset_card"]

_LOSS_ROWS = 10  # rows in the card's table of losses
_FILE_KEYS = ("init_from", "negatives", "path", "tokenizer", "train", "valid")  # of a recipe
_EXAMPLE = '"and so they lived happily ever after."'


@dataclass(frozen=True)
class Run:
    """A finished model, and what is known about its training."""

    model: Path
    """The finished model's folder."""
    metrics: list[Row] = field(default_factory=list)
    """Rows of metrics.jsonl."""
    recipe: JsonObject | None = None
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """Manifests of the token stores, by part (train, valid); see `read_manifests`."""


def find_run(path: str | Path) -> Run:
    """The run of a model folder, or of the folder that contains it.

    Raises `CheckpointError` if there is no finished model.

    >>> find_run("no-run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.CheckpointError: ...no-run: no finished model here (config.json, or ...
    """
    path = Path(path).absolute()
    model = next((f for f in (path, path / "model") if (f / "config.json").is_file()), None)
    if model is None:
        raise CheckpointError(
            f"{path}: no finished model here (config.json, or model/config.json); give a model "
            "folder, or one such as runs/NAME/reverse"
        )
    metrics = model.parent / "metrics.jsonl"
    root = model.parent.parent
    if model.name != "model" or not exists(metrics):
        return Run(model)
    file = root / "recipe.yaml"
    recipe = read_yaml(file) if exists(file) else None
    if recipe and exists(own := model.with_name(RUN)):
        trained = read_json(own).get("recipe") or {}  # recipe.yaml is that of the last direction
        recipe |= {key: trained[key] for key in ("init_from", "optim") if key in trained}
    return Run(
        model,
        read_metrics(metrics),
        recipe,
        read_manifests(root / "data") | _read_sources(recipe or {}, file),
    )


@dataclass(frozen=True)
class _Source:
    path: str


@dataclass(frozen=True)
class _Data:
    sources: list[_Source] | None = None
    valid: str | None = None


@dataclass(frozen=True)
class _Recipe:
    """The few keys that are read here; the recipe may be of another version of ledom."""

    data: _Data = _Data()


def _read_sources(recipe: JsonObject, file: Path) -> dict[str, Manifest]:
    """The manifests of the stores that a recipe mixes; stores that are gone are left out."""
    data = as_type(recipe, _Recipe, file).data
    parts = {source.path: source.path for source in data.sources or ()}
    if parts and data.valid:
        parts["valid"] = data.valid
    found = {part: read_manifests(Path(path)).get(".") for part, path in parts.items()}
    return {part: manifest for part, manifest in found.items() if manifest is not None}


def export_model(
    run: Run,
    out: Path,
    direction: Direction | str | None = None,
    name: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the release folder of a run's model atomically; returns its path.

    `name` is the name by which the card loads the model (by default the folder's). Raises
    `CheckpointError` for a model folder without its weights, `DirectionError` if the direction is
    unknown or differs from the given one, and `OutputError` if `out` exists or cannot be written.
    """
    config = read_config(run.model)
    weights = weight_files(run.model, config)  # vLLM would also read any other safetensors
    if out.exists():
        raise OutputError(f"{out}: exists already; give another folder, or remove this one")
    info = read_checkpoint_info(run.model, direction)
    tokenizer = info.tokenizer
    config[DIRECTION_KEY] = str(info.direction)
    config[BOS_KEY] = [tokenizer.backend.id_to_token(i) for i in info.bos_ids]
    card = _model_card(run, config, info, name or out.name, license)
    with write_folder(out) as folder:
        (folder / "README.md").write_text(card, encoding="utf-8")
        tokenizer.save(folder)
        write_json(folder / "config.json", config, sort_keys=True)
        write_json(folder / "generation_config.json", _generation_config(info))
        for file in weights:  # last: copying them may take minutes
            shutil.copyfile(file, folder / file.name)
    return out


def _generation_config(info: CheckpointInfo) -> JsonObject:
    """Defaults of transformers' `generate`, with ledom's default temperature.

    A text ends where ledom ends it: at EOS, or at another token that the model's files list.
    """
    eos_id = info.tokenizer.eos_id
    return {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 0,
        "eos_token_id": [eos_id, *sorted(info.stop_ids - {eos_id})],
        "pad_token_id": eos_id,
    }


def _model_card(
    run: Run, config: JsonObject, info: CheckpointInfo, name: str, license: str | None
) -> str:
    """The model card: Markdown with the hub's front matter."""
    reverse = info.direction is Direction.REVERSE
    return render_card(
        Path(__file__).with_name("model_card.md"),
        name=name,
        license=license,
        direction=str(info.direction),
        reverse=reverse,
        flip="[::-1]" if reverse else "",
        example=_EXAMPLE,
        bos_tokens=json.dumps(config[BOS_KEY], ensure_ascii=False),
        first=", ".join(f"`{token}`" for token in config[BOS_KEY]) or "nothing",
        architecture=(config.get("architectures") or ["?"])[0],
        facts=_facts(run, config, info),
        losses=thinned([row for row in run.metrics if "valid_loss" in row], _LOSS_ROWS),
        data=run.manifests,
        recipe=run.recipe and yaml.safe_dump(_without_folders(run.recipe), sort_keys=False),
    )


def _without_folders(value: Any, key: str = "") -> Any:
    """A recipe with only the last part of absolute paths, which name folders on this machine."""
    if isinstance(value, dict):
        return {name: _without_folders(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part, key) for part in value]
    is_path = key in _FILE_KEYS and isinstance(value, str) and value.startswith("/")
    return Path(value).name if is_path else value


def _facts(run: Run, config: JsonObject, info: CheckpointInfo) -> list[tuple[str, str]]:
    shape = load_config(run.model).get_text_config()  # same key names for all architectures
    width, layers = (getattr(shape, key, "?") for key in ("hidden_size", "num_hidden_layers"))
    tokenizer, context = info.tokenizer, info.context
    facts = [
        ("direction", str(info.direction)),
        ("parameters", f"{count_parameters(run.model):,}"),
        ("width, layers", f"{width}, {layers}"),
        ("vocabulary", f"{tokenizer.vocab_size:,}; end token {_code(tokenizer.eos_token)}"),
        ("context", "any length" if context == NO_LIMIT else f"{context:,} tokens"),
    ]
    tokens = sum(int(row["tokens"]) for row in run.metrics)
    if tokens:
        steps = f"{run.metrics[-1]['step']:,}"
        if len(run.metrics) < run.metrics[-1]["step"]:
            steps = f"{len(run.metrics):,} of {steps}"  # the rest have no row in metrics.jsonl
        facts.append(("tokens read in training", f"{tokens:,} in {steps} steps"))
    if config.get("ledom_pair_format"):
        facts.append(("question and solution", _code(json.dumps(config["ledom_pair_format"]))))
    return facts


def _code(text: str) -> str:
    """A text as code in a cell of a Markdown table."""
    return "`" + text.replace("|", "\\|") + "`"


def write_dataset_card(
    folder: Path, name: str | None = None, license: str | None = None
) -> list[str]:
    """Write README.md into a folder that is a token store or contains several.

    Returns patterns of the files to publish: the card and the stores, but not what else is there.

    >>> import tempfile
    >>> from ledom.data.store import write_store
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_store(folder, ["so"], train_tokenizer([], 257))
    ...     write_dataset_card(Path(folder), "so")[:3]
    ...     "# so" in Path(folder, "README.md").read_text()
    ['README.md', 'tokens.ds', 'tokens.ds.index']
    True
    """
    stores = read_manifests(folder)
    files = [
        {**asdict(shard), "path": str(Path(part) / shard.file)}
        for part, store in stores.items()
        for shard in store.shards
    ]
    card = render_card(
        Path(__file__).with_name("dataset_card.md"),
        name=name or folder.absolute().name,
        license=license,
        stores=stores,
        first=next(iter(stores.values())),
        files=files,
    )
    with write_atomically(folder / "README.md") as out:
        out.write(card)
    published = ["README.md", *(file["path"] + end for file in files for end in ("", ".index"))]
    for part in (".", *stores):  # several stores may share a tokenizer
        names = "tokenizer.json", "tokenizer_config.json", MANIFEST
        published += [str(Path(part, name)) for name in names]
    return [*map(glob.escape, published)]
