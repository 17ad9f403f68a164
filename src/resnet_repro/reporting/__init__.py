"""Tables and figures, from the committed evidence and never from MLflow."""

from resnet_repro.reporting.write import write_report

__all__ = ["write_report"]
