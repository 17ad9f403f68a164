"""What every stage script does around its work."""

import errno
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from resnet_repro.errors import ReproError

REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there") | dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM), "make it accessible"
)


@contextmanager
def disk_explained() -> Iterator[None]:
    """Turn a disk that is full or refuses into an error that the user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise ReproError(f"{where}{error.strerror}; {REMEDIES[error.errno]} and run this again") from error


def other_source(root: Path) -> Path | None:
    """The workspace's own source folder, where it has one and that is not the one whose code this is."""
    own = (root / "src").resolve()
    return own if (own / __package__).is_dir() and own != Path(__file__).resolve().parents[1] else None


def refuse_other_source(root: Path) -> None:
    """Raises ReproError: what ran would not be what is edited, hashed and committed in the workspace."""
    if own := other_source(root):
        raise ReproError(
            f"the code that runs is that of {Path(__file__).resolve().parents[1]}, and this workspace has its own in "
            f"{own}: leave PYTHONPATH alone, or set it to {own}"
        )


def run_stage(stage: Callable[..., None]) -> None:
    """Call `stage` with the command line's arguments, one string per parameter.

    An error that the user can mend ends the process with status 1 and its message, without a traceback; wrong
    arguments end it with status 2 and the usage, which is the script's own docstring.
    """
    name = stage.__name__
    arguments = sys.argv[1:]
    try:
        inspect.signature(stage).bind(*arguments)
    except TypeError:
        parameters = " ".join(parameter.upper() for parameter in inspect.signature(stage).parameters)
        purpose = inspect.getdoc(inspect.getmodule(stage)) or ""
        complain(f"usage: python pipeline/{name}.py {parameters}\n\n{purpose}")
        sys.exit(2)
    try:
        refuse_other_source(Path())
        with disk_explained():
            stage(*arguments)
    except ReproError as error:
        complain(f"{name}: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        complain(f"{name}: interrupted")
        sys.exit(130)


def complain(message: str) -> None:
    """Print to stderr, in red where it is a terminal; not wrapped, so that paths stay whole."""
    Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))
