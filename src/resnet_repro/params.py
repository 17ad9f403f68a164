"""`params.yaml` as frozen, validated objects.

Every default below is *neutral*: the plain behaviour of a model or a recipe that says nothing about the
option. A plan (`resnet_repro.plan`) leaves neutral values out, so an option that is added here later, with
a neutral default, changes no plan of a model that does not use it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnet_repro.errors import ParamsError
from resnet_repro.mistakes import MAX_BYTES, Misplaced, NotPlain, message, nearest, plain_yaml, shown, told

CIFAR10_TRAIN_IMAGES = 50_000


class Section(BaseModel):
    """Frozen, strict, and closed: an unknown key or a value of another type is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError("this name becomes that of files: use letters, digits, _ and, not first, - and .")
    return name


# YAML has lists only; strict mode would refuse one where a tuple is meant.
Strings = Annotated[tuple[str, ...], Field(strict=False)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**32)]  # what `counter_hash` tells apart
PositiveInts = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]  # no more than float32 and its square can hold
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Kernels = Annotated[tuple[Literal[1, 3], ...], Field(strict=False, min_length=1)]
Finites = Annotated[tuple[Finite, ...], Field(strict=False)]
Rates = Annotated[tuple[Rate, ...], Field(strict=False)]
Name = Annotated[str, AfterValidator(_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Data(Section):
    """Where the data comes from and what it must be."""

    urls: Strings
    members: dict[str, Sha256]
    """sha256 of each of the seven files of the archive; nothing else of it is read."""
    arrays: dict[str, Sha256] = {}
    """sha256 of each array that `prepare` writes; empty for data of one's own."""


class BatchNorm(Section):
    """Batch normalisation: `running` uses running statistics at test time, `batch` those of the test batch
    itself (a-martyn's note 5), `none` leaves the layer out (convolutions then have a bias)."""

    kind: Literal["running", "batch", "none"] = "running"
    eps: Rate = 1e-5
    momentum: Rate = 0.1
    group_size: PositiveInt | None = None
    """images per statistic; the papers had 64 of the 128 on each of two GPUs. None: the whole batch."""

    @model_validator(mode="after")
    def _groups_run(self) -> Self:
        if self.group_size is not None and self.kind != "running":
            raise ValueError("group_size goes with kind `running` only")
        return self


class Skip(Section):
    """What stands on the two paths of a unit (He 2016, Table 1 and Figure 2).

    identity: nothing; constant_scaling: a factor on each; exclusive_gating: 1-g(x) on the shortcut and g(x) on
    the residual function; shortcut_only_gating: 1-g(x) and nothing; dropout: of the shortcut. The gate g(x) is the
    sigmoid of a 1x1 convolution of the unit's input.
    """

    kind: Literal["identity", "constant_scaling", "exclusive_gating", "shortcut_only_gating", "dropout"] = "identity"
    shortcut_factor: Finite = 1.0
    residual_factor: Finite = 1.0
    gate_bias: Finite = 0.0
    """where the gate's bias starts"""
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        of_kind = {
            "constant_scaling": ("shortcut_factor", "residual_factor"),
            "exclusive_gating": ("gate_bias",),
            "shortcut_only_gating": ("gate_bias",),
            "dropout": ("dropout",),
        }
        for name in self.model_dump(exclude_defaults=True, exclude={"kind"}):
            if name not in of_kind.get(self.kind, ()):
                kinds = [kind for kind, names in of_kind.items() if name in names]
                raise ValueError(f"{name} goes with kind {' or '.join(f'`{kind}`' for kind in kinds)} only")
        return self


class Architecture(Section):
    """One net. `family` fixes the unit, `depth` the number of weighted layers.

    plain, resnet: He 2015, and what He 2016 calls the original unit and its variants; preact: He 2016;
    wide: Zagoruyko 2016; lasagne: what the Lasagne project really builds.
    """

    family: Literal["plain", "resnet", "preact", "wide", "lasagne"]
    depth: Annotated[int, Field(gt=0, le=100_000)]
    block: Literal["basic", "bottleneck"] = "basic"
    """basic: convolutions of the sizes `kernels`; bottleneck: 1x1, 3x3 and, four times as wide, 1x1"""
    kernels: Kernels = (3, 3)
    """of one basic unit, as in Zagoruyko 2016, section 2.1: B(3,3), B(3,1,3), ...; (3,) is He 2016's single layer"""
    activation: Literal["original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation"] = "original"
    """He 2016, Figure 4 (a) to (d), for the family resnet; (e), full pre-activation, is the family preact"""
    skip: Skip = Skip()
    """for the family resnet"""
    widen_factor: Annotated[int, Field(gt=0, le=1000)] = 1
    shortcut: Literal["A", "B", "C", "reshape"] | None = None
    """He 2015 section 3.3: A zero padding, B projection where the shape changes, C projection everywhere;
    reshape moves every pixel into channels instead of dropping three of four (a-martyn's note 4).
    None: the family's own (resnet A; preact A for basic and B for bottleneck; wide B)."""
    dropout: Fraction = 0.0
    conv_padding: Literal["zeros", "reflect"] = "zeros"
    subsampling: Literal["stride", "pool"] = "stride"
    """`pool`: stride 1 and a 2x2 average pool after it, where the papers' nets have stride 2."""
    batch_norm: BatchNorm = BatchNorm()

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        step, offset = self.depth_rule
        if self.depth <= offset or (self.depth - offset) % step:
            below = max((self.depth - offset) // step, 1)
            near = sorted({step * n + offset for n in (below, below + 1)})
            raise ValueError(
                f"depth {self.depth} does not exist for {self.family} nets of {self._blocks}: "
                f"it is {step}n+{offset}, such as {' or '.join(map(str, near))}"
            )
        if self.family in ("plain", "wide") and self.block == "bottleneck":
            raise ValueError(f"{self.family} nets have basic blocks only")
        if self.kernels != (3, 3) and (self.block == "bottleneck" or self.family in ("plain", "lasagne")):
            raise ValueError("kernels is for basic blocks of the families resnet, preact and wide")
        if self.activation != "original" and self.family != "resnet":
            raise ValueError("activation is for the family resnet")
        if self.skip.kind != "identity" and self.family != "resnet":
            raise ValueError("skip is for the family resnet")
        if self.family == "plain" and self.shortcut is not None:
            raise ValueError("a plain net has no shortcuts: leave `shortcut` out")
        if self.widen_factor != 1 and self.family not in ("wide", "lasagne"):
            raise ValueError("widen_factor is for the families wide and lasagne")
        if self.dropout and self.family in ("plain", "resnet"):
            raise ValueError("dropout is for the families preact, wide and lasagne")
        return self

    @property
    def depth_rule(self) -> tuple[int, int]:
        """(step, offset) of the depths that exist: 6n+2 (He 2015), 9n+2 (He 2016), 6n+4 (Zagoruyko 2016)."""
        wide = self.family == "wide" or (self.family == "lasagne" and self.widen_factor > 1)
        return 3 * len(self.unit), 4 if wide and self.block == "basic" else 2

    @property
    def unit(self) -> tuple[int, ...]:
        """Kernel sizes of one unit's convolutions."""
        return (1, 3, 1) if self.block == "bottleneck" else self.kernels

    @property
    def is_he2015(self) -> bool:
        """Of units as in He 2015, section 4.2, with shortcuts of any option or, in a plain net, none."""
        usual = self.unit == (3, 3) and self.activation == "original" and self.skip.kind == "identity"
        return usual and self.family in ("plain", "resnet")

    @property
    def _blocks(self) -> str:
        return f"{self.block} blocks" if self.kernels == (3, 3) else f"blocks of kernels {list(self.kernels)}"

    @property
    def blocks_per_group(self) -> int:
        step, offset = self.depth_rule
        return (self.depth - offset) // step


class Warmup(Section):
    """A lower rate at first: for a fixed length (He 2016), or until the training error of an epoch is
    below a bound (He 2015, ResNet-110), decided at epoch ends."""

    learning_rate: Rate
    length: PositiveInt | None = None
    """in the schedule's unit"""
    until_train_error_percent: Annotated[float, Field(gt=0, lt=100)] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if (self.length is None) == (self.until_train_error_percent is None):
            raise ValueError("a warm-up ends after a `length` or by `until_train_error_percent`: give one of them")
        return self


class Schedule(Section):
    """The learning rate as a function of the step (or of the epoch, counted from 0)."""

    unit: Literal["steps", "epochs"]
    stop: PositiveInt
    learning_rate: Rate
    drops: PositiveInts
    """the first step (or epoch) with the lower rate"""
    drop_factor: Annotated[float, Field(gt=0, lt=1)]
    warmup: Warmup | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if list(self.drops) != sorted(set(self.drops)) or (self.drops and self.drops[-1] >= self.stop):
            raise ValueError(f"drops {list(self.drops)} must rise and lie before stop {self.stop}")
        if self.warmup is not None and self.warmup.length is not None and self.warmup.length >= self.stop:
            raise ValueError(f"a warm-up of length {self.warmup.length} must end before stop {self.stop}")
        return self


class Preprocessing(Section):
    """What is subtracted and divided, always computed on the images that are trained on.

    pixel_mean: the per-pixel mean (He 2015); mean_std: channel mean and standard deviation; zca: global
    contrast normalisation and ZCA whitening (Zagoruyko 2016, section 3); constants: the numbers given.
    """

    kind: Literal["pixel_mean", "mean_std", "zca", "constants"]
    mean: Finites = ()
    std: Rates = ()
    """for `constants`: three each, on pixels from 0 to 1"""

    @model_validator(mode="after")
    def _constants(self) -> Self:
        wanted = 3 if self.kind == "constants" else 0
        if len(self.mean) != wanted or len(self.std) != wanted:
            raise ValueError(f"{self.kind} takes {wanted} values for each of mean and std")
        return self


class Augmentation(Section):
    """Pad, crop, flip. `draw: batch` crops and flips all images of a batch alike (the Lasagne code)."""

    padding: Annotated[int, Field(ge=0, le=16)] = 4
    fill: Literal["zero", "black", "reflect"] = "zero"
    """zero: zeros after preprocessing; black: zeros before it; reflect: mirrored pixels (Zagoruyko 2016)."""
    crop: Literal["random", "five", "none"] = "random"
    flip: bool = True
    draw: Literal["image", "batch"] = "image"


class Recipe(Section):
    """How a model is trained."""

    source: str = ""
    """where these values come from, in a few words; not part of a plan"""
    short: bool = False
    """a schedule shorter than the paper's: its runs never stand beside a paper's number"""
    schedule: Schedule
    batch_size: PositiveInt
    last_batch: Literal["keep", "drop"] = "keep"
    momentum: Fraction
    nesterov: bool = False
    momentum_at_drops: Literal["keep", "reset"] = "keep"
    """reset: the velocity starts from zero again with each drop of the rate (Zagoruyko 2016's code)"""
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    decayed: Literal["all", "weights", "weights_and_scales"] = "all"
    """what decays: everything; convolution and linear weights; those and batch normalisation's scales"""
    initialization: Literal["fan_in", "fan_out", "a_martyn", "lasagne"]
    scales: Literal["ones", "uniform"] = "ones"
    """where batch normalisation's scales start: at 1, or drawn from U(0, 1), Torch's default of 2016"""
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    held_out: Annotated[int, Field(ge=0)] = 0
    """training images held out for validation"""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train_error: Literal["running", "eval"] = "running"
    """running: the mean over the epoch's augmented batches in train mode; eval: a pass over the augmented
    training images in eval mode after the epoch (a-martyn)"""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.augmentation.fill == "black" and self.preprocessing.kind in ("pixel_mean", "zca"):
            raise ValueError("fill `black` needs one mean per channel: preprocessing mean_std or constants")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if self.momentum_at_drops == "reset" and not (self.momentum and self.schedule.drops):
            raise ValueError("momentum_at_drops `reset` needs a momentum above 0 and drops at which it is reset")
        if (taken := self.batch_size + self.held_out) > CIFAR10_TRAIN_IMAGES:
            raise ValueError(f"batch_size and held_out take {taken:,} of the {CIFAR10_TRAIN_IMAGES:,} training images")
        return self


class Engine(Section):
    """How the arithmetic is done. `auto` takes the fastest that the machine has, and is recorded."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    mode: Literal["auto", "eager", "compiled", "graphed"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 means all cores. Another number of threads gives other bits."""
    deterministic: bool = True

    @model_validator(mode="after")
    def _graphs_need_cuda(self) -> Self:
        if self.mode == "graphed" and self.device in ("cpu", "mps"):
            raise ValueError(f"mode graphed is for CUDA devices, and the device is {self.device}: use auto")
        return self


class ModelParams(Section):
    """One row of a table."""

    architecture: Architecture
    recipe: str
    changes: dict[str, Any] = {}
    """keys of the recipe that this model sets otherwise"""
    engine: dict[str, Any] = {}
    """keys of `engine` that this model sets otherwise"""


class Run(Section):
    model: str
    seed: PositiveInt


class AblationGroup(Section):
    """Models that differ from a baseline in one choice that the papers leave open."""

    question: str
    source: str
    baseline: str
    variants: Strings


class Prior(Section):
    """How far single runs of one model lie apart, as far as other people's runs tell: `seed_spreads.csv`."""

    sd_ratio: Rate
    """standard deviation over seeds, in units of sqrt(error / 200) points: of independent errors on 10,000 images"""
    degrees_of_freedom: PositiveInt
    """for how much it counts: as a standard deviation from one run more than this would"""
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    """the prior is dropped where runs spread so widely that this is their chance under it, or less"""


class Verdicts(Section):
    """By what a printed number counts as reproduced, or a claim as shown. Fixed before the runs that it judges."""

    margin_points: Rate
    """our runs must be shown to lie within this of the printed number"""
    wide_margin_points: Rate
    """a second, wider margin: a-martyn's "within 1%" """
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    """the chance, at one look and to one side, to say what is not so"""
    looks: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    """numbers of runs at which verdicts are read; between two looks the earlier one stands"""
    power: Annotated[float, Field(gt=0, lt=1)]
    """the chance of a decision for which numbers of runs are planned"""
    prior: Prior
    seen_before: Strings = ()
    """runs that were there before these rules"""
    registered: Annotated[str, Field(pattern=r"^([0-9a-f]{40})?$")] = ""
    """the commit that fixed these rules"""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.wide_margin_points < self.margin_points:
            raise ValueError(f"wide_margin_points must not be below margin_points {self.margin_points}")
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks {list(self.looks)} must rise")
        return self


class Params(Section):
    """The whole of `params.yaml`, with every model's recipe resolved and every run's model known."""

    data: Data
    engine: Engine = Engine()
    recipes: dict[str, Recipe]
    models: dict[Name, ModelParams]
    runs: dict[str, Run]
    ablations: dict[str, Run] = {}
    """runs of `dvc repro ablations/dvc.yaml`"""
    ablation_groups: dict[str, AblationGroup] = {}
    """what those runs, and their baselines under `runs`, are compared for"""
    verdicts: Verdicts

    @model_validator(mode="after")
    def _references(self) -> Self:
        for name, model in self.models.items():
            _known(("models", name, "recipe"), model.recipe, self.recipes, "recipe")
            if (size := model.architecture.batch_norm.group_size or 0) > (batch := self.recipe_of(name).batch_size):
                place = ("models", name, "architecture", "batch_norm")
                raise Misplaced(place, f"group_size {size} exceeds batch_size {batch}")
            if model.architecture.batch_norm.kind == "none" and self.recipe_of(name).scales != "ones":
                place = ("models", name, "architecture", "batch_norm")
                raise Misplaced(place, "kind `none` has no scales: leave the recipe's `scales` at ones")
            self.engine_of(name)
        for section in ("runs", "ablations"):
            for key, run in getattr(self, section).items():
                _known((section, key, "model"), run.model, self.models, "model")
                if key != f"{run.model}-{run.seed}":
                    raise Misplaced((section, key), f"with this model and seed it is called {run.model}-{run.seed}")
        for name, group in self.ablation_groups.items():
            for part, member in [("baseline", group.baseline), *(("variants", variant) for variant in group.variants)]:
                _known(("ablation_groups", name, part), member, self.models, "model")
        if twice := set(self.runs) & set(self.ablations):
            raise Misplaced(("ablations", min(twice)), "this run stands under `runs` already")
        return self

    @property
    def planned_models(self) -> list[str]:
        """The models that some run trains, in the order of `models`."""
        used = {run.model for run in (*self.runs.values(), *self.ablations.values())}
        return [name for name in self.models if name in used]

    def recipe_of(self, model: str) -> Recipe:
        params = self.models[model]
        return _changed(self.recipes[params.recipe], params.changes, ("models", model, "changes"))

    def engine_of(self, model: str) -> Engine:
        return _changed(self.engine, self.models[model].engine, ("models", model, "engine"))


def load(path: Path) -> Params:
    """Read and validate a params file.

    Raises:
        ParamsError: names the file, the line, what is wrong and, for an unknown name, the nearest one.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ParamsError(f"there is no {path} in {Path.cwd()}: run this in the repository's root") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error}") from None
    try:
        tree = plain_yaml(content)
        if not isinstance(tree, Mapping):
            raise NotPlain(1, f"expected the sections {', '.join(Params.model_fields)}")
        return Params.model_validate(tree)
    except NotPlain as error:
        raise ParamsError(f"{path}:{error.line}: {error}") from None
    except ValidationError as error:
        mistakes = [(item["loc"], message(Params, item)) for item in error.errors()]
    except Misplaced as error:
        mistakes = [(error.place, str(error))]
    raise ParamsError("\n".join(f"{path}:{line}: {said}" for line, said in told(content, mistakes)))


def _known(place: tuple[str | int, ...], name: str, known: Mapping[str, object], what: str) -> None:
    if name not in known:
        raise Misplaced(place, f"there is no {what} {shown(name)}{nearest(name, known)}")


def _changed(section: S, changes: Mapping[str, Any], place: tuple[str | int, ...]) -> S:
    """`section` with some keys replaced (nested mappings merged), validated anew."""
    merged = _merge(section.model_dump(), changes)
    try:
        return type(section).model_validate(merged)
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")  # then others are missing
        raise Misplaced((*place, *first["loc"]), message(type(section), first)) from None


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
