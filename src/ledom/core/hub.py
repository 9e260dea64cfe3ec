"""The hub: fills card templates, uploads folders, and keeps the hub's clients offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ledom
from ledom.core.errors import InputError, OutputError, in_one_line

if TYPE_CHECKING:
    import jinja2

__all__ = ["check_login", "is_unreachable", "offline", "push", "render_card"]


def render_card(template: Path, **values: Any) -> str:
    """Fill a card template: Markdown with the hub's front matter.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as template:
    ...     _ = Path(template.name).write_text("# {{ name }}: {{ count | commas }} tokens")
    ...     render_card(Path(template.name), name="stories", count=1234567)
    '# stories: 1,234,567 tokens'
    """
    return _compiled(template.read_text(encoding="utf-8")).render(
        version=ledom.__version__, **values
    )


@cache  # compiling takes longer than filling
def _compiled(template: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown
    )
    environment.filters["commas"] = "{:,}".format
    # Absolute paths would publish the names of local folders.
    environment.filters["last_part"] = lambda path: Path(path).name if path[0] == "/" else path
    return environment.from_string(template)


def check_name(repo: str) -> None:
    """Raise `InputError` for a name that the hub does not accept.

    >>> check_name("just-a-name")
    Traceback (most recent call last):
    ledom.core.errors.InputError: the hub's name 'just-a-name' is not of the form USER/NAME
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise InputError(f"the hub's name {repo!r} is not of the form USER/NAME")


def check_login(repo: str) -> None:
    """Raise `OutputError` if nobody is logged in to the hub, or if the hub cannot be reached.

    Raises `InputError` for a name that the hub does not accept. Call it before the work whose
    result is uploaded.
    """
    from huggingface_hub import HfApi

    check_name(repo)
    with _uploading(repo):
        HfApi().whoami()


@contextmanager
def _uploading(repo: str, remark: str = "") -> Iterator[None]:
    """Within this block, an error of the hub's client becomes an `OutputError`."""
    try:
        yield
    except Exception as error:  # hub clients have their own types of token and network errors
        reason = in_one_line(error).rstrip(".")
        raise OutputError(
            f"{repo}: cannot be uploaded: {reason}{remark}; to log in: hf auth login"
        ) from error


def push(
    folder: Path,
    repo: str,
    private: bool = False,
    kind: Literal["model", "dataset"] = "model",
    files: list[str] | None = None,
) -> str:
    """Upload a folder to the hub as `USER/NAME`, created if necessary; returns the URL.

    `files` are patterns of those to upload; None means all. Raises `InputError` for a name that is
    not of this form, `OutputError` if the upload fails.
    """
    from huggingface_hub import HfApi

    check_name(repo)
    api = HfApi()
    with _uploading(repo, f"; {folder} itself is complete"):
        address = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type=kind,
            allow_patterns=files,
            commit_message=f"Upload by ledom {ledom.__version__}",
        )
    return str(address)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a failed connection to the hub.

    >>> is_unreachable(ConnectionError("no route")), is_unreachable(ValueError("no such split"))
    (True, False)
    """
    while error is not None:
        if isinstance(error, ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def offline() -> Iterator[None]:
    """Make hub clients use only their cache; without a network they would retry for 30 seconds.

    >>> import huggingface_hub
    >>> with offline():
    ...     huggingface_hub.is_offline_mode()
    True
    """
    from unittest.mock import patch

    import datasets.config
    import huggingface_hub.constants

    with (
        patch.object(datasets.config, "HF_HUB_OFFLINE", True),
        patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
    ):
        yield
