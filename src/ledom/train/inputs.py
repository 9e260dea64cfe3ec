"""What a run is made from, by content, so that a resumed run reads what it began with.

    runs/<name>/inputs.json     recipe key -> hash of the file, model folder or token store there

Both directions compare with it: twins read the same. A token store stands for itself by the
checksums in its manifest, whatever its size. This module knows nothing of tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError
from ledom.core.files import write_atomically
from ledom.core.provenance import file_hash
from ledom.core.reading import check_regular, read_json
from ledom.data.store import MANIFEST, TokenStore
from ledom.train.recipe import Recipe, named_files

__all__ = ["check_inputs", "content_hash"]


def check_inputs(recipe: Recipe, directions: Sequence[Direction], folder: Path) -> None:
    """Compare the recipe's inputs with those that the run in `folder` began with; write them down
    where no step of it has been saved yet.

    Raises `CheckpointError` naming the key whose content is another than it was, and `InputError`
    for an input that cannot be read.
    """
    file = folder / "inputs.json"
    begun = file.is_file() and any(folder.glob("*/checkpoints/*"))
    known = read_json(file) if begun else {}
    found = {key: (name, content_hash(Path(name))) for key, name in _inputs(recipe, directions)}
    for key, (name, digest) in found.items():
        if known.get(key, digest) != digest:
            raise CheckpointError(
                f"{folder}: {key} ({name}) has changed since this run began; put back what was "
                "there, or give this run another name"
            )
    with write_atomically(file) as out:
        json.dump(known | {key: digest for key, (_, digest) in found.items()}, out, indent=1)


def _inputs(recipe: Recipe, directions: Sequence[Direction]) -> Iterator[tuple[str, str]]:
    """Recipe keys and the paths under them; `init_from` once for each direction."""
    for location, name in named_files(recipe):
        if location != ("init_from",):
            yield ".".join(map(str, location)), name
    for direction in directions if recipe.init_from is not None else ():
        yield f"init_from.{direction}", recipe.init_folder(direction)


def content_hash(path: Path) -> str:
    """A hash of all bytes of a file, of a folder's files by name, or of a token store's shards."""
    digest = hashlib.sha256()
    if (path / MANIFEST).is_file():
        store = TokenStore(path)
        digest.update(f"{store.manifest.tokenizer} {store.eos_id}".encode())
        for shard in store.shards:
            digest.update(f"\n{shard.entry.sha256} {shard.entry.index_sha256}".encode())
        return digest.hexdigest()
    files = [f for f in sorted(path.iterdir()) if f.is_file()] if path.is_dir() else [path]
    for file in files:
        check_regular(file)
        try:
            content = file_hash(file)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=file) from None
        digest.update(f"{file.name if path.is_dir() else ''} {content}\n".encode())
    return digest.hexdigest()
