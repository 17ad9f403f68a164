"""A params file's text as plain values, and where it is wrong, in words: the place, the line, what is wrong there,
and what to write instead."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import ScalarEvent
from ruamel.yaml.nodes import MappingNode, Node
from ruamel.yaml.reader import ReaderError

MAX_BYTES = 1 << 18
"""of a params file"""
MAX_MISTAKES = 20
"""that are told at once"""
MAX_DEPTH = 10
"""lists and mappings in each other; `params.yaml` has 6"""
MAX_LENGTH = 40
"""characters of a number"""
DECIMAL = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class NotPlain(Exception):  # noqa: N818 - turned into a ParamsError by `params.load`, which knows the path
    """Text that is no YAML, or more than plain YAML, with its line (counted from 1)."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class Misplaced(Exception):  # noqa: N818 - turned into a ParamsError by `params.load`, which knows the lines
    """A value that is well-formed and still wrong, with its place in the file.

    Deliberately no ValueError: pydantic would wrap it and lose the place.
    """

    def __init__(self, place: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.place = place


def plain_yaml(content: bytes) -> Any:
    """What a YAML file means: mappings with text as keys, lists, text, numbers, booleans and None.

    Refused is what parsers read differently (010, 1_000, dates, YAML 1.1), what may run code or cost memory without
    bound (tags, references, deep nesting), and a key that stands twice.

    Raises:
        NotPlain: with the line.
    """
    if len(content) > MAX_BYTES:
        raise NotPlain(1, f"more than {MAX_BYTES:,} bytes: is this the right file? leave out what is not needed")
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    try:
        return yaml.load(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotPlain(line, f"this is no text in UTF-8 ({error.reason}): save the file as UTF-8") from None
    except ReaderError as error:
        line = content.decode("utf-8").count("\n", 0, error.position) + 1
        raise NotPlain(line, f"the character {chr(error.character)!a} cannot stand in YAML: leave it out") from None
    except ComposerError as error:
        raise NotPlain(error.problem_mark.line + 1, str(error.problem)) from None
    except MarkedYAMLError as error:
        # where what is not closed begins; but a block begins far above its fault
        in_block = (error.context or "").startswith("while parsing a block")
        mark = error.problem_mark if in_block else error.context_mark or error.problem_mark
        if (quoted := yaml.composer.quoted) and quoted.end_mark.line == mark.line:  # a quote that was closed too late
            mark = quoted.start_mark
        text = shown("".join(content.decode("utf-8").splitlines()[mark.line : mark.line + 1]).strip())
        problem = ", ".join(filter(None, (error.context, error.problem)))
        remedy = "look for a quote, bracket or space too many or missing here or just above"
        raise NotPlain(mark.line + 1, f"{text} is no YAML ({problem}): {remedy}") from None


class _Composer(Composer):
    """Refuses, with its place, what `plain_yaml` has no use for, before anything is made of it."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.place: list[str | int] = []
        self.quoted: ScalarEvent | None = None
        """the last text in quotes"""

    def compose_document(self) -> Node:
        start = self.parser.peek_event()
        if start.version or start.tags:
            self._refuse(start, "the directive (%) above has no use: leave it and --- out")
        node = super().compose_document()
        if not self.check_node():
            return node
        return self._refuse(self.parser.peek_event(), "another document begins here: the file holds one, leave --- out")

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        event = self.parser.peek_event()
        is_key = isinstance(parent, MappingNode) and index is None
        place = list(self.place)
        if parent is not None and not is_key:
            self.place.append(index.value if isinstance(index, Node) else index)
        if event.anchor is not None:
            self._refuse(event, "a reference (& or *) has no use here: write the value out")
        if event.tag is not None:
            self._refuse(event, f"the tag {shown(event.tag)} has no use here: leave it out")
        if is_key and not isinstance(event, ScalarEvent):
            self._refuse(event, "a key is text, not a list or mapping")
        if isinstance(event, ScalarEvent) and event.style in ("'", '"'):
            self.quoted = event
        if len(self.place) > MAX_DEPTH:
            self._refuse(event, f"lists and mappings lie more than {MAX_DEPTH} deep here: close some")
        node = super().compose_node(parent, index)
        kind = node.tag.rpartition(":")[2]
        if is_key and kind != "str":
            self._refuse(node, f"the key {shown(node.value)} is not text to YAML: write it in quotes")
        if kind in ("int", "float") and not (DECIMAL.fullmatch(node.value) and len(node.value) <= MAX_LENGTH):
            self._refuse(node, f"{shown(node.value)} is no plain decimal number such as 10 or 1.0e-4; text is quoted")
        if kind not in ("str", "int", "float", "bool", "null", "map", "seq"):
            self._refuse(node, f"{shown(node.value)} is YAML's {kind}, which has no use here; text is quoted")
        self.place = place
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in lines:
                self.place.append(key.value)
                self._refuse(key, f"this key stands in line {lines[key.value]} already: leave one of them out")
            lines[key.value] = key.start_mark.line + 1
        return node

    def _refuse(self, what: Any, said: str) -> NoReturn:
        text = f"{dotted(tuple(self.place))}: {said}" if self.place else said
        raise ComposerError(None, None, text, what.start_mark)


def shown(value: object) -> str:
    """A value as a message has it: short, and with letters that only look like ASCII told apart."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: object) -> str:
    """A name for a terminal or a file: what is not printable, escape sequences say, is spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """The end of a sentence that says that `name` is not known."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


WORDS = {  # pydantic's words for Python: those of YAML
    r"a valid tuple": "a list",
    r"a valid boolean": "true or false",
    r"a valid dictionary( or instance of \w+)?": "a mapping",
}


def message(root: type[BaseModel], item: Any) -> str:
    """One error of pydantic's, found in a `root`, for someone who reads the file and not the code."""
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"unknown key{nearest(str(key), fields(root, parents))}"
    if item["type"] == "missing":
        return "this key is missing"
    text = item["msg"].removeprefix("Value error, ")
    got = item["input"]
    for word, plain in WORDS.items():
        text = re.sub(word, plain, text)
    if item["type"] != "value_error":
        text += f", not {'a mapping' if isinstance(got, Mapping | BaseModel) else shown(got)}"
    if isinstance(got, str) and item["type"].startswith(("float", "int")):
        text += " (a number such as 10 or 1.0e-4, without quotes)"
    return text[0].lower() + text[1:]


def fields(root: type[BaseModel], parents: list[str | int]) -> list[str]:
    """The keys allowed at a place below `root`."""
    annotation: Any = root
    for part in parents:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        else:  # dict[str, X]: the part is a key, X is what it holds
            annotation = getattr(annotation, "__args__", (None,))[-1]
        options = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)]
        if type(None) in options:  # X | None
            annotation = next(a for a in options if a is not type(None))
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return list(annotation.model_fields) if is_model else []


def told(content: bytes, mistakes: Iterable[tuple[tuple[str | int, ...], str]]) -> Iterator[tuple[int, str]]:
    """(line, place and what is wrong there) of the first mistakes in a file's text, given with their places."""
    tree = YAML(typ="rt", pure=True).load(content)  # with the line of every key
    for place, said in islice(mistakes, MAX_MISTAKES):
        yield line(tree, place), f"{dotted(place)}: {said}"


def line(tree: Any, place: tuple[str | int, ...]) -> int:
    """The line of the deepest part of `place` that the file has, counted from 1."""
    line = 1
    for part in place:
        try:
            lc = tree.lc  # where ruamel keeps the places of a mapping's keys or a list's items
            line = (lc.key(part) if isinstance(tree, Mapping) else lc.item(part))[0] + 1
            tree = tree[part]
        except (KeyError, IndexError, AttributeError, TypeError):
            break
    return line


def dotted(place: tuple[str | int, ...]) -> str:
    """recipes.he2015.momentum; a name that is not what it looks like, with the letters' numbers."""
    parts = (str(part) for part in place if part != "[key]")  # what pydantic calls a key that is wrong itself
    return ".".join(part if part.isascii() and part == part.strip() else ascii(part) for part in parts) or "the file"
