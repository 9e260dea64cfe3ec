"""Reads weights in several formats and writes them as safetensors, piece by piece.

A `StoredTensor` has a dtype and a shape; its bytes are read on demand, so copying a checkpoint of
any size needs little memory. PyTorch's files are read by `torch.load(weights_only=True)`, which
runs no pickled code. This module does not know about architectures.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from ledom.core.errors import CheckpointError
from ledom.core.reading import JsonObject, check_regular, parse_json
from ledom.model.folder import read_index, refuse_adapter

__all__ = ["StoredTensor", "from_torch", "read_folder", "read_torch_file", "write_safetensors"]

_PIECE = 2**24  # bytes in memory at a time
_MAPPED = 2**30  # bytes of a PyTorch file mapped at a time
_SHARD = 2**32  # maximum bytes per written file, unless one tensor is larger
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names of the dtypes."""
_SIZES = {name: dtype.itemsize for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    dtype: str
    """The name in safetensors: F32, BF16 ..."""
    shape: tuple[int, ...]
    file: Path
    pieces: Callable[[], Iterator[bytes]]
    """Its bytes, little-endian, in order."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype in ("F64", "F32", "F16", "BF16")

    def equals(self, other: StoredTensor) -> bool:
        """Whether two tensors have the same dtype, shape and bytes."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return all(a == b for a, b in zip(self.pieces(), other.pieces(), strict=True))

    def first_rows(self, rows: int) -> StoredTensor:
        """The tensor's first `rows` rows."""
        if rows == self.shape[0]:
            return self
        cut = replace(self, shape=(rows, *self.shape[1:]))
        return replace(cut, pieces=lambda: _first_bytes(self.pieces(), cut.num_bytes))


def _first_bytes(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def read_folder(folder: Path, named: str | None = None) -> dict[str, StoredTensor]:
    """All tensors of a model folder by name; only from the file `named`, if given.

    safetensors are preferred to PyTorch's files. Raises `CheckpointError` for a folder without
    weights, an adapter, an index that names missing files or tensors, and damaged files.
    """
    refuse_adapter(folder)
    if named is not None:
        file = folder / named
        return _read_indexed(file) if named.endswith(".json") else _read_files([file])
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single = folder / f"{stem}{suffix}"
        if single.exists():  # before an index, as transformers does
            return _read_files([single])
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            return _read_indexed(index)
        if files := sorted(folder.glob(f"*{suffix}")):
            return _read_files(files)
    raise CheckpointError(
        f"{folder}: no weights here: no *.safetensors, *.bin or model_*.pt; give a model folder"
    )


def _read_indexed(index: Path) -> dict[str, StoredTensor]:
    places = read_index(index)
    tensors = _read_files(sorted(set(places.values())))
    for name, file in places.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(
                f"{file}: has no tensor {name!r}, which {index.name} places there"
            )
    return tensors


def _read_files(files: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        check_regular(file)
        read = _read_safetensors if file.suffix == ".safetensors" else read_torch_file
        for name, tensor in read(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{file}: the tensor {name!r} is in {tensors[name].file.name} too"
                )
            tensors[name] = tensor
    return tensors


def _read_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt"):  # checks the header against the file's size
            pass
        with file.open("rb") as contents:
            size = int.from_bytes(contents.read(8), "little")
            header = parse_json(contents.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: truncated or damaged: {error}; fetch it again") from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SIZES:
            raise CheckpointError(
                f"{file}: {name!r} is stored as {entry['dtype']}; give weights in one of "
                f"{', '.join(_SIZES)}"
            )
        start, end = entry["data_offsets"]
        pieces = _file_pieces(file, 8 + size + start, end - start)
        tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), file, pieces)
    return tensors


def _file_pieces(file: Path, start: int, count: int) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        with file.open("rb") as contents:
            contents.seek(start)
            left = count
            while left:
                piece = contents.read(min(left, _PIECE))
                if not piece:
                    raise CheckpointError(f"{file}: truncated while being read")
                left -= len(piece)
                yield piece

    return pieces


class _TorchFile:
    """A memory-mapped file written by `torch.save`.

    It is remapped after every `_MAPPED` bytes, because pages that were read count toward the memory
    of the process.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.mapped: dict[str, torch.Tensor] = {}
        self.read = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        if not self.mapped or self.read > _MAPPED:
            self.mapped, self.read = {}, 0
            self.mapped = self._load()
        return self.mapped

    def pieces(self, name: str) -> Callable[[], Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            yield from _tensor_pieces(self.tensors()[name])
            self.read += self.mapped[name].nbytes

        return pieces

    def _load(self) -> dict[str, torch.Tensor]:
        try:
            loaded = torch.load(
                self.file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.file)
            )
        except Exception as error:  # torch raises many error types for damaged files
            raise CheckpointError(f"{self.file}: {_why_not_loaded(error)}") from None
        held = loaded if isinstance(loaded, Mapping) else {f"a {type(loaded).__name__}": None}
        tensors = {str(k): value for k, value in held.items() if isinstance(value, torch.Tensor)}
        if not tensors:  # such as a state_dict inside a checkpoint of a training run
            raise CheckpointError(
                f"{self.file}: holds {', '.join(map(str, held)) or 'nothing'}, expected tensors by "
                "name; save only the model's state_dict()"
            )
        return tensors


def _why_not_loaded(error: Exception) -> str:
    called = re.search(r"GLOBAL ([\w.]+)", str(error))
    if called:
        return f"is a pickle that calls {called[1]}; only plain tensors are read"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"truncated or damaged, or not a file of torch.save: {lines[0][:200]}"


def read_torch_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a torch.save file by name; raises `CheckpointError` if it is damaged."""
    check_regular(file)
    source = _TorchFile(file)
    return {
        name: _stored(tensor, file, source.pieces(name))
        for name, tensor in source.tensors().items()
    }


def from_torch(tensor: torch.Tensor, file: Path) -> StoredTensor:
    """A tensor that is already in memory; `file` is where it came from."""
    return _stored(tensor, file, lambda: _tensor_pieces(tensor))


def _stored(
    tensor: torch.Tensor, file: Path, pieces: Callable[[], Iterator[bytes]]
) -> StoredTensor:
    if tensor.dtype not in _NAMES:
        raise CheckpointError(f"{file}: a tensor is stored as {tensor.dtype}, which is not read")
    return StoredTensor(_NAMES[tensor.dtype], tuple(tensor.shape), file, pieces)


def _tensor_pieces(tensor: torch.Tensor) -> Iterator[bytes]:
    flat = tensor.detach().contiguous().view(-1)
    for part in flat.split(max(1, _PIECE // flat.element_size())):
        yield part.view(torch.uint8).numpy().tobytes()


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    progress: Callable[[Iterable[str]], Iterable[str]],
) -> None:
    """Write model.safetensors, or shards and their index, into a folder; raises `OSError`.

    `progress` wraps the iteration over the tensors' names.
    """
    shards = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=_SHARD,
    )
    written = chain.from_iterable(
        _write_shard(folder / file, {name: tensors[name] for name in names})
        for file, names in shards.filename_to_tensors.items()
    )
    for _ in progress(written):
        pass
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_shard(file: Path, tensors: dict[str, StoredTensor]) -> Iterator[str]:
    """Write a file, yielding each tensor's name after it is written."""
    # Tensors with the largest element size come first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-_SIZES[tensors[name].dtype], name))
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in tensors[name].pieces():
                out.write(piece)
            yield name
