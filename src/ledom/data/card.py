"""The card of a folder of token stores: the source of the text, its size, and hashes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ledom.core.files import write_atomically
from ledom.core.hub import render_card
from ledom.data.store import read_manifests

__all__ = ["write_dataset_card"]


def write_dataset_card(folder: Path, name: str | None = None, license: str | None = None) -> bool:
    """Write README.md into a folder that is or holds token stores; False if there are none.

    >>> import tempfile
    >>> from ledom.data.store import write_store
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     before = write_dataset_card(Path(folder))
    ...     _ = write_store(folder, ["so"], train_tokenizer([], 257))
    ...     before, write_dataset_card(Path(folder))
    (False, True)
    """
    stores = read_manifests(folder)
    if not stores:
        return False
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
    return True
