"""`make demo`: the whole pipeline in a clone of its own, on data that scikit-learn brings along.

The clone lies in `.demo`, ignored by Git, with its own params.yaml, dvc.lock, cache and MLflow database. Code
and dvc.yaml are those of the working tree. What is up to date there is not run again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from ruamel.yaml import YAML

from resnet_repro.data.archive import VARIABLE
from resnet_repro.data.digits import write_digits_archive
from resnet_repro.errors import ReproError
from resnet_repro.git import git

FOLDER = Path(".demo")
ARCHIVE = Path(".cache/digits.tar.gz")
OWN = ("params.yaml", "dvc.lock", "ablations/dvc.lock", "plans/", "reports/", "checkpoints/", "pretrained/")
"""What the demo has of its own, and so does not take from the working tree."""
AUDIT = "reports/audit.json"
"""But this: its report depends on it, and no stage writes it."""


class DemoError(ReproError):
    """The demo's pipeline failed."""


def run_demo(root: Path) -> None:
    """Make or update the clone, run its pipeline, and print what came out.

    Raises:
        DemoError: a stage failed; its own message stands above.
    """
    demo = root / FOLDER
    copy_sources(root, demo)
    archive = demo / ARCHIVE
    archive.parent.mkdir(parents=True, exist_ok=True)
    members = write_digits_archive(archive)
    yaml = YAML()
    params = yaml.load(Path(__file__).with_name("demo.yaml"))
    params["data"]["members"] = members
    with (demo / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    _commit(demo)
    environment = demo_environment(archive)
    if subprocess.run(
        ["dvc", "repro", "dvc.yaml", "ablations/dvc.yaml"], cwd=demo, env=environment, check=False
    ).returncode:
        raise DemoError(f"`dvc repro` failed in {FOLDER}; what it said stands above")
    show(demo)


def demo_environment(archive: Path) -> dict[str, str]:
    """The environment without what would lead out of the demo: other data, another MLflow, other settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, VARIABLE: str(archive.absolute()), "DVC_NO_ANALYTICS": "1"}


def copy_sources(root: Path, target: Path) -> None:
    """Make `target` hold the sources of the working tree, uncommitted ones included."""
    listing = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if (listed := git(root, *listing)) is None:  # an archive of the files: Git still knows what .gitignore means
        with tempfile.TemporaryDirectory() as empty:
            git(Path(empty), "init", "--bare", "--quiet")
            listed = git(root, f"--git-dir={empty}", "--work-tree=.", *listing)
    if listed is None:
        raise DemoError("git cannot be run here, and the demo needs it: install git")
    taken = (n for n in listed.decode().split("\0") if n == AUDIT or (n and not n.startswith(OWN)))
    names = {n for n in taken if (root / n).is_file()}
    for name in sorted(names):
        copy = target / name
        if not copy.is_file() or copy.read_bytes() != (root / name).read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy)
    for folder in ("src", "pipeline"):  # a module that is gone must not stay importable
        for path in (target / folder).rglob("*.py"):
            if str(path.relative_to(target)) not in names:
                path.unlink()


def _commit(demo: Path) -> None:
    """A Git repository of its own, which DVC needs and every run's commit is taken from."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        identity = ("-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *arguments], cwd=demo, capture_output=True, text=True, check=True)

    if not (demo / ".git").is_dir():
        call("init", "--quiet")
    call("add", "--all")
    if call("status", "--porcelain").stdout:
        call("commit", "--quiet", "--message", "The working tree's sources with the demo's parameters")


def show(demo: Path) -> None:
    """Print the report's tables, and where to look next."""
    console = Console(width=max(Console().width, 120))
    text = (demo / "reports" / "README.md").read_text(encoding="utf-8")
    tables = [block for block in text.split("\n\n") if block.lstrip().startswith("|")]
    if tables:
        console.print(Markdown(tables[0]))
    figures = demo / "reports" / "figures"
    print(f"\nThe report:    {FOLDER / 'reports' / 'README.md'}")
    for path in sorted(figures.glob("figure6*.png")):
        print(f"Figure 6:      {path.relative_to(demo.parent)}")
    print("MLflow's UI:   make ui DEMO=1")
