"""`resnet-repro`: what is done beside the pipeline. Run it in the repository's root."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_repro.errors import ReproError
from resnet_repro.params import load
from resnet_repro.stage import complain

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

# Each command imports what it needs: mlflow and torch take seconds.


@app.command()
def estimate() -> None:
    """Print which runs `dvc repro` would train, and how long that should take on this machine."""
    from resnet_repro import estimate as module

    params = load(Path("params.yaml"))
    keys = module.stale_runs(Path(), params)
    print(module.describe(module.estimate(Path(), keys, params)))


@app.command()
def stale() -> None:
    """List the runs that dvc.lock does not know by today's plans, one per line."""
    from resnet_repro import estimate as module

    for key in module.stale_runs(Path(), load(Path("params.yaml"))):
        print(key)


@app.command()
def publish() -> None:
    """Bring MLflow up to date with the committed evidence; change nothing that is there."""
    from resnet_repro.experiment import load_classifier
    from resnet_repro.tracking import publish as bring_up_to_date

    print(bring_up_to_date(Path(), load_classifier))


@app.command()
def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000) -> None:
    """Publish, then serve MLflow's UI on this machine."""
    from resnet_repro.experiment import load_classifier
    from resnet_repro.tracking import serve_ui

    raise typer.Exit(serve_ui(Path(), port, load_classifier))


@app.command()
def readme() -> None:
    """Bring the table in README.md up to date."""
    from resnet_repro.reporting.write import update_readme

    update_readme(Path())


@app.command()
def demo() -> None:
    """Run the whole pipeline on small nets and bundled data, in a clone of its own."""
    from resnet_repro.demo import run_demo

    run_demo(Path())


def main() -> None:
    try:
        app()
    except ReproError as error:
        complain(f"resnet-repro: {error}")
        raise SystemExit(1) from None
