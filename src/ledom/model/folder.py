"""A model folder: its place in the hub's cache, its config.json, its files and their hash.

A file is hashed once. Its digest is cached in the user's cache folder (`XDG_CACHE_HOME`, else
`~/.cache`) and used until the file's path, size, inode or times change. If the cache cannot be
written, files are hashed each time. This module does not know about models.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, OutputError
from ledom.core.files import cache_folder, file_hash, real_path, write_json
from ledom.core.reading import (
    JsonObject,
    check_regular,
    exists,
    read_json,
    read_json_object,
    read_text,
)
from ledom.model.foreign.aliases import what_to_run

__all__ = [
    "CONTEXT_KEYS",
    "count_parameters",
    "end_ids",
    "file_digest",
    "hash_files",
    "loaded_files",
    "numbers_in",
    "read_config",
    "read_index",
    "refuse_adapter",
    "refuse_quantized",
    "snapshot",
    "weight_files",
]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # in transformers' order
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
CONTEXT_KEYS = (  # by architecture
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"),
)
_SIZES = (  # keys of config.json under the names that architectures use
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"),
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "head_dim", "rotary_dim"),
    "vocab_size",
    *CONTEXT_KEYS,
)
_RANGES = (  # no model was trained outside these limits, so every score would be wrong
    (re.compile(r"^n(um)?(_hidden)?_layers?$"), 0, 10_000),  # transformers makes a list of them
    (re.compile(r"(^|_)eps(ilon)?(_|$)"), 0, 0.1),  # of norms
    (re.compile(r"rope_theta$|rotary_emb_base$|rope_local_base_freq$"), 1, 1e15),
    (re.compile(r"^logits?_scal(e|ing)$|^final_logit_softcapping$|_multiplier$"), 1e-6, 1e6),
)
_PLAIN = ("F64", "F32", "F16", "BF16")  # safetensors' names of dtypes that hold weights as they are
_CACHED_BYTES = 2**20  # digests of smaller files are not worth caching
_SETTLED_SECONDS = 2.0  # a file changed twice within this time may have the same timestamps


def snapshot(folder: Path) -> Path:
    """The model folder inside a repository of the hub's cache; other folders are unchanged.

    If several commits are cached, the one that `refs/main` names is used. Raises `CheckpointError`
    if it does not name any of them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     commit = Path(cache, "models--me--twin", "snapshots", "c0ffee")
    ...     commit.mkdir(parents=True)
    ...     snapshot(commit.parent.parent).name, snapshot(commit).name
    ('c0ffee', 'c0ffee')
    """
    commits, main = folder / "snapshots", folder / "refs" / "main"
    if exists(folder / "config.json") or not os.path.isdir(commits):
        return folder
    named = read_text(main).strip() if exists(main) else None
    found = [path for path in commits.iterdir() if path.is_dir()]
    found = [path for path in found if path.name == named] or found
    if len(found) != 1:
        raise CheckpointError(
            f"{commits}: holds {len(found)} commits, and refs/main names none of them; give the "
            "folder of one"
        )
    return found[0]


def read_config(folder: Path) -> JsonObject:
    """A model folder's config.json.

    Raises `CheckpointError` if there is none, or if it has an impossible number, such as 0 heads.

    >>> read_config(Path("no-folder"))
    Traceback (most recent call last):
    ledom.core.errors.CheckpointError: no-folder: no such folder; give a model folder
    """
    file = folder / "config.json"
    if not exists(file):
        refuse_adapter(folder)
        inner = [folder / way / "model" for way in ("", *Direction)]  # of a training run's folders
        found = [str(model) for model in inner if os.path.isfile(model / "config.json")]
        remedy = f"give {' or '.join(found) or 'a model folder'}"
        what = "no config.json here" if os.path.isdir(folder) else "no such folder"
        raise CheckpointError(f"{folder}: {what}; {remedy}")
    config = read_json_object(file)
    text_config = config.get("text_config")
    parts = (config, text_config) if isinstance(text_config, dict) else (config,)
    for key, size in ((key, part[key]) for part in parts for key in _SIZES if key in part):
        if isinstance(size, bool | str | float) or (isinstance(size, int) and size < 1):
            raise CheckpointError(f"{file}: {key} is {size!r}; it must be a whole number above 0")
    for key, number in numbers_in(config):
        for names, least, most in _RANGES:
            if names.search(key) and not least <= number <= most:  # NaN is not
                raise CheckpointError(
                    f"{file}: {key} is {number!r}; it must lie from {least:g} to {most:g}"
                )
    return config


def numbers_in(config: JsonObject) -> Iterator[tuple[str, float]]:
    """The numbers in config.json by their keys, including those of nested objects.

    >>> list(numbers_in({"eps": 0.1, "rope": {"factor": 2, "type": "linear"}}))
    [('eps', 0.1), ('factor', 2)]
    """
    for key, value in config.items():
        if isinstance(value, dict):
            yield from numbers_in(value)
        elif isinstance(value, int | float):
            yield key, value


def weight_files(folder: Path, config: JsonObject) -> list[Path]:
    """The files that hold a model's weights; the index of shards (if any) comes first.

    Raises `CheckpointError` for an adapter, and for a file that is missing or not a regular file.

    >>> weight_files(Path("no-folder"), {})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.CheckpointError: no-folder: no weights here; expected ...
    """
    refuse_adapter(folder)
    named = config.get("transformers_weights")
    names = _WEIGHTS if named is None else (str(named),)
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        remedy = what_to_run(str(folder)) if named is None else None
        raise CheckpointError(
            f"{folder}: no weights here; expected {' or '.join(names)}"
            + (f"; to read other files, run: {remedy}" if remedy else "")
        )
    if not found.name.endswith(".index.json"):
        return [_regular(found)]
    return [found, *map(_regular, sorted(set(read_index(found).values())))]


def refuse_adapter(folder: Path) -> None:
    """Raise `CheckpointError` for an adapter, which transformers would merge into the weights."""
    if exists(folder / "adapter_config.json"):
        raise CheckpointError(
            f"{folder}: has an adapter (adapter_config.json); merge it into its base model with "
            "peft's merge_and_unload() and save the result with its tokenizer, or remove its files "
            "(prompt, prefix and P-tuning cannot be merged)"
        )


def read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor, from the index of a model's shards.

    Raises `CheckpointError` for a damaged index, and for a file that is not next to it.
    """
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: no weight_map from tensors to files")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names the shard {name!r}, which is missing")
    return {tensor: index.parent / name for tensor, name in names.items()}


def loaded_files(folder: Path) -> list[Path]:
    """Every file of a model folder that decides what the model computes.

    >>> from ledom.lm import embedded_folder
    >>> [file.name for file in loaded_files(embedded_folder("reverse"))][-1]
    'model.safetensors'
    """
    config = read_config(folder)
    small = [_regular(folder / name) for name in _SMALL_FILES if (folder / name).exists()]
    return small + weight_files(folder, config)


def end_ids(folder: Path, config: JsonObject) -> list[int]:
    """The ids at which transformers ends a model's text: one, several, or none recorded.

    Chat models have several, for the end of a document and for the end of a turn.

    >>> end_ids(Path("no-folder"), {"eos_token_id": 2})
    [2]
    """
    file = folder / "generation_config.json"
    named = read_json_object(file).get("eos_token_id") if file.exists() else None
    named = config.get("eos_token_id") if named is None else named
    return [i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)]


def count_parameters(folder: Path) -> int:
    """The number of parameters in a model folder, computed from the tensors' shapes.

    Raises `CheckpointError` for a damaged file.

    >>> from ledom.lm import embedded_folder
    >>> count_parameters(embedded_folder("reverse"))
    2755008
    """
    return sum(math.prod(view.get_shape()) for _, _, view in _tensors(folder))


def refuse_quantized(folder: Path) -> None:
    """Raise `CheckpointError` for quantized weights without settings that transformers knows.

    It would take them for plain numbers; vLLM knows more, or may find them in other files.

    >>> from ledom.lm import embedded_folder
    >>> refuse_quantized(embedded_folder("reverse"))
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = read_config(folder).get("quantization_config")
    with suppress(ValueError):  # settings without a method, such as MLX's
        if settings and AutoHfQuantizer.supports_quant_method(settings):
            return
    for file, name, view in _tensors(folder):
        dtype = view.get_dtype()  # whole numbers may be buffers, such as masks
        is_weight = dtype[0] in "CF" or name.endswith(("weight", "_proj"))
        if is_weight and dtype not in _PLAIN:
            raise CheckpointError(
                f"{file}: {name!r} is stored as {dtype}, like quantized weights, but config.json "
                f"has no quantization_config that transformers knows; give {', '.join(_PLAIN)}"
            )


def _tensors(folder: Path) -> Iterator[tuple[Path, str, Any]]:
    """The file, the name and an unread slice of each tensor in a model folder."""
    from safetensors import SafetensorError, safe_open

    for file in weight_files(folder, read_config(folder)):
        if file.name.endswith(".index.json"):
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    yield file, name, tensors.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: damaged ({error}); save the model again") from None


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, independent of their folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.txt")
    ...     hashes = [hash_files([file]) for text in ("x", "y") if file.write_text(text)]
    >>> hashes[0] == hashes[1]
    False
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(files), os.cpu_count() or 1))) as pool:
        digests = list(pool.map(file_digest, files))
    lines = [f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes; raises `CheckpointError` if it cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as empty:
    ...     file_digest(Path(empty.name))[:8]
    'e3b0c442'
    """
    _regular(file)
    cached = None
    try:
        status, place = file.stat(), real_path(file)
        changed = (status.st_mtime_ns, status.st_ctime_ns)
        state = [str(place), status.st_size, *changed, status.st_ino, status.st_dev]
        folder = cache_folder() if status.st_size >= _CACHED_BYTES else None
        if folder is not None:
            cached = folder / "digests" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"
            with suppress(InputError):  # nothing there, or damaged
                known = read_json(cached)
                if known.get("state") == state:
                    return str(known.get("digest"))
        began = time.time()
        digest = file_hash(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    if cached is not None and began - max(changed) / 1e9 > _SETTLED_SECONDS:
        with suppress(OutputError, OSError):
            write_json(cached, {"state": state, "digest": digest})
    return digest


def _regular(file: Path) -> Path:
    """The file; raises `CheckpointError` if it is missing, or is a folder or a pipe."""
    try:
        check_regular(file)
    except InputError as error:
        raise CheckpointError(str(error)) from None
    return file
