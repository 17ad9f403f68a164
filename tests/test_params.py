import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from resnet_repro.errors import ParamsError
from resnet_repro.params import Params, load

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
    weight_decay: 0.0001
    decayed: weights
    initialization: fan_in
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
      widen_factor: 2
      shortcut: A
      dropout: 0.3
      conv_padding: reflect
      subsampling: pool
      batch_norm:
        kind: running
        eps: 0.001
        momentum: 0.2
        group_size: 64
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
  power: 0.7
"""
RENAMED_TOP = COMPLETE.replace("\nrecipes:", "\nrecipies:")


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

BREAKS_A_RULE = {  # without these keys of `COMPLETE`, others of it do not fit
    "recipes.he.schedule.warmup.length": "give one of them",
    "recipes.he.preprocessing.mean": "constants takes 3 values",
    "recipes.he.preprocessing.std": "constants takes 3 values",
}


def at(tree: Any, place: tuple[str, ...]) -> Any:
    for part in place:
        tree = tree[part]
    return tree


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("params") / "params.yaml"


def load_text(file: Path, text: str) -> Params:
    file.write_text(text, encoding="utf-8")
    return load(file)


def load_tree(file: Path, tree: Any) -> Params:
    with file.open("w", encoding="utf-8") as stream:
        YAML().dump(tree, stream)
    return load(file)


def line_of(text: str, place: str) -> int:
    """The line of the last key of a dotted place, counted from 1; the keys stand in its order."""
    number = -1
    for part in place.split("."):
        if not part.isdigit():
            lines = text.splitlines()
            number = next(i for i in range(number + 1, len(lines)) if lines[i].strip().startswith(f"{part}:"))
    return number + 1


def refusal(file: Path, text: str) -> str:
    with pytest.raises(ParamsError) as caught:
        load_text(file, text)
    return str(caught.value)


def test_the_repositorys_own_file_loads():
    loaded = load(REPOSITORY / "params.yaml")
    assert {"plain20", "resnet20", "preact164", "wrn16_4", "lasagne_wide"} <= set(loaded.planned_models)
    assert loaded.recipe_of("resnet110").schedule.warmup.until_train_error_percent == 80.0
    assert loaded.recipes["he2015"].schedule.warmup is None  # a model's changes are its own
    assert loaded.recipe_of("lasagne164").batch_size == 48


def test_every_key_is_read(file):
    loaded = load_text(file, COMPLETE)
    for place, section, name in KEYS:
        node: Any = loaded
        for part in place:
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        given = at(tree_of(), place)[name]
        value = getattr(node, name)
        if not isinstance(given, dict):
            assert value == (tuple(given) if isinstance(given, list) else given), (place, name, section)
    recipe = loaded.recipe_of("net")
    assert (recipe.batch_size, recipe.schedule.stop, recipe.schedule.drops) == (32, 90, (50, 75))
    assert (loaded.engine_of("net").threads, loaded.engine.threads) == (1, 2)


def test_the_complete_file_has_every_key():
    """So that an option that is added is tested here as well."""
    missing = [(*place, name) for place, _, name in KEYS if name not in at(tree_of(), place)]
    assert missing == []


@pytest.mark.parametrize(("place", "section", "name"), KEYS, ids=lambda v: ".".join(v) if isinstance(v, tuple) else "")
def test_a_key_left_out_is_refused_or_takes_its_documented_default(file, place, section, name):
    tree, field = tree_of(), section.model_fields[name]
    del at(tree, place)[name]
    dotted = ".".join((*place, name))
    if field.is_required():
        with pytest.raises(ParamsError, match=rf":\d+: {re.escape(dotted)}: this key is missing"):
            load_tree(file, tree)
    elif dotted in BREAKS_A_RULE:
        with pytest.raises(ParamsError, match=BREAKS_A_RULE[dotted]):
            load_tree(file, tree)
    else:
        node: Any = load_tree(file, tree)
        for part in place:
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        assert getattr(node, name) == field.get_default()


@settings(max_examples=50)
@given(st.sampled_from(KEYS), st.integers(0, 20), st.sampled_from("aeiosx_"))
def test_a_misspelt_key_is_refused_with_its_line_and_the_right_name(file, key, position, letter):
    place, section, name = key
    misspelt = name[:position] + letter + name[position:]
    tree = tree_of()
    parent = at(tree, place)
    content = {misspelt if k == name else k: v for k, v in parent.items()}
    parent.clear()
    parent.update(content)
    with pytest.raises(ParamsError) as caught:
        load_tree(file, tree)
    line = next(
        line for line in str(caught.value).splitlines() if f": {'.'.join((*place, misspelt))}: unknown key" in line
    )
    assert line.startswith(f"{file}:{line_of(file.read_text(), '.'.join((*place, misspelt)))}: ")
    suggested = re.search(r"did you mean '(\w+)'", line)
    assert suggested is None or suggested[1] in section.model_fields
    assert len(name) < 4 or suggested is not None


@pytest.mark.parametrize(
    ("right", "wrong", "place", "says"),
    [
        # unknown keys, at every level
        ("\nrecipes:", "\nrecipies:", "recipies", "unknown key; did you mean 'recipes'?"),
        ("  threads: 2", "  treads: 2", "engine.treads", "did you mean 'threads'?"),
        ("    momentum: 0.9", "    momentun: 0.9", "recipes.he.momentun", "did you mean 'momentum'?"),
        ("      drops: [50, 75]", "      dorps: [50]", "recipes.he.schedule.dorps", "did you mean 'drops'?"),
        ("length: 10", "lenght: 10", "recipes.he.schedule.warmup.lenght", "did you mean 'length'?"),
        ("eps: 0.001", "epz: 0.001", "models.net.architecture.batch_norm.epz", "did you mean 'eps'?"),
        ("batch_size: 32", "batchsize: 32", "models.net.changes.batchsize", "did you mean 'batch_size'?"),
        ("        stop: 90", "        stpo: 90", "models.net.changes.schedule.stpo", "did you mean 'stop'?"),
        ("      threads: 1", "      thread: 1", "models.net.engine.thread", "did you mean 'threads'?"),
        ("  urls:", "  urlss:", "data.urlss", "did you mean 'urls'?"),
        ("flip: false", "zzz: false", "recipes.he.augmentation.zzz", "known: padding, fill"),
        # types and values
        ("flip: false", "flip: yes", "recipes.he.augmentation.flip", "boolean, not 'yes'"),
        ("batch_size: 64", "batch_size: '128'", "recipes.he.batch_size", "written without quotes"),
        ("batch_size: 64", "batch_size: 128.5", "recipes.he.batch_size", "integer, not 128.5"),
        ("batch_size: 64", "batch_size: true", "recipes.he.batch_size", "integer, not True"),
        ("batch_size: 64", "batch_size: 0", "recipes.he.batch_size", "greater than 0, not 0"),
        ("batch_size: 64", "batch_size:", "recipes.he.batch_size", "integer, not None"),
        ("momentum: 0.9", "momentum: false", "recipes.he.momentum", "number, not False"),
        ("momentum: 0.9", "momentum: 1.0", "recipes.he.momentum", "less than 1, not 1.0"),
        ("momentum: 0.9", "momentum: -0.1", "recipes.he.momentum", "greater than or equal to 0"),
        ("momentum: 0.9", "momentum: .nan", "recipes.he.momentum", "not nan"),
        ("learning_rate: 0.1", "learning_rate: .inf", "recipes.he.schedule.learning_rate", "not inf"),
        ("learning_rate: 0.1", "learning_rate: .nan", "recipes.he.schedule.learning_rate", "not nan"),
        ("learning_rate: 0.1", "learning_rate: ten", "recipes.he.schedule.learning_rate", "1.0e-4"),
        ("eps: 0.001", "eps: .nan", "models.net.architecture.batch_norm.eps", "not nan"),
        ("std: [0.2, 0.2, 0.2]", "std: [0.2, 0.2, .nan]", "recipes.he.preprocessing.std.2", "not nan"),
        ("std: [0.2, 0.2, 0.2]", "std: [0.2, 0.2, 0]", "recipes.he.preprocessing.std.2", "greater than 0"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [0.5, .inf, 1]", "recipes.he.preprocessing.mean.1", "not inf"),
        ("weight_decay: 0.0001", "weight_decay: .nan", "recipes.he.weight_decay", "not nan"),
        ("drops: [50, 75]", "drops: 50", "recipes.he.schedule.drops", "tuple, not 50"),
        ("drops: [50, 75]", "drops: [50, x]", "recipes.he.schedule.drops.1", "not 'x'"),
        ("kind: constants", "kind: pca", "recipes.he.preprocessing.kind", "'pixel_mean', 'mean_std', 'zca'"),
        ("family: wide", "family: vgg", "models.net.architecture.family", "'plain', 'resnet', 'preact'"),
        ("schedule:\n      unit", "schedule: 3\n    x:\n      unit", "recipes.he.schedule", "not 3"),
        ("test_batch: f5", "test_batch: x5", "data.members.test_batch", "pattern"),
        ("\n    seed: 1", "\n    seed: 0", "runs.net-1.seed", "greater than 0"),
        # rules
        ("drops: [50, 75]", "drops: [75, 50]", "recipes.he.schedule", "must rise"),
        ("drops: [50, 75]", "drops: [50, 100]", "recipes.he.schedule", "before stop 100"),
        ("error_percent: null", "error_percent: 80", "recipes.he.schedule.warmup", "give one of them"),
        ("length: 10", "length: null", "recipes.he.schedule.warmup", "give one of them"),
        ("kind: constants", "kind: mean_std", "recipes.he.preprocessing", "mean_std takes 0 values"),
        ("      std: [0.2, 0.2, 0.2]\n", "", "recipes.he.preprocessing", "constants takes 3 values"),
        (
            "      kind: constants\n      mean: [0.5, 0.5, 0.5]\n      std: [0.2, 0.2, 0.2]",
            "      kind: pixel_mean",
            "recipes.he",
            "fill `black` needs one mean per channel",
        ),
        ("momentum: 0.9", "momentum: 0.0", "recipes.he", "nesterov needs a momentum"),
        ("        stop: 90", "        stop: 60", "models.net.changes.schedule", "before stop 60"),
        ("      batch_size: 32", "      batch_size: x", "models.net.changes.batch_size", "not 'x'"),
        # names
        ("recipe: he", "recipe: hee", "models.net.recipe", "there is no recipe 'hee'; did you mean 'he'?"),
        (
            "  net-1:\n    model: net",
            "  net-1:\n    model: nett",
            "runs.net-1.model",
            "no model 'nett'; did you mean 'net'",
        ),
        ("net-1:", "net_1:", "runs.net_1", "this run is called net-1"),
        (
            "net-2:\n    model: net\n    seed: 2",
            "net-1:\n    model: net\n    seed: 1",
            "ablations.net-1",
            "already",
        ),
    ],
)
def test_a_mistake_is_refused_with_file_line_place_and_remedy(file, right, wrong, place, says):
    assert right in COMPLETE
    text = COMPLETE.replace(right, wrong, 1)
    message = refusal(file, text)
    (line,) = [line for line in message.splitlines() if f": {place}: " in line]
    assert says in line
    assert line.startswith(f"{file}:{line_of(text, place)}: ")


def with_net(family: str, depth: int, *others: str) -> str:
    lines = "\n      ".join([f"family: {family}", f"depth: {depth}", *others])
    return re.sub(r"family: wide.*?shortcut: A", lines, COMPLETE, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("family", "block", "depth", "rule"),
    [
        ("plain", "basic", 21, "6n+2, such as 20 or 26"),
        ("resnet", "bottleneck", 165, "9n+2, such as 164 or 173"),
        ("resnet", "basic", 18, "6n+2, such as 14 or 20"),
        ("preact", "basic", 1001, "6n+2, such as 998 or 1004"),
        ("preact", "bottleneck", 163, "9n+2, such as 155 or 164"),
        ("wide", "basic", 20, "6n+4, such as 16 or 22"),
        ("wide", "basic", 4, "6n+4, such as 10 or 16"),
        ("lasagne", "basic", 109, "6n+2, such as 104 or 110"),
    ],
)
def test_a_depth_that_does_not_exist_names_the_rule(file, family, block, depth, rule):
    text = with_net(family, depth, f"block: {block}")
    message = refusal(file, text)
    assert f"depth {depth} does not exist for {family} nets of {block} blocks: it is {rule}" in message
    assert message.startswith(f"{file}:{line_of(text, 'models.net.architecture')}: models.net.architecture: ")


@pytest.mark.parametrize(
    ("family", "depth", "others", "says"),
    [
        ("wide", 11, ["block: bottleneck"], "wide nets have basic blocks only"),
        ("plain", 8, ["shortcut: A"], "a plain net has no shortcuts"),
        ("resnet", 8, ["widen_factor: 2"], "widen_factor is for the families wide and lasagne"),
    ],
)
def test_an_architecture_that_does_not_exist_is_refused(file, family, depth, others, says):
    assert says in refusal(file, with_net(family, depth, *others))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "expected the sections data, engine, recipes, models, runs, ablations, ablation_groups, verdicts"),
        ("- 1\n", 1, "expected the sections"),
        ("data: [\nengine: 3\n", 3, "expected ',' or ']'"),
        ("data:\n\tengine: 3\n", 2, r"found character '\t'"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("data:\n  urls: [x]\n  urls: [y]\n", 3, "duplicate key"),
        (COMPLETE + "runs: {}\n", len(COMPLETE.splitlines()) + 1, "duplicate key"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(file, text, line, says):
    message = refusal(file, text)
    assert message.startswith(f"{file}:{line}: ")
    assert says in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=re.escape(str(tmp_path / "params.yaml"))):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"data: \x00", "data: \u00e9".encode("latin-1")])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=rf"{re.escape(str(path))} cannot be read: .+"):
        load(path)


def test_several_mistakes_are_told_at_once(file):
    text = COMPLETE.replace("momentum: 0.9", "momentum: x", 1).replace("held_out: 5000", "held_out: -1")
    assert len(refusal(file, text).splitlines()) == 2


def test_params_are_frozen(file):
    loaded = load_text(file, COMPLETE)
    for section in (
        loaded,
        loaded.recipes["he"],
        loaded.recipes["he"].schedule,
        loaded.models["net"].architecture,
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, next(iter(type(section).model_fields)), None)
