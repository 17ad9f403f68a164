"""notebooks/tour.ipynb, executed where there are no data."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from killing import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks/tour.ipynb"
NUM_STEPS = 48
READ = ("params.yaml", "plans", "reports")
LAST = """
facts = {"runs": list(results.index), "curves": int(curves.run.nunique()), "steps": int(history.step.iloc[-1])}
facts |= {"wrong": int((predictions.label != predictions.predicted).sum()), "images": len(predictions)}
facts |= {"error": float(history.test_error_percent.iloc[-1]), "most": int(wrong.shape[0])}
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """From notebooks/ of a clone that has only what Git has; LAST prints what its variables hold in the end."""
    clone = tmp_path_factory.mktemp("tour")
    for name in READ:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, clone / name)
    (clone / "notebooks").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = f"NUM_STEPS = {NUM_STEPS}"
    notebook.cells.append(nbformat.v4.new_code_cell(LAST))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(clone / "notebooks")}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable  # this environment's
    return client.execute()


def figures_of(notebook: NotebookNode, cell_id: str) -> int:
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_shows_what_the_report_says(executed: NotebookNode) -> None:
    facts = json.loads(executed.cells[-1].outputs[0].text)
    metrics = json.loads((REPOSITORY / "reports/metrics.json").read_text())
    assert facts["runs"] == list(metrics)
    assert facts["curves"] == pd.read_csv(REPOSITORY / "reports/curves.csv").run.nunique()
    best = min(metrics, key=lambda name: metrics[name]["test_error_percent"]["mean"])
    first = json.loads(next((REPOSITORY / "reports/runs").glob(f"{best}-*/metrics.json")).read_text())
    assert facts["most"] == round(first["test_error_percent"] / 100 * first["num_test_images"])


def test_its_net_was_trained_there_and_learnt(executed: NotebookNode) -> None:
    """The predictions of the net that comes back are those that its history counted, and better than guessing."""
    facts = json.loads(executed.cells[-1].outputs[0].text)
    assert facts["steps"] == NUM_STEPS
    assert 100 * facts["wrong"] / facts["images"] == pytest.approx(facts["error"])
    assert facts["error"] < 80


def test_its_pictures_are_drawn(executed: NotebookNode) -> None:
    for cell_id in ("samples", "views", "preprocessed", "train", "mistakes", "curves", "confusion"):
        assert figures_of(executed, cell_id) == 1, cell_id
    assert figures_of(executed, "figure6") == len(list((REPOSITORY / "reports/figures").glob("figure6*.png")))
    assert figures_of(executed, "worst") == 0  # the images are not there


def test_what_is_committed_is_clean() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not re.search(r"/(home|tmp|work|root|Users)/", Path(NOTEBOOK).read_text())
