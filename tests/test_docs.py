"""The pages for people: each command on them is run as it stands there, and what they point to exists.

A block ```sh or ```console is run, all of a page in one shell; in a console block each line without `$` must occur in
what its command says. A block with `no-test: REASON` behind its language is not run, and its commands must exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from resnet_repro.cli import app
from resnet_repro.demo import ARCHIVE, copy_sources, demo_environment

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)(?: no-test: ([^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "=== command"

pytestmark = pytest.mark.xdist_group("demo")


class Command(NamedTuple):
    text: str
    output: list[str]
    """lines that it must say"""
    reason: str
    """why it is not run"""


def commands_of(page: str) -> list[Command]:
    commands: list[Command] = []
    for language, reason, block in FENCE.findall(page):
        if language == "sh":
            commands += [Command(line, [], reason) for line in block.splitlines() if not line.startswith("#")]
        elif language == "console":
            for line in block.splitlines():
                if line.startswith("$ "):
                    commands.append(Command(line[2:], [], reason))
                else:
                    commands[-1].output.append(line)
    return commands


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def repository(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository that is set up, with a finished demo in it."""
    copy = tmp_path_factory.mktemp("docs") / "repository"
    copy_sources(ROOT, copy)
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    shutil.copytree(demo, copy / ".demo", ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "__pycache__"))
    (copy / ".venv").mkdir()
    (copy / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (copy / ".venv/ready").touch()
    return copy


def run_page(repository: Path, page: str, folder: str) -> None:
    commands = [command for command in commands_of((ROOT / page).read_text()) if not command.reason]
    script = "set -euo pipefail\n" + "\n".join(f"echo '{MARK}'\n{command.text}" for command in commands)
    person = {f"GIT_{who}_{what}": "reader@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = demo_environment(repository / ".demo" / ARCHIVE) | person
    environment |= {"PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    log = repository.parent / "log"
    with log.open("w") as file:
        done = subprocess.run(
            ["bash", "-c", script], cwd=repository / folder, env=environment, stdout=file, stderr=file, check=False
        )
    said = log.read_text().split(f"{MARK}\n")[1:]
    assert done.returncode == 0, f"{commands[len(said) - 1].text} failed:\n{said[-1]}"
    for command, output in zip(commands, said, strict=True):
        for line in command.output:
            assert words(line) in words(output), f"`{command.text}` does not say `{line}`:\n{output}"


@pytest.mark.parametrize(("page", "folder"), [("docs/tutorial.md", "."), ("docs/how-to.md", ".demo")])
def test_its_commands_do_what_it_says(page: str, folder: str, repository: Path) -> None:
    run_page(repository, page, folder)


def test_no_other_page_has_commands_to_run() -> None:
    run = {page.name for page in PAGES for command in commands_of(page.read_text()) if not command.reason}
    assert run == {"tutorial.md", "how-to.md"}


@cache
def help_of(*command: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*command, "--help"],
        env=os.environ | {"PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"there is no `{' '.join(command)}`: {done.stderr}"
    return done.stdout


def check_exists(command: str) -> None:
    """Its program, the subcommand and the options; of make, the target."""
    line = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z][A-Z0-9_]*=", word)]
    if line[0] == "make":
        for target in line[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    elif line[0] in ("resnet-repro", "dvc", "mlflow", "python"):
        start = 3 if line[1] == "-m" else 1
        said = help_of(*line[:start], *takewhile(str.isalpha, line[start:]))
        for option in (word.partition("=")[0] for word in line if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", said), f"{option} of: {command}"
    else:
        assert shutil.which(line[0]) or line[0] == "cd", command


def test_commands_that_are_not_run_exist() -> None:
    for page in PAGES:
        for command in commands_of(page.read_text()):
            for part in command.text.split(" && ") if command.reason else ():
                check_exists(part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_it_names_in_its_text_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {"make": targets, "resnet-repro": set(typer.main.get_command(app).commands)}  # type: ignore[attr-defined]
    named = re.findall(r"`(?:[A-Z0-9_]+=\S+ )*(make|resnet-repro) ([a-z][\w-]*)[^`]*`", page.read_text())
    assert [" ".join(pair) for pair in named if pair[1] not in known[pair[0]]] == []
    for program, command in re.findall(r"`(dvc|mlflow) ((?:exp )?[a-z]+)[^`]*`", page.read_text()):
        help_of(program, *command.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    here = [link.partition("#")[0] for link in links if not re.match(r"\w+:", link)]
    assert [link for link in here if not (page.parent / link).exists()] == []


def test_the_readmes_graph_is_dvcs(demo: Path) -> None:
    """All runs of a stage taken as one, and without the ablations."""
    block = next(
        block for language, _, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "mermaid"
    )
    drawn = {tuple(re.findall(r"(\w+)(?:\[.*?\])?(?: --> |$)", line.strip())) for line in block.splitlines()[1:]}
    environment = demo_environment(demo / ARCHIVE)
    graph = subprocess.run(
        ["dvc", "dag", "--mermaid"], cwd=demo, env=environment, capture_output=True, text=True, check=True
    ).stdout
    names = {node: name.partition("@")[0] for node, name in re.findall(r'(node\d+)\["(.+)"\]', graph)}
    edges = {(names[one], names[other]) for one, other in re.findall(r"(node\d+)-->(node\d+)", graph)}
    assert drawn == {edge for edge in edges if not any(":" in name for name in edge)}
