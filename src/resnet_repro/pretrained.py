"""Trained nets to give away: a file each, the weights with their preprocessing, and what the run's records say of them.

Those in `pretrained/` are published. A file says itself which net it holds, so that it needs nothing beside it. It may
come from anybody: none of it is run, and it is given no more memory than its own size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from resnet_repro import evidence
from resnet_repro.checkpoint import digest_of, read_tensors
from resnet_repro.data import preprocessing
from resnet_repro.errors import CheckpointError, ReproError
from resnet_repro.evidence import Metrics, Plan, Provenance, Record
from resnet_repro.mistakes import shown
from resnet_repro.models import NUM_CLASSES, build_model, count_parameters
from resnet_repro.models.classifier import METADATA, Classifier
from resnet_repro.models.initialization import initialize
from resnet_repro.papers import judged_against
from resnet_repro.params import Architecture, Name, Preprocessing

FOLDER, PAGE, SUFFIX = "pretrained", "README.md", ".safetensors"
HOME = Path(__file__).parents[2] / FOLDER
"""of the clone that this module lies in"""
FORMAT = 1
MAX_BYTES = 80_000_000
"""of all that is published: it lies in Git, and every clone has to fetch it"""
EVALUATED = ("reports/runs", "reports/ablations/runs")
Printable = Annotated[str, Field(pattern=r"^\P{C}+$")]
"""since it is shown on terminals: no control characters"""


class Metadata(Record):
    """What a file says of its weights: the first five for readers of any kind, the rest as it stands in the evidence.

    Written with all values, so that a later default changes no file's meaning.
    """

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    model: Name
    seed: int
    classes: Annotated[tuple[Printable, ...], Field(min_length=NUM_CLASSES, max_length=NUM_CLASSES)]
    """their names, in the order of the logits"""
    tensors_sha256: str
    """`checkpoint.digest_of` the file's tensors"""
    plan: Plan
    provenance: Provenance
    metrics: Metrics | None
    """None: the run is not evaluated"""

    @model_validator(mode="after")
    def _of_one_run(self) -> Self:
        for record in (self.provenance, self.metrics or self.provenance):
            if (record.model, record.seed) != (self.model, self.seed) or self.plan.model != self.model:
                raise ValueError("its parts are of several runs")
        return self


def export(workspace: Path, run: Path, classes: Sequence[str], out: Path | None = None) -> Path:
    """Write the net of a folder that `train` wrote, to `out` or among the published; there the page follows.

    The same run gives the same bytes.

    Args:
        classes: their names, in the order of the labels.

    Returns:
        The file.

    Raises:
        CheckpointError: the run, or its evaluation, is not what was trained.
        ReproError: another seed of the model is published, or all that is published would become too large.
    """
    if out is not None and out.suffix != SUFFIX:
        raise ReproError(f"{out} does not end in {SUFFIX}, by which such files are known: add it")
    plan, provenance = evidence.read_trained(run)
    classifier = Classifier.load(run / evidence.WEIGHTS, plan.architecture)
    metadata = Metadata(
        model=plan.model,
        seed=provenance.seed,
        classes=tuple(classes),
        tensors_sha256=digest_of(classifier.state_dict()),
        plan=plan,
        provenance=provenance,
        metrics=_metrics(workspace, provenance),
    )
    content = classifier.to_bytes(metadata.model_dump(mode="json"))
    if out is None:
        _make_room(workspace / FOLDER, metadata, len(content))
    path = out or workspace / FOLDER / f"{plan.model}{SUFFIX}"
    evidence.write_atomically(path, content)
    if out is None:
        write_page(workspace / FOLDER)
    return path


def _metrics(workspace: Path, provenance: Provenance) -> Metrics | None:
    """Of the run's evaluation, if there is one."""
    for place in EVALUATED:
        folder = workspace / place / provenance.key
        if (folder / evidence.METRICS).is_file():
            try:
                if Provenance.read(folder / evidence.PROVENANCE).weights_sha256 == provenance.weights_sha256:
                    return Metrics.model_validate_json((folder / evidence.METRICS).read_bytes())
                state = "of other weights"
            except (FileNotFoundError, ValueError):
                state = "damaged"
            raise CheckpointError(f"{folder} is {state}: `dvc repro` evaluates {provenance.key} anew")
    return None


def _make_room(folder: Path, metadata: Metadata, size: int) -> None:
    """Raises ReproError: this is not to be published."""
    others = published(folder)
    if there := others.pop(metadata.model, None):
        _, before = read(there)
        if before.seed != metadata.seed:
            raise ReproError(
                f"seed {before.seed} of {metadata.model} is published, and one seed of a model is: delete {there} to "
                f"publish seed {metadata.seed}, or write it elsewhere with --out"
            )
    if (total := size + sum(path.stat().st_size for path in others.values())) > MAX_BYTES:
        raise ReproError(
            f"with {metadata.model}, {folder} would hold {total:,} bytes, more than the {MAX_BYTES:,} that every clone "
            "is asked to fetch: delete another net there, or write this one elsewhere with --out"
        )


def published(folder: Path = HOME) -> dict[str, Path]:
    """The files in `folder` by their models, in order."""
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def load(name_or_path: str | Path, device: str | torch.device = "cpu", folder: Path = HOME) -> Classifier:
    """A trained net, in eval mode: (N, 3, 32, 32) uint8 pixels, red, green, blue, 0 to 255 -> (N, 10) float32 logits.

    Its preprocessing is part of it. `classes` are the names of the ten.

    Args:
        name_or_path: a model that is published, or a file that `resnet-repro export` wrote, which ends in .safetensors.
        folder: where the published are.

    Raises:
        ReproError: there is no such net or file; it says how to get it.
        CheckpointError: the file is damaged, or not what `export` writes.
    """
    if isinstance(name_or_path, str) and not name_or_path.endswith(SUFFIX):
        classifier, _ = read_published(folder, name_or_path)
    elif not (path := Path(name_or_path)).is_file():
        raise ReproError(f"there is no file {path}: `resnet-repro export MODEL --out {path}` writes one")
    else:
        classifier, _ = read(path)
    return classifier.to(device)


def read_published(folder: Path, name: str) -> tuple[Classifier, Metadata]:
    """`read` of a model's file in `folder`.

    Raises:
        ReproError: it is not published.
        CheckpointError: it is damaged, or another model's.
    """
    if (path := published(folder).get(name)) is None:
        raise ReproError(
            f"no weights of {shown(name)} are published in {folder} (there: {', '.join(published(folder)) or 'none'}): "
            "`resnet-repro export MODEL` makes them of a run that is trained; a file is named with its .safetensors"
        )
    classifier, metadata = read(path)
    if metadata.model != name:
        raise CheckpointError(f"{path} holds {metadata.model}: give it back its name")
    return classifier, metadata


def read(path: Path) -> tuple[Classifier, Metadata]:
    """The net of a file that `export` wrote, in eval mode on the CPU, and what the file says of it.

    Raises:
        CheckpointError: it is damaged, or not what `export` writes.
    """
    tensors, entries = read_tensors(path)
    try:
        metadata = Metadata.model_validate_json(entries[METADATA], strict=False)
        _check_size(metadata.plan.architecture, tensors)
        if digest_of(tensors) != metadata.tensors_sha256:
            raise ValueError("its tensors do not fit their digest")
    except (KeyError, ValueError) as error:
        reason = "it has no metadata" if isinstance(error, KeyError) else str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise CheckpointError(
            f"{path} is not what `resnet-repro export` of this version writes ({shown(reason)}): take a whole copy, "
            "update resnet-repro, or delete it and export it anew"
        ) from None
    classifier = Classifier.load(path, metadata.plan.architecture)
    classifier.classes = metadata.classes
    return classifier, metadata


def _check_size(architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError: the net is larger than the tensors are, and building it might take any memory."""
    if architecture.depth <= len(tensors):  # each layer has a weight: so this takes no longer than reading them did
        with torch.device("meta"):
            net = build_model(architecture)
        if count_parameters(net) <= sum(tensor.numel() for tensor in tensors.values()):
            return
    raise ValueError("its tensors are fewer than its architecture has")


def untrained(plan: Plan, seed: int = 1) -> Classifier:
    """The net with which the training of a plan with `seed` begins, in train mode on the CPU.

    Only training images, or weights trained on them, tell what most recipes subtract and divide by. Until they do,
    pixels are read as 0 to 1, unless the recipe names constants.
    """
    net, recipe = build_model(plan.architecture), plan.recipe
    initialize(net, recipe.initialization, seed, recipe.scales)
    plain = Preprocessing(kind="pixel_mean")  # the mean of a black image is 0
    kind = recipe.preprocessing if recipe.preprocessing.kind == "constants" else plain
    return Classifier(net, preprocessing.fit(kind, np.zeros((1, 3, 32, 32), dtype=np.uint8)))


USE = f"""\
## Use

Each file is a net with its preprocessing: pixels go in as they are, (N, 3, 32, 32) uint8, red, green, blue, 0 to 255.

```python
import torch

net = torch.hub.load("path/to/this/clone", "resnet20", source="local", pretrained=True)  # or "OWNER/NAME" on GitHub

import resnet_repro

net = resnet_repro.load("resnet20")  # or the path of a file
names = [net.classes[index] for index in net(images).argmax(dim=1)]
```

```
resnet-repro predict IMAGES... --model resnet20               # these weights, where no run of it is trained
resnet-repro export resnet20                                  # publish the lowest seed that is trained
resnet-repro export resnet20 --seed 2 --out FILE.safetensors  # write a file of your own
```

Test errors are those of the files as loaded so: in float32, uncompiled; [the audit](../reports/audit.md) measures
them again. A file's metadata, under `resnet_repro`, has plan, provenance and errors of its run. One seed of a model is
published, at most {MAX_BYTES // 1_000_000} MB in all.
"""


def page(folder: Path) -> str:
    """`README.md` of the folder of the published, from its files.

    Raises:
        CheckpointError: one is damaged, or named as another model.
    """
    head = ["model", "seed", "MB", "parameters", "test error, %", "printed, %", "commit", "sha256"]
    table = [head, [":--", *["--:"] * 4, ":--", ":--", ":--"]]
    for name, path in published(folder).items():
        _, metadata = read_published(folder, name)
        size, parameters = f"{path.stat().st_size / 1e6:.1f}", f"{metadata.plan.parameters:,}"
        error = f"{metadata.metrics.test_error_percent:.2f}" if metadata.metrics else "–"
        one = judged_against(name)
        paper = f"{one.relation.strip('=')}{one.value:.2f} ({one.source}: {one.statistic})" if one else "–"
        commit = f"`{metadata.provenance.git_commit or 'unknown':.10}`"
        sha256 = f"`{evidence.sha256_of(path)}`"
        table.append([name, str(metadata.seed), size, parameters, error, paper, commit, sha256])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    written = "*Written by `resnet-repro export` from the files beside it; do not edit.*"
    body = rows if published(folder) else "No weights are published yet."
    return "\n\n".join(["# Trained weights", written, body, USE])


def write_page(folder: Path) -> None:
    """Bring `README.md` in the folder of the published up to date."""
    evidence.write_atomically(folder / PAGE, page(folder).encode())
