"""The command line: ``clease-nn demo`` and ``clease-nn info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

import clease_nn

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(clease_nn.__version__)
def main() -> None:
    """Neural semi-grand canonical sampling for cluster expansions."""


@main.command()
@click.option("--seconds", default=75.0, show_default=True, help="Training time.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo_output"),
    show_default=True,
    help="Folder for figures, table and model.",
)
@click.option("--seed", default=1, show_default=True)
@click.option("--short", is_flag=True, help="A few seconds, to see that everything runs.")
def demo(seconds: float, out: Path, seed: int, short: bool) -> None:
    """Train on a Cu-Au expansion and compare with exact values and CLEASE's Monte Carlo."""
    from clease_nn.cli.demo import run_demo

    if seconds <= 0:
        raise click.BadParameter(f"must be positive, got {seconds}", param_hint="--seconds")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"cannot write to {out}: {error.strerror}; choose another folder with --out"
        ) from error
    run_demo(out, seconds=4.0 if short else seconds, seed=seed, short=short)


@main.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def info(path: Path) -> None:
    """Say what a model file holds."""
    from clease_nn.io import ModelFileError, TrainedModel
    from clease_nn.networks import AbstractNetwork

    try:
        trained = TrainedModel.load(path)
    except ModelFileError as error:
        raise click.ClickException(str(error)) from error
    shown = {k: v for k, v in trained.metadata.items() if k != "history"}
    if "surrogate" in shown:  # the expansion itself is long
        shown["surrogate"] = shown["surrogate"]["report"]
    parameters = sum(p.numel() for p in trained.model.parameters())
    networks = [m for m in trained.model.modules() if isinstance(m, AbstractNetwork)]
    what = {
        "model": type(trained.model).__name__,
        "networks": [type(network).__name__ for network in networks],
        "parameters": parameters,
    }
    click.echo(json.dumps({**what, **shown}, indent=1))
