"""What commands share: options, and the models that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom import parallel
from ledom.errors import InputError

if TYPE_CHECKING:
    from ledom.lm.base import LanguageModel

__all__ = [
    "Columns",
    "Device",
    "Dtype",
    "Model",
    "Out",
    "Seed",
    "Threads",
    "load_model",
    "model_or_none",
    "named_columns",
    "use_threads",
]

Out = Annotated[Path, typer.Option(help="Folder for the results; finished work there is reused.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        help="A number in the candidates to choose by too, as a verifier's; may be repeated. "
        "self_certainty is taken by itself where they have it; none: without."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything drawn at random.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores by default.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16; auto: float32 on a CPU.")
]
Model = Annotated[
    str,
    typer.Option(
        help="A model's folder, tiny (embedded), vllm:FOLDER or openai:NAME; options follow after "
        "commas, see docs/formats.md. none: without."
    ),
]


def named_columns(names: list[str] | None) -> list[str] | None:
    """The columns asked for; None where nothing was said, and nothing for `none`."""
    return [] if names == ["none"] else names or None


def model_or_none(
    name: str, direction: str, device: str | None, dtype: str
) -> LanguageModel | None:
    """The model of a direction; `none` is None."""
    return None if name == "none" else load_model(name, direction, device, dtype)


def load_model(name: str, direction: str, device: str | None, dtype: str) -> LanguageModel:
    """The model of a direction, where a command cannot do without."""
    from ledom.lm import load

    if name == "none":
        raise InputError(
            f"no {direction} model, but this cannot do without; give a folder, or tiny"
        )
    return load(name, direction, device=device, dtype=dtype)


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads; by default this process's share of the cores."""
    import torch

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // parallel.local_size()))
