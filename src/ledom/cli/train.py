"""Commands for training runs and models: plan a run, train, compare, export, import."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log, note, show_plan
from ledom.cli.progress import Progress, track, track_training
from ledom.core import processes
from ledom.core.errors import InputError
from ledom.model.device import default_device, torch_device

if TYPE_CHECKING:
    from ledom.core.direction import Direction
    from ledom.data.prepare import DataConfig, PreparedData
    from ledom.train.distributed import ProcessGroup
    from ledom.train.recipe import Recipe

RecipeFile = Annotated[
    Path,
    options.path_argument(help="A YAML recipe, or the name of one of ledom's: tiny, gsm8k, 7b ..."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, such as optim.steps=100.")]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    direction: Annotated[
        str, typer.Option(help="forward, reverse, or both (one after the other).")
    ] = "both",
    out: Annotated[Path, options.out_folder("Folder that holds all runs.")] = Path("runs"),
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Train a model or a pair. A stopped run resumes from its last checkpoint.

    On many GPUs: torchrun --standalone --nproc-per-node 8 -m ledom train recipe.yaml

    Example: ledom train tiny --direction reverse --threads 1
    """
    from ledom.cli.packaged import find_recipe
    from ledom.core.direction import Direction
    from ledom.train.distributed import check_compile, connect
    from ledom.train.model import check_models
    from ledom.train.recipe import load_recipe, save_recipe
    from ledom.train.start import check_inputs, has_begun

    plan = load_recipe(find_recipe(recipe), overrides or [], files=True, note=note)
    if direction not in ("forward", "reverse", "both"):
        raise InputError(f"direction is {direction!r}; give forward, reverse or both")
    directions = list(Direction) if direction == "both" else [Direction(direction)]
    folder = out / plan.name
    _check_plan(plan, directions, folder)
    device = device or default_device()
    torch_device(device)
    with connect(device) as world:
        check_compile(plan.parallel, world.device)
        check_models(plan, directions, world)
        data = _prepare(plan.data_of(directions[0]), folder / "data")
        if world.is_first:
            check_inputs(plan, directions, folder)
            if not has_begun(folder):  # a run that has begun gets it when it is finished
                save_recipe(plan, folder / "recipe.yaml")
        for way in directions:
            _train_one(plan, way, data, folder, world)


def _check_plan(plan: Recipe, directions: list[Direction], folder: Path) -> None:
    """Fail before the data is prepared, which may take long, and before the first direction is
    trained, which takes longer."""
    from ledom.data.prepare import check_data
    from ledom.train.start import check_lengths, check_packages, check_pairs, check_shareable

    check_shareable(plan, processes.size())
    check_data(plan.data_of(directions[0]))
    str(folder).encode()  # tokenizers and safetensors need a name in UTF-8
    for way in directions:
        options.check_folder(folder / str(way) / "checkpoints")
        options.check_folder(folder / str(way) / "model")
        options.check_results(folder / str(way), "metrics.jsonl")
        check_lengths(plan, way)
    check_packages(plan)
    check_pairs(plan)
    _check_space(plan, directions, folder)


def _check_space(plan: Recipe, directions: list[Direction], folder: Path) -> None:
    """Log a note if the disk is too small. This is no error, since space may become free."""
    from ledom.report.formatting import byte_count
    from ledom.train.space import disk_space

    needed, available = disk_space(plan, directions, folder)
    if available < needed:
        note(
            f"{folder}: this run's checkpoints and models need at least {byte_count(needed)}, but "
            f"the disk has only {byte_count(available)} for them; free some, lower "
            "train.keep_checkpoints, or give another --out"
        )


def _prepare(config: DataConfig, folder: Path) -> PreparedData:
    from ledom.data.prepare import prepare_data, shortfalls

    work = "opening the token stores" if config.sources else f"preparing the data in {folder}"
    log(work)
    with Progress(work):
        data = prepare_data(config, folder)
    note(*shortfalls(config, data))
    return data


def _train_one(
    plan: Recipe, way: Direction, data: PreparedData, folder: Path, world: ProcessGroup
) -> None:
    from ledom.train.checkpoints import newest_step
    from ledom.train.loop import train
    from ledom.train.recipe import save_recipe

    own = folder / str(way)
    with track_training(str(way), newest_step(own), plan.optim.steps) as on_progress:
        finished = train(plan, way, data, own, on_progress, world)
    if world.is_first:
        save_recipe(plan, folder / "recipe.yaml")
        log(f"{way} model: {finished}")


def compare(
    runs: Annotated[
        list[Path], options.path_argument(help="Folders written by ledom train, such as runs/NAME.")
    ],
    out: Annotated[Path, options.out_folder("Folder for the page.")] = Path("ledom-compare"),
    threads: options.Threads = None,
) -> None:
    """Compare the training of both directions, and of several runs, from their metrics.

    Example: ledom compare runs/tiny --out out/compare
    """
    import ledom
    from ledom.report.compare import compare_runs
    from ledom.report.compare_page import claims, write_comparison

    options.check_results(out, "compare.html", "compare.md", "compare.json")
    with Progress("comparing the runs"):
        report = compare_runs(runs)
    report = replace(report, ledom_version=ledom.__version__, command=options.command_line())
    page = write_comparison(out, report)
    log(*claims(report))
    log(f"report: {page}  (the same as compare.md and compare.json)")


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(help="a100, a100-40gb, b200, h100, h200 ...")] = "h100",
    utilization: Annotated[
        float, typer.Option(help="Fraction of the GPUs' peak FLOPs that training reaches.")
    ] = 0.4,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, with sizes in bytes.")
    ] = False,
) -> None:
    """Estimate a run before it starts: parameters, memory by part, FLOPs, hours and disk space.

    Example: ledom plan 7b parallel.activation_checkpointing=true --gpus 64 --gpu h100
    """
    from ledom.cli.packaged import find_recipe
    from ledom.train.estimate import Setup, make_plan
    from ledom.train.recipe import load_recipe

    setup = Setup(gpus, gpu, utilization)
    needs = make_plan(load_recipe(find_recipe(recipe), overrides or [], note=note), setup)
    if as_json:
        typer.echo(json.dumps(asdict(needs) | {"fits": needs.fits}, indent=1))
    else:
        show_plan(needs)


def export(
    context: typer.Context,
    source: Annotated[
        Path,
        options.path_argument(
            help="A model folder, a run's folder (runs/NAME/reverse) or a token store."
        ),
    ],
    out: Annotated[
        Path, options.out_folder("Folder for the released model. A store gets its card in place.")
    ] = Path("ledom-export"),
    direction: options.Direction = None,
    license: Annotated[
        str | None, typer.Option(help="License for the card, such as apache-2.0.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Upload to the hub as USER/NAME.")] = None,
    private: Annotated[bool, typer.Option(help="Make the repository private.")] = False,
) -> None:
    """Export a model, with its card, for plain transformers, vLLM and llama.cpp.

    Example: ledom export runs/tiny/reverse --out tiny-reverse --push me/tiny-reverse
    """
    from ledom.core.hub import check_login
    from ledom.core.hub import push as upload
    from ledom.data.store import read_manifests
    from ledom.train.export import export_model, find_run, write_dataset_card

    if push is not None:
        check_login(push)
    is_data = bool(read_manifests(source))
    options.refuse_unused(
        context,
        (push is None, "nothing is uploaded without --push", ["private"]),
        (is_data, f"{source} is a token store; its card is added in place", ["out", "direction"]),
    )
    if is_data:
        folder, files = source, write_dataset_card(source, push, license)
    else:
        folder, files = export_model(find_run(source), out, direction, push, license), None
    log(f"released: {folder}; its card: {folder / 'README.md'}")
    if push is not None:
        log(f"uploaded: {upload(folder, push, private, 'dataset' if is_data else 'model', files)}")


def import_command(
    source: Annotated[
        str,
        typer.Argument(
            help="ledom-7b, ledom-2b, reverse-pythia, 2tpg, USER/NAME on the hub, a model folder "
            "(Llama, GPT-2, GPT-NeoX, nanochat) or a .gguf file."
        ),
    ],
    out: Annotated[Path, options.out_folder("The model folder to write. It must not exist.")],
    direction: Annotated[
        str | None,
        typer.Option(help="forward or reverse. Needed if neither the name nor the file says."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        options.path_option(help="A tokenizer file or folder, for weights that come without one."),
    ] = None,
    eos_token: Annotated[
        str | None,
        typer.Option(help="The end-of-document token. Default: the one that the self-check finds."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub. Default: the newest commit."),
    ] = None,
    softcap: Annotated[
        float | None,
        typer.Option(help="Logit softcap: 20 for a nanochat model from 2 to 9 March 2026."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Check that the model reads text better in its own direction.")
    ] = True,
    threads: options.Threads = None,
) -> None:
    """Convert a published checkpoint or a foreign file into a model folder.

    Example: ledom import ledom-7b --out ledom-7b
    """
    from ledom.model.foreign.importer import ImportOptions, import_model

    how = ImportOptions(direction, tokenizer, eos_token, revision, softcap, check, track)
    made = import_model(source, out, how)
    log(*made.notes)
    if made.check is not None:
        log(
            f"nats per token: {made.check.forward_loss:.2f} forward, {made.check.reverse_loss:.2f} "
            f"reverse; a document ends with {made.check.eos_token} "
            f"(probability {made.check.eos_probability:.2g})"
        )
    log(f"a {made.direction} model, documents end with {made.eos_token}: {made.folder}")


import_command.__name__ = "import"  # a keyword of Python: the function cannot have this name
