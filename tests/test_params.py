import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from params_file import COMPLETE, KEYS, REPOSITORY, at, line_of, load_text, load_tree, refusal, tree_of
from resnet_repro.errors import ParamsError
from resnet_repro.params import load

AREA = "params.yaml"

BREAKS_A_RULE = {  # without these keys of `COMPLETE`, others of it do not fit
    "recipes.he.schedule.warmup.length": "give one of them",
    "recipes.he.preprocessing.mean": "constants takes 3 values",
    "recipes.he.preprocessing.std": "constants takes 3 values",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("params") / "params.yaml"


def test_the_repositorys_own_file_loads():
    loaded = load(REPOSITORY / "params.yaml")
    assert {"plain20", "resnet20", "preact164", "wrn16_4", "lasagne_wide"} <= set(loaded.planned_models)
    assert loaded.recipe_of("resnet110").schedule.warmup.until_train_error_percent == 80.0
    assert loaded.recipes["he2015"].schedule.warmup is None  # a model's changes are its own
    assert loaded.recipe_of("lasagne164").batch_size == 48


def test_wide_nets_whitened_or_by_the_released_code_differ_from_the_others_in_what_their_names_say():
    loaded = load(REPOSITORY / "params.yaml")
    text = loaded.recipe_of("wrn16_4").model_dump(exclude={"source"})
    whitened = [name for name in loaded.models if name.startswith("wrn") and name.endswith("_zca")]
    assert len(whitened) == 19  # Zagoruyko 2016, Tables 2 to 4
    for name in whitened:
        differs = {"initialization": "fan_out", "preprocessing": {"kind": "zca", "mean": (), "std": ()}}
        assert loaded.recipe_of(name).model_dump(exclude={"source"}) == text | differs
    released = loaded.recipe_of("wrn16_4_released_code").model_dump(exclude={"source"})
    differs = {"momentum_at_drops": "reset", "scales": "uniform"}
    assert released == text | differs | {"schedule": text["schedule"] | {"drops": (59, 119, 159)}}


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
        ("batch_size: 32", "batchsize: 32", "models.net.changes.batchsize", "did you mean 'batch_size'?"),
        ("        stop: 90", "        stpo: 90", "models.net.changes.schedule.stpo", "did you mean 'stop'?"),
        ("      threads: 1", "      thread: 1", "models.net.engine.thread", "did you mean 'threads'?"),
        ("flip: false", "zzz: false", "recipes.he.augmentation.zzz", "known: padding, fill"),
        # types and values
        ("flip: false", "flip: yes", "recipes.he.augmentation.flip", "true or false, not 'yes'"),
        ("batch_size: 64", "batch_size: '128'", "recipes.he.batch_size", "without quotes"),
        ("batch_size: 64", "batch_size: true", "recipes.he.batch_size", "integer, not True"),
        ("batch_size: 64", "batch_size: 0", "recipes.he.batch_size", "greater than 0, not 0"),
        ("momentum: 0.9", "momentum: 1.0", "recipes.he.momentum", "less than 1, not 1.0"),
        ("learning_rate: 0.1", "learning_rate: .inf", "recipes.he.schedule.learning_rate", "not inf"),
        ("learning_rate: 0.1", "learning_rate: ten", "recipes.he.schedule.learning_rate", "1.0e-4"),
        ("std: [0.2, 0.2, 0.2]", "std: [0.2, 0.2, 0]", "recipes.he.preprocessing.std.2", "greater than 0"),
        ("weight_decay: 0.0001", "weight_decay: .nan", "recipes.he.weight_decay", "not nan"),
        ("drops: [50, 75]", "drops: 50", "recipes.he.schedule.drops", "a list, not 50"),
        ("kind: constants", "kind: pca", "recipes.he.preprocessing.kind", "'pixel_mean', 'mean_std', 'zca'"),
        ("schedule:\n      unit", "schedule: 3\n    x:\n      unit", "recipes.he.schedule", "not 3"),
        ("test_batch: f5", "test_batch: x5", "data.members.test_batch", "pattern"),
        # names
        ("recipe: he", "recipe: hee", "models.net.recipe", "there is no recipe 'hee'; did you mean 'he'?"),
        (
            "  net-1:\n    model: net",
            "  net-1:\n    model: nett",
            "runs.net-1.model",
            "no model 'nett'; did you mean 'net'",
        ),
        ("net-1:", "net_1:", "runs.net_1", "it is called net-1"),
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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=re.escape(str(tmp_path / "params.yaml"))):
        load(tmp_path / "params.yaml")


def with_net(family: str, depth: int, *others: str) -> tuple[str, str]:
    lines = "\n      ".join([f"family: {family}", f"depth: {depth}", *others])
    old = COMPLETE[COMPLETE.index("family: wide") : COMPLETE.index("      conv_padding")]
    return old, f"{lines}\n"


SCHEDULE, ARCHITECTURE = "recipes.he.schedule", "models.net.architecture"


@pytest.mark.fault("values that do not go together", "refused with file, line, section and the rule")
@pytest.mark.parametrize(
    ("right", "wrong", "place", "says"),
    [
        ("drops: [50, 75]", "drops: [75, 50]", SCHEDULE, "must rise"),
        ("drops: [50, 75]", "drops: [50, 50]", SCHEDULE, "must rise"),
        ("drops: [50, 75]", "drops: [50, 100]", SCHEDULE, "before stop 100"),
        ("        stop: 90", "        stop: 60", "models.net.changes.schedule", "before stop 60"),
        ("length: 10", "length: 100", SCHEDULE, "a warm-up of length 100 must end before stop 100"),
        ("error_percent: null", "error_percent: 80", f"{SCHEDULE}.warmup", "give one of them"),
        ("length: 10", "length: null", f"{SCHEDULE}.warmup", "give one of them"),
        ("kind: constants", "kind: mean_std", "recipes.he.preprocessing", "mean_std takes 0 values"),
        ("      std: [0.2, 0.2, 0.2]\n", "", "recipes.he.preprocessing", "constants takes 3 values"),
        ("constants\n      mean: [0.5, 0.5, 0.5]\n      std: [0.2, 0.2, 0.2]", "zca", "recipes.he", "one mean per"),
        ("momentum: 0.9", "momentum: 0.0", "recipes.he", "nesterov needs a momentum"),
        ("momentum: 0.9\n    nesterov: true", "momentum: 0.0", "recipes.he", "momentum_at_drops `reset` needs"),
        ("drops: [50, 75]", "drops: []", "recipes.he", "a momentum above 0 and drops at which it is reset"),
        ("running\n        eps: 0.001\n        momentum: 0.2\n        group_size: 16", "none",
         f"{ARCHITECTURE}.batch_norm", "kind `none` has no scales: leave the recipe's `scales` at ones"),
        ("held_out: 5000", "held_out: 49937", "recipes.he", "batch_size and held_out take 50,001"),
        ("mode: eager", "mode: graphed", "engine", "mode graphed is for CUDA devices, and the device is cpu: use auto"),
        ("threads: 1", "mode: graphed", "models.net.engine", "mode graphed is for CUDA devices"),
        ("group_size: 16", "group_size: 33", f"{ARCHITECTURE}.batch_norm", "group_size 33 exceeds batch_size 32"),
        ("kind: running", "kind: batch", f"{ARCHITECTURE}.batch_norm", "group_size goes with kind `running` only"),
        ("wide_margin_points: 0.9", "wide_margin_points: 0.1", "verdicts", "must not be below margin_points 0.2"),
        (*with_net("plain", 21), ARCHITECTURE, "depth 21 does not exist for plain nets of basic blocks: it is 6n+2"),
        (*with_net("resnet", 165, "block: bottleneck"), ARCHITECTURE, "it is 9n+2, such as 164 or 173"),
        (*with_net("resnet", 18), ARCHITECTURE, "6n+2, such as 14 or 20"),
        (*with_net("preact", 1001), ARCHITECTURE, "6n+2, such as 998 or 1004"),
        (*with_net("preact", 163, "block: bottleneck"), ARCHITECTURE, "9n+2, such as 155 or 164"),
        (*with_net("wide", 20), ARCHITECTURE, "6n+4, such as 16 or 22"),
        (*with_net("wide", 4), ARCHITECTURE, "6n+4, such as 10 or 16"),
        (*with_net("lasagne", 109), ARCHITECTURE, "6n+2, such as 104 or 110"),
        (*with_net("wide", 11, "block: bottleneck"), ARCHITECTURE, "wide nets have basic blocks only"),
        (*with_net("resnet", 109, "kernels: [3]"), ARCHITECTURE, "of kernels [3]: it is 3n+2, such as 107 or 110"),
        (*with_net("lasagne", 11, "kernels: [3]"), ARCHITECTURE, "kernels is for basic blocks of the families"),
        (*with_net("resnet", 11, "block: bottleneck", "kernels: [3]"), ARCHITECTURE, "kernels is for basic blocks"),
        (*with_net("preact", 8, "skip: {kind: dropout, dropout: 0.5}"), ARCHITECTURE, "skip is for the family resnet"),
        (*with_net("resnet", 8, "skip: {kind: dropout, gate_bias: 1.0}"), f"{ARCHITECTURE}.skip",
         "gate_bias goes with kind `exclusive_gating` or `shortcut_only_gating` only"),
        (*with_net("plain", 8, "activation: bn_after_addition"), ARCHITECTURE, "activation is for the family resnet"),
        (*with_net("plain", 8, "shortcut: A"), ARCHITECTURE, "a plain net has no shortcuts"),
        (*with_net("resnet", 8, "widen_factor: 2"), ARCHITECTURE, "widen_factor is for the families wide and lasagne"),
        (*with_net("resnet", 8, "dropout: 0.3"), ARCHITECTURE, "dropout is for the families preact, wide and lasagne"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)  # fmt: skip
def test_values_that_do_not_go_together_name_the_rule(file: Path, right: str, wrong: str, place: str, says: str):
    assert right in COMPLETE
    text = COMPLETE.replace(right, wrong, 1)
    message = refusal(file, text)
    assert message.startswith(f"{file}:{line_of(text, place)}: {place}: ")
    assert says in message


def test_several_mistakes_are_told_at_once(file):
    text = COMPLETE.replace("momentum: 0.9", "momentum: x", 1).replace("held_out: 5000", "held_out: -1")
    assert len(refusal(file, text).splitlines()) == 2


@settings(max_examples=30)
@given(
    source=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200)
    | st.sampled_from(["yes", "010", "~", "so: " * 50]),
    rate=st.floats(1e-300, 1e6),
    decay=st.floats(0, 1, exclude_max=True),
    mean=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_was_loaded_and_dumped_loads_as_the_same(file, source, rate, decay, mean, seed):
    tree = tree_of()
    recipe = tree["recipes"]["he"]
    recipe |= {"source": source, "weight_decay": decay, "split_seed": seed}
    recipe["schedule"]["learning_rate"], recipe["preprocessing"]["mean"] = rate, mean
    loaded = load_tree(file, tree)
    found = loaded.recipes["he"]
    assert (found.source, found.weight_decay, found.split_seed) == (source, decay, seed)
    assert (found.schedule.learning_rate, list(found.preprocessing.mean)) == (rate, mean)
    assert load_tree(file, json.loads(loaded.model_dump_json())) == loaded


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
