"""Runs in MLflow: a live view of training, and `publish`, which rebuilds it from the evidence at any time.

The files of a run are the truth and MLflow shows them, so no stage reads MLflow. Live logging and `publish`
go through the same description of a run (`RunRecord`) and the same `sync`. A point carries the time at which
its epoch ended, which the files keep; MLflow has (run, key, time, step, value) as primary key of its points,
so a point sent twice is stored once, and a run that was rebuilt equals the one that was logged.

Nothing outside this package imports mlflow, and it does so when it is used: the import takes seconds.
"""

from resnet_repro.tracking.live import LiveRun, show_evidence
from resnet_repro.tracking.model import log_model
from resnet_repro.tracking.observer import LiveView
from resnet_repro.tracking.publish import PublishSummary, publish
from resnet_repro.tracking.record import (
    RunRecord,
    record_at_end,
    record_at_start,
    record_of_evidence,
)
from resnet_repro.tracking.store import Store, TrackingError, connect, sync, tracking_uri
from resnet_repro.tracking.ui import serve_ui

__all__ = [
    "LiveRun",
    "LiveView",
    "PublishSummary",
    "RunRecord",
    "Store",
    "TrackingError",
    "connect",
    "log_model",
    "publish",
    "record_at_end",
    "record_at_start",
    "record_of_evidence",
    "serve_ui",
    "show_evidence",
    "sync",
    "tracking_uri",
]
