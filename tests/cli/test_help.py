"""Help: grouped commands, an example for each, text for each option, matching negations."""

from __future__ import annotations

from collections.abc import Iterable

import click
import pytest
import typer.main

from command_line import Run
from ledom.cli.app import app
from ledom.data.benchmarks import BENCHMARKS
from ledom.data.formats import FORMATS
from ledom.evaluate.suites import SUITE_NAMES
from ledom.lm import BACKENDS
from ledom.model.foreign.aliases import ALIASES

GROUP = typer.main.get_command(app)
COMMANDS: dict[str, click.Command] = GROUP.commands  # type: ignore[attr-defined]
PANELS = ("Main job", "Models", "Training", "Data", "Documentation")


def test_help_shows_the_commands_in_groups(run: Run) -> None:
    code, text = run("--help")
    assert code == 0
    places = [text.index(f" {panel} ") for panel in PANELS]
    assert places == sorted(places)
    assert places[0] < text.index("│ rerank ") < places[1] < text.index("│ generate ") < places[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_help_for_every_option(name: str) -> None:
    command = COMMANDS[name]
    assert f"Example: ledom {name}" in (command.help or "")
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"ledom {name}: {parameter.name} has no help"
        if parameter.name != "help":
            assert text.endswith((".", "...")), text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_switch_has_its_negation(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if getattr(parameter, "is_flag", False) and parameter.name not in ("help", "as_json"):
            (option,), (negation,) = parameter.opts, parameter.secondary_opts
            assert negation == f"--no-{option.removeprefix('--')}"


def test_the_options_of_rerank_are_grouped(run: Run) -> None:
    code, text = run("rerank", "--help")
    assert code == 0
    for panel in ("Problems", "Sampling", "Selection", "Models and hardware"):
        assert f" {panel} " in text


@pytest.mark.parametrize("name", ["eval", "rerank", "serve"])
def test_help_says_where_a_model_is_optional(name: str) -> None:
    helps = {p.name: getattr(p, "help", "") for p in COMMANDS[name].params}
    assert "none: no model." in helps["forward"]
    assert "none: no model." in helps["reverse"]


@pytest.mark.parametrize("name", ["rank", "invert", "synthesize", "generate", "explain", "gallery"])
def test_help_says_where_a_model_is_required(name: str) -> None:
    assert not any(
        "none: no model" in (getattr(p, "help", "") or "") for p in COMMANDS[name].params
    )


@pytest.mark.parametrize("name", ["rerank", "search", "synthesize"])
def test_all_splits_are_named(name: str) -> None:
    (split,) = (p for p in COMMANDS[name].params if p.name == "split")
    assert "train, valid, tune or test" in (getattr(split, "help", "") or "")


@pytest.mark.parametrize(
    ("command", "parameter", "choices"),
    [
        ("eval", "suite", SUITE_NAMES),
        ("import", "source", ALIASES),
        ("rerank", "problems", BENCHMARKS),
        ("rerank", "forward", [f"{prefix}:" for prefix in BACKENDS if prefix]),
        ("tokenize", "format", FORMATS),
    ],
)
def test_help_names_every_choice(command: str, parameter: str, choices: Iterable[str]) -> None:
    """Help is written by hand, because it is shown without importing the tables of choices."""
    (text,) = (getattr(p, "help", "") for p in COMMANDS[command].params if p.name == parameter)
    assert [choice for choice in choices if choice not in text] == []
