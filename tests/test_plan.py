import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import create_model

from resnet_repro import counter_hash, training
from resnet_repro.data import batches, preprocessing
from resnet_repro.evidence import Plan
from resnet_repro.models import initialization, layers
from resnet_repro.params import Architecture, ModelParams, Params, Recipe, load
from resnet_repro.plan import fingerprint, make_plan

PARAMS = load(Path(__file__).parents[1] / "params.yaml")
RESNET = Architecture(family="resnet", depth=8)
WIDE = Architecture(family="wide", depth=10, widen_factor=2)
HE2015, WRN2016 = PARAMS.recipes["he2015"], PARAMS.recipes["wrn2016"]
COMPONENTS = {"initial_weights", "batches", "learning_rate", "steps", "evaluation"}


def changed(section: Any, **changes: Any) -> Any:
    def merge(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return old | {key: merge(old.get(key), value) for key, value in new.items()}
        return new

    return type(section).model_validate(merge(section.model_dump(), changes))


@pytest.fixture(scope="module")
def original() -> dict[str, str]:
    return fingerprint(RESNET, HE2015)


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys() == COMPONENTS
    return {name for name in one if one[name] != other[name]}


def test_a_fingerprint_repeats(original):
    torch.rand(1)  # does not depend on torch's own generator
    assert fingerprint(RESNET, HE2015) == original


@pytest.mark.parametrize(
    ("changes", "component"),
    [
        ({"augmentation": {"padding": 3}}, "batches"),
        ({"augmentation": {"crop": "five"}}, "batches"),
        ({"augmentation": {"crop": "none"}}, "batches"),
        ({"augmentation": {"flip": False}}, "batches"),
        ({"augmentation": {"draw": "batch"}}, "batches"),
        ({"augmentation": {"fill": "reflect"}}, "steps"),
        ({"preprocessing": {"kind": "mean_std"}}, "steps"),
        ({"preprocessing": {"kind": "zca"}}, "evaluation"),
        ({"weight_decay": 2e-4}, "steps"),
        ({"momentum": 0.91}, "steps"),
        ({"nesterov": True}, "steps"),
        ({"decayed": "weights"}, "steps"),
        ({"decayed": "weights_and_scales"}, "steps"),
        ({"initialization": "fan_in"}, "initial_weights"),
        ({"initialization": "a_martyn"}, "initial_weights"),
        ({"scales": "uniform"}, "initial_weights"),
        ({"momentum_at_drops": "reset"}, "steps"),
        ({"schedule": {"drops": (32_001, 48_000)}}, "learning_rate"),
        ({"schedule": {"drop_factor": 0.2}}, "learning_rate"),
        ({"schedule": {"learning_rate": 0.05}}, "learning_rate"),
        ({"schedule": {"stop": 64_001}}, "learning_rate"),
        ({"schedule": {"warmup": {"learning_rate": 0.01, "length": 400}}}, "learning_rate"),
        (
            {"schedule": {"warmup": {"learning_rate": 0.01, "until_train_error_percent": 80.0}}},
            "learning_rate",
        ),
        ({"last_batch": "drop"}, "batches"),  # 165 epochs
        ({"batch_size": 64}, "batches"),
        ({"held_out": 5000}, "batches"),
    ],
    ids=str,
)
def test_every_option_of_a_recipe_is_seen(original, changes, component):
    recipe = changed(HE2015, **changes)
    seen = differing(fingerprint(RESNET, recipe), original)
    assert component in seen
    assert ("initial_weights" in seen) == bool({"initialization", "scales"} & changes.keys())
    of_rate = {"schedule", "batch_size", "last_batch", "momentum_at_drops"}
    assert ("learning_rate" in seen) <= bool(of_rate & changes.keys())


@pytest.mark.parametrize(
    "changes",
    [
        {"shortcut": "B"},
        {"shortcut": "C"},
        {"shortcut": "reshape"},
        {"batch_norm": {"eps": 1e-4}},
        {"batch_norm": {"momentum": 0.2}},
        {"batch_norm": {"kind": "batch"}},
        {"batch_norm": {"kind": "none"}},
        {"batch_norm": {"group_size": 64}},
        {"conv_padding": "reflect"},
        {"subsampling": "pool"},
        {"family": "preact"},
        {"family": "lasagne"},
        {"family": "plain"},
        {"depth": 14},
        {"depth": 11, "block": "bottleneck"},
        {"kernels": [3]},
        {"kernels": [3, 1]},
        {"skip": {"kind": "constant_scaling", "shortcut_factor": 0.5}},
        {"skip": {"kind": "constant_scaling", "residual_factor": 0.5}},
        {"skip": {"kind": "exclusive_gating"}},
        {"skip": {"kind": "shortcut_only_gating"}},
        {"skip": {"kind": "shortcut_only_gating", "gate_bias": -6.0}},
        {"skip": {"kind": "dropout", "dropout": 0.5}},
        {"activation": "bn_after_addition"},
        {"activation": "relu_before_addition"},
        {"activation": "relu_only_preactivation"},
    ],
    ids=str,
)
def test_every_option_of_an_architecture_is_seen(original, changes):
    assert {"steps", "evaluation"} <= differing(fingerprint(changed(RESNET, **changes), HE2015), original)


def test_options_of_wide_nets_are_seen():
    wide = fingerprint(WIDE, WRN2016)
    assert "steps" in differing(fingerprint(changed(WIDE, dropout=0.3), WRN2016), wide)
    assert "steps" in differing(fingerprint(changed(WIDE, widen_factor=3), WRN2016), wide)
    dropout = fingerprint(changed(WIDE, dropout=0.3), WRN2016)
    assert "steps" in differing(fingerprint(changed(WIDE, dropout=0.4), WRN2016), dropout)
    # 390 updates an epoch or 391 put every drop elsewhere
    assert "learning_rate" in differing(fingerprint(WIDE, changed(WRN2016, last_batch="keep")), wide)
    split = [fingerprint(WIDE, changed(WRN2016, held_out=5000, split_seed=seed)) for seed in (1, 2)]
    assert differing(*split) == {"batches"}


def smooth_labels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.F, "cross_entropy", partial(training.F.cross_entropy, label_smoothing=1e-3))


def drop_later(patch: pytest.MonkeyPatch) -> None:
    rate = training.schedule.learning_rate
    patch.setattr(training.schedule, "learning_rate", lambda p, step, *rest: rate(p, step - 1, *rest))


def keep_gradients(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.SGD, "zero_grad", lambda *_, **__: None)


def more_momentum(patch: pytest.MonkeyPatch) -> None:
    optimizer = training._optimizer
    patch.setattr(
        training,
        "_optimizer",
        lambda n, r, rate: optimizer(n, r.model_copy(update={"momentum": 0.9001}), rate),
    )


def scale_the_loss(patch: pytest.MonkeyPatch) -> None:
    loss = training.Trainer._loss
    patch.setattr(training.Trainer, "_loss", lambda self, size: (loss(self, size)[0] * 1.0001, loss(self, size)[1]))


def shift_the_crop(patch: pytest.MonkeyPatch) -> None:
    take = batches.PaddedImages.take
    patch.setattr(
        batches.PaddedImages, "take", lambda self, i, row, *rest: take(self, i, (row - 1).clamp(min=0), *rest)
    )


def another_hash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batches, "FLIP", 77)


def another_finaliser(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(counter_hash, "_mix", lambda x: x * 5 & 0xFFFF_FFFF)


def other_pixels_in_shortcuts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers.ZeroPad, "forward", lambda self, x: torch.nn.functional.pad(
        x[:, :, 1 :: self.stride, 1 :: self.stride], (0, 0, 0, 0, 0, self.extra_channels)))  # fmt: skip


def another_scale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(initialization.math, "sqrt", lambda x: x**0.5 * 1.0001)


def another_pixel_range(patch: pytest.MonkeyPatch) -> None:
    fit = preprocessing.fit

    def wider(*arguments: Any) -> preprocessing.Normalizer:
        normalizer = fit(*arguments)
        return preprocessing.Normalizer(normalizer.mean, normalizer.scale * 1.001)

    patch.setattr(preprocessing, "fit", wider)


@pytest.mark.parametrize(
    ("mutate", "component"),
    [
        (smooth_labels, "steps"),
        (drop_later, "learning_rate"),
        (keep_gradients, "steps"),
        (more_momentum, "steps"),
        (scale_the_loss, "steps"),
        (shift_the_crop, "steps"),
        (another_hash, "batches"),
        (another_finaliser, "batches"),
        (other_pixels_in_shortcuts, "steps"),
        (another_scale, "initial_weights"),
        (another_pixel_range, "steps"),
    ],
)
def test_a_line_changed_in_the_code_is_seen(original, monkeypatch, mutate, component):
    with monkeypatch.context() as patch:
        mutate(patch)
        assert component in differing(fingerprint(RESNET, HE2015), original)
    assert fingerprint(RESNET, HE2015) == original


def reset_later(patch: pytest.MonkeyPatch) -> None:
    resets = training.schedule.resets_momentum
    patch.setattr(training.schedule, "resets_momentum", lambda recipe, step, *rest: resets(recipe, step - 1, *rest))


def reset_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.Trainer, "_reset_momentum", lambda self: None)


def scales_of_another_range(patch: pytest.MonkeyPatch) -> None:
    generator = initialization._generator

    class Wider:
        def __init__(self, *arguments: Any) -> None:
            self.own = generator(*arguments)

        def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Any:
            return self.own.uniform(low, high * 1.001, shape)

        def standard_normal(self, shape: tuple[int, ...]) -> Any:
            return self.own.standard_normal(shape)

    patch.setattr(initialization, "_generator", Wider)


@pytest.mark.parametrize(
    ("mutate", "components"),
    [
        (reset_later, {"steps", "learning_rate"}),
        (reset_nothing, {"steps"}),
        (scales_of_another_range, {"initial_weights", "steps"}),
    ],
)
def test_a_line_changed_for_what_zagoruykos_code_does_is_seen(monkeypatch, mutate, components):
    recipe = changed(HE2015, momentum_at_drops="reset", scales="uniform")
    before = fingerprint(RESNET, recipe)
    with monkeypatch.context() as patch:
        mutate(patch)
        assert components <= differing(fingerprint(RESNET, recipe), before)


def params_with(engine: dict[str, Any] | None = None, **recipe: Any) -> Params:
    entry = ModelParams(architecture=RESNET, recipe="he2015", engine=engine or {})
    recipes = {"he2015": HE2015.model_copy(update=recipe)}
    return Params(data=PARAMS.data, recipes=recipes, models={"tiny": entry}, runs={}, verdicts=PARAMS.verdicts)


def test_neither_the_engine_nor_the_wording_changes_the_fingerprint(original):
    plain = make_plan(params_with(), "tiny")
    assert plain.fingerprint == original
    assert make_plan(params_with(source="the same in other words"), "tiny").to_json() == plain.to_json()
    other = make_plan(params_with(engine={"mode": "eager", "precision": "bf16", "threads": 3}), "tiny")
    assert other.fingerprint == plain.fingerprint
    assert other.to_json() != plain.to_json()  # it gives other bits, so it is part of the plan


def test_a_plan_survives_json(tmp_path):
    params = params_with(engine={"threads": 3})
    made = make_plan(params, "tiny")
    assert Plan.model_validate_json(made.to_json(), strict=False) == made
    path = tmp_path / "plan.json"
    path.write_text(made.to_json())
    assert Plan.read(path) == made
    assert Plan.read(path).to_json() == made.to_json()


@pytest.mark.parametrize("model", PARAMS.models)
def test_every_models_specification_survives_json(model):
    entry = PARAMS.models[model]
    whole = Plan(
        model=model,
        recipe_name=entry.recipe,
        layers=1,
        parameters=1,
        architecture=entry.architecture,
        recipe=PARAMS.recipe_of(model),
        engine=PARAMS.engine_of(model),
        fingerprint={},
    )
    assert Plan.model_validate_json(whole.to_json(), strict=False) == whole


def test_neutral_options_are_left_out():
    content = json.loads(make_plan(params_with(), "tiny").to_json())
    assert content["architecture"] == {"family": "resnet", "depth": 8}
    assert "engine" not in content
    assert not {"source", "nesterov", "decayed", "held_out", "augmentation"} & content["recipe"].keys()


def test_an_option_that_is_added_changes_no_plan_that_does_not_use_it():
    made = make_plan(params_with(), "tiny")
    later_recipe = create_model("Recipe", __base__=Recipe, cutout=(int, 0))
    later_net = create_model("Architecture", __base__=Architecture, squeeze=(float | None, None))
    later_plan = create_model(
        "Plan", __base__=Plan, recipe=(later_recipe, ...), architecture=(later_net, ...), note=(str, "")
    )
    content = json.loads(made.to_json())
    assert later_plan.model_validate(content, strict=False).to_json() == made.to_json()
    content["recipe"]["cutout"] = 8
    assert json.loads(later_plan.model_validate(content, strict=False).to_json())["recipe"]["cutout"] == 8


def test_torchs_switches_are_left_as_they_were():
    assert torch.get_num_threads() == 1
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)
    try:
        fingerprint(RESNET, HE2015)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(1)


MODELS = ["plain56", "preact164", "wrn40_1_zca"]
"""The ones whose last digits differ the most: very deep, and whitened by an inverse root."""


def fingerprints() -> list[dict[str, str]]:
    return [fingerprint(PARAMS.models[model].architecture, PARAMS.recipe_of(model)) for model in MODELS]


def fingerprints_on(capability: str, threads: int) -> list[dict[str, str]]:
    script = """import json, torch, test_plan
print(torch.backends.cpu.get_cpu_capability(), json.dumps(test_plan.fingerprints()))"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads), "MKL_CBWR": "COMPATIBLE"},
        capture_output=True,
        text=True,
        check=True,
    )
    used, digests = done.stdout.split(" ", 1)
    assert used.lower() == capability
    return json.loads(digests)


def test_machines_agree():
    """One or two threads, every instruction set up to this machine's own, another path through the BLAS."""
    here = fingerprints()
    sets = ["default", "avx2", "avx512"]
    own = torch.backends.cpu.get_cpu_capability().lower()
    for threads, capability in enumerate(sets[: max(sets.index(own), 1)] if own in sets else sets[:1], start=1):
        assert fingerprints_on(capability, threads) == here


def test_a_wide_nets_layers_are_its_name_and_a_lasagne_nets_what_is_there():
    assert make_plan(PARAMS, "wrn16_4").layers == 16
    assert make_plan(PARAMS, "lasagne_wide").layers == 22  # 10 blocks of two convolutions, stem, linear layer
