"""`resnet-repro`: what is done beside the pipeline. Run it in the repository's root."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from resnet_repro.errors import ReproError
from resnet_repro.mistakes import printable
from resnet_repro.params import load
from resnet_repro.stage import complain, disk_explained, other_source, refuse_other_source

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def must_be_root() -> None:
    """Raises ReproError: this is no folder that a command could find fault with, or fill MLflow from."""
    if not any(Path(name).is_file() for name in ("params.yaml", "dvc.yaml")):
        raise ReproError("there is no params.yaml: run this in the repository's root")


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
def farm(
    targets: Annotated[
        list[str] | None, typer.Argument(help="runs, models, or what `dvc repro` takes; dvc.yaml if left out")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="how many runs share a device; as `make scale` measured it if left out")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray: the machines of a Ray cluster")] = "local",
    address: Annotated[
        str, typer.Option(help="of the Ray cluster; `auto` is the one that this machine is in")
    ] = "auto",
) -> None:
    """Do what `dvc repro --allow-missing` does, with many runs at once. Ctrl-C stops it; the same command goes on."""
    from rich.console import Console

    from resnet_repro import farm as module

    params = load(Path("params.yaml"))
    if executor not in module.EXECUTORS:
        raise ReproError(f"--executor is one of {', '.join(module.EXECUTORS)}, not {executor}")
    try:
        module.farm(Path(), params, targets or (), Console(), executor, jobs, address)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def publish() -> None:
    """Bring MLflow up to date with the committed evidence; change nothing that is there."""
    must_be_root()
    from resnet_repro.experiment import load_classifier
    from resnet_repro.tracking import publish as bring_up_to_date

    print(bring_up_to_date(Path(), load_classifier))


@app.command()
def ui(
    port: Annotated[int, typer.Option()] = 5000,
    host: Annotated[str, typer.Option(help="another address lets others in: there is no password")] = "127.0.0.1",
) -> None:
    """Publish, then serve MLflow's UI, for this machine only."""
    must_be_root()
    from resnet_repro.experiment import load_classifier
    from resnet_repro.tracking import serve_ui

    raise typer.Exit(serve_ui(Path(), port, load_classifier, host))


@app.command()
def report(partial: Annotated[bool, typer.Option(help="although runs are missing")] = False) -> None:
    """Write the report from the evidence that is here; with --partial also say which runs go on or wait."""
    from resnet_repro.checkpoint import state_of
    from resnet_repro.reporting import write_report

    root = Path()
    missing = [key for key in load(root / "params.yaml").runs if not (root / "reports/runs" / key).is_dir()]
    if missing and not partial:
        raise ReproError(f"{len(missing)} runs are missing, {missing[0]} first: `make repro`, or report --partial")
    states = {key: state_of(root / "checkpoints" / key) for key in missing}
    write_report(root, root / "reports", states)
    print(f"reports/README.md is written; {len(missing)} runs are missing")


@app.command()
def doctor(mend: Annotated[bool, typer.Option("--mend", help="do what is safe, too")] = False) -> None:
    """Find what is wrong with this workspace, and say what to do; nothing is deleted that somebody may miss."""
    must_be_root()
    from rich.console import Console

    from resnet_repro.doctor import doctor as examine

    if not examine(Path(), mend, Console(width=max(Console().width, 120))):
        raise typer.Exit(1)


@app.command()
def plots(
    targets: Annotated[list[str] | None, typer.Argument(help="files or names of plots; all if left out")] = None,
    revisions: Annotated[
        tuple[str, str] | None, typer.Option(help="compare two Git revisions or experiments; `workspace` is one, too")
    ] = None,
    browse: Annotated[bool, typer.Option("--open", help="open the page in a browser, too")] = False,
) -> None:
    """Write DVC's plot page, as `dvc plots show` and `diff` do, but so that it needs no network."""
    from resnet_repro.plots_page import show_plots

    raise typer.Exit(show_plots(Path(), targets or (), revisions or (), browse))


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


@app.command()
def audit(
    names: Annotated[
        list[str] | None, typer.Argument(help="collections, or single nets as COLLECTION/NET; all if left out")
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="take the files from this folder, as COLLECTION/FILE, and download nothing")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="a table of your own, of the form of published_weights.yaml")
    ] = None,
) -> None:
    """Evaluate published weights, others' and our own, on the test images, beside what is claimed of them.

    All of the project's own table also goes into reports/audit.md and reports/audit.json.
    """
    from rich.console import Console

    from resnet_repro import audit as module
    from resnet_repro.data.arrays import load_arrays

    entries = module.entries_of(module.load_table(table or module.TABLE), names or ())
    arrays = load_arrays(Path("data/cifar10"), load(Path("params.yaml")).data.arrays)
    audited = module.audit(entries, module.CACHE, arrays, files)
    if not names and table is None:
        audited += module.audit_own(Path("pretrained"), arrays)
    module.show(audited, Console(width=max(Console().width, 120)))
    if not names and table is None:
        module.write_report(audited, Path("reports"))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="image files, or folders of them")],
    model: Annotated[
        str, typer.Option(help="a model, or a run as MODEL-SEED; of those not trained here, the published weights")
    ] = "resnet20",
    top_k: Annotated[int, typer.Option(min=1, help="how many classes of each")] = 3,
    form: Annotated[
        str, typer.Option("--format", help="table, or json or csv: file, rank, class, probability, model, run")
    ] = "table",
    sheet: Annotated[Path | None, typer.Option(help="also draw the images with their classes, as a PNG file")] = None,
) -> None:
    """Say what a trained net takes images for. Any image will do: its middle square is made 32x32 pixels."""
    from rich.console import Console
    from rich.progress import track

    from resnet_repro import predict as module
    from resnet_repro.experiment import load_classifier
    from resnet_repro.pretrained import read_published

    if form not in module.WRITERS:
        raise ReproError(f"--format is one of {', '.join(module.WRITERS)}, not {form}")
    weights = module.find_weights(Path(), model)
    paths, others = module.find_images(images)
    if others:
        typer.echo(f"{others} files in the folders are no images, by their names: left out", err=True)
    if not paths:
        raise ReproError(f"no image files in {', '.join(map(printable, images))}")
    if sheet is not None and os.path.realpath(sheet) in map(os.path.realpath, paths):
        raise ReproError(f"{printable(sheet)} is one of the images: draw the contact sheet elsewhere")
    if weights.is_dir():
        run, classifier, classes = weights.name, load_classifier(weights), module.class_names(Path())
    else:
        classifier, metadata = read_published(weights.parent, weights.stem)
        run, classes = metadata.provenance.key, metadata.classes
    found = module.predict(classifier, paths, classes, top_k)
    terminal = Console(stderr=True)
    predictions = list(track(found, "", len(paths), console=terminal, disable=not terminal.is_terminal, transient=True))
    print(module.WRITERS[form](predictions, run), end="")
    problems = [one.problem for one in predictions if one.problem]
    for problem in problems:
        complain(problem)
    if sheet is not None and len(problems) < len(predictions):
        drawn = module.write_sheet(predictions, sheet)
        typer.echo(f"{printable(sheet)} shows {drawn} of {len(predictions)} images", err=True)
    raise typer.Exit(1 if problems else 0)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="a model that is trained here")],
    seed: Annotated[int | None, typer.Option(min=1, help="the lowest that is trained if left out")] = None,
    out: Annotated[
        Path | None, typer.Option(help="a .safetensors file of your own, instead of publishing it in pretrained/")
    ] = None,
) -> None:
    """Write a trained net with its preprocessing, plan and errors as one file, for resnet_repro.load and torch.hub."""
    from resnet_repro.predict import class_names, trained_run
    from resnet_repro.pretrained import export as write

    run = trained_run(Path(), model if seed is None else f"{model}-{seed}")
    path = write(Path(), run, class_names(Path()), out)
    print(f"{path} holds {run.name}, {path.stat().st_size:,} bytes")


@app.command()
def train(
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="normal (6n+2 layers), bottleneck (9n+2) or wide (6n+4)")],
    n: Annotated[int, typer.Argument(metavar="N", help="blocks of a group")],
    width: Annotated[int | None, typer.Argument(metavar="[WIDTH]", help="for wide nets: times as wide")] = None,
    seed: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train a pre-activation net of params.yaml, named as the Lasagne PreResNet project names it."""
    from resnet_repro import doors

    params = load(Path("params.yaml"))
    key, others = doors.choose_run(params, doors.Net(kind, n, width), seed)
    print(doors.described(params, key, others), flush=True)
    doors.train(Path(), params, key)


@app.command("test")
def evaluate(
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="normal, bottleneck or wide, as for `train`")],
    n: Annotated[int, typer.Argument(metavar="N")],
    width: Annotated[int | None, typer.Argument(metavar="[WIDTH]")] = None,
    seed: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Evaluate such a net on the test images (training it first if it is not) and print its errors."""
    from resnet_repro import doors

    params = load(Path("params.yaml"))
    key, others = doors.choose_run(params, doors.Net(kind, n, width), seed)
    print(doors.described(params, key, others), flush=True)
    print(doors.errors_of(doors.test(Path(), params, key)))


@app.command()
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            help="two or more: runs, models, Git revisions, REVISION:RUN, `workspace`, DVC experiments, MLflow run ids"
        ),
    ],
    only: Annotated[
        str | None, typer.Option("--run", "--model", help="of revisions, compare only this run, or this model's")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, or json, which holds all of it")] = "table",
    figure: Annotated[Path | None, typer.Option(help="also draw the learning curves, as a PNG file")] = None,
) -> None:
    """Say what differs between runs: parameters, results, and whether that means anything."""
    from rich.console import Console

    from resnet_repro import compare as module
    from resnet_repro.compare import show

    if form not in ("table", "json"):
        raise ReproError(f"--format is table or json, not {form}")
    if len(sides) < 2:
        raise ReproError("name two or more that are to be compared: `resnet-repro compare --help` says what can be")
    found = module.compare([module.side_of(Path(), name, only) for name in sides])
    if form == "json":
        print(show.as_json(found), end="")
    else:
        show.print_table(found, Console(width=max(Console().width, 100)))
    if figure is not None:
        show.write_figure(found, figure)


def main() -> None:
    """Run a command with the code of the checkout that it is run in, as the stages do: an editable install ties every
    worktree and copy to the checkout that it was made in."""
    own, paths = other_source(Path()), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if own and paths[0] != str(own):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(own), *filter(None, paths)])}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # our minus signs, where the output is ASCII
    try:
        refuse_other_source(Path())
        with disk_explained():
            app()
    except ReproError as error:
        complain(f"resnet-repro: {error}")
        raise SystemExit(1) from None
