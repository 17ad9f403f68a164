"""Runs in MLflow: a live view of training, and `publish`, which rebuilds it from the evidence at any time.

The files of a run are the truth and MLflow shows them, so no stage reads MLflow. Live logging and `publish`
go through the same description of a run (`RunRecord`) and the same `sync`. A point carries the time at which
its epoch ended, which the files keep; MLflow has (run, key, time, step, value) as primary key of its points,
so a point sent twice is stored once, and a run that was rebuilt equals the one that was logged.

Nothing outside this package imports mlflow, and it does so when it is used: the import takes seconds.
"""

from resnet_repro.tracking.live import show_evidence
from resnet_repro.tracking.observer import LiveView
from resnet_repro.tracking.publish import publish
from resnet_repro.tracking.store import TrackingError, connect
from resnet_repro.tracking.ui import serve_ui

__all__ = ["LiveView", "TrackingError", "connect", "publish", "serve_ui", "show_evidence"]
