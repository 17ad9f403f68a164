"""Every key of a params file, mutated: refused with file, line, key and remedy, or read as what the text means."""

import copy
import itertools
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml

from params_file import (
    COMPLETE,
    KEYS,
    REPOSITORY,
    Place,
    Row,
    at,
    block_end,
    canonical,
    files,
    line_of,
    tree_of,
    written,
)
from reliability import Injections
from resnet_repro.errors import ParamsError
from resnet_repro.params import load

AREA = "params.yaml"
PROMISE = "refused with file, line, key and remedy, or read as what the text means, by DVC too"
NEVER = object()
"""what no key may hold"""

KINDS: list[tuple[str, Any]] = [  # a value as written, and what YAML 1.2 says it is
    ("x", "x"), ("'0.5'", "0.5"), ('"3"', "3"), ("''", ""), ("3", 3), ("0.5", 0.5), ("true", True), ("false", False),
    ("null", None), ("[]", []), ("[1]", [1]), ("[0.5, x]", [0.5, "x"]), ("[[1]]", [[1]]), ("[null]", [None]),
    ("{}", {}), ("{a: 1}", {"a": 1}), ("[{a: 1}]", [{"a": 1}]),
]  # fmt: skip
RANGES: list[tuple[str, Any]] = [
    ("0", 0), ("-0.0", 0.0), ("-1", -1), ("-0.5", -0.5), ("1.5", 1.5), ("64.0", 64.0), ("1e308", 1e308),
    ("-1e308", -1e308), ("1e400", NEVER), (".nan", NEVER), (".inf", NEVER), ("-.inf", NEVER), (str(2**32), 2**32),
    (str(2**63), 2**63), (str(-(2**63) - 1), -(2**63) - 1), (str(10**39), 10**39), ("9" * 5000, NEVER),
]  # fmt: skip
TRAPS: list[tuple[str, Any]] = [
    # text that other versions of YAML, or other languages, take for something else
    *((text, text) for text in ("yes", "no", "on", "Off", "y", "N", "tRUE", "1:30", "12:30:45", "1,5", "0.1.2", "3#c")),
    *((text, text) for text in ("1 000", "None", "nan", "inf", "1e", "１２", "½", "zеro", "auto\u200b")),
    # other ways to write the same
    ("1e-4", 0.0001), ("1E-4", 0.0001), ("1.0e-4", 0.0001), (".5", 0.5), ("5.", 5.0), ("+5", 5), ("True", True),
    ("FALSE", False), ("'null'", "null"), ("~", None), ("", None), ("Null", None), ("3 # x", 3), (f"\n{20 * ' '}3", 3),
    # what parsers read differently, crash on, run, or pay for without bound
    *((text, NEVER) for text in ("010", "0o17", "0x1F", "0b11", "1_000", "0x_", "-_", "+__", "00.5", "2001-99-99")),
    *((text, NEVER) for text in ("2015-12-10", "=", "<<", "&a", "*a", "!x", "! 3", "!!int 3", "!!str 3", "!!int x")),
    *((text, NEVER) for text in ("!!bool x", "!!binary aGk=", "!!set {a}", "!!python/object/apply:os.system [exit]")),
    *((text, NEVER) for text in ("{<<: {a: 1}}", "{1: 2}")),
    # no YAML
    *((text, NEVER) for text in ("'x", '"x', "[1", "{a: 1", "]", "a: b", "- 1", "%x", "@x", "`x`", "\t3", "?")),
]  # fmt: skip
NUMBER = (int, float)  # a whole number is a number
MAY_HOLD = {float: NUMBER, type(None): NUMBER} | {kind: (kind,) for kind in (bool, int, str, list, dict)}
"""by what a key holds now"""
OPTIONAL = {name for _, section, name in KEYS if section.model_fields[name].default is None}


def check(path: Path, text: str, line: int, place: Place, meant: Any) -> None:
    """That `text`, with a fault in a line at a place, is refused as promised, or loads as `meant` (a whole tree).

    The message tells of the fault at its line, or at that of the section whose rule it breaks, or where what is no
    longer there is asked for.
    """
    path.write_bytes(text.encode())
    try:
        loaded = load(path)
    except ParamsError as error:
        told = mistakes(path, error)
    else:
        assert meant is not NEVER, (place, text.splitlines()[line - 1])
        assert canonical(loaded.model_dump(exclude_unset=True)) == canonical(load_yaml(path)) == canonical(meant)
        return
    gone = "there is no recipe|there is no model" if place[0] in ("recipes", "models") else "(?!)"
    explained = [
        at_line == line or (at_line == line_of(text, said.split(": ")[0]) and "this key is missing" not in said)
        for at_line, said in told
        if place[-1] in said or re.search(gone, said)
    ]
    assert any(explained), (told, line, place)


def mistakes(path: Path, error: ParamsError) -> list[tuple[int, str]]:
    """(line, message) of all that an error tells."""
    found = [re.fullmatch(rf"{re.escape(str(path))}:(\d+): (.+)", line) for line in str(error).splitlines()]
    assert None not in found, error
    return [(int(match[1]), match[2]) for match in found if match]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("params") / "params.yaml"


def spread(cases: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` of the cases, evenly, or all."""
    return cases[:: max(1, len(cases) // count)]


def cases(injected: Injections, options: Sequence[Any], first: int = 0) -> Iterator[tuple[Any, list[Row], int, Any]]:
    """(tree, its rows, number of a row, option): each key of the complete file with each option, and every third key
    of the repository's own file, which is longer, with one of them."""
    for tree, rows, small in files():
        thirds = [(index, options[index % len(options)]) for index in range(first, len(rows), 3)]
        every = list(itertools.product(range(len(rows)), options)) if small else thirds
        for index, option in spread(every, injected.count(60 if small else 20, len(every))):
            yield tree, rows, index, option


def changed(tree: Any, place: Place, key: str, value: Any) -> Any:
    """The tree with another key and value at a place."""
    tree = copy.deepcopy(tree)
    del at(tree, place[:-1])[place[-1]]
    at(tree, place[:-1])[key] = value
    return tree


LISTS = {"a value of another type": KINDS, "a number out of range": RANGES, "YAML's traps: yes, 010, 1e-4, tags": TRAPS}


@pytest.mark.parametrize(
    "values", [pytest.param(values, marks=pytest.mark.fault(name, PROMISE), id=name) for name, values in LISTS.items()]
)
def test_a_value_is_refused_or_read_as_it_is_written(path: Path, injected: Injections, values: list[tuple[str, Any]]):
    for tree, rows, index, (spelling, meaning) in cases(injected, values, (KINDS, RANGES, TRAPS).index(values)):
        (place, value), lines = rows[index], [written(row) for row in rows]
        lines[index : block_end(rows, index)] = [f"{'  ' * (len(place) - 1)}{place[-1]}: {spelling}"]
        fits = type(meaning) in MAY_HOLD[type(value)] or (meaning is None and place[-1] in OPTIONAL)
        with injected():
            meant = changed(tree, place, place[-1], meaning) if fits else NEVER
            check(path, "\n".join(lines) + "\n", index + 1, place, meant)


CYRILLIC = str.maketrans("aceopxyis", "асеорхуіѕ")
RENAMINGS: list[Callable[[str], str]] = [
    lambda name: name[:-1], lambda name: name[0] + name, str.swapcase, lambda name: f"{name} ",
    lambda name: f"{name}:", lambda name: name.translate(CYRILLIC), lambda name: f"{name[0]}\u200b{name[1:]}",
]  # fmt: skip
OWN_NAMES = ("recipes", "models", "runs", "ablations", "ablation_groups", "data.members", "data.arrays")


@pytest.mark.fault("a name misspelt, in other case, or with letters that only look alike", PROMISE)
def test_another_name_is_refused_unless_it_is_one_s_own(path: Path, injected: Injections):
    for tree, rows, index, rename in cases(injected, RENAMINGS):
        (place, value), lines = rows[index], [written(row) for row in rows]
        name = rename(place[-1])
        lines[index] = written(rows[index], f'"{name}"')
        with injected():
            meant = changed(tree, place, name, value) if ".".join(place[:-1]) in OWN_NAMES else NEVER
            check(path, "\n".join(lines) + "\n", index + 1, (*place[:-1], ascii(name)[1:-1]), meant)


@pytest.mark.fault("a key that stands twice", "refused with file, line, key and remedy")
def test_a_key_that_stands_twice_is_refused(path: Path, injected: Injections):
    for _, rows, index, _none in cases(injected, [None]):
        lines, end = [written(row) for row in rows], block_end(rows, index)
        lines[end:end] = lines[index:end]
        path.write_text("\n".join(lines), encoding="utf-8")
        told = f"{path}:{end + 1}: {'.'.join(rows[index][0])}: this key stands in line {index + 1} already: leave "
        with injected(), pytest.raises(ParamsError, match=f"^{re.escape(told)}"):
            load(path)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{chr(n)}: &{chr(n)} [*{chr(n - 1)}, *{chr(n - 1)}]\n" for n in range(98, 123))
MERGES = LAUGHS.replace("[x, x]", "{k: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n")
LINES = COMPLETE.count("\n")


@pytest.mark.fault("no YAML, or hostile: aliases, depth, size", "refused with file, line, remedy, in bounded memory")
@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("", 1, "expected the sections data, engine, recipes, models, runs, ablations, ablation_groups, verdicts"),
        ("- 1\n", 1, "expected the sections"),
        ("data: [\nengine: 3\n", 1, "expected ',' or ']'"),
        ("data:\n\tengine: 3\n", 2, r"found character '\t'"),
        (COMPLETE + "---\nb: 2\n", LINES + 1, "another document"),
        ("%YAML 1.1\n---\n" + COMPLETE, 2, "directive"),
        ("data: 1\nx: \x00", 2, r"the character '\x00' cannot stand in YAML"),
        ("data: 1\nx: \u00e9".encode("latin-1"), 2, "save the file as UTF-8"),
        (COMPLETE.encode("utf-16"), 1, "save the file as UTF-8"),
        (LAUGHS, 1, "a: a reference (& or *)"),
        (MERGES, 1, "a: a reference (& or *)"),
        ("!!python/object/apply:os.system [exit]\n", 1, "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("data: " + "[" * 100_000, 1, "more than 10 deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(500)), 12, "more than 10 deep"),
        ("? " * 100_000, 1, "a key is text"),
        (COMPLETE.replace("a paper", "x" * 10_000_000), 1, "more than 262,144 bytes"),
        (COMPLETE.replace("[50, 75]", f"[{'x, ' * 10_000}]"), 21, "recipes.he.schedule.drops.0"),
        (COMPLETE + "".join(f"k{number}:\n" for number in range(3_000)), LINES + 1, "k0: unknown key"),
    ],
    ids=lambda value: "" if not isinstance(value, str) or len(value) > 60 else None,
)  # fmt: skip
def test_a_file_that_is_no_plain_yaml_is_refused(path: Path, content: str | bytes, line: int, says: str):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tracemalloc.start()
    with pytest.raises(ParamsError) as caught:
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    first, *others = mistakes(path, caught.value)
    assert first[0] == line
    assert says in first[1]
    assert len(others) < 20


@pytest.mark.fault("characters lost, doubled or exchanged at random", "refused with file and line, or read as by DVC")
def test_a_damaged_file_is_refused_or_read_as_by_dvc(path: Path, injected: Injections):
    rng = random.Random(0)
    for _ in range(injected.count(300, 5_000)):
        damaged = list(COMPLETE)
        for place in rng.sample(range(len(damaged)), rng.randint(1, 3)):
            damaged[place] = rng.choice(["", 2 * damaged[place], *":,'\"[]{}#&*!|>%@-?\n\t\0 0e.\u0435\ufeff\x85"])
        path.write_text("".join(damaged), encoding="utf-8")
        with injected():
            try:
                loaded = load(path)
            except ParamsError as error:
                mistakes(path, error)
            else:
                assert canonical(loaded.model_dump(exclude_unset=True)) == canonical(load_yaml(path))


@pytest.mark.fault("Windows' line ends and byte order mark", "the same values")
def test_windows_line_ends_and_byte_order_mark_change_nothing(path: Path):
    for content in (COMPLETE.replace("\n", "\r\n"), "\ufeff" + COMPLETE):
        path.write_bytes(content.encode())
        assert (
            canonical(load(path).model_dump(exclude_unset=True)) == canonical(load_yaml(path)) == canonical(tree_of())
        )


CLI = "from resnet_repro.cli import main; main()"
COMMANDS = [
    "pipeline/fetch.py data/members", "resnet-repro estimate", "pipeline/plan.py plans", "resnet-repro stale",
    "pipeline/prepare.py data/members data/cifar10 reports/data", "pipeline/train.py resnet20 1 runs/resnet20-1",
    "pipeline/evaluate.py runs/resnet20-1 reports/runs/resnet20-1", "pipeline/report.py reports",
    "resnet-repro report --partial",
]  # fmt: skip
FAULTS = [
    ("weight_decay: 0.0001", "weight_decay: 1_0e-4", "'1_0e-4'"),
    ("depth: 20}", "depth: 21}", "6n+2"),
    ("nesterov: false", "nesterov: no", "true or false"),
    ("seed: 1}", "seed: 1, seed: 2}", "already"),
]


@pytest.mark.fault("a broken params.yaml given to the commands", "status 1, the message, no traceback, before any work")
def test_no_command_begins_with_a_broken_file(tmp_path: Path, injected: Injections):
    own = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    for number in spread(range(35), injected.count(3, 17)):
        (program, *arguments), (right, wrong, says) = COMMANDS[number % 9].split(), FAULTS[number % 4]
        text = own.replace(right, wrong, 1)
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        line = text[: text.index(wrong)].count("\n") + 1
        with injected():
            code = ["-c", CLI] if program == "resnet-repro" else [str(REPOSITORY / program)]
            command = [sys.executable, *code, *arguments]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 1, done
            assert f"params.yaml:{line}: " in done.stderr
            assert says in done.stderr
            assert "Traceback" not in done.stderr
            assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
