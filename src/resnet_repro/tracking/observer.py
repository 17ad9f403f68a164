"""The `experiment.Observer` that shows a training in MLflow while it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_repro.evidence import Epoch, Origin, Plan, Provenance, read_history
from resnet_repro.tracking.live import LiveRun
from resnet_repro.tracking.record import epochs_of, record_at_end, record_at_start

if TYPE_CHECKING:
    from torch.nn import Module


class LiveView:
    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace

    def started(self, plan: Plan, origin: Origin, epochs: Sequence[Epoch], trainer: object) -> None:
        self.plan = plan
        self.live = LiveRun.start(self.workspace, record_at_start(plan, origin, epochs))

    def stepped(self, step: int) -> None: ...

    def epoch_done(self, epochs: Sequence[Epoch]) -> None: ...

    def saved(self, epochs: Sequence[Epoch]) -> None:
        self.live.log_epochs(epochs)

    def interrupted(self, reason: str) -> None:
        self.live.interrupt()

    def failed(self, reason: str) -> None:
        self.live.fail(reason)

    def finished(self, folder: Path, provenance: Provenance, module: "Module") -> None:
        """The run is trained and its files are in `folder`."""
        epochs = epochs_of(read_history(folder))
        self.live.finish(record_at_end(self.plan, provenance, epochs, folder), module)
