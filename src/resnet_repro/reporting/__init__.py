"""Tables and figures, from the committed evidence and never from MLflow."""

from resnet_repro.reporting.write import write_ablations, write_report

__all__ = ["write_ablations", "write_report"]
