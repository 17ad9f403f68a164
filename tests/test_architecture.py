"""The direction of imports, and that DVC knows what each stage reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "resnet_repro"
MODULES = {
    "resnet_repro." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}
NUMERICAL = {
    "resnet_repro.counter_hash",
    "resnet_repro.data.batches",
    "resnet_repro.data.preprocessing",
    "resnet_repro.engine",
    "resnet_repro.evaluation",
    "resnet_repro.models.initialization",
    "resnet_repro.models.layers",
    "resnet_repro.models.preact",
    "resnet_repro.models.resnet",
    "resnet_repro.schedule",
    "resnet_repro.statistics",
    "resnet_repro.training",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(path: Path) -> set[Path]:
    """The package's files that a file needs, directly or not."""
    found, waiting = set[Path](), [path]
    while waiting:
        for name in imports(waiting.pop()):
            module = MODULES.get(name)
            if module is not None and module not in found:
                found.add(module)
                waiting.append(module)
    return found


@pytest.mark.parametrize("name", sorted(NUMERICAL))
def test_numerical_modules_know_no_files_trackers_or_command_lines(name: str) -> None:
    outside = {"mlflow", "dvc", "pathlib", "typer", "rich", "argparse", "requests"}
    assert not {module.split(".")[0] for module in imports(MODULES[name])} & outside
    needed = {m for m, path in MODULES.items() if path in closure(MODULES[name])}
    assert needed <= NUMERICAL | {"resnet_repro.errors", "resnet_repro.mistakes", "resnet_repro.params"}


def test_only_tracking_imports_mlflow() -> None:
    users = {name for name, path in MODULES.items() if any(m.split(".")[0] == "mlflow" for m in imports(path))}
    assert users
    assert all(name.startswith("resnet_repro.tracking.") for name in users)


def test_nothing_imports_the_pipeline_and_no_module_imports_upward() -> None:
    for name, path in MODULES.items():
        assert not any(m.split(".")[0] == "pipeline" for m in imports(path)), name
    above = {"resnet_repro.experiment", "resnet_repro.cli", "resnet_repro.tracking", "resnet_repro.reporting"}
    for name in ("plan", "training", "evaluation", "checkpoint", "evidence", "papers", "params"):
        used = set(imports(MODULES[f"resnet_repro.{name}"]))
        assert not {m for m in used if m.startswith(tuple(above))}, name


def test_the_report_depends_on_all_that_it_imports() -> None:
    stage = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["report"]
    deps = [ROOT / dep for dep in stage["deps"]]
    # how a stage prints its errors, and where the data comes from, change no table
    exempt = {PACKAGE / name for name in ("stage.py", "errors.py", "mistakes.py")} | set(
        (PACKAGE / "data").glob("*.py")
    )
    for path in closure(ROOT / "pipeline" / "report.py") - exempt:
        assert any(path.is_relative_to(dep) for dep in deps), f"dvc.yaml: report lacks {path.relative_to(ROOT)}"


@pytest.mark.parametrize("stage", ["fetch", "prepare", "plan", "train", "evaluate", "report"])
def test_stage_and_script_share_a_name(stage: str) -> None:
    entry = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]
    assert entry.get("do", entry)["cmd"].startswith(f"python pipeline/{stage}.py ")
    assert len((ROOT / "pipeline" / f"{stage}.py").read_text().splitlines()) < 60, "scripts are thin"
