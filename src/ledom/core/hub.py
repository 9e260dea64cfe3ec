"""Publishing models and data: cards from templates, and the upload to the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import ledom
from ledom.core.errors import InputError, OutputError

__all__ = ["push", "render_card"]


def render_card(template: Path, **values: Any) -> str:
    """A card from a template, as Markdown with the hub's front matter.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as template:
    ...     _ = Path(template.name).write_text("# {{ name }}: {{ count | commas }} tokens")
    ...     render_card(Path(template.name), name="stories", count=1234567)
    '# stories: 1,234,567 tokens'
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown
    )
    environment.filters["commas"] = "{:,}".format
    # Paths on this machine stay private.
    environment.filters["last_part"] = lambda path: Path(path).name if path[0] == "/" else path
    text = template.read_text(encoding="utf-8")
    return environment.from_string(text).render(version=ledom.__version__, **values)


def push(
    folder: Path, repo: str, private: bool = False, kind: Literal["model", "dataset"] = "model"
) -> str:
    """Upload a folder to the hub as `USER/NAME`, made if it is not there; returns its address.

    Raises `InputError` for a name of another form, `OutputError` when the hub refuses.

    >>> push(Path("out"), "just-a-name")
    Traceback (most recent call last):
    ledom.core.errors.InputError: the hub's name 'just-a-name' is not of the form USER/NAME
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise InputError(f"the hub's name {repo!r} is not of the form USER/NAME")
    api = HfApi()
    try:
        address = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type=kind,
            commit_message=f"Upload by ledom {ledom.__version__}",
        )
    except Exception as error:  # no token, no right, no network: a type for each, by client
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OutputError(
            f"{repo}: cannot be uploaded: {reason}; {folder} itself is complete. To log in: "
            "hf auth login"
        ) from error
    return str(address)
