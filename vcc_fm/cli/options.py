"""What the commands have in common: the program, options, and where they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="vcc-fm",
    help="Predict the single-cell counts that follow a genetic perturbation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
embed_app = typer.Typer(help="Run a frozen encoder and write its embedding store.", no_args_is_help=True)
app.add_typer(embed_app, name="embed")
benchmark_app = typer.Typer(help="Judge by a published benchmark.", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")
export_app = typer.Typer(help="Write what a recipe made in the form that other programs read.", no_args_is_help=True)
app.add_typer(export_app, name="export")


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe, a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, e.g. train.lr=1e-4")]
WIDE = 140
"""Columns where nobody's terminal says how many there are: a table in a log file must not be cut."""

Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors and results")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout, everything else on stderr")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
Processes = Annotated[
    int, typer.Option("--processes", "-p", min=1, help="processes that read cells, train and predict, on this node")
]

Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="repetitions with other weights, batches and cells, on the same stores")
]

Worlds = Annotated[
    int | None, typer.Option("--worlds", min=2, help="simulated worlds: other cells, split, training; in one table")
]
FirstWorld = Annotated[
    int | None,
    typer.Option("--first-world", min=0, metavar="SEED", help="seed of the first world; the others follow (200)"),
]


def console_of(quiet: bool, as_json: bool) -> Console:
    """Where a command prints what is not its result."""
    console = Console(stderr=as_json, quiet=quiet)
    if not console.is_terminal:
        console.width = WIDE
    return console


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, indent=1))  # stdout is the result's own
