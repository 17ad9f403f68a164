"""How MLflow's UI opens on the experiment: its description, and saved views of its runs.

The UI keeps a saved view as JSON in a tag of the experiment (MLflow 3.17: `mlflow.sharedViewState.KEY`) and opens it
by `viewStateShareKey=KEY` in the address; a UI that does not know them shows its own table.
"""

import json
from collections.abc import Mapping
from typing import Any

from resnet_repro.tracking.store import Store

TABLE, CURVES = "table", "curves"
TRAINING = "workflowType=machine_learning"  # without it the UI opens its pages for language models
SHOWN = {  # column to its width in pixels
    "metrics.`final_test_error_percent`": 190,
    "metrics.`lowest_test_error_percent`": 190,
    "metrics.`best_validation_error_percent`": 210,
    "metrics.`final_train_error_percent`": 190,
    "tags.`paper`": 320,
    "tags.`recipe`": 120,
}
DRAWN = ("test_error_percent", "train_error_percent", "test_loss", "train_loss", "learning_rate")


def show_experiment(store: Store, report_run: str | None) -> None:
    """Write the description and the views; what is there already is not written again."""
    there = store.client.get_experiment(store.experiment_id).tags
    for key, value in experiment_tags(store.experiment_id, report_run).items():
        if there.get(key) != value:
            store.client.set_experiment_tag(store.experiment_id, key, value)


def address(experiment_id: str, view: str) -> str:
    """Of a saved view, after the server's address."""
    mode = "CHART" if view == CURVES else "TABLE"
    return f"#/experiments/{experiment_id}/runs?{TRAINING}&viewStateShareKey={view}&compareRunsMode={mode}"


def experiment_tags(experiment_id: str, report_run: str | None) -> dict[str, str]:
    """What the UI reads of the experiment."""
    views = {TABLE: ("Table by model", _table()), CURVES: ("Learning curves", _table() | _charts())}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": describe(experiment_id, report_run),
    } | {f"mlflow.sharedViewState.{key}": _saved(name, state) for key, (name, state) in views.items()}


def describe(experiment_id: str, report_run: str | None) -> str:
    """The experiment's description in Markdown; its first line is what the UI shows of it folded."""
    links = {
        "Table by model": address(experiment_id, TABLE),
        "Learning curves": address(experiment_id, CURVES),
        "Best of each model": f"#/models?{TRAINING}",
    }
    if report_run:
        links["Report"] = f"#/experiments/{experiment_id}/runs/{report_run}?{TRAINING}"
    return f"""{" · ".join(f"[{name}]({where})" for name, where in links.items())}

Do three papers' CIFAR-10 errors come out again? One run is one net, trained with one seed.

- `final_test_error_percent` is the result: after the last step, as the papers have it.
- `lowest_test_error_percent` was chosen by the test images.
- The tag `paper` is the printed number to compare with.

`resnet-repro publish` builds all this from the files in `reports/`; nothing here is the only copy."""


def _table() -> dict[str, Any]:
    return {
        "searchFilter": "tags.stage = 'train'",
        "orderByKey": "metrics.`final_test_error_percent`",
        "orderByAsc": True,
        "selectedColumns": list(SHOWN),
        "columnOrder": list(SHOWN),
        "columnWidths": SHOWN,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "model"}]},
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _charts() -> dict[str, Any]:
    section = {"uuid": "curves", "name": "Learning curves", "display": True, "isReordered": False, "deleted": False}
    common = {"metricSectionId": "curves", "deleted": False, "isGenerated": False, "runsCountToCompare": 10}
    common |= {"lineSmoothness": 0, "useGlobalLineSmoothing": False}  # by default the UI smooths what was measured
    lines = [
        {"uuid": key, "type": "LINE", "metricKey": key, "selectedMetricKeys": [key], "displayName": key} | common
        for key in DRAWN
    ]
    return {"compareRunCharts": lines, "compareRunSections": [section]}


def _saved(name: str, state: Mapping[str, Any]) -> str:
    epoch = 0  # when it was saved; a fixed time, so that the same view is the same text
    return json.dumps({"name": name, "createdAt": epoch, "updatedAt": epoch, "state": json.dumps(state)})
