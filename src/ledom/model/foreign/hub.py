"""Downloads from the Hugging Face hub: the only place in ledom that fetches weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ledom.core.errors import CheckpointError

__all__ = ["Downloaded", "download"]

_SMALL = (
    "config.json",
    "meta_*.json",
    "*.index.json",
    "added_tokens.json",
    "tokenizer_config.json",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer.pkl")


@dataclass(frozen=True)
class Downloaded:
    """A repository's files on this machine."""

    folder: Path
    commit: str
    sha256: dict[str, str] = field(default_factory=dict)
    """By name, of the files whose hash the hub knows."""


def download(repo: str, revision: str | None = None) -> Downloaded:
    """Fetch what an import reads of a repository, all of one commit.

    A branch or tag is resolved to its commit first. Files go to the hub's cache, and a download
    that was stopped is resumed. Raises `CheckpointError` where the hub does not provide them.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {entry.rfilename: entry for entry in info.siblings or []}
        wanted = _wanted([*files])
        folder = snapshot_download(repo, revision=info.sha, allow_patterns=wanted)
    except (
        Exception
    ) as error:  # no network, no such repository, no right: a type for each, by client
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        at = f" at {revision}" if revision else ""
        raise CheckpointError(
            f"{repo}{at}: cannot be downloaded: {reason[:200]}; check the name and the network, or "
            "give a folder with its files"
        ) from None
    hashes = {name: known.sha256 for name in wanted if (known := files[name].lfs)}
    return Downloaded(Path(folder), str(info.sha), hashes)


def _wanted(names: list[str]) -> list[str]:
    """The files that an import reads: of weights in two formats the safer one."""
    kinds = ("*.safetensors", "pytorch_model*.bin", "model_*.pt", "*.gguf")
    weights = next((found for kind in kinds if (found := _matching(names, (kind,)))), [])
    if weights and weights[0].endswith(".pt"):
        weights = [max(weights)]  # the last step
    return sorted({*_matching(names, _SMALL), *_matching(names, _TOKENIZERS), *weights})


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(Path(name).match(pattern) for pattern in patterns)]
