"""Model folders: load and save, with the direction and the pair format recorded.

A checkpoint is a plain Hugging Face folder (config.json, model.safetensors, tokenizer.json), so
everything else that reads such folders reads it too. Three keys of config.json are ours:
`ledom_direction`, `ledom_pair_format` and `ledom_solution_style`; `save_pretrained` keeps them.
This module knows nothing of training or scoring.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ledom.direction import Direction
from ledom.errors import CheckpointError, DirectionError, InputError, OutputError
from ledom.model import attention
from ledom.model.presets import ModelConfig
from ledom.model.tokenizer import Tokenizer
from ledom.pairs import PairFormat

__all__ = [
    "DIRECTION_KEY",
    "Checkpoint",
    "CheckpointInfo",
    "build_model",
    "choose_direction",
    "load_checkpoint",
    "read_checkpoint_info",
    "save_checkpoint",
]

DIRECTION_KEY, _FORMAT_KEY = "ledom_direction", "ledom_pair_format"
_STYLE_KEY = "ledom_solution_style"
_FINGERPRINT_BYTES = 2**24  # of each file


@dataclass(frozen=True)
class CheckpointInfo:
    """What a model folder says besides its weights."""

    tokenizer: Tokenizer
    direction: Direction
    pair_format: PairFormat
    framed: bool
    """Whether the model was trained on documents with EOS in front (in reading order)."""
    context: int
    """Longest text in tokens."""
    fingerprint: str
    """Changes with the model's config, tokenizer or weights."""


@dataclass(frozen=True)
class Checkpoint(CheckpointInfo):
    """A loaded model folder."""

    model: PreTrainedModel


def build_model(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> PreTrainedModel:
    """A randomly initialised Llama in fp32; equal seeds give equal weights."""
    torch.manual_seed(seed)
    llama = LlamaConfig(
        **config.model_dump(),
        vocab_size=tokenizer.vocab_size,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        llama, dtype=torch.float32, attn_implementation=attention.IMPLEMENTATION
    )
    return model


def save_checkpoint(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    direction: Direction,
    pair_format: PairFormat,
    dtype: torch.dtype | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model folder, whole or not at all; `dtype` converts the weights first.

    `weights` are written instead of the model's own, which may be sharded over processes.
    Raises `OutputError` when the place cannot be written.
    """
    folder = Path(folder)
    setattr(model.config, DIRECTION_KEY, str(direction))
    setattr(model.config, _FORMAT_KEY, pair_format.template)
    setattr(model.config, _STYLE_KEY, pair_format.style)
    state = model.state_dict() if weights is None else weights
    if dtype is not None:
        # Tied weights stay one tensor, or they would be written twice.
        converted = {(t.data_ptr(), t.shape): t.to(dtype) for t in state.values()}
        state = {name: converted[t.data_ptr(), t.shape] for name, t in state.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            with _quiet():
                model.save_pretrained(temporary, state_dict=state)
            _patch_config(temporary / "config.json", dtype)
            tokenizer.save(temporary)
            temporary.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error


def _patch_config(file: Path, dtype: torch.dtype | None) -> None:
    """Record the dtype that was written, which need not be that of the model in memory."""
    config = json.loads(file.read_text())
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=1, sort_keys=True))


def read_checkpoint_info(
    folder: str | Path,
    direction: Direction | str | None = None,
    eos_token: str | None = None,
    turn: bool = False,
) -> CheckpointInfo:
    """Read a model folder, all but its weights.

    `direction` may be left out where the folder records one, and must be given where it does not
    (a checkpoint made elsewhere). Raises `DirectionError` when the two disagree (without `turn`) or
    neither is there, `CheckpointError` for a folder that is missing, incomplete or damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json here; give a model folder")
    tokenizer = Tokenizer.load(folder, eos_token)
    with _readable(folder):
        config = AutoConfig.from_pretrained(folder)
    recorded = getattr(config, DIRECTION_KEY, None)
    chosen = choose_direction(folder, None if turn else recorded, direction)
    return CheckpointInfo(
        tokenizer=tokenizer,
        direction=chosen,
        pair_format=PairFormat(
            getattr(config, _FORMAT_KEY, PairFormat.template),
            getattr(config, _STYLE_KEY, PairFormat.style),
        ),
        framed=recorded is not None or chosen is Direction.REVERSE,
        context=_context(config),
        fingerprint=_fingerprint(folder),
    )


def _context(config: PretrainedConfig) -> int:
    """Longest text in tokens; within a sliding window attention is full, which is ours."""
    longest: int = config.max_position_embeddings
    window: int | None = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return longest if window is None or layers == {"full_attention"} else min(longest, window)


def load_checkpoint(
    folder: str | Path,
    direction: Direction | str | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    eos_token: str | None = None,
    turn: bool = False,
) -> Checkpoint:
    """Load a model folder; see `read_checkpoint_info`.

    `dtype` is that of the weights in memory; `auto` is that of the file. With `turn` a model of the
    other direction is taken too, to be trained in the given one.
    """
    info = read_checkpoint_info(folder, direction, eos_token, turn)
    with _readable(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            Path(folder),
            dtype=dtype,
            attn_implementation=attention.IMPLEMENTATION,
            output_loading_info=True,
        )
    model, report = loaded
    if report["missing_keys"]:  # transformers fills these at random
        raise CheckpointError(
            f"{folder}: the weights lack {', '.join(sorted(report['missing_keys'])[:3])}; the "
            "file is incomplete or belongs to another config.json"
        )
    if model.config.vocab_size < info.tokenizer.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {info.tokenizer.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}; they do not belong together"
        )
    return Checkpoint(**vars(info), model=model.eval())


@contextmanager
def _readable(folder: str | Path) -> Iterator[None]:
    """Say what keeps transformers from reading a folder, and keep its own words off the screen."""
    try:
        with _quiet():
            yield
    except (
        SafetensorError,
        StrictDataclassError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        raise CheckpointError(f"{folder}: cannot be loaded: {reason}") from error


def _fingerprint(folder: Path) -> str:
    """A hash of the small files and of the start and size of the large ones: quick at any size."""
    digest = hashlib.sha256()
    names = ("config.json", "tokenizer.json")
    for file in [*(folder / name for name in names), *sorted(folder.glob("*.safetensors"))]:
        with file.open("rb") as contents:
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            digest.update(contents.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the screen."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def choose_direction(folder: Path, recorded: Any, asked: Direction | str | None) -> Direction:
    """The direction of a model folder; raises `DirectionError` where it is unknown or another."""
    asked = None if asked is None else Direction(asked)
    if recorded is None and asked is None:
        raise DirectionError(
            f"{folder}: config.json records no direction; say which one the model was trained in: "
            "direction='forward' or 'reverse'"
        )
    if recorded is not None and asked is not None and str(recorded) != str(asked):
        raise DirectionError(
            f"{folder}: this is a {recorded} model, asked for as {asked}; give a model trained in "
            f"the {asked} direction"
        )
    if asked is not None:
        return asked
    try:
        return Direction(recorded)
    except InputError as error:
        raise DirectionError(f"{folder}: config.json: {error}") from None
