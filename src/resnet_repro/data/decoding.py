"""The members of CIFAR-10's archive, decoded without running anything that they contain.

A member is a Python 2 pickle of a dict, in protocol 2. A batch has `data`, (N, 3072) uint8, whose rows are
1024 red, 1024 green and 1024 blue pixels, row-major, and `labels`, N integers; batches.meta `label_names`.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from resnet_repro.errors import DataError

NUM_CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)

# What a dict of texts, integers and one uint8 array takes, as Python 2 and Python 3 write it. None of these
# makes an instance, or calls anything but what `find_class` returned.
CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
SCALARS = {"NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2"}
TEXTS = {"SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE"}
MEMO = {"BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"}
FILLING = {"MARK", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
CALLS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
OPCODES = CONTAINERS | SCALARS | TEXTS | MEMO | FILLING | CALLS | {"PROTO", "FRAME", "STOP"}

# An official batch has 40,000 opcodes, 8 of them containers. The bounds keep the memory in proportion to the
# member, and the nesting far below what overflows the C stack when a tuple is hashed.
MAX_OPCODES = 200_000
MAX_CONTAINERS = 100


def decode_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8, 0 to 255, and labels (N,) uint8, 0 to 9, of one batch file.

    Raises:
        DataError: the file is not a batch, or holds anything but texts, integers and one array of bytes.
    """
    batch = _unpickle(content)
    array, labels = batch.get("data"), batch.get("labels")
    pixels = array.pixels if isinstance(array, _Array) else None
    if pixels is None or pixels.shape[1] != np.prod(IMAGE_SHAPE):
        raise DataError(f"a batch's `data` must be uint8 of shape (N, 3072), not {_shown(array)}")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"a batch of {len(pixels)} images must have as many `labels`, not {_shown(labels)}")
    if wrong := [label for label in labels if type(label) is not int or not 0 <= label < NUM_CLASSES]:
        raise DataError(f"a label must be an integer from 0 to {NUM_CLASSES - 1}, not {_shown(wrong[0])}")
    return pixels.reshape(-1, *IMAGE_SHAPE), np.array(labels, dtype=np.uint8)


def decode_classes(content: bytes) -> tuple[str, ...]:
    """The names of the ten classes, in the order of the labels, from batches.meta.

    Raises:
        DataError: as `decode_batch`.
    """
    names = _unpickle(content).get("label_names")
    classes = tuple(_text(name) for name in names) if isinstance(names, list) else ()
    if len(set(classes)) != NUM_CLASSES or not all(classes):
        raise DataError(f"`label_names` must be {NUM_CLASSES} different names, not {_shown(names)}")
    return classes


def _unpickle(content: bytes) -> dict[str, Any]:
    try:
        value = _Unpickler(io.BytesIO(_checked(content)), encoding="bytes").load()
    except Exception as error:  # what a damaged or hostile stream raises is not foreseeable, nor of interest
        raise DataError(f"not a batch file of CIFAR-10: {str(error)[:200]!r}") from None
    if not isinstance(value, dict):
        raise DataError(f"a batch file of CIFAR-10 holds a dict, not {_shown(value)}")
    return {_text(key): item for key, item in value.items()}


def _checked(content: bytes) -> bytes:
    """The stream without its frames, refused before anything is built if no batch file needs it: pickle's own reader
    believes every length and memo index, and reserves memory for it; `genops` raises where one goes beyond the end.
    Frames only say how far to read ahead, but after an opcode across the end of one the two readers disagree."""
    containers, parts, start = 0, [], 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content), start=1):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name} at byte {position} is refused")
        containers += opcode.name in CONTAINERS
        if count > MAX_OPCODES or containers > MAX_CONTAINERS:
            raise pickle.UnpicklingError("it has more parts than a batch file can have")
        if opcode.name == "LONG_BINPUT" and (not isinstance(argument, int) or argument > MAX_OPCODES):
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is refused")
        if opcode.name == "FRAME":
            parts.append(content[start:position])
            start = (position or 0) + 9
    return b"".join([*parts, content[start:]])


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        numpy = module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if not numpy or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"{module}.{name} is refused")
        return _Global(name)


# Stand-ins: nothing of NumPy runs on what the stream says. They have slots and are made anew for each stream,
# so BUILD, which sets attributes, reaches nothing that lasts.


class _Global:
    """numpy's `_reconstruct`, `ndarray` or `dtype`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> "_Array | _Uint8":
        match self.name, arguments:
            case "_reconstruct", (_Global(name="ndarray"), (0,), b"b" | "b"):
                return _Array()
            case "dtype", (b"u1" | "u1", 0, 1):
                return _Uint8()
        raise pickle.UnpicklingError(f"{self.name} is not called as for an array of uint8")


class _Uint8:
    """The dtype uint8."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        match state:
            case (3, b"|" | "|", None, None, None, -1, -1, 0):
                return
        raise pickle.UnpicklingError("a dtype other than uint8 is refused")


class _Array:
    """An array of bytes with two dimensions."""

    __slots__ = ("pixels",)
    pixels: np.ndarray | None

    def __init__(self) -> None:
        self.pixels = None

    def __setstate__(self, state: Any) -> None:
        match state:
            case (1, (int(rows), int(columns)), _Uint8(), False, bytes(content)) if (
                rows > 0 and columns > 0 and rows * columns == len(content)
            ):
                self.pixels = np.frombuffer(content, dtype=np.uint8).reshape(rows, columns)
            case _:
                raise pickle.UnpicklingError("an array other than of uint8 with two dimensions is refused")


def _text(value: Any) -> str:
    """Python 2's texts arrive as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii", errors="replace")
    return value if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    """Short whatever the value: it may be 30 MB, or contain itself."""
    if isinstance(value, _Array) and value.pixels is not None:
        return f"shape {value.pixels.shape}"
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else "a huge integer"
    return f"{len(value)} of them" if isinstance(value, list) else f"a {type(value).__name__}"
