"""Other people's published weights: what is claimed of them, and what they give on the test images.

`published_weights.yaml` says where the files are, what they must be and how their tensors are named. A file is
read only up to its size, parsed only if its sha256 is the table's, and copied into our net only if its tensors
are the net's own in name, shape and kind.
"""

from resnet_repro.audit.report import audit, audit_own, judge, show, write_report
from resnet_repro.audit.table import TABLE, AuditError, Claim, Entry, Table, entries_of, load_table
from resnet_repro.audit.weights import CACHE, load_net, obtain

__all__ = [
    "CACHE",
    "TABLE",
    "AuditError",
    "Claim",
    "Entry",
    "Table",
    "audit",
    "audit_own",
    "entries_of",
    "judge",
    "load_net",
    "load_table",
    "obtain",
    "show",
    "write_report",
]
