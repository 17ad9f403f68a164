"""The Lasagne PreResNet project's interface, held against what that project and the papers say of its nets."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from resnet_repro.doors import DoorError, Net, choose_run, models_of
from resnet_repro.params import Params, load
from test_cli import call

ROOT = Path(__file__).parent.parent
WRN16_4 = ["wrn16_4", "wrn16_4_dropout", "wrn16_4_released_code"]


@pytest.fixture(scope="module")
def params() -> Params:
    return load(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("asked", "depth", "models"),
    [
        (Net("normal", 18), 110, ["lasagne110", "preact110"]),  # the project's README: normal 18 is ResNet-110
        (Net("bottleneck", 18), 164, ["lasagne164", "preact164"]),  # bottleneck 18 is ResNet-164
        (Net("wide", 2, 4), 16, ["lasagne_wide", *WRN16_4]),  # wide 2 4 is called 16-4
        (Net("bottleneck", 111), 1001, ["preact1001", "preact1001_batch64"]),  # He 2016, Table 4
        (Net("wide", 4, 10), 28, ["wrn28_10", "wrn28_10_zca", "wrn28_10_dropout"]),  # Zagoruyko 2016, Table 5
        (Net("wide", 6, 1), 40, ["wrn40_1_zca"]),
        (Net("normal", 9), 56, []),
    ],
)
def test_its_arguments_name_the_papers_nets(params: Params, asked: Net, depth: int, models: list[str]) -> None:
    assert asked.depth == depth
    assert models_of(params, asked) == models


def test_its_own_net_is_preferred_where_it_has_a_run(params: Params) -> None:
    assert choose_run(params, Net("wide", 2, 4), 1) == ("lasagne_wide-1", WRN16_4)
    assert choose_run(params, Net("normal", 18), 1) == ("preact110-1", ["lasagne110"])


@pytest.mark.parametrize(
    "asked", [Net("normal", 9), Net("bottleneck", 3), Net("wide", 3, 2), Net("wide", 3, 1), Net("wide", 2, 4)]
)
def test_the_lines_it_asks_for_are_those_that_help(params: Params, asked: Net, tmp_path: Path) -> None:
    with pytest.raises(DoorError, match="with seed 7: add\n") as error:
        choose_run(params, asked, 7)
    added = YAML(typ="safe").load(str(error.value).split("add\n")[1])
    tree = YAML(typ="safe").load(ROOT / "params.yaml")
    for section, entries in added.items():
        assert not set(entries) & set(tree[section])
        tree[section] |= entries
    YAML().dump(tree, tmp_path / "params.yaml")
    key, _ = choose_run(load(tmp_path / "params.yaml"), asked, 7)
    assert [key] == list(added["runs"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("broad", 2, 4), "one of normal, bottleneck, wide"),
        (("wide", 2), "takes a WIDTH"),
        (("normal", 18, 4), "WIDTH"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, int], said: str) -> None:
    with pytest.raises(DoorError, match=said):
        Net(*arguments)


class TestCommands:
    """With a `dvc` that writes down how it was called: what real `dvc repro` does is tested with the pipeline."""

    @pytest.fixture
    def workspace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        shutil.copy(ROOT / "params.yaml", tmp_path)
        shutil.copytree(ROOT / "plans", tmp_path / "plans")
        shutil.copy(ROOT / "dvc.lock", tmp_path)
        (dvc := tmp_path / "bin/dvc").parent.mkdir()
        dvc.write_text('#!/bin/sh\necho "$@" >> called\ntest ! -e broken\n')
        dvc.chmod(0o755)
        monkeypatch.setenv("PATH", f"{dvc.parent}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    def test_train_is_one_stage(self, workspace: Path) -> None:
        said = call(workspace, "train", "wide", "2", "4")
        assert said.returncode == 0, said.stderr
        assert (workspace / "called").read_text() == "repro train@lasagne_wide-1\n"
        assert "recipe lasagne; also of this type and size: wrn16_4, wrn16_4_dropout" in said.stdout

    def test_test_evaluates_and_prints_the_errors(self, workspace: Path) -> None:
        evidence = next((ROOT / "reports/runs").glob("*/metrics.json"))
        shutil.copytree(evidence.parent, workspace / "reports/runs/preact164-1")
        said = call(workspace, "test", "bottleneck", "18")
        assert said.returncode == 0, said.stderr
        assert (workspace / "called").read_text().split()[-1] == "evaluate@preact164-1"
        error = YAML(typ="safe").load(evidence)["test_error_percent"]
        assert f"test error {error:.2f}% after the last epoch" in said.stdout

    def test_a_stage_that_fails_is_said_so(self, workspace: Path) -> None:
        (workspace / "broken").touch()
        said: subprocess.CompletedProcess[str] = call(workspace, "train", "normal", "18")
        assert said.returncode == 1
        assert "`dvc repro train@preact110-1` failed" in said.stderr
