"""Where a params file is wrong, in words: the place, the line, what is wrong there, and the nearest name."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


class Misplaced(Exception):  # noqa: N818 - turned into a ParamsError by `params.load`, which knows the lines
    """A value that is well-formed and still wrong, with its place in the file.

    Deliberately no ValueError: pydantic would wrap it and lose the place.
    """

    def __init__(self, place: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.place = place


def nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """The end of a sentence that says that `name` is not known."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def message(root: type[BaseModel], item: Any) -> str:
    """One error of pydantic's, found in a `root`, for someone who reads the file and not the code."""
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"unknown key{nearest(str(key), fields(root, parents))}"
    if item["type"] == "missing":
        return "this key is missing"
    text = item["msg"].removeprefix("Value error, ")
    got = item["input"]
    shown = "" if isinstance(got, Mapping | BaseModel) else f", not {got!r}"
    if isinstance(got, str) and item["type"].startswith(("float", "int")):
        shown += " (a number is written without quotes, and in YAML 1e-4 as 1.0e-4)"
    return text[0].lower() + text[1:] + ("" if item["type"] == "value_error" else shown)


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
    return ".".join(map(str, place)) or "the file"
