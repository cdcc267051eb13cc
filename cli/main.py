"""The `presage` command: which commands there are. Each lives in its own file and imports heavy things when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli import exit_codes
from cli.client.classify import classify
from cli.client.embed import embed
from cli.client.health import health
from cli.client.landscape import landscape
from cli.client.plan import plan
from cli.data.collect import collect
from cli.data.inspect import inspect as inspect_dataset
from cli.demo.command import demo
from cli.evaluate import evaluate
from cli.replay import replay
from cli.serve import serve
from cli.train.command import train
from cli.version import show_version
from cli.weights import import_weights, inspect, list_published, pull

app = typer.Typer(
    name="presage",
    help="A video world-model service for robot planning: encode, predict, and plan toward a goal image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: boxes and three columns leave 18 characters for the text of a terminal's 80
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(
    help="Gather episodes to train on, and look into recorded ones.", no_args_is_help=True, rich_markup_mode=None
)
weights = typer.Typer(
    help="Look into model packages and make them from published weights.", no_args_is_help=True, rich_markup_mode=None
)

app.command("serve")(serve)
app.command("demo")(demo)
app.command("plan")(plan)
app.command("landscape")(landscape)
app.command("embed")(embed)
app.command("classify")(classify)
app.command("train")(train)
app.command("eval")(evaluate)
app.add_typer(data, name="data")
data.command("collect")(collect)
data.command("inspect")(inspect_dataset)
app.add_typer(weights, name="weights")
weights.command("inspect")(inspect)
weights.command("import")(import_weights)
weights.command("list")(list_published)
weights.command("pull")(pull)
app.command("health")(health)
app.command("replay")(replay)


@app.callback()
def presage(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=show_version, help="Say the versions of Presage, Python and torch."
        ),
    ] = False,
) -> None:
    """A video world-model service for robot planning: encode, predict, and plan toward a goal image."""


def main() -> None:
    """Entry point of the `presage` script."""
    sys.exit(exit_codes.run(lambda: app(prog_name="presage")))
