"""What a file was made from: hashes of texts and files, and the comparison of settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ledom.core.errors import InputError

__all__ = ["check_settings", "differences", "file_hash", "fingerprint"]


def fingerprint(rows: Iterable[tuple[str, ...]]) -> str:
    """A short hash of texts.

    >>> fingerprint([("a", "b")]) == fingerprint([("ab", "")])
    False
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update("".join(f"{text}\0" for text in row).encode())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_settings(
    found: dict[str, Any],
    wanted: dict[str, Any],
    path: Path,
    remedy: str = "give another output folder, or remove it",
) -> None:
    """Raise `InputError` naming what differs between the settings that made `path` and today's."""
    if different := list(differences(found, wanted)):
        raise InputError(
            f"was made with other settings ({'; '.join(different[:3])}); {remedy}", path=path
        )


def differences(there: Any, now: Any, key: str = "") -> Iterator[str]:
    """The settings that differ, one line each. Models (`LanguageModel.identity`) compare by hash.

    >>> list(differences({"seed": 1, "optim": {"steps": 30}}, {"seed": 1, "optim": {"steps": 31}}))
    ['optim.steps: 30 there, 31 now']
    """
    if _is_model(there) and _is_model(now):
        if there["hash"] != now["hash"]:
            yield f"{key}: {_shown(there)} there, {_shown(now)} now"
    elif isinstance(there, dict) and isinstance(now, dict):
        for name in {**there, **now}:
            path = f"{key}.{name}" if key else name
            yield from differences(there.get(name), now.get(name), path)
    elif there != now:
        yield f"{key}: {_shown(there)} there, {_shown(now)} now"


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and {*value} == {"name", "hash"}


def _shown(value: Any) -> str:
    return f"{value['name']} ({value['hash']})" if _is_model(value) else repr(value)
