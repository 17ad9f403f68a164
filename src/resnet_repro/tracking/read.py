"""A run that MLflow has, back as a record."""

import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnet_repro.evidence import Epoch
from resnet_repro.tracking.record import RunRecord
from resnet_repro.tracking.store import TrackingError, connect, explain, root_of, tracking_uri

NOT_LOGGED = ("step", "train_seconds", "finished_at")  # of an epoch, as metrics of their own: `record.points_of`


def find_run(workspace: Path, run_id: str) -> RunRecord | None:
    """The training that MLflow has under an id of its own; None: there is none, or no store is here.

    It names no artifacts, and its epochs have NaN for `train_seconds`, which MLflow does not get.

    Raises:
        TrackingError: the store cannot be used.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ and not (root_of(workspace) / "mlflow.db").is_file():
        return None  # to look into it would make it
    try:
        store = connect(workspace)
        found = store.client.search_runs([store.experiment_id], f"attributes.run_id = '{run_id}'")
        if not found or "seed" not in found[0].data.params:
            return None
        (run,) = found
        names = [f.name for f in fields(Epoch) if f.name not in NOT_LOGGED and f.name in run.data.metrics]
        points = {name: store.client.get_metric_history(run_id, name) for name in names}
    except Exception as error:  # MLflow's, its database's or the network's
        raise TrackingError(explain(tracking_uri(workspace), error)) from error
    data, end = run.data, run.info.end_time
    return RunRecord(
        uid=data.tags.get("uid", run_id),
        name=run.info.run_name,
        started_at=run.info.start_time / 1000,
        params=data.params,
        tags=data.tags,
        data_sha256=data.tags.get("data_sha256", ""),
        epochs=_epochs(points),
        summary={key: value for key, value in data.metrics.items() if key not in names},
        status=run.info.status,
        ended_at=end / 1000 if end else None,
    )


def _epochs(points: dict[str, list[Any]]) -> tuple[Epoch, ...]:
    """Of the steps at which all metrics have a point: a run that was killed may lack some of its last epoch's."""
    values = {name: {point.step: point.value for point in history} for name, history in points.items()}
    times = {point.step: point.timestamp / 1000 for history in points.values() for point in history}
    steps = sorted(step for step in times if all(step in history for history in values.values()))
    absent = {"validation_loss": None, "validation_error_percent": None, "train_seconds": math.nan}
    rows = ({**absent, **{name: history[step] for name, history in values.items()}} for step in steps)
    return tuple(
        Epoch(**row | {"epoch": int(row["epoch"]), "step": step, "finished_at": times[step]})
        for step, row in zip(steps, rows, strict=True)
    )
