"""Downloads from the Hugging Face hub; nothing else in ledom fetches weights."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ledom.core.errors import CheckpointError, in_one_line
from ledom.model.foreign.tokenizer_files import TOKENIZER_FILES

__all__ = ["download", "one_gguf"]

_SMALL = (
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "meta_*.json",
    "*.index.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class Downloaded:
    """A repository's local files."""

    folder: Path
    commit: str
    sha256: dict[str, str]
    """SHA-256 by file name, for files whose hash the hub records."""


def download(repo: str, revision: str | None = None) -> Downloaded:
    """Download the files of a repository that an import reads, all from one commit.

    A branch or tag is resolved to its commit first. Files go to the hub's cache; an interrupted
    download resumes. Without a network, the files in the cache are used. Raises `CheckpointError`
    if the files are available from neither.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {entry.rfilename: entry for entry in info.siblings or []}
        wanted = _wanted([*files])
        one_gguf(repo, wanted)
        folder = snapshot_download(repo, revision=info.sha, allow_patterns=wanted)
    except CheckpointError:
        raise
    except Exception as error:  # the types differ by failure and by version of the client
        answered = isinstance(error, HfHubHTTPError)  # so the network is up
        if not answered and (kept := _cached(repo, revision)) is not None:
            note = "%s: the hub cannot be reached; using commit %s from the cache"
            logging.getLogger("ledom").warning(note, repo, kept.commit)
            return kept
        at = f" at {revision}" if revision else ""
        raise CheckpointError(
            f"{repo}{at}: cannot be downloaded: {in_one_line(error)}; check the name and the "
            "network, or give a folder with its files"
        ) from None
    hashes = {name: known.sha256 for name in wanted if (known := files[name].lfs)}
    return Downloaded(Path(folder), str(info.sha), hashes)


def _cached(repo: str, revision: str | None) -> Downloaded | None:
    """A repository's files in the hub's cache; None if there are none."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception:  # the types differ by version of the client
        return None
    files = (file for file in folder.rglob("*") if file.is_file())
    blobs = {file.relative_to(folder).as_posix(): file.resolve().name for file in files}
    hashes = {name: blob for name, blob in blobs.items() if re.fullmatch("[0-9a-f]{64}", blob)}
    return Downloaded(folder, folder.name, hashes)


def one_gguf(place: str, names: list[str]) -> None:
    """Raise `CheckpointError` for several GGUF files, each of which is a model or part of one."""
    found = sorted(name for name in names if name.endswith(".gguf"))
    if len(found) > 1:
        raise CheckpointError(
            f"{place}: has {len(found)} GGUF files; give the path of one that holds a whole "
            f"model: {', '.join(found[:20])}"
        )


def _wanted(names: list[str]) -> list[str]:
    """The files that an import reads; if weights have several formats, only the safest."""
    kinds = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "model_*.pt", "*.gguf")
    weights = next((found for kind in kinds if (found := _matching(names, (kind,)))), [])
    if weights and weights[0].endswith(".pt"):
        weights = [max(weights)]  # the last step
    return sorted({*_matching(names, (*_SMALL, *TOKENIZER_FILES, "merges.txt")), *weights})


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(Path(name).match(pattern) for pattern in patterns)]
