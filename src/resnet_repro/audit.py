"""Other people's published weights: what is claimed of them, and what they give on the test images.

`published_weights.yaml` says where the files are, what they must be and how their tensors are named. A file is
read only up to its size, parsed only if its sha256 is the table's, and copied into our net only if its tensors
are the net's own in name, shape and kind.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
import requests
import torch
import urllib3
from pydantic import Field, ValidationError, model_validator
from requests.adapters import HTTPAdapter
from rich.console import Console
from rich.progress import track
from rich.table import Table as Grid
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from torch import Tensor, nn

from resnet_repro.data import preprocessing
from resnet_repro.data.arrays import Arrays
from resnet_repro.data.download import CONNECT_SECONDS, PAUSES_SECONDS, READ_SECONDS
from resnet_repro.engine import ResolvedEngine, configure
from resnet_repro.errors import ReproError
from resnet_repro.evaluation import Evaluator, batches
from resnet_repro.evidence import write_atomically, write_json
from resnet_repro.mistakes import dotted, line, message, nearest
from resnet_repro.models import build_model, count_parameters
from resnet_repro.models.classifier import to_fastest_layout
from resnet_repro.papers import NUM_PARAMETERS, SOURCE_PROJECTS, source_project_numbers
from resnet_repro.params import Architecture, PositiveInt, Preprocessing, Section, Sha256, Strings

TABLE = Path(__file__).with_name("published_weights.yaml")
CACHE = Path(".cache/published_weights")
REPORT, RECORD = "audit.md", "audit.json"


class AuditError(ReproError):
    """A published file could not be had, or is not what the table says."""


# ---- the table


Percent = Annotated[float, Field(ge=0, le=100)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""One part of a path, which leads nowhere else."""


class Claim(Section):
    """One test error that is claimed of a file."""

    error_percent: Percent
    what: str
    """the statistic, such as "last epoch" """
    where: str


class WeightFile(Section):
    """One file and the net that it holds."""

    file: FileName
    bytes: PositiveInt
    sha256: Sha256
    architecture: Architecture
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()
    """beside those that papers.py knows"""

    @model_validator(mode="after")
    def _can_be_named(self) -> Self:
        net = self.architecture
        if net.family not in ("plain", "resnet") or net.block != "basic" or net.shortcut not in (None, "A"):
            raise ValueError("only plain nets and residual nets of basic blocks with option A can be audited")
        return self

    @property
    def model(self) -> str:
        """Its name in papers.py."""
        return f"{self.architecture.family}{self.architecture.depth}"


class Collection(Section):
    """The files of one project, which share all but their content."""

    project: str
    licence: str
    url: Annotated[str, Field(pattern=r"^https?://")]
    """the folder of the files, at a fixed version"""
    names: Literal["a_martyn", "common"]
    zeros: Literal["behind", "both_sides"] = "behind"
    """where option A puts the channels that are missing; akamaster/pytorch_resnet_cifar10 and what derives
    from it put half of them in front"""
    preprocessing: Preprocessing
    printed_in: Strings = ()
    """the sources in papers.py whose numbers are claimed of these files"""
    files: dict[FileName, WeightFile]

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        sources = list(dict.fromkeys(number.source for number in SOURCE_PROJECTS))
        for source in self.printed_in:
            if source not in sources:
                raise ValueError(f"papers.py has no source {source!r}{nearest(source, sources)}")
        return self


class Table(Section):
    """The whole of `published_weights.yaml`."""

    collections: dict[FileName, Collection]


@dataclass(frozen=True)
class Entry:
    """One file of the table."""

    name: str
    """COLLECTION/NET"""
    collection: Collection
    file: WeightFile

    @property
    def key(self) -> str:
        """The collection's name."""
        return self.name.partition("/")[0]

    @property
    def url(self) -> str:
        return f"{self.collection.url}/{self.file.file}"

    @property
    def claims(self) -> tuple[Claim, ...]:
        printed = (
            Claim(error_percent=number.value, what=number.statistic, where=number.source)
            for source in self.collection.printed_in
            for number in source_project_numbers(self.file.model)
            if number.source == source
        )
        return (*printed, *self.file.claims)


def load_table(path: Path = TABLE) -> Table:
    """Read and validate a table.

    Raises:
        AuditError: names the file, the line, what is wrong and, for an unknown key, the nearest one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = YAML(typ="safe").load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{path} cannot be read: {error}") from None
    except MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else 1
        raise AuditError(f"{path}:{at}: {error.problem or error.context}") from None
    try:
        return Table.model_validate(values)
    except ValidationError as error:
        tree = YAML(typ="rt").load(text)  # the same with the line of every key
        places = [(tuple(item["loc"]), message(Table, item)) for item in error.errors()]
        lines = (f"{path}:{line(tree, place)}: {dotted(place)}: {said}" for place, said in places)
        raise AuditError("\n".join(lines)) from None


def entries_of(table: Table, names: Sequence[str] = ()) -> list[Entry]:
    """The files of the named collections or files (`a-martyn`, `a-martyn/resnet20`); all of them for no name.

    Raises:
        AuditError: there is no such name; with the nearest one.
    """
    entries = [
        Entry(f"{key}/{name}", collection, file)
        for key, collection in table.collections.items()
        for name, file in collection.files.items()
    ]
    known = [*table.collections, *(entry.name for entry in entries)]
    for name in names:
        if name not in known:
            raise AuditError(f"the table has no weights {name!r}{nearest(name, known)}")
    return [entry for entry in entries if not names or entry.name in names or entry.key in names]


# ---- the files


def obtain(entry: Entry, cache: Path, files: Path | None = None) -> bytes:
    """The verified content of a file: from the folder `files`, or from its URL by way of the folder `cache`; in
    both it lies in a folder with the collection's name.

    Raises:
        AuditError: it is not there, or not the file of the table.
    """
    path = (files or cache) / entry.key / entry.file.file
    if files is None and not path.exists():
        content = _download(entry.url, entry.file.bytes)
        _verify(content, entry.file, entry.url, "it has changed since it was entered in the table")
        write_atomically(path, content)
        return content
    try:
        with path.open("rb") as stream:
            content = stream.read(entry.file.bytes + 1)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}. Without --files it is had from {entry.url}") from None
    _verify(content, entry.file, str(path), f"replace it by {entry.url}, or remove it and leave --files out")
    return content


def _download(url: str, num_bytes: int) -> bytes:
    """The file at `url`, or its first `num_bytes` + 1 bytes."""
    retry = urllib3.Retry(len(PAUSES_SECONDS), backoff_factor=PAUSES_SECONDS[0], status_forcelist=(429, 502, 503, 504))
    session = requests.Session()
    session.mount(url, HTTPAdapter(max_retries=retry))
    try:
        with session, session.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            response.raise_for_status()
            return bytes(response.raw.read(num_bytes + 1, decode_content=True))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = getattr(error.args[0] if error.args else None, "reason", error)  # below the layers of wrapping
        raise AuditError(f"{url} gives no file: {reason}. With --files FOLDER it is taken from a folder") from None


def _verify(content: bytes, file: WeightFile, where: str, remedy: str) -> None:
    if len(content) > file.bytes:
        raise AuditError(f"{where} has more than the table's {file.bytes:,} bytes: {remedy}")
    if len(content) < file.bytes:
        raise AuditError(f"{where} has {len(content):,} bytes of the table's {file.bytes:,}: {remedy}")
    if (actual := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise AuditError(f"{where} has the sha256 {actual}, not the table's {file.sha256}: {remedy}")


def load_net(entry: Entry, content: bytes) -> nn.Module:
    """Our net with the weights of a verified file.

    Raises:
        AuditError: the file holds other tensors than the net has.
    """
    net = build_model(entry.file.architecture)
    try:
        state = _parse(content)
        _check_names(state, names := foreign_names(net, entry))
        tensors = {ours: state[foreign] for ours, foreign in names.items() if foreign in state}
        own = net.state_dict()
        for ours, tensor in tensors.items():
            _check_tensor(names[ours], tensor, own[ours])
    except AuditError as error:
        raise AuditError(
            f"{entry.name}, {entry.file.file}: {error}. Do the table's `names` and `architecture` fit this file?"
        ) from None
    if entry.collection.zeros == "both_sides":
        tensors = zeros_to_the_end(tensors)
    net.load_state_dict({**own, **tensors})
    return net.eval().requires_grad_(False)


COUNTER = ".num_batches_tracked"
"""No number of evaluation; files older than PyTorch 0.4.1 lack it."""


def _parse(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, without what may be wrapped around them or their names."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to spell
        reason = f"it is damaged, or holds more than tensors ({type(error).__name__})"
        raise AuditError(reason) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise AuditError("it holds no tensors by their names")
    parallel = all(name.startswith("module.") for name in state)  # saved from within DataParallel
    return {name.removeprefix("module.") if parallel else name: value for name, value in state.items()}


def _check_names(state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    wanted = set(names.values())
    missing = sorted(name for name in wanted - set(state) if not name.endswith(COUNTER))
    unknown = sorted(set(state) - wanted)
    if missing:
        raise AuditError(f"it lacks {len(missing)} tensors of the net, {missing[0]!r} first")
    if unknown:
        raise AuditError(f"it has {len(unknown)} tensors that the net has not, {unknown[0]!r} first")


def _check_tensor(name: str, tensor: Tensor, own: Tensor) -> None:
    if tensor.shape != own.shape:
        raise AuditError(f"{name} has the shape {list(tensor.shape)}, and the net's is {list(own.shape)}")
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.is_floating_point() != own.is_floating_point():
        raise AuditError(f"{name} is of another kind: {tensor.dtype}, {tensor.layout}, {tensor.device}")
    if not tensor.isfinite().all():
        raise AuditError(f"{name} holds values that are not finite")


# ---- from their names to ours


def foreign_names(net: nn.Module, entry: Entry) -> dict[str, str]:
    """{our tensor: theirs} for every tensor of our net's state_dict."""
    modules = NAMES[entry.collection.names](entry.file.architecture.blocks_per_group)
    names = {}
    for name in net.state_dict():
        module, _, leaf = name.rpartition(".")
        names[name] = f"{modules[module]}.{leaf}"
    return names


def a_martyn(blocks: int) -> dict[str, str]:
    """{our module: theirs} of github.com/a-martyn/resnet: the blocks that subsample have names of their own."""

    def block(group: int, index: int) -> str:
        if group == 0:
            return f"stack1.{index}"
        return f"stack{group + 1}b.{index - 1}" if index else f"stack{group + 1}a"

    return {"stem": "convIn", "stem_norm": "bnIn", "linear": "fcOut", **_blocks(blocks, block)}


def common(blocks: int) -> dict[str, str]:
    """{our module: theirs} as torchvision names them, and most 6n+2 nets after it."""
    by_place = _blocks(blocks, lambda group, index: f"layer{group + 1}.{index}")
    return {"stem": "conv1", "stem_norm": "bn1", "linear": "linear", **by_place}


def _blocks(blocks: int, block: Callable[[int, int], str]) -> dict[str, str]:
    layers = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2"}
    return {
        f"groups.{group}.{index}.residual.{ours}": f"{block(group, index)}.{theirs}"
        for group in range(3)
        for index in range(blocks)
        for ours, theirs in layers.items()
    }


NAMES: dict[str, Callable[[int], dict[str, str]]] = {"a_martyn": a_martyn, "common": common}


def zeros_to_the_end(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, under our names, of the same function with its channels in another order.

    In the net of `state`, a shortcut between groups puts half of the missing channels in front of its input's
    and half behind. Renumbering the channels that run through a group (what its blocks add to, and what the
    next reads) moves them all to the end, where `ZeroPad` has them. Exact: nothing is computed.
    """
    orders = [torch.arange(len(state["stem.weight"]))]
    for _ in range(2):
        orders.append(_input_first(orders[-1]))
    moved = dict(state)
    for name, value in state.items():
        match name.split("."):
            case ["groups", group, index, "residual", "0", "weight"]:
                reads = int(group) if index != "0" else max(int(group) - 1, 0)
                moved[name] = value[:, orders[reads]]
            case ["groups", group, _, "residual", "3" | "4", _] if value.dim():
                moved[name] = value[orders[int(group)]]
            case ["linear", "weight"]:
                moved[name] = value[:, orders[-1]]
    return moved


def _input_first(order: Tensor) -> Tensor:
    """The channels of a group, those that its first shortcut fills from the group before (itself in `order`)
    in front of those that it leaves zero."""
    channels = len(order)
    first = channels // 2
    zeros = torch.cat([torch.arange(first), torch.arange(first + channels, 2 * channels)])
    return torch.cat([order + first, zeros])


# ---- the measurement


@dataclass(frozen=True)
class Verdict:
    """A claim beside the measurement, both to two decimals: with 10,000 test images, whole images."""

    claim: Claim
    difference_points: float
    """measured minus claimed"""

    @property
    def confirmed(self) -> bool:
        return self.difference_points == 0

    def __str__(self) -> str:
        return "confirmed" if self.confirmed else f"differs by {self.difference_points:+.2f}"


@dataclass(frozen=True)
class Audited:
    """One file, evaluated."""

    entry: Entry
    num_test_images: int
    error_percent: float
    parameters: int

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(judge(claim, self.error_percent) for claim in self.entry.claims)

    @property
    def published_parameters(self) -> int | None:
        """The exact number by the paper's description; None where papers.py has none."""
        return NUM_PARAMETERS.get(self.entry.file.model)


def judge(claim: Claim, error_percent: float) -> Verdict:
    """The verdict on a claim, by the measured error."""
    return Verdict(claim, round(round(error_percent, 2) - round(claim.error_percent, 2), 2))


def audit(entries: Sequence[Entry], cache: Path, arrays: Arrays, files: Path | None = None) -> list[Audited]:
    """Evaluate the files on the test images, in float32 on the CPU. All are verified before the first is run.

    Raises:
        AuditError: as `obtain` and `load_net`.
    """
    engine = ResolvedEngine("cpu", "eager", "fp32", torch.get_num_threads(), deterministic=True)
    configure(engine)
    images, labels = torch.tensor(arrays.test_images), torch.tensor(arrays.test_labels).long()
    audited = []
    nets = [load_net(entry, obtain(entry, cache, files)) for entry in entries]
    for entry, net in track(list(zip(entries, nets, strict=True)), "Evaluating", console=Console(stderr=True)):
        normalizer = preprocessing.fit(entry.collection.preprocessing, arrays.train_images)
        evaluator = Evaluator(to_fastest_layout(net, engine.torch_device), engine)
        _, error_percent = evaluator.error(batches(images, labels, normalizer.to(engine.torch_device)))
        audited.append(Audited(entry, len(labels), error_percent, count_parameters(net)))
    return audited


# ---- the report


def write_report(audited: Sequence[Audited], out: Path) -> None:
    """Write `audit.md` and `audit.json` into the folder `out`."""
    write_atomically(out / REPORT, report(audited).encode())
    write_json(out / RECORD, {"weights": [record(each) for each in audited]})


def record(audited: Audited) -> dict[str, Any]:
    """One file's row of `audit.json`."""
    file = audited.entry.file
    return {
        "name": audited.entry.name,
        "url": audited.entry.url,
        "sha256": file.sha256,
        "parameters": audited.parameters,
        "published_parameters": audited.published_parameters,
        "num_test_images": audited.num_test_images,
        "test_error_percent": round(audited.error_percent, 2),
        "claims": [
            {**each.claim.model_dump(), "difference_points": each.difference_points, "confirmed": each.confirmed}
            for each in audited.verdicts
        ],
    }


def report(audited: Sequence[Audited]) -> str:
    """The report's text, Markdown."""
    return "\n\n".join(_text(audited)) + "\n"


def _text(audited: Sequence[Audited]) -> Iterator[str]:
    yield "# Published weights, audited"
    yield "*Written by `resnet-repro audit`; the same as data: [audit.json](audit.json).*"
    yield (
        "Weight files that other projects publish, loaded into this project's nets and evaluated on the official "
        "test images with the preprocessing that they were trained with, in float32 on a CPU. Errors in percent; a "
        "claim is *confirmed* if it is the measured error to two decimals, and a difference is measured minus "
        "claimed, in points. Where each file is from, and its sha256, stands in "
        f"[{TABLE.name}](../src/resnet_repro/{TABLE.name})."
    )
    for key, group in by_collection(audited).items():
        collection = group[0].entry.collection
        yield f"## {key}"
        yield f"{collection.project} ({collection.licence})."
        table = frame(group)
        alignment = ["left", "left", *["right"] * (len(table.columns) - 2)]
        yield _escaped(table.to_markdown(index=False, disable_numparse=True, colalign=alignment))
        yield _escaped("\n".join(f"- {sentence}" for sentence in conclusions(group)))


def _escaped(text: str) -> str:
    return text.replace("*", r"\*")  # of results/*.csv


def by_collection(audited: Sequence[Audited]) -> dict[str, list[Audited]]:
    groups: dict[str, list[Audited]] = {}
    for each in audited:
        groups.setdefault(each.entry.key, []).append(each)
    return groups


def frame(group: Sequence[Audited]) -> pd.DataFrame:
    """One row of text per file of a collection; a column for each statistic that is claimed."""
    rows = []
    for each in group:
        claimed = {f"claimed: {_source(v.claim)}": f"{v.claim.error_percent:.2f}, {v}" for v in each.verdicts}
        count = f"{each.parameters:,}"
        if each.published_parameters not in (None, each.parameters):
            count += f" (paper: {each.published_parameters:,})"
        row = {"weights": each.entry.file.file, "net": each.entry.file.model, "parameters": count}
        rows.append({**row, "measured": f"{each.error_percent:.2f}", **claimed})
    return pd.DataFrame(rows).fillna("–")


def conclusions(group: Sequence[Audited]) -> Iterator[str]:
    """What the verdicts on one collection say together, a sentence each."""
    by_source: dict[str, list[Verdict]] = {}
    for each in group:
        for verdict in each.verdicts:
            by_source.setdefault(_source(verdict.claim), []).append(verdict)
    for source, verdicts in by_source.items():
        confirmed = sum(verdict.confirmed for verdict in verdicts)
        text = f"{source}: {confirmed} of {len(verdicts)} claims confirmed"
        others = [verdict.difference_points for verdict in verdicts if not verdict.confirmed]
        which = "the others" if confirmed else "they"
        yield text + (f"; {which} differ by {min(others):+.2f} to {max(others):+.2f} points." if others else ".")
    held = [source for source, verdicts in by_source.items() if all(verdict.confirmed for verdict in verdicts)]
    not_held = [source for source in by_source if source not in held]
    if held and not_held:
        yield (
            f"So these files hold the weights of {' and '.join(held)}; {' and '.join(not_held)} prints the error of "
            "other weights."
        )
    known = [each for each in group if each.published_parameters is not None]
    equal = sum(each.parameters == each.published_parameters for each in known)
    if known:
        yield f"{equal} of {len(known)} nets have exactly the parameters that follow from the paper's description."


def _source(claim: Claim) -> str:
    return f"{claim.where} ({claim.what})"


def show(audited: Sequence[Audited], console: Console) -> None:
    """Print a table and the conclusions for each collection."""
    for key, group in by_collection(audited).items():
        table = frame(group)
        grid = Grid(*map(str, table.columns), title=key)
        for row in table.to_numpy():
            grid.add_row(*row)
        console.print(grid)
        for sentence in conclusions(group):
            console.print(sentence, highlight=False, markup=False)
