"""What every stage script does around its work."""

import inspect
import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from resnet_repro.errors import ReproError


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
