"""Loads and saves model folders, which record the direction and the pair format.

A checkpoint is a plain Hugging Face folder (config.json, model.safetensors, tokenizer.json) that
any tool for such folders can read. ledom adds four keys to config.json: `ledom_direction`,
`ledom_pair_format`, `ledom_solution_style` and `ledom_bos_tokens`; `save_pretrained` keeps them.
This module does not know about training or scoring.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ledom.core.direction import Direction, choose_direction
from ledom.core.errors import (
    CheckpointError,
    InputError,
    LedomError,
    OutputError,
    in_one_line,
    is_out_of_memory,
)
from ledom.core.files import digest, write_json
from ledom.core.folders import write_folder
from ledom.core.reading import read_json_object
from ledom.model import attention
from ledom.model.architectures import check_unused, check_vocabulary, longest_text
from ledom.model.folder import (
    count_parameters,
    end_ids,
    hash_files,
    loaded_files,
    read_config,
    refuse_quantized,
)
from ledom.model.foreign import nanochat as nanochat  # registers its model with transformers
from ledom.model.presets import ModelConfig
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

__all__ = [
    "BOS_KEY",
    "DIRECTION_KEY",
    "Checkpoint",
    "CheckpointInfo",
    "bos_ids",
    "build_model",
    "load_checkpoint",
    "load_config",
    "quiet",
    "read_checkpoint_info",
    "readable",
    "save_checkpoint",
]

DIRECTION_KEY, _FORMAT_KEY = "ledom_direction", "ledom_pair_format"
_STYLE_KEY, BOS_KEY = "ledom_solution_style", "ledom_bos_tokens"
_MISTYPED = re.compile(r"Field '(\S+)' expected (\w+), got \w+ \(value: (.*?)\)")
_REASONS = {
    "trust_remote_code": "the model needs its own Python code, which ledom does not run",
    "Unrecognized configuration class": "transformers has no causal language model of this "
    "architecture that reads only text; give another model",
    # experts or quantized weights; the error names a report that is not shown
    "automatic conversion of the weights": "experts or scales are missing, surplus or of another "
    "shape than config.json says",
}
"""Reasons by words of transformers' errors that would mislead."""
_SHARED = 16  # maximum weights per stored number: some are packed, or shared by several layers


@dataclass(frozen=True)
class CheckpointInfo:
    """The contents of a model folder, without the weights."""

    folder: Path
    tokenizer: Tokenizer
    direction: Direction
    pair_format: PairFormat
    bos_ids: list[int]
    """The tokens that the model reads before a document, in model order."""
    context: int
    """The longest text in tokens; see `longest_text`."""
    stop_ids: frozenset[int]
    """The special tokens that end a text according to the model's files, such as end-of-turn."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all loaded files, the direction and the special tokens."""
        use = [str(self.direction), self.tokenizer.eos_id, self.bos_ids]
        return f"{digest(f'{hash_files(loaded_files(self.folder))} {use}'):016x}"


@dataclass(frozen=True)
class Checkpoint(CheckpointInfo):
    """A loaded model folder."""

    model: PreTrainedModel


def build_model(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> PreTrainedModel:
    """A randomly initialized Llama in fp32; equal seeds give equal weights.

    >>> from ledom.text.tokenizer import train_tokenizer
    >>> shape = ModelConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    ...                     num_attention_heads=2, num_key_value_heads=1)
    >>> model = build_model(shape, train_tokenizer([], 257), seed=0)
    >>> model.num_parameters()  # 257 embeddings of 8; 2 layers of 592; a last norm of 8
    3248
    """
    torch.manual_seed(seed)
    llama = LlamaConfig(
        **config.model_dump(),
        vocab_size=tokenizer.vocab_size,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        llama, dtype=torch.float32, attn_implementation=attention.IMPLEMENTATION
    )
    # Only now: transformers initializes the padding token's embedding to 0 and never trains it.
    model.config.pad_token_id = tokenizer.eos_id
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
    """Write a model folder atomically; with `dtype`, the weights are converted first.

    `weights`, if given, replace the model's own, which may be sharded over processes. Raises
    `OutputError` if the folder cannot be written.
    """
    folder = Path(folder)
    setattr(model.config, DIRECTION_KEY, str(direction))
    setattr(model.config, _FORMAT_KEY, pair_format.template)
    setattr(model.config, _STYLE_KEY, pair_format.style)
    setattr(model.config, BOS_KEY, [tokenizer.eos_token])  # precedes every document in training
    state = model.state_dict() if weights is None else weights
    if dtype is not None:
        # Tied weights must stay one tensor; otherwise they are written twice.
        converted = {(t.data_ptr(), t.shape): t.to(dtype) for t in state.values()}
        state = {
            name: converted[t.data_ptr(), t.shape] if t.is_floating_point() else t
            for name, t in state.items()
        }
    try:
        with write_folder(folder, replace=True) as temporary:
            with quiet():
                model.save_pretrained(temporary, state_dict=state)
            config = read_json_object(temporary / "config.json")
            if dtype is not None:  # the model in memory may have a different one
                config["dtype"] = str(dtype).removeprefix("torch.")
            write_json(temporary / "config.json", config, sort_keys=True)
            tokenizer.save(temporary)
    except SafetensorError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error


def read_checkpoint_info(
    folder: str | Path,
    direction: Direction | str | None = None,
    eos_token: str | None = None,
    turn: bool = False,
    bos_token: str | None = None,
    config: PretrainedConfig | None = None,
) -> CheckpointInfo:
    """Read a model folder without its weights.

    `direction` is required if the folder does not record one (a checkpoint trained elsewhere);
    `turn` ignores the recorded one. `bos_token` overrides the result of `bos_ids`; the empty text
    means no token. `config` is the folder's config.json, if it has already been read. Raises
    `DirectionError` if the recorded and the given direction disagree or both are missing, and
    `CheckpointError` for a folder that is missing, incomplete or damaged.
    """
    folder = Path(folder)
    config, tokenizer = config or load_config(folder), Tokenizer.load(folder, eos_token)
    stops = end_ids(folder, read_config(folder))
    recorded = None if turn else getattr(config, DIRECTION_KEY, None)
    chosen = choose_direction(folder, recorded, direction)
    return CheckpointInfo(
        folder=folder,
        tokenizer=tokenizer,
        direction=chosen,
        pair_format=_pair_format(folder, config),
        bos_ids=bos_ids(tokenizer, chosen, getattr(config, BOS_KEY, None), bos_token, folder),
        context=longest_text(config),
        stop_ids=frozenset(tokenizer.special_ids.intersection(stops)),
    )


def bos_ids(
    tokenizer: Tokenizer,
    direction: Direction,
    recorded: Any = None,
    asked: str | None = None,
    folder: Path | None = None,
) -> list[int]:
    """The tokens that a model reads before a document: `asked`, or those in its config.json.

    Without either, a forward model reads the tokens that its tokenizer puts before a text. If the
    tokenizer adds none, or for a reverse model, it is EOS, which separated documents in training.
    An empty `asked` means no token. Raises `CheckpointError` for a token that the tokenizer does
    not have.
    """
    if asked is not None:
        tokens = [asked] if asked else []
    elif recorded is not None:
        if not isinstance(recorded, list) or not all(isinstance(t, str) for t in recorded):
            raise CheckpointError(
                f"{folder}/config.json: {BOS_KEY} is {recorded!r}; it must be a list of tokens"
            )
        tokens = recorded
    else:
        own = tokenizer.bos_tokens if direction is Direction.FORWARD else []
        tokens = own or [tokenizer.eos_token]
    return [tokenizer.token_id(token) for token in tokens]


def _check_size(folder: Path, config: PretrainedConfig) -> None:
    """Raise `CheckpointError` if config.json describes a far larger model than the files hold.

    Such a model would fill the memory before the first missing weight is noticed. The estimate is
    deliberately low: the embedding, or one square matrix per layer.
    """
    config = config.get_text_config()
    shape = ("num_hidden_layers", "hidden_size")
    layers, width = (getattr(config, key, None) or 1 for key in shape)
    least = max(layers * width * width, config.vocab_size * width)
    stored = count_parameters(folder)  # also refuses a damaged file, by its name
    if least > _SHARED * stored:
        raise CheckpointError(
            f"{folder / 'config.json'}: describes at least {least:.1e} weights ({layers} layers of "
            f"width {width}, {config.vocab_size} tokens); the folder has {stored:.1e}"
        )


def _pair_format(folder: Path, config: PretrainedConfig) -> PairFormat:
    template = getattr(config, _FORMAT_KEY, PairFormat.template)
    style = getattr(config, _STYLE_KEY, PairFormat.style)
    for key, value in ((_FORMAT_KEY, template), (_STYLE_KEY, style)):
        if not isinstance(value, str):
            raise CheckpointError(f"{folder}/config.json: {key} is {value!r}; it must be a string")
    try:
        return PairFormat(template, style)
    except InputError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None


def load_config(folder: Path) -> PretrainedConfig:
    """A model folder's config.json; raises `CheckpointError` if it is missing or damaged.

    >>> load_config(Path("no-folder"))
    Traceback (most recent call last):
    ledom.core.errors.CheckpointError: no-folder: no such folder; give a model folder
    """
    read_config(folder)  # refuses sizes at which transformers would fail
    with readable(folder):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.return_dict = config.get_text_config().return_dict = True  # outputs by name
    return config


def load_checkpoint(
    folder: str | Path,
    direction: Direction | str | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    eos_token: str | None = None,
    turn: bool = False,
    bos_token: str | None = None,
) -> Checkpoint:
    """Load a model folder; see `read_checkpoint_info`.

    `dtype` is the dtype of the weights in memory; `auto` keeps the file's. `turn` also accepts a
    model of the other direction, to train it in the given one.
    """
    folder = Path(folder)
    config = load_config(folder)  # only once, because it takes as long as loading a small model
    info = read_checkpoint_info(folder, direction, eos_token, turn, bos_token, config)
    _check_size(folder, config)
    with readable(folder):
        refuse_quantized(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # and report them
        )
    model, report = loaded
    for name, stored, described in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"{folder}: {name!r} has the shape {list(stored)}, config.json needs "
            f"{list(described)}; correct config.json, or give the weights that belong to it"
        )
    if report["missing_keys"]:  # transformers would initialize them randomly
        unknown = sorted(report["unexpected_keys"])[:1]  # such as a prefix of torch.compile
        raise CheckpointError(
            f"{folder}: the weights lack {', '.join(sorted(report['missing_keys'])[:3])}"
            f"{f' and have {unknown[0]!r}' if unknown else ''}; the file is incomplete or belongs "
            "to another config.json"
        )
    check_unused(folder, model, report["unexpected_keys"])
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not ((buffer >= 0) & buffer.isfinite()).all():
            rope = getattr(config.get_text_config(), "rope_parameters", None)
            raise CheckpointError(
                f"{folder / 'config.json'}: rotary frequencies must be finite and not negative; "
                f"correct {rope}"
            )
    tokenizer = info.tokenizer
    special = tokenizer.special_ids - {tokenizer.eos_id, *info.bos_ids}
    check_vocabulary(folder, tokenizer.vocab_size, special, model.config)
    return Checkpoint(**vars(info), model=model.eval())


@contextmanager
def readable(folder: str | Path) -> Iterator[None]:
    """Turn any error from transformers into a `CheckpointError`, and silence its output.

    >>> with readable("model"):
    ...     {}["swish"]
    Traceback (most recent call last):
    ledom.core.errors.CheckpointError: model: cannot be loaded: transformers does not know 'swish'
    """
    try:
        with quiet():
            yield
    except Exception as error:  # transformers raises many types for foreign files
        if isinstance(error, LedomError) or is_out_of_memory(error):
            raise
        raise CheckpointError(f"{folder}: cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why transformers cannot read a folder, in one line, without advice to run foreign code."""
    for words, reason in _REASONS.items():
        if words in str(error):
            return reason
    if found := _MISTYPED.search(str(error)):  # transformers takes no integer for a float
        key, kind, value = found.groups()
        value = {"None": "null", "True": "true", "False": "false"}.get(value, value)
        example = f", such as {value}.0" if kind == "float" and value.isdecimal() else ""
        return f"config.json: {key} is {value}; it must be of the type {kind}{example}"
    if isinstance(error, KeyError) and " " not in str(error):  # a name, such as an activation's
        return f"transformers does not know {error}"
    return in_one_line(error, 300)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the screen."""

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not record.name.startswith("transformers")

    with ExitStack() as restore:
        # To set the level instead would clear the caches of all loggers, and affect other threads.
        # In CI, transformers also logs to the root logger.
        for handler in [*logging.getLogger("transformers").handlers, *logging.getLogger().handlers]:
            handler.addFilter(is_shown)
            restore.callback(handler.removeFilter, is_shown)
        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            restore.callback(transformers_logging.enable_progress_bar)
        yield
