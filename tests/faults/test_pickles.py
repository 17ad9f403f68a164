"""Hostile pickles are decoded in a process of their own, which may take 100 MB more than before and a second for each,
and in which nothing may happen that Python tells an audit hook: an import, a file, a process, a call of `eval`."""

import builtins
import codecs
import itertools
import os
import pickle
import pickletools
import random
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import killing
from reliability import Injections
from resnet_repro.data.decoding import OPCODES, decode_batch, decode_classes
from resnet_repro.data.digits import CLASSES, pickled
from resnet_repro.errors import DataError

AREA = "Pickles"
NOTHING_RUNS = "no code runs, nothing is imported or opened; each takes less than 100 MB and a second"
MEMORY_BYTES, SECONDS = 100 << 20, 1.0

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
BATCH = {"batch_label": "made up", "labels": [3, 7], "data": PIXELS}
VALID = (pickled(BATCH), pickled({"label_names": CLASSES}), *(pickle.dumps(BATCH, protocol) for protocol in (3, 4)))


def watch(streams: Callable[[int], Iterator[bytes]], count: int, reason: str, *decoders: Callable[..., object]) -> None:
    """Decode streams; each must be refused for a reason, or for "" may be a batch or classes."""
    events, armed = list[str](), False
    for codec in ("ascii", "latin-1", "utf-8", "raw-unicode-escape", "unicode-escape"):
        codecs.lookup(codec)  # imported when first used
    sys.addaudithook(lambda event, _: events.append(event) if armed else None)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY_BYTES, resource.RLIM_INFINITY))
    for content, decode in ((stream, decode) for stream in streams(count) for decode in decoders):
        began, said, cause, armed = time.process_time(), "", None, True
        try:
            decode(content)
        except DataError as error:
            said, cause = str(error), error.__context__
        armed = False
        assert not isinstance(cause, MemoryError), content[:100]
        assert time.process_time() - began < SECONDS, content[:100]
        assert not events, (events, content[:100])
        assert re.search(reason, said), (said, content[:100])
        assert said.isprintable() and len(said) < 400, said  # noqa: PT018


@pytest.fixture
def holds(tmp_path: Path, injected: Injections) -> Callable[..., None]:
    def check(streams: Callable[[int], Iterator[bytes]], count: int, reason: str) -> None:
        with injected(times=count):
            work = (watch, streams, count, reason, decode_batch, decode_classes)
            assert killing.run(tmp_path / "log", *work) == 0, (tmp_path / "log").read_text()

    return check


class Payload:
    """Calls `function(*arguments)` when Python's own unpickler reads it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


PAYLOADS = (
    Payload(os.system, "exit"),
    Payload(subprocess.Popen, ["true"]),
    Payload(builtins.eval, "1"),
    Payload(np.load, "x"),
    Payload(np.ndarray, (1 << 40,)),
    Payload(np.dtype, "O"),
    Payload(np._core.multiarray._reconstruct, np.ndarray, (1 << 40,), b"b"),  # type: ignore[attr-defined]
    Payload(Payload, Payload(os.system, "exit")),
)
BY_HAND = (  # by opcodes that Python no longer writes, or only for other things
    b"(S'exit'\nios\nsystem\n.",
    b"(cos\nsystem\nS'exit'\no.",
    b"\x80\x02cos\nsystem\nU\x04exit\x85\x81.",
    b"\x80\x04cos\nsystem\nU\x04exit\x85}\x92.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04exit\x85R.",
    b"\x80\x02cnumpy\ndtype\n}U\x08__call__cos\nsystem\nsbU\x04exit\x85R.",
    b"\x80\x02\x82\x01.",
    b"Pname of a persistent object\n.",
    b"\x80\x02cos\x1b[2J\nsystem\n.",
)


def payloads(count: int) -> Iterator[bytes]:
    yield from BY_HAND
    for payload, protocol in itertools.product(PAYLOADS, range(6)):
        places = (payload, {payload: 1}, [BATCH, payload], BATCH | {"data": payload}, BATCH | {"labels": [payload]})
        yield from (pickle.dumps(content, protocol) for content in places)


@pytest.mark.fault("a payload, in any protocol and place", NOTHING_RUNS)
def test_payloads(holds):
    holds(payloads, len(BY_HAND) + len(PAYLOADS) * 6 * 5, r"is refused|not called as")


BOMBS = (
    b"\x80\x02Nr\xff\xff\xff\x7f.",  # the largest index of the memo
    b"\x80\x03B" + struct.pack("<I", 1 << 31) + b".",  # lengths of bytes, long bytes, a bytearray, a frame, a text
    b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    b"\x80\x02T" + struct.pack("<i", -5) + b".",
    b"\x80\x04N\x95" + struct.pack("<Q", 3) + b"r\x02\x00\x00\x00.\x7f",  # an index across the end of a frame
    b"\x80\x02" + b"}" * 1_000_000 + b".",
    b"\x80\x02" + b"N" * 1_000_000 + b".",
    b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",  # nested tuples as a key
    b"I" + b"9" * 3_000_000 + b"\n.",
    b"\x80\x02c" + b"a" * 3_000_000 + b"\nb\n.",
    b"\x80\x02]q\x00h\x00a.",  # a list in itself
    b"\x80\x02cnumpy\ndtype\nN}U\x08__call__Ns\x86b.",  # attributes of a global, and its class
    b"\x80\x02cnumpy\ndtype\nN}U\x09__class__cnumpy\nndarray\ns\x86b.",
)


def bombs(count: int) -> Iterator[bytes]:
    yield from BOMBS[:count]


@pytest.mark.fault("a bomb: of lengths, depth, parts or names", NOTHING_RUNS)
def test_bombs(holds):
    holds(bombs, len(BOMBS), ".")


@pytest.mark.parametrize(("streams", "noticed"), [(payloads, "os.system"), (bombs, "MemoryError")])
def test_the_watch_notices_what_pickle_does(tmp_path, streams, noticed):
    assert killing.run(tmp_path / "log", watch, streams, 1, "", pickle.loads) == 1
    assert noticed in (tmp_path / "log").read_text().splitlines()[-1]


def damaged(count: int) -> Iterator[bytes]:
    rng = random.Random(0)
    for _ in range(count):
        content = bytearray(rng.choice(VALID))
        before, _, after = content.partition(PIXELS.tobytes())
        structure = [*range(len(before)), *range(len(content) - len(after), len(content))]
        for at in rng.sample(structure, rng.randint(1, 5)):
            content[at] = rng.choice([rng.randrange(256), *b"\0\xffRbco(.}"])
        if rng.random() < 0.2:
            del content[rng.choice(structure) :]
        if rng.random() < 0.2:
            at = rng.choice(structure)
            content[at:at] = rng.choice(BY_HAND)[rng.randrange(3) : -1]
        yield bytes(content)


@pytest.mark.fault("random bytes in a batch", NOTHING_RUNS)
def test_damaged_batches(holds, injected):
    holds(damaged, injected.count(1000, 50_000), "")


LINES = (b"1\n", b"-1\n", b"'os'\n", b"os\nsystem\n", b"numpy\ndtype\n", b"numpy\nndarray\n", b"builtins\neval\n")
WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
WORDS = (b"", b"b", b"u1", b"os", b"numpy", b"system", b"dtype", b"_reconstruct", b"numpy.core.multiarray", b"labels")
PREFIXES = (b"", VALID[0][2:-1], b"cnumpy\ndtype\ncnumpy\nndarray\n}]U\x01bK\x00)", b"}(U\x06labels](K\x01K\x02")


def sequences(count: int) -> Iterator[bytes]:
    """Of all opcodes, or of those that are allowed, with arguments that suit most of them."""
    rng = random.Random(0)

    def one(opcode: pickletools.OpcodeInfo) -> bytes:
        code, size = opcode.code.encode("latin-1"), opcode.arg.n if opcode.arg else 0
        if size >= 0:
            return code + rng.choice([bytes([rng.randrange(4)]).ljust(size, b"\0")[:size], rng.randbytes(size)])
        if size == pickletools.UP_TO_NEWLINE:
            return code + rng.choice(LINES)
        word, width = rng.choice(WORDS), WIDTHS.get(size, 4)
        length = len(word) if rng.random() < 0.95 else rng.randrange(1 << 40)
        return code + length.to_bytes(8, "little")[:width] + word

    allowed = [opcode for opcode in pickletools.opcodes if opcode.name in OPCODES]
    for _ in range(count):
        kinds = rng.choice([pickletools.opcodes, allowed, allowed])
        middle = b"".join(one(rng.choice(kinds)) for _ in range(rng.randint(1, 30)))
        yield bytes([0x80, rng.randrange(6)]) + rng.choice(PREFIXES) + middle + b"."


@pytest.mark.fault("random opcodes", NOTHING_RUNS)
def test_random_opcodes(holds, injected):
    holds(sequences, injected.count(1000, 50_000), "")
