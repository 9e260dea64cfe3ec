"""What commands share: options with their bounds, options that nothing uses, texts, and models."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.core import processes as parallel
from ledom.core.errors import InputError

if TYPE_CHECKING:
    from ledom.core.records import Problem
    from ledom.lm.language_model import LanguageModel

__all__ = [
    "Columns",
    "Device",
    "Dtype",
    "MaxTokens",
    "Model",
    "NumProblems",
    "Out",
    "Samples",
    "Seed",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "Unused",
    "choose_problems",
    "command_line",
    "decode_text",
    "load_model",
    "model_or_none",
    "named_columns",
    "read_text",
    "refuse_unused",
    "unused_by_models",
    "unused_when_greedy",
    "use_threads",
]

# Bounds far above any use: a slip such as 10**20 is refused at once, and the bound named.
MOST_PROBLEMS = 100_000_000
MOST_SAMPLES = 100_000
MOST_TOKENS = 10_000_000

Out = Annotated[Path, typer.Option(help="Folder for the results; finished work there is reused.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        help="A number in the candidates to choose by too, as a verifier's; may be repeated. "
        "self_certainty is taken by itself where they have it; none: without."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**62, help="Seed of everything drawn at random.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        help="CPU threads; by default OMP_NUM_THREADS, else the CPUs that this process may use.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16; auto: float32 on a CPU.")
]
Model = Annotated[
    str,
    typer.Option(
        help="A model's folder, tiny (embedded), vllm:FOLDER or openai:NAME; options follow after "
        "commas, see ledom docs formats. none: without."
    ),
]
NumProblems = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_PROBLEMS,
        help="How many problems: the first of a file, all by default; 40 of the generator.",
    ),
]
Samples = Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="Candidates for each problem.")]
Temperature = Annotated[float, typer.Option(help="Of the sampling; 0 takes the most likely token.")]
TopK = Annotated[int, typer.Option(min=0, max=MOST_TOKENS, help="Of the sampling; 0 for all.")]
TopP = Annotated[float, typer.Option(help="Of the sampling; 1 for all.")]
MaxTokens = Annotated[
    int, typer.Option(min=1, max=MOST_TOKENS, help="Most tokens to write at a time.")
]

Unused = tuple[object, str, Iterable[str]]
"""(whether it is so, why, the parameters' names that have no effect then)."""


def refuse_unused(context: typer.Context, *rules: Unused) -> None:
    """Raise `InputError` for an option that was given and would have no effect.

    Every command calls it first, with a rule for each of its options that other options can leave
    without effect. Defaults never count, only what stands on the command line.

        refuse_unused(context, (candidates, "the candidates are given", ["samples", "top_k"]))
    """
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for holds, reason, names in rules:
        for name in names if holds else ():
            source = context.get_parameter_source(name)
            if name in flags and source is not None and source.name == "COMMANDLINE":
                raise InputError(f"{flags[name]} would have no effect: {reason}; leave it out")


def unused_by_models(*names: str) -> tuple[Unused, ...]:
    """Rules for options that only models in this process (device, dtype), or vLLM (dtype), use."""
    from ledom.lm import backend_of

    backends = {backend_of(name) for name in names if name != "none"}
    return (
        (backends <= {"openai"}, "no model runs in this process", ["device", "dtype"]),
        (backends <= {"openai", "vllm"}, "vLLM chooses its devices itself", ["device"]),
    )


def unused_when_greedy(temperature: float) -> Unused:
    """The rule for what only draws at random use."""
    reason = "at temperature 0 the most likely token is taken"
    return (temperature == 0, reason, ["top_k", "top_p"])


def choose_problems(
    context: typer.Context,
    source: str,
    count: int | None,
    draws: bool,
    split: str,
    seed: int,
    held_out: bool = False,
) -> list[Problem]:
    """The problems that the options name; `draws`: whether the command draws at random.

    Raises `InputError` where there are fewer than were asked for, or where options have no effect.
    """
    from ledom.data.benchmarks import load_problems
    from ledom.data.problems import GENERATOR

    given = source != GENERATOR
    reason = f"the problems are those of {source}, and"
    refuse_unused(
        context,
        (given, f"{reason} only {GENERATOR} has splits", ["split", "held_out"]),
        (given and not draws, f"{reason} nothing is drawn at random", ["seed"]),
    )
    problems = load_problems(source, count, split, seed, held_out)
    if count is not None and len(problems) < count:
        raise InputError(
            f"--num-problems is {count}, but {source} has {len(problems)}; "
            "leave it out to take all of them"
        )
    return problems


def read_text(argument: str, name: str) -> str:
    """A text given as an argument, or on standard input for `-`; see `decode_text`."""
    if argument == "-":
        return decode_text(_read_input(), f"{name} on standard input")
    return decode_text(os.fsencode(argument), name)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 as text, whatever the locale says; raises `InputError` for other bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the {name} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it first, as by iconv -t UTF-8"
        ) from None


def _read_input() -> bytes:
    """Standard input, with line ends as `open` gives them."""
    if sys.stdin is None:
        raise InputError("standard input is closed, and - reads it; give the text itself")
    data = sys.stdin.buffer.read()
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def command_line() -> str:
    """The command as it can be typed again, for reports; bytes that are not UTF-8 are escaped."""
    written = shlex.join(["ledom", *sys.argv[1:]])
    return written.encode("utf-8", "backslashreplace").decode("utf-8")


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
        raise InputError(f"this command needs a {direction} model; give a folder, or tiny")
    return load(name, direction, device=device, dtype=dtype)


def use_threads(threads: int | None) -> None:
    """Limit this process and its children to so many threads; see `parallel.default_threads`."""
    parallel.set_threads(threads)
