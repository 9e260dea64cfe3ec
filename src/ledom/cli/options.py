"""Options that commands share, with bounds, and a check that each option has an effect."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ledom.core import processes
from ledom.core.errors import InputError, OutputError
from ledom.core.files import LARGEST_SEED, lock_for_group, real_path
from ledom.core.folders import temporary_folder
from ledom.core.reading import exists

# Bounds far above any real use: a typo such as 10**20 is refused at once.
MOST_PROBLEMS = 100_000_000
MOST_SAMPLES = 100_000
MOST_TOKENS = 10_000_000
MOST_COPIES = 1000


def named_path(given: str | Path) -> Path:
    """Parse the path of an option or argument; refuses an empty one, which Python reads as `.`.

    >>> named_path("out"), named_path(".")
    (PosixPath('out'), PosixPath('.'))
    """
    if not str(given).strip():
        raise typer.BadParameter("it is empty; give a path (. is the current folder)")
    return Path(given)


path_option = partial(typer.Option, parser=named_path, metavar="PATH")
path_argument = partial(typer.Argument, parser=named_path)
count_option = partial(typer.Option, min=1, max=MOST_PROBLEMS)

# Options by their groups in `--help`.
problem_option = partial(typer.Option, rich_help_panel="Problems")
sampling_option = partial(typer.Option, rich_help_panel="Sampling")
samples_option = partial(sampling_option, min=1, max=MOST_SAMPLES)
scoring_option = partial(typer.Option, rich_help_panel="Scoring", min=0, max=MOST_COPIES)  # counts
selection_option = partial(typer.Option, rich_help_panel="Selection")
model_option = partial(typer.Option, rich_help_panel="Models and hardware")


Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed, at most 2^62.")]

Problems = Annotated[
    str,
    problem_option(
        help="A JSONL file of problems, or gsm_symbolic (generated), gsm8k, math500, aime2024, "
        "amc2023, triviaqa or nq_open."
    ),
]
NumProblems = Annotated[
    int | None,
    count_option(
        rich_help_panel="Problems",
        help="Take only the first N. Default: the whole file, or 40 generated.",
    ),
]
Split = Annotated[
    str, problem_option(help="Split of the generated problems: train, valid, tune or test.")
]
HeldOut = Annotated[
    bool, problem_option(help="Generate problems from the templates that no model was trained on.")
]

Samples = Annotated[int, samples_option(help="Candidates per problem.")]
EarlyStop = Annotated[
    bool, sampling_option(help="Stop sampling a problem once its majority answer cannot change.")
]
Temperature = Annotated[
    float, sampling_option(help="Sampling temperature. 0 always takes the most likely token.")
]
TopK = Annotated[
    int,
    sampling_option(
        min=0, max=MOST_TOKENS, help="Sample from the K most likely tokens. 0: from all."
    ),
]
TopP = Annotated[
    float,
    sampling_option(
        help="Sample from the most likely tokens that together have this probability. 1: from all."
    ),
]
MaxTokens = Annotated[
    int, sampling_option(min=1, max=MOST_TOKENS, help="Maximum number of new tokens.")
]

ScoreFields = Annotated[
    list[str] | None,
    selection_option(
        "--score-field",
        help="Extra score field in the candidates file, such as a verifier's score (repeatable). "
        "self_certainty is used by default if every candidate has it. none: no extra scores.",
    ),
]

WeightsFile = Annotated[
    Path | None,
    path_option(
        rich_help_panel="Selection",
        help="A weights file from ledom tune. Default: for the embedded pair, its own weights; for "
        "other models, lambda 0.5.",
    ),
]
Lambda = Annotated[
    float | None,
    selection_option(
        "--lambda", help="Weight of the reverse term, from 0 to 1, in place of a weights file."
    ),
]
MaskCopies = Annotated[
    int,
    scoring_option(
        help="Hide from the reverse model passages of N or more words that an answer copies from "
        "the question. 0: hide nothing. Cost: none.",
    ),
]

_MODEL = (
    "A model folder, tiny (embedded), vllm:FOLDER or openai:NAME, with options after commas (see "
    "ledom docs formats)."
)
Model = Annotated[str, model_option(help=_MODEL)]
ModelOrNone = Annotated[str, model_option(help=f"{_MODEL} none: no model.")]
Direction = Annotated[
    str | None, typer.Option(help="Direction of a model whose config.json records none.")
]
Device = Annotated[
    str | None, model_option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")
]
Dtype = Annotated[
    str,
    model_option(
        help="auto, float32, bfloat16, float16, or int8 (CPU). auto: bfloat16 where it is faster "
        "and a trial shows that it is safe, else float32."
    ),
]


def _set_threads(threads: int | None) -> None:
    """Set the threads before torch is imported, as torch then reads how idle threads wait; commands
    do not use the value."""
    processes.set_threads(threads)


Threads = Annotated[
    int | None,
    model_option(
        min=1,
        max=1024,
        callback=_set_threads,
        help="CPU threads. Default: OMP_NUM_THREADS, else the CPUs that this process may use.",
    ),
]


def out_folder(help: str) -> Any:
    """An option for a folder to write; a file in its place, or above it, is refused."""
    return path_option(help=help, callback=check_folder)


def out_file(help: str) -> Any:
    """An option for a file to write; a folder in its place, or a file above it, is refused."""
    return path_option(help=help, callback=_check_file)


def check_folder(path: Path | None) -> Path | None:
    """Raise `InputError` or `OutputError` if a folder cannot be written; it need not exist.

    >>> check_folder(Path("/dev/null/out"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: /dev/null: not a folder, but --out needs one; give another
    """
    above: list[Path] = [] if path is None else [path, *path.parents]
    for place in above:
        if exists(place) and not place.is_dir():
            raise InputError("not a folder, but --out needs one; give another", path=place)
    found = next((place for place in above if place.is_dir()), None)
    if found is not None and not os.access(found, os.W_OK | os.X_OK):
        raise OutputError(f"{found}: this folder cannot be written; give another --out")
    return path


def _check_file(path: Path | None) -> Path | None:
    if path is not None:
        if path.is_dir():
            raise InputError("this is a folder, but --out needs a file; add a name", path=path)
        check_folder(path.parent)
    return path


Out = Annotated[Path, out_folder("Folder for the results. Finished work found there is reused.")]
OutForFile = Annotated[
    Path | None, out_folder("Folder for the results, required for JSONL. Finished work is reused.")
]

Unused = tuple[object, str, Iterable[str]]
"""A condition, the reason to give, and the parameters that have no effect when it holds."""


def refuse_unused(context: typer.Context, *rules: Unused) -> None:
    """Raise `InputError` for an option on the command line that would have no effect.

    Every command calls it first, with one rule for each option that another can make useless.

        refuse_unused(context, (candidates, "the candidates are given", ["samples", "top_k"]))
    """
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for holds, reason, names in rules:
        for name in names if holds else ():
            source = context.get_parameter_source(name)
            if name in flags and source is not None and source.name == "COMMANDLINE":
                raise InputError(f"{flags[name]} would have no effect: {reason}; leave it out")


def unused_by_models(*names: str) -> tuple[Unused, ...]:
    """The rules for --device and --dtype, which some backends do not use."""
    from ledom.lm import backend_of

    backends = [backend_of(name) for name in names if name != "none"]
    used = {option for backend in backends for option in backend.takes}
    closest = max(backends, key=lambda backend: len(backend.takes), default=None)
    reason = closest.why_not if closest else "no model runs in this process"
    return ((True, reason, [name for name in ("device", "dtype") if name not in used]),)


def unused_by_pair(
    weights: Path | None, forward: str, reverse: str, *of_reverse: str
) -> tuple[Unused, ...]:
    """The rules of `unused_by_models`, and those for --lambda and for a reverse model's options."""
    return (
        (weights, f"the weights come from {weights}", ["lam"]),
        ("none" in (forward, reverse), "it weighs two models, and one is none", ["lam"]),
        (reverse == "none", "only a reverse model uses it", of_reverse),
        *unused_by_models(forward, reverse),
    )


def unused_when_greedy(temperature: float, *names: str) -> tuple[Unused, ...]:
    """The rules for options that only random sampling uses: --top-k, --top-p and `names`.

    >>> [names for holds, _, names in unused_when_greedy(0.0, "samples") if holds]
    [['top_k', 'top_p'], ('samples',)]
    """
    return (
        (temperature == 0, "at temperature 0 the most likely token is taken", ["top_k", "top_p"]),
        (temperature == 0, "at temperature 0 there is only one text", names),
    )


def command_line() -> str:
    """The command line of this process, for reports; invalid UTF-8 is escaped."""
    written = shlex.join(["ledom", *sys.argv[1:]])
    return written.encode("utf-8", "backslashreplace").decode("utf-8")


def named_score_fields(names: list[str] | None) -> list[str] | None:
    """The score fields of --score-field: None if the option is not given, [] for `none`.

    >>> named_score_fields(["verifier"]), named_score_fields(["none"]), named_score_fields([])
    (['verifier'], [], None)
    """
    return [] if names == ["none"] else names or None


def check_results(out: Path | None, *names: str, read: Iterable[str | Path | None] = ()) -> None:
    """Raise an error if a command cannot write these results to `out`, or if one of them would
    replace one of the files that the command will `read`.

    >>> check_results(Path("/dev"), "null")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.OutputError: /dev/null: cannot be written: not a regular file; remove it, ...
    """
    paths = [] if out is None else [out / name for name in names]
    for path in paths:
        if exists(path) and not path.is_file():
            raise OutputError(
                f"{path}: cannot be written: not a regular file; remove it, or give another --out"
            )
    written = set(map(real_path, paths))
    for file in read:
        if file is not None and real_path(file) in written:
            raise InputError(f"--out {out} would replace {file}; give another folder")


@contextmanager
def results_folder(out: Path | None) -> Iterator[Path]:
    """The user's folder for the results, or a temporary one that is removed at the end.

    Raises `OutputError` if another run is using the folder, or removes it meanwhile.

    >>> with results_folder(None) as unnamed:
    ...     unnamed.is_dir()
    True
    """
    with (
        nullcontext(out) if out else temporary_folder() as folder,
        lock_for_group(folder, "writes its results", ".results.lock") as check_folder,
    ):
        yield folder
        check_folder()
