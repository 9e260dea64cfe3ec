"""`ledom import`: converts a published checkpoint or a foreign file to a model folder.

Only this package downloads weights or reads formats other than safetensors and JSON. It never runs
code that comes with a model, and unpickles only plain data. The folder is written atomically,
tensor by tensor, so a model of any size needs little memory.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

import ledom
from ledom.core.direction import Direction, choose_direction
from ledom.core.errors import CheckpointError, InputError, LedomError, OutputError, in_one_line
from ledom.core.files import write_json
from ledom.core.folders import temporary_folder, write_folder
from ledom.core.reading import JsonObject, exists, read_json_object
from ledom.model.architectures import check_vocabulary
from ledom.model.checkpoint import DIRECTION_KEY, quiet, readable
from ledom.model.folder import end_ids, file_digest, read_config, snapshot
from ledom.model.foreign import nanochat_import
from ledom.model.foreign.aliases import ALIASES, is_hub_name
from ledom.model.foreign.check import SelfCheck, check_model
from ledom.model.foreign.gguf import read_gguf
from ledom.model.foreign.hub import download, one_gguf
from ledom.model.foreign.nanochat import NanochatConfig
from ledom.model.foreign.skeleton import build_skeleton, differing_ties, fit_tensors
from ledom.model.foreign.tensors import (
    StoredTensor,
    read_folder,
    read_torch_file,
    write_safetensors,
)
from ledom.model.foreign.tokenizer_files import known_eos, read_tokenizer
from ledom.text.tokenizer import Tokenizer

__all__ = ["ImportOptions", "import_model"]

RECORD = "ledom_import.json"
"""The file in an imported folder with the source, hashes, notes and self-check results."""
_WEIGHTS_KEY = "transformers_weights"  # key in config.json for a file with an unusual name
_NOT_KEPT = ("auto_map", "_name_or_path", "transformers_version", _WEIGHTS_KEY)

Progress = Callable[..., Iterable[str]]
"""Shows a progress bar over names; same signature as `ledom.cli.progress.track`."""


@dataclass(frozen=True)
class ImportOptions:
    """Settings that a source does not record, or that override its own."""

    direction: Direction | str | None = None
    tokenizer: Path | None = None
    """A tokenizer's file or folder, for weights that come without one."""
    eos_token: str | None = None
    """The document-end token; by default the self-check finds it."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    softcap: float | None = None
    """The cap on a nanochat model's logits, if its files do not show it."""
    check: bool = True
    """Whether to run the self-check."""
    progress: Progress = lambda names, name, done, total: names


@dataclass(frozen=True)
class Imported:
    """The result of an import: the written folder, and notes for the user."""

    folder: Path
    direction: Direction
    eos_token: str
    notes: list[str]
    check: SelfCheck | None


@dataclass
class _Source:
    """The source's files on this machine, and their origin."""

    path: Path
    name: str
    direction: Direction | None = None
    added_tokens: tuple[str, ...] = ()
    commit: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass
class _Model:
    """The contents of a source."""

    config: JsonObject
    tensors: dict[str, StoredTensor]
    tokenizer: RustTokenizer
    eos_token: str | None
    files: list[Path]
    vocab_rows: int | None = None
    """The vocabulary size, if the embedding and the head may be padded beyond it."""
    notes: list[str] = field(default_factory=list)


def import_model(source: str, out: Path, options: ImportOptions = ImportOptions()) -> Imported:
    """Import a model from `source` (alias, USER/NAME on the hub, folder, GGUF file) to `out`.

    Raises `InputError` for any other name, `CheckpointError` for files that are missing, damaged or
    of an unsupported kind, `DirectionError` if the direction is unknown, and `OutputError` if `out`
    exists or cannot be written. After an error, nothing is left behind.

    >>> import_model("no-such", Path("model"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: no-such: no such folder or file, nor a checkpoint that ledom ...
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: exists already; give another folder, or remove this one")
    found = _find(source, options.revision)
    model = _read(found, options)
    if options.softcap is not None and model.config.get("model_type") != NanochatConfig.model_type:
        raise InputError(f"--softcap {options.softcap:g}: only a nanochat model takes it")
    recorded = model.config.get(DIRECTION_KEY, found.direction)
    direction = choose_direction(found.name, recorded, options.direction)
    skeleton = _skeleton(model.config, found.path)
    if differing_ties(model.tensors, skeleton):
        skeleton = _untied(found, model)
    tensors = fit_tensors(model.tensors, skeleton, model.vocab_rows, found.name)
    largest = max(model.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    added = model.tokenizer.get_added_tokens_decoder().items()
    special = {number for number, token in added if token.special}
    check_vocabulary(found.name, largest + 1, special, skeleton.config)
    hashes = _hash(found, model, tensors, options.progress)
    shown = partial(options.progress, name="tensors", done=0, total=len(tensors))
    with write_folder(out) as folder:
        _require_space(out, sum(tensor.num_bytes for tensor in tensors.values()))
        write_safetensors(folder, tensors, shown)
        write_json(folder / "config.json", model.config)  # the self-check may load the model
        check = _check(folder, skeleton, model, direction) if options.check else None
        tokenizer = Tokenizer(model.tokenizer, _eos(model, check, options, found))
        tokenizer.save(folder)
        written = {**model.config, DIRECTION_KEY: str(direction)}
        others = tokenizer.special_ids.intersection(end_ids(found.path, model.config))
        ends = [tokenizer.eos_id, *sorted(others - {tokenizer.eos_id})]
        written["eos_token_id"] = ends if len(ends) > 1 else tokenizer.eos_id
        written["architectures"] = [type(skeleton).__name__]
        write_json(folder / "config.json", written, sort_keys=True)
        record = {
            "source": found.name,
            "commit": found.commit,
            "sha256": hashes,
            "notes": model.notes,
            "self_check": check and asdict(check),
            "ledom_version": ledom.__version__,
        }
        write_json(folder / RECORD, record, sort_keys=True)
    return Imported(out, direction, tokenizer.eos_token, model.notes, check)


def _untied(source: _Source, model: _Model) -> PreTrainedModel:
    """The skeleton with separate embedding and head, as transformers reads them."""
    model.config["tie_word_embeddings"] = False
    skeleton = _skeleton(model.config, source.path)
    if left := differing_ties(model.tensors, skeleton):
        raise CheckpointError(
            f"{source.name}: config.json ties {left[0]!r} to another weight, but the files hold "
            "two different ones; correct config.json"
        )
    model.notes.append("the head is not the embedding, although config.json ties them")
    return skeleton


def _find(source: str, revision: str | None) -> _Source:
    """Find the source on this machine; if it is on the hub, download it first."""
    path = Path(source)
    if exists(path):
        if revision is not None:
            raise InputError(f"--revision {revision}: {source} is on this machine; leave it out")
        return _Source(snapshot(path), source)
    known = ALIASES.get(source)
    if known is None and not is_hub_name(source):
        raise InputError(
            f"{source}: no such folder or file, nor a checkpoint that ledom knows; give a folder, "
            f"one of {', '.join(ALIASES)}, or USER/NAME on the hub"
        )
    known = known or next((entry for entry in ALIASES.values() if entry.repo == source), None)
    repo = known.repo if known else source
    if source not in ALIASES:  # it may be a mistyped path
        note = "%s: no such folder or file here; looking for it on the Hugging Face hub"
        logging.getLogger("ledom").warning(note, source)
    got = download(repo, revision)
    direction, added = (known.direction, known.added_tokens) if known else (None, ())
    return _Source(got.folder, repo, direction, added, got.commit, got.sha256)


def _read(source: _Source, options: ImportOptions) -> _Model:
    path = source.path
    if path.is_file() and path.suffix != ".gguf":
        raise InputError(f"{path}: expected a model folder or a .gguf file")
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if path.is_dir() and (not files or (path / "config.json").is_file()):
        return _read_folder(source, options)
    one_gguf(source.name, [file.name for file in files])
    config, tensors, tokenizer, eos = read_gguf(files[0], options.tokenizer is not None)
    if options.tokenizer is not None:
        tokenizer, others = read_tokenizer(options.tokenizer)
        files += others
    note = "GGUF: dequantized to fp32 by transformers"
    return _Model(config, tensors, tokenizer, eos, files, notes=[note])


def _read_folder(source: _Source, options: ImportOptions) -> _Model:
    folder, notes, rows = source.path, list[str](), None
    tensors, shape_file = _read_weights(folder)
    # The names of its tensors tell an architecture that config.json does not describe.
    if nanochat_import.is_nanochat(tensors):
        shape = nanochat_import.read_model_config(shape_file)
        inferred, notes = nanochat_import.infer_config(tensors, shape, options.softcap)
        config, rows = inferred.to_dict(), shape.vocab_size
    else:
        config = read_config(folder)
    place = options.tokenizer or folder
    tokenizer, files = read_tokenizer(place, source.added_tokens)
    eos = known_eos(place if place.is_dir() else place.parent, tokenizer, config)
    files = [shape_file, *files]
    return _Model(config, tensors, tokenizer, eos, files, rows, notes)


def _read_weights(folder: Path) -> tuple[dict[str, StoredTensor], Path]:
    """The tensors in a folder, and the file that records the model's shape."""
    if checkpoint := nanochat_import.find_checkpoint(folder):
        return read_torch_file(checkpoint[0]), checkpoint[1]
    shape_file = folder / "config.json"
    named = read_json_object(shape_file).get(_WEIGHTS_KEY) if shape_file.is_file() else None
    return read_folder(folder, None if named is None else str(named)), shape_file


def _skeleton(config: JsonObject, path: Path) -> PreTrainedModel:
    """The model that a config describes, without weights; its own code is never run."""
    if config.get("quantization_config"):
        raise CheckpointError(f"{path}: the weights are quantized; give plain ones, or a GGUF file")
    kind = config.get("model_type")
    if not isinstance(kind, str):  # otherwise transformers would guess it from the folder's name
        raise CheckpointError(f"{path}: config.json: model_type is {kind!r}; name an architecture")
    # transformers reads infinities as numbers only from a file.
    with temporary_folder() as folder, readable(path):
        write_json(folder / "config.json", config)
        known: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        skeleton = build_skeleton(known)
    for key in _NOT_KEPT:
        config.pop(key, None)
    return skeleton


def _hash(
    source: _Source, model: _Model, tensors: dict[str, StoredTensor], progress: Progress
) -> dict[str, str]:
    """SHA-256 of every file read, by name; raises an error if one differs from the hub's."""
    files = {str(file): file for file in [*model.files, *(t.file for t in tensors.values())]}
    hashes = {}
    for name in progress(sorted(files), "checksums", 0, len(files)):
        file = files[name]
        digest = file_digest(file)
        inside = file.is_relative_to(source.path) and file != source.path
        short = file.relative_to(source.path).as_posix() if inside else file.name
        expected = source.sha256.get(short, digest)
        if digest != expected:
            raise CheckpointError(
                f"{file}: its sha256 is {digest}, the hub's {expected}; remove the file and "
                "run the import again"
            )
        hashes[short] = digest
    return hashes


def _check(
    folder: Path, skeleton: PreTrainedModel, model: _Model, direction: Direction
) -> SelfCheck:
    try:
        with quiet():
            check = check_model(folder, skeleton, model.tokenizer, direction)
    except LedomError:
        raise
    except Exception as error:  # with token ids alone, an architecture may fail in any way
        reason = in_one_line(error)
        raise CheckpointError(
            f"the self-check failed ({reason}); give --no-check to import the model as it is"
        ) from error
    check.require(direction)
    return check


def _eos(model: _Model, check: SelfCheck | None, options: ImportOptions, source: _Source) -> str:
    """The document-end token: the user's choice, or the measured one, or the recorded one."""
    measured = check.eos_token if check else None
    chosen = options.eos_token or measured or model.eos_token
    if chosen is None:
        raise CheckpointError(f"{source.name}: records no document-end token; give --eos-token")
    if model.eos_token is not None and chosen != model.eos_token:
        model.notes.append(f"the document-end token is {chosen}; the source says {model.eos_token}")
    return chosen


def _require_space(out: Path, num_bytes: int) -> None:
    """Raise `OutputError` if the disk has too little free space; `out.parent` must exist."""
    free = shutil.disk_usage(out.parent).free
    if free < num_bytes:
        raise OutputError(
            f"{out}: needs {num_bytes / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free; give a "
            "folder on another disk"
        )
