"""A params file that has every key, and what its tests share."""

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from resnet_repro.errors import ParamsError
from resnet_repro.params import Params, load

Place = tuple[str, ...]
Row = tuple[Place, Any]

REPOSITORY = Path(__file__).parents[1]
COMPLETE = """\
data:
  urls: [https://example.org/cifar.tar.gz]
  members:
    test_batch: f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831
  arrays:
    labels.npy: fad921ba16b0efeebb54393d1351545d1fe1a357f6f81324c821e3e11b956c70
engine:
  device: cpu
  mode: eager
  precision: fp32
  threads: 2
  deterministic: false
recipes:
  he:
    source: a paper
    short: true
    schedule:
      unit: steps
      stop: 100
      learning_rate: 0.1
      drops: [50, 75]
      drop_factor: 0.1
      warmup:
        learning_rate: 0.01
        length: 10
        until_train_error_percent: null
    batch_size: 64
    last_batch: drop
    momentum: 0.9
    nesterov: true
    momentum_at_drops: reset
    weight_decay: 0.0001
    decayed: weights
    initialization: fan_in
    scales: uniform
    preprocessing:
      kind: constants
      mean: [0.5, 0.5, 0.5]
      std: [0.2, 0.2, 0.2]
    augmentation:
      padding: 2
      fill: black
      crop: five
      flip: false
      draw: batch
    held_out: 5000
    split_seed: 3
    train_error: eval
models:
  net:
    architecture:
      family: wide
      depth: 10
      block: basic
      kernels: [3, 3]
      activation: original
      skip:
        kind: identity
        shortcut_factor: 1.0
        residual_factor: 1.0
        gate_bias: 0.0
        dropout: 0.0
      widen_factor: 2
      shortcut: A
      dropout: 0.3
      conv_padding: reflect
      subsampling: pool
      batch_norm:
        kind: running
        eps: 0.001
        momentum: 0.2
        group_size: 16
    recipe: he
    changes:
      batch_size: 32
      schedule:
        stop: 90
    engine:
      threads: 1
runs:
  net-1:
    model: net
    seed: 1
ablations:
  net-2:
    model: net
    seed: 2
ablation_groups:
  depth:
    question: deeper?
    source: a note
    baseline: net
    variants: [net]
verdicts:
  margin_points: 0.2
  wide_margin_points: 0.9
  alpha: 0.04
  looks: [1, 2]
  power: 0.7
  prior:
    sd_ratio: 1.5
    degrees_of_freedom: 20
    alpha: 0.02
  seen_before: [net-1]
  registered: 0123456789abcdef0123456789abcdef01234567
"""


def tree_of(text: str = COMPLETE) -> Any:
    return YAML(typ="safe").load(text)


def sections(annotation: Any, tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type]]:
    """(place, section class) of every section of `tree`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield place, annotation
        for name, field in annotation.model_fields.items():
            yield from sections(field.annotation, (tree or {}).get(name), (*place, name))
    elif get_origin(annotation) is dict:
        for name, value in tree.items():
            yield from sections(get_args(annotation)[1], value, (*place, name))
    else:
        for option in get_args(annotation):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from sections(option, tree, place)


SECTIONS = list(sections(Params, tree_of()))
KEYS = [(place, section, name) for place, section in SECTIONS for name in section.model_fields]


def at(tree: Any, place: tuple[str, ...]) -> Any:
    for part in place:
        tree = tree[part]
    return tree


def load_text(file: Path, text: str) -> Params:
    file.write_text(text, encoding="utf-8")
    return load(file)


def load_tree(file: Path, tree: Any) -> Params:
    with file.open("w", encoding="utf-8") as stream:
        YAML().dump(tree, stream)
    return load(file)


def line_of(text: str, place: str) -> int:
    """The line of the last key of a dotted place that stands there, counted from 1; the keys stand in its order."""
    lines, number = text.splitlines(), -1
    for part in place.split("."):
        found = (i for i in range(number + 1, len(lines)) if lines[i].strip().startswith(f"{part}:"))
        number = next(found, number)
    return number + 1


def refusal(file: Path, text: str) -> str:
    with pytest.raises(ParamsError) as caught:
        load_text(file, text)
    return str(caught.value)


def rows_of(tree: Any, place: Place = ()) -> Iterator[Row]:
    """Every key, as in a file with one key a line."""
    for key, value in tree.items():
        yield (*place, key), value
        if isinstance(value, dict):
            yield from rows_of(value, (*place, key))


def written(row: Row, key: str | None = None) -> str:
    (*parents, name), value = row
    inline = "" if isinstance(value, dict) and value else f" {json.dumps(value)}"
    return f"{'  ' * len(parents)}{key or name}:{inline}"


def block_end(rows: Sequence[Row], index: int) -> int:
    """Where the rows below the key at `index` end."""
    depth = len(rows[index][0])
    return next((i for i in range(index + 1, len(rows)) if len(rows[i][0]) <= depth), len(rows))


def canonical(value: Any) -> Any:
    """With numbers compared by value (1 is 1.0), and never with booleans or text."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return ("number", Fraction(value)) if type(value) in (int, float) else (type(value), value)


def files() -> Iterator[tuple[Any, list[Row], bool]]:
    """(tree, rows, whether it is small) of the complete file and of the repository's own."""
    for text in (COMPLETE, (REPOSITORY / "params.yaml").read_text(encoding="utf-8")):
        tree = tree_of(text)
        yield tree, list(rows_of(tree)), text is COMPLETE
