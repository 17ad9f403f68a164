"""Published weights, against the run they come from, safetensors' and torch.hub's own answers, and hostile files."""

import hashlib
import json
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms
from typer.testing import CliRunner

import killing
from resnet_repro import pretrained
from resnet_repro.cli import app
from resnet_repro.data.arrays import Arrays, load_arrays
from resnet_repro.errors import CheckpointError, ReproError
from resnet_repro.evidence import METRICS, PLAN, PROVENANCE, WEIGHTS, Plan, Provenance
from resnet_repro.experiment import evaluate, load_classifier
from resnet_repro.predict import find_weights
from test_architecture import PACKAGE, closure, imports

ROOT = Path(__file__).parent.parent
RUN, FILE = "runs/resnet20-1", "pretrained/resnet20.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one run, of a small net under a printed name, evaluated and published."""
    workspace = tmp_path_factory.mktemp("trained")
    killing.write_params(workspace)
    plan = killing.make_plan("resnet").model_copy(update={"model": "resnet20"})
    (workspace / PLAN).write_text(plan.to_json())
    arrays = killing.write_arrays(workspace / "data/cifar10")
    killing.train(workspace, arrays=arrays)
    (workspace / "runs").mkdir()
    (workspace / "run").rename(workspace / RUN)
    evaluate(workspace / RUN, arrays, workspace / "reports" / RUN)
    pretrained.export(workspace, workspace / RUN, arrays.classes)
    return workspace


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


@pytest.fixture(scope="module")
def arrays(trained: Path) -> Arrays:
    return load_arrays(trained / "data/cifar10")


def logits(classifier: torch.nn.Module, arrays: Arrays) -> torch.Tensor:
    with torch.inference_mode():
        return classifier(torch.from_numpy(arrays.test_images))


def metadata_of(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["resnet_repro"])


def test_what_is_loaded_is_the_trained_net_and_errs_as_often(trained: Path, arrays: Arrays) -> None:
    for source, folder in (
        ("resnet20", trained / "pretrained"),
        (trained / FILE, Path()),
        (f"{trained / FILE}", Path()),
    ):
        loaded = pretrained.load(source, folder=folder)
        assert not loaded.training
        assert torch.equal(logits(loaded, arrays), logits(load_classifier(trained / RUN), arrays))
        assert loaded.classes == arrays.classes
    wrong = (logits(loaded, arrays).argmax(dim=1).numpy() != arrays.test_labels).mean()
    assert metadata_of(trained / FILE)["metrics"]["test_error_percent"] == pytest.approx(100 * wrong)


def test_a_file_says_all_that_the_evidence_says_and_is_the_same_bytes_again(trained: Path, tmp_path: Path) -> None:
    metadata = metadata_of(trained / FILE)
    for part, record in (
        ("plan", trained / RUN / PLAN),
        ("provenance", trained / RUN / PROVENANCE),
        ("metrics", trained / "reports" / RUN / METRICS),
    ):
        wanted = json.loads(record.read_text())
        assert _within(wanted, metadata[part]), part
    assert (metadata["model"], metadata["seed"], metadata["format"]) == ("resnet20", 1, 1)
    weights = (trained / RUN / WEIGHTS).read_bytes()
    assert metadata["provenance"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    again = pretrained.export(trained, trained / RUN, metadata["classes"], tmp_path / "again.safetensors")
    assert again.read_bytes() == (trained / FILE).read_bytes()


def _within(part: Any, whole: Any) -> bool:
    """Whether all that `part` says, which leaves neutral values out, stands in `whole`."""
    if isinstance(part, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    return bool(part == whole)


def test_the_page_is_what_the_files_say(trained: Path) -> None:
    page = (trained / "pretrained/README.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| resnet20 "))
    content, metrics = (trained / FILE).read_bytes(), json.loads((trained / "reports" / RUN / METRICS).read_text())
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == [
        "1",
        f"{len(content) / 1e6:.1f}",
        f"{sum(p.numel() for p in load_classifier(trained / RUN).net.parameters()):,}",
        f"{metrics['test_error_percent']:.2f}",
    ]
    assert cells[5].startswith("8.75 (He 2015, Table 6")
    assert cells[7] == f"`{hashlib.sha256(content).hexdigest()}`"


def test_the_committed_page_is_what_the_code_writes() -> None:
    """`resnet-repro export` writes it; nobody types a number."""
    assert (ROOT / "pretrained/README.md").read_text() == pretrained.page(ROOT / "pretrained")
    size = sum(path.stat().st_size for path in pretrained.published(ROOT / "pretrained").values())
    assert size <= 80_000_000


def test_export_refuses_what_is_not_the_trained_run(workspace: Path) -> None:
    export, folder = CliRunner(), workspace / "reports" / RUN
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        assert export.invoke(app, ["export", "resnet20"]).exit_code == 0
        assert "resnet32 are not here" in str(export.invoke(app, ["export", "resnet32"]).exception)
        assert "resnet20-2" in str(export.invoke(app, ["export", "resnet20", "--seed", "2"]).exception)
        out = ["--out", "weights.bin"]
        assert "does not end in .safetensors" in str(export.invoke(app, ["export", "resnet20", *out]).exception)
    provenance = (folder / PROVENANCE).read_bytes()
    other = Provenance.read(folder / PROVENANCE).model_copy(update={"weights_sha256": "0" * 64})
    other.model_copy(update={"sha256": ""}).write(folder / PROVENANCE)
    for state in ("of other weights", "damaged"):
        with pytest.raises(CheckpointError, match=f"resnet20-1 is {state}: `dvc repro` evaluates resnet20-1 anew"):
            pretrained.export(workspace, workspace / RUN, "0123456789")
        (folder / PROVENANCE).write_bytes(provenance[:-20])
    shutil.rmtree(folder)
    pretrained.export(workspace, workspace / RUN, "0123456789")
    assert metadata_of(workspace / FILE)["metrics"] is None
    content = bytearray((workspace / RUN / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (workspace / RUN / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not what was trained"):
        pretrained.export(workspace, workspace / RUN, "0123456789")


def test_one_seed_of_a_model_is_published_and_no_more_than_fits(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(workspace / FILE, seed=2)
    before = killing.contents(workspace / "pretrained")
    with pytest.raises(ReproError, match=r"seed 2 of resnet20 is published.*to publish seed 1"):
        pretrained.export(workspace, workspace / RUN, "0123456789")
    (workspace / FILE).rename(workspace / "pretrained/other.safetensors")
    (workspace / "pretrained/README.md").unlink()
    size = (workspace / "pretrained/other.safetensors").stat().st_size
    monkeypatch.setattr(pretrained, "MAX_BYTES", 2 * size - 1)
    with pytest.raises(ReproError, match=r"with resnet20, .* would hold [\d,]+ bytes, more than"):
        pretrained.export(workspace, workspace / RUN, "0123456789")
    assert killing.contents(workspace / "pretrained") == {"other.safetensors": before["resnet20.safetensors"]}


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Change a file's metadata: a value by its name, `seed` wherever it stands; None takes the value out."""
    metadata = metadata_of(path)
    if "seed" in changes:
        metadata["provenance"]["seed"] = changes["seed"]
        if metadata["metrics"]:
            metadata["metrics"]["seed"] = changes["seed"]
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = metadata
        for parent in parents:
            place = place[parent]
        place[last] = value
    tensors = safetensors.torch.load_file(path) if tensors is None else tensors
    path.write_bytes(safetensors.torch.save(tensors, {"resnet_repro": json.dumps(metadata)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"plan__architecture__depth": 6 * 10_000 + 2},
        {"plan__architecture": {"family": "wide", "depth": 10, "widen_factor": 1000}},
        {"plan__architecture__depth": 14},
        {"plan__architecture__depth": 9},
        {"plan__architecture__family": "__import__('os').system('false')"},
        {"plan__architecture__surprise": "\x1b[2J"},
        {"format": 2, "more": True},
        {"model": "../resnet20"},
        {"model": "resnet32"},
        {"classes": list("012345678")},
        {"classes": ["\x1b[2J", *"123456789"]},
        {"metrics__seed": 3},
        {"tensors_sha256": "0" * 64},
    ],
)
def test_a_file_that_lies_is_refused_before_it_costs_anything(workspace: Path, changes: dict[str, Any]) -> None:
    rewrite(workspace / FILE, **changes)
    since = time.monotonic()
    with pytest.raises(
        CheckpointError, match=r"resnet20\.safetensors is not what .* writes \(.*\): take a whole"
    ) as said:
        pretrained.load(workspace / FILE)
    assert time.monotonic() - since < 5
    assert str(said.value).isprintable()


def test_other_files_are_refused(workspace: Path) -> None:
    path, content = workspace / FILE, (workspace / FILE).read_bytes()
    tensors = safetensors.torch.load(content)
    deep = safetensors.torch.save(tensors, {"resnet_repro": "[" * 100_000})
    for other in (deep, safetensors.torch.save(tensors), (workspace / RUN / WEIGHTS).read_bytes(), content[:-5], b""):
        path.write_bytes(other)
        with pytest.raises(CheckpointError):
            pretrained.load(path)
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match="damaged"):
        pretrained.load(path)
    path.write_bytes(content)
    path.rename(path.with_stem("resnet32"))
    with pytest.raises(CheckpointError, match="holds resnet20: give it back its name"):
        pretrained.load("resnet32", folder=path.parent)


def test_where_nothing_is_published_it_says_what_is_and_how_to_make_it(workspace: Path) -> None:
    with pytest.raises(
        ReproError, match=r"no weights of 'resnet32' .* \(there: resnet20\): `resnet-repro export MODEL`"
    ):
        pretrained.load("resnet32", folder=workspace / "pretrained")
    with pytest.raises(ReproError, match=r"\(there: none\)"):
        pretrained.load("resnet32", folder=workspace / "nowhere")
    with pytest.raises(ReproError, match=r"no file .*nothing\.safetensors"):
        pretrained.load(workspace / "nothing.safetensors")


def test_predict_takes_the_published_weights_where_no_run_is_trained(
    workspace: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.ascontiguousarray(arrays.test_images[0].transpose(1, 2, 0))).save(workspace / "a.png")
    monkeypatch.chdir(workspace)
    command = ["predict", "a.png", "--format", "json"]
    by_run = CliRunner().invoke(app, command)
    shutil.rmtree(workspace / "runs")
    shutil.rmtree(workspace / "data")  # the names of the classes are in the file
    by_file = CliRunner().invoke(app, command)
    assert by_file.stdout == by_run.stdout
    assert json.loads(by_file.stdout)[0]["run"] == "resnet20-1"
    assert CliRunner().invoke(app, [*command, "--model", "resnet20-1"]).stdout == by_run.stdout
    with pytest.raises(ReproError, match="no model or run resnet20-2"):  # another seed than the published one
        find_weights(workspace, "resnet20-2")
    with pytest.raises(ReproError, match=r"`dvc pull runs/resnet32-1`.*published in pretrained/: resnet20"):
        find_weights(workspace, "resnet32")


def test_constants_are_applied_as_torchvision_does(arrays: Arrays) -> None:
    plan = Plan.read(ROOT / "plans/plain20_a_martyn_batch_statistics.json")
    constants = plan.recipe.preprocessing
    images = torch.from_numpy(arrays.test_images)
    expected = transforms.normalize(images / 255, list(constants.mean), list(constants.std))
    torch.testing.assert_close(pretrained.untrained(plan).normalizer(images), expected)


IN_HUB = """
import json, sys
import torch

folder, clone, images = sys.argv[1:]
torch.hub.set_dir(folder)
github = {"trust_repo": True, "skip_validation": True}
images = torch.load(images, weights_only=True)
names = torch.hub.list("owner/resnet-repro:main", verbose=False, **github)
said = torch.hub.help("owner/resnet-repro:main", "wrn16_4", **github)
local = torch.hub.load(clone, "resnet20", source="local", pretrained=True)
remote = torch.hub.load("owner/resnet-repro:main", "resnet20", pretrained=True, verbose=False, **github)
wide = torch.hub.load(clone, "wrn16_4", source="local")
try:
    torch.hub.load(clone, "wrn16_4", source="local", pretrained=True)
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
with torch.inference_mode():
    same = torch.equal(local(images), remote(images))
    white = wide.normalizer(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)).unique().tolist()
    print(json.dumps({
        "names": names, "help": said, "same": same, "logits": local(images).tolist(), "classes": local.classes,
        "parameters": sum(p.numel() for p in wide.parameters()), "training": wide.training, "white": white,
        "refusal": refusal, "heavy": sorted({"mlflow", "dvc", "torchvision"} & sys.modules.keys()),
        "package": sys.modules["resnet_repro"].__file__,
    }))
"""


def test_torch_hub_lists_explains_and_loads_every_model(trained: Path, arrays: Arrays, tmp_path: Path) -> None:
    """From the folder that torch.hub would have cloned from GitHub, and by its path; started elsewhere."""
    clone = tmp_path / "hub/owner_resnet-repro_main"
    for name in ("src", "plans"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(trained / "pretrained", clone / "pretrained")
    shutil.copy(ROOT / "hubconf.py", clone)
    torch.save(torch.from_numpy(arrays.test_images), tmp_path / "images.pt")
    command = [sys.executable, "-c", IN_HUB, tmp_path / "hub", clone, tmp_path / "images.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"] == sorted(path.stem for path in (ROOT / "plans").glob("*.json"))
    assert f"16 layers, {found['parameters']:,} parameters" in found["help"]
    assert found["parameters"] == 2_748_890  # Zagoruyko 2016, Table 4: 2.8M
    assert (found["training"], found["white"]) == (True, [pytest.approx(1)])
    assert found["same"]
    assert found["logits"] == logits(load_classifier(trained / RUN), arrays).tolist()
    assert tuple(found["classes"]) == arrays.classes
    assert found["refusal"].startswith("ReproError: no weights of 'wrn16_4' are published")
    assert found["heavy"] == []
    assert found["package"] == str(clone / "src/resnet_repro/__init__.py")


def test_torch_hub_asks_for_what_loading_imports_and_no_more() -> None:
    files = {PACKAGE / "pretrained.py", *closure(PACKAGE / "pretrained.py")}
    used = {module.split(".")[0] for file in files for module in imports(file)}
    dependencies = runpy.run_path(str(ROOT / "hubconf.py"))["dependencies"]
    assert {name.split(".")[0] for name in dependencies} == used - set(sys.stdlib_module_names) - {"resnet_repro"}


def test_the_package_offers_load_without_importing_torch(trained: Path, tmp_path: Path) -> None:
    code = (
        "import sys, resnet_repro; assert 'torch' not in sys.modules; "
        f"print(resnet_repro.load({str(trained / FILE)!r}).classes[3], 'mlflow' in sys.modules); "
        "from resnet_repro import load, nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "False"], done.stderr
    assert "ImportError: cannot import name 'nothing'" in done.stderr
