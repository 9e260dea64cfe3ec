"""The folder of a training run: its layout, and how to find a run from part of it.

    runs/<name>/recipe.yaml                 all settings
    runs/<name>/data/train, data/valid      token stores
    runs/<name>/<direction>/metrics.jsonl   a row per step
    runs/<name>/<direction>/model           the finished model

A model folder by itself counts as a run without metrics, recipe and data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ledom.core.errors import CheckpointError
from ledom.core.reading import JsonObject, as_type, exists
from ledom.core.strict_yaml import read_yaml
from ledom.data.store import Manifest, read_manifests
from ledom.train.metrics import Row, read_metrics

__all__ = ["Run", "find_run"]


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
