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
from torch import nn

from resnet_repro import pretrained
from resnet_repro.audit.table import TABLE, Claim, Entry
from resnet_repro.audit.weights import load_net, obtain
from resnet_repro.data import preprocessing
from resnet_repro.data.arrays import Arrays
from resnet_repro.engine import ResolvedEngine, configure
from resnet_repro.evaluation import Evaluator, batches, response_stds
from resnet_repro.evidence import OWN, sha256_of, write_atomically, write_json
from resnet_repro.models import count_parameters
from resnet_repro.models.classifier import to_fastest_layout
from resnet_repro.papers import LAST, NUM_PARAMETERS
from resnet_repro.params import Architecture, Section

INTRODUCTION = f"""\
# Published weights, audited

*Written by `resnet-repro audit`; the same as data: [audit.json](audit.json).*

Weight files that other projects publish, and this one's own, loaded into this project's nets and evaluated on \
the official test images with the preprocessing that they were trained with, in float32 on a CPU. Errors in \
percent; a claim is *confirmed* if it is the measured error to two decimals, and a difference is measured minus \
claimed, in points. Where each of the others' files is from, \
and its sha256, stands in [{TABLE.name}](../src/resnet_repro/audit/{TABLE.name}).

"""


class Verdict(Claim):
    """A claim beside the measured error."""

    difference_points: float
    """measured minus claimed, both to two decimals: with 10,000 test images, whole images"""
    confirmed: bool


class Audited(Section):
    """One file, evaluated: its row of `audit.json`."""

    project: str = Field(exclude=True)
    """with its licence"""
    name: str
    """COLLECTION/NET"""
    file: str
    model: str
    """the net's name in papers.py"""
    url: str
    sha256: str
    parameters: int
    published_parameters: int | None
    """the exact number by the paper's description; None where papers.py has none"""
    num_test_images: int
    test_error_percent: float
    response_stds: tuple[float, ...] | None
    """as in a run's `Metrics`"""
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
    audited = []
    loaded = [(entry, load_net(entry, obtain(entry, cache, files))) for entry in entries]
    for entry, net in track(loaded, "Evaluating", console=Console(stderr=True)):
        normalizer = preprocessing.fit(entry.collection.preprocessing, arrays.train_images)
        measured, responses = _measure(net, normalizer, arrays, entry.file.architecture)
        result = Audited(
            project=f"{entry.collection.project} ({entry.collection.licence})",
            name=entry.name,
            file=entry.file.file,
            model=entry.file.model,
            url=entry.url,
            sha256=entry.file.sha256,
            parameters=count_parameters(net),
            published_parameters=NUM_PARAMETERS.get(entry.file.model),
            num_test_images=len(arrays.test_labels),
            test_error_percent=round(measured, 2),
            response_stds=responses,
            claims=tuple(judge(claim, measured) for claim in entry.claims),
        )
        audited.append(result)
    return audited


def audit_own(folder: Path, arrays: Arrays) -> list[Audited]:
    """The same of what this project publishes in `folder`, against what its page prints.

    Raises:
        CheckpointError: a file is damaged.
    """
    audited = []
    for model, path in pretrained.published(folder).items():
        classifier, metadata = pretrained.read_published(folder, model)
        plan, metrics = metadata.plan, metadata.metrics
        measured, responses = _measure(classifier.net, classifier.normalizer, arrays, plan.architecture)
        printed = f"{folder.name}/{pretrained.PAGE}"
        claims = [Claim(error_percent=metrics.test_error_percent, what=LAST, where=printed)] if metrics else []
        result = Audited(
            project=f"this repository, {folder.name}/ (BSD-3-Clause)",
            name=f"{OWN}/{model}",
            file=path.name,
            model=model,
            url=f"{folder.name}/{path.name}",
            sha256=sha256_of(path),
            parameters=plan.parameters,
            published_parameters=NUM_PARAMETERS.get(model),
            num_test_images=len(arrays.test_labels),
            test_error_percent=round(measured, 2),
            response_stds=responses,
            claims=tuple(judge(claim, measured) for claim in claims),
        )
        audited.append(result)
    return audited


def _measure(
    net: nn.Module, normalizer: preprocessing.Normalizer, arrays: Arrays, architecture: Architecture
) -> tuple[float, tuple[float, ...] | None]:
    """Test error in percent, and `response_stds` of He 2015's units."""
    engine = ResolvedEngine("cpu", "eager", "fp32", torch.get_num_threads(), deterministic=True)
    configure(engine)
    images, labels = torch.tensor(arrays.test_images), torch.tensor(arrays.test_labels).long()
    net, normalizer = to_fastest_layout(net, engine.torch_device), normalizer.to(engine.torch_device)
    _, error_percent = Evaluator(net, engine).error(batches(images, labels, normalizer))
    responses: tuple[float, ...] = ()
    if architecture.is_he2015:
        responses = response_stds(net, (seen for seen, _ in batches(images, labels, normalizer)))
    return error_percent, responses or None


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
    for key, group in groupby(audited, lambda each: each.name.split("/")[0]):
        files = list(group)
        conclusions = "\n".join(f"- {sentence}" for sentence in _conclusions(files))
        parts += [f"## {key}", f"{files[0].project}.", _table(files), conclusions]
    return "\n\n".join(parts).replace("*", r"\*")  # of results/*.csv


def _table(files: Sequence[Audited]) -> str:
    """One row per file of a collection; a column for each statistic that is claimed."""
    rows = []
    for each in files:
        count = f"{each.parameters:,}"
        if each.published_parameters not in (None, each.parameters):
            count += f" (paper: {each.published_parameters:,})"
        row = {"weights": each.file, "net": each.model, "parameters": count}
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
        yield f"So these files hold the weights of {which} prints the error of other weights, or in other arithmetic."
    if known := [each for each in files if each.published_parameters is not None]:
        equal = sum(each.parameters == each.published_parameters for each in known)
        yield f"{equal} of {len(known)} nets have exactly the parameters that follow from the paper's description."
