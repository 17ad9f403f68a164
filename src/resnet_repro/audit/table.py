"""`published_weights.yaml` as frozen, validated objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from resnet_repro.errors import ReproError
from resnet_repro.mistakes import dotted, line, message, nearest
from resnet_repro.papers import SOURCE_PROJECTS, source_project_numbers
from resnet_repro.params import Architecture, PositiveInt, Preprocessing, Section, Sha256, Strings

TABLE = Path(__file__).with_name("published_weights.yaml")

FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""One part of a path, which leads nowhere else."""


class AuditError(ReproError):
    """A published file could not be had, or is not what the table says."""


class Claim(Section):
    """One test error that is claimed of a file."""

    error_percent: Annotated[float, Field(ge=0, le=100)]
    what: str
    """the statistic, such as "last epoch" """
    where: str

    def __str__(self) -> str:
        return f"{self.where} ({self.what})"


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
        if not net.is_he2015 or net.shortcut not in (None, "A"):
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
        sources = dict.fromkeys(number.source for number in SOURCE_PROJECTS)
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

    key: str
    """the collection's name"""
    name: str
    """COLLECTION/NET"""
    collection: Collection
    file: WeightFile

    @property
    def url(self) -> str:
        return f"{self.collection.url}/{self.file.file}"

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Those of papers.py, then the table's."""
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
        return Table.model_validate(YAML(typ="safe").load(text))
    except ValidationError as error:
        tree = YAML(typ="rt").load(text)  # the same with the line of every key
        places = ((item["loc"], message(Table, item)) for item in error.errors())
        lines = (f"{path}:{line(tree, place)}: {dotted(place)}: {said}" for place, said in places)
        raise AuditError("\n".join(lines)) from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise AuditError(f"{path} cannot be read: {error}") from None


def entries_of(table: Table, names: Sequence[str] = ()) -> list[Entry]:
    """The files of the named collections or files (`a-martyn`, `a-martyn/resnet20`); all of them for no name.

    Raises:
        AuditError: there is no such name; with the nearest one.
    """
    entries = [
        Entry(key, f"{key}/{name}", collection, file)
        for key, collection in table.collections.items()
        for name, file in collection.files.items()
    ]
    known = [*table.collections, *(entry.name for entry in entries)]
    for name in names:
        if name not in known:
            raise AuditError(f"the table has no weights {name!r}{nearest(name, known)}")
    return [entry for entry in entries if not names or entry.name in names or entry.key in names]
