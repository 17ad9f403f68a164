"""The measurement of published weights, and what it says about the claims."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from resnet_repro.audit.table import TABLE, Claim, Entry
from resnet_repro.audit.weights import load_net, obtain
from resnet_repro.data import preprocessing
from resnet_repro.data.arrays import Arrays
from resnet_repro.engine import ResolvedEngine, configure
from resnet_repro.evaluation import Evaluator, batches
from resnet_repro.evidence import write_atomically, write_json
from resnet_repro.models import count_parameters
from resnet_repro.models.classifier import to_fastest_layout
from resnet_repro.papers import NUM_PARAMETERS
from resnet_repro.params import Section

INTRODUCTION = f"""\
# Published weights, audited

*Written by `resnet-repro audit`; the same as data: [audit.json](audit.json).*

Weight files that other projects publish, loaded into this project's nets and evaluated on the official test \
images with the preprocessing that they were trained with, in float32 on a CPU. Errors in percent; a claim is \
*confirmed* if it is the measured error to two decimals, and a difference is measured minus claimed, in points. \
Where each file is from, and its sha256, stands in [{TABLE.name}](../src/resnet_repro/audit/{TABLE.name}).

"""


class Verdict(Claim):
    """A claim beside the measured error."""

    difference_points: float
    """measured minus claimed, both to two decimals: with 10,000 test images, whole images"""
    confirmed: bool


class Audited(Section):
    """One file, evaluated: its row of `audit.json`."""

    entry: Entry = Field(exclude=True)
    name: str
    url: str
    sha256: str
    parameters: int
    published_parameters: int | None
    """the exact number by the paper's description; None where papers.py has none"""
    num_test_images: int
    test_error_percent: float
    claims: tuple[Verdict, ...]


def judge(claim: Claim, error_percent: float) -> Verdict:
    """The verdict on a claim, by the measured error."""
    difference = round(round(error_percent, 2) - round(claim.error_percent, 2), 2)
    return Verdict(**claim.model_dump(), difference_points=difference, confirmed=difference == 0)


def audit(entries: Sequence[Entry], cache: Path, arrays: Arrays, files: Path | None = None) -> list[Audited]:
    """Evaluate the files on the test images, in float32 on the CPU. All are verified before the first is run.

    Raises:
        AuditError: as `obtain` and `load_net`.
    """
    engine = ResolvedEngine("cpu", "eager", "fp32", torch.get_num_threads(), deterministic=True)
    configure(engine)
    images, labels = torch.tensor(arrays.test_images), torch.tensor(arrays.test_labels).long()
    audited = []
    loaded = [(entry, load_net(entry, obtain(entry, cache, files))) for entry in entries]
    for entry, net in track(loaded, "Evaluating", console=Console(stderr=True)):
        normalizer = preprocessing.fit(entry.collection.preprocessing, arrays.train_images)
        evaluator = Evaluator(to_fastest_layout(net, engine.torch_device), engine)
        _, error_percent = evaluator.error(batches(images, labels, normalizer.to(engine.torch_device)))
        result = Audited(
            entry=entry,
            name=entry.name,
            url=entry.url,
            sha256=entry.file.sha256,
            parameters=count_parameters(net),
            published_parameters=NUM_PARAMETERS.get(entry.file.model),
            num_test_images=len(labels),
            test_error_percent=round(error_percent, 2),
            claims=tuple(judge(claim, error_percent) for claim in entry.claims),
        )
        audited.append(result)
    return audited


def show(audited: Sequence[Audited], console: Console) -> None:
    """Print a table and the conclusions for each collection."""
    console.print(Markdown(_collections(audited)))


def write_report(audited: Sequence[Audited], out: Path) -> None:
    """Write `audit.md` and `audit.json` into the folder `out`."""
    write_atomically(out / "audit.md", f"{INTRODUCTION}{_collections(audited)}\n".encode())
    write_json(out / "audit.json", {"weights": [each.model_dump(mode="json") for each in audited]})


def _collections(audited: Sequence[Audited]) -> str:
    """A section of Markdown per collection."""
    parts = []
    for key, group in groupby(audited, lambda each: each.entry.key):
        files = list(group)
        collection = files[0].entry.collection
        conclusions = "\n".join(f"- {sentence}" for sentence in _conclusions(files))
        parts += [f"## {key}", f"{collection.project} ({collection.licence}).", _table(files), conclusions]
    return "\n\n".join(parts).replace("*", r"\*")  # of results/*.csv


def _table(files: Sequence[Audited]) -> str:
    """One row per file of a collection; a column for each statistic that is claimed."""
    rows = []
    for each in files:
        count = f"{each.parameters:,}"
        if each.published_parameters not in (None, each.parameters):
            count += f" (paper: {each.published_parameters:,})"
        row = {"weights": each.entry.file.file, "net": each.entry.file.model, "parameters": count}
        row["measured"] = f"{each.test_error_percent:.2f}"
        for claim in each.claims:
            verdict = "confirmed" if claim.confirmed else f"differs by {claim.difference_points:+.2f}"
            row[f"claimed: {claim}"] = f"{claim.error_percent:.2f}, {verdict}"
        rows.append(row)
    table = pd.DataFrame(rows).fillna("–")
    alignment = ["left", "left", *["right"] * (len(table.columns) - 2)]
    return table.to_markdown(index=False, disable_numparse=True, colalign=alignment)


def _conclusions(files: Sequence[Audited]) -> Iterator[str]:
    """What the verdicts on one collection say together, a sentence each."""
    by_source: dict[str, list[Verdict]] = {}
    for verdict in (verdict for each in files for verdict in each.claims):
        by_source.setdefault(str(verdict), []).append(verdict)
    for source, verdicts in by_source.items():
        others = [verdict.difference_points for verdict in verdicts if not verdict.confirmed]
        confirmed = len(verdicts) - len(others)
        which = "the others" if confirmed else "they"
        differ = f"; {which} differ by {min(others):+.2f} to {max(others):+.2f} points" if others else ""
        yield f"{source}: {confirmed} of {len(verdicts)} claims confirmed{differ}."
    held = [source for source, verdicts in by_source.items() if all(verdict.confirmed for verdict in verdicts)]
    if held and (not_held := [source for source in by_source if source not in held]):
        which = f"{' and '.join(held)}; {' and '.join(not_held)}"
        yield f"So these files hold the weights of {which} prints the error of other weights."
    if known := [each for each in files if each.published_parameters is not None]:
        equal = sum(each.parameters == each.published_parameters for each in known)
        yield f"{equal} of {len(known)} nets have exactly the parameters that follow from the paper's description."
