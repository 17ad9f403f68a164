"""The Lasagne PreResNet project's commands, `TYPE N [WIDTH]`, as doors to this project's stages.

Its `normal` nets are 6n+2 layers deep and its `bottleneck` nets 9n+2 (He et al. 2016); its `wide` nets are called
6n+4, k times as wide (Zagoruyko and Komodakis 2016).
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from resnet_repro.errors import ReproError
from resnet_repro.estimate import stale_runs
from resnet_repro.evidence import METRICS, Metrics
from resnet_repro.params import Params, Run

FAMILIES = {"normal": "preact", "bottleneck": "preact", "wide": "wide"}
"""whose nets a TYPE means where the project's own family, `lasagne`, has none"""
RECIPES = {"lasagne": "lasagne", "wide": "wrn2016"}
"""the recipe to propose for a new model"""


class DoorError(ReproError):
    """No run of params.yaml fits what was asked for, or its stage failed."""


@dataclass(frozen=True)
class Net:
    """What `TYPE N [WIDTH]` asks for."""

    type: str
    n: int
    width: int | None = None

    def __post_init__(self) -> None:
        if self.type not in FAMILIES:
            raise DoorError(f"TYPE is one of {', '.join(FAMILIES)}, not {self.type}")
        if (self.type == "wide") != (self.width is not None):
            raise DoorError("a wide net takes a WIDTH, as in `wide 2 4`, and no other does")
        if self.n < 1 or (self.width or 1) < 1:
            raise DoorError("N and WIDTH are 1 or more")

    @property
    def depth(self) -> int:
        return {"normal": 6 * self.n + 2, "bottleneck": 9 * self.n + 2, "wide": 6 * self.n + 4}[self.type]

    @property
    def block(self) -> str:
        return "bottleneck" if self.type == "bottleneck" else "basic"

    @property
    def family(self) -> str:
        """The source project's own, which has no wide nets of width 1: those have another depth."""
        return "wide" if self.width == 1 else "lasagne"


def models_of(params: Params, net: Net) -> list[str]:
    """The models of this type and size: the source project's own first, then those with the fewest options set."""
    wanted = (net.depth, net.block, (3, 3), net.width or 1)
    ranked = []
    for name, model in params.models.items():
        spec = model.architecture
        fits = (spec.depth, spec.block, spec.kernels, spec.widen_factor) == wanted
        if fits and spec.family in (net.family, FAMILIES[net.type]):
            options = (spec.model_dump(exclude_defaults=True), model.changes, model.engine)
            ranked.append((spec.family != "lasagne", sum(map(len, options)), name))
    return [name for *_, name in sorted(ranked, key=lambda row: row[:2])]


def choose_run(params: Params, net: Net, seed: int) -> tuple[str, list[str]]:
    """The run of the first of `models_of` that has one with this seed, and the other models.

    Raises:
        DoorError: there is none; it says which lines of params.yaml would make one.
    """
    models = models_of(params, net)
    for name in models:
        if (key := f"{name}-{seed}") in params.runs or key in params.ablations:
            return key, [other for other in models if other != name]
    asked = " ".join(map(str, filter(None, (net.type, net.n, net.width))))
    raise DoorError(
        f"params.yaml has no {'run' if models else 'model'} for `{asked}` with seed {seed}: add\n"
        + "\n".join(_lines(params, net, seed, models))
    )


def _lines(params: Params, net: Net, seed: int, models: list[str]) -> Iterator[str]:
    name = models[0] if models else f"{net.family}{net.depth}_{net.type}" + (f"{net.width}" if net.width else "")
    if not models:
        options = "".join(
            [
                ", block: bottleneck" if net.block == "bottleneck" else "",
                f", widen_factor: {net.width}" if net.width else "",
                ", batch_norm: {eps: 0.0001}" if net.family == "lasagne" else "",
            ]
        )
        recipe = RECIPES[net.family] if RECIPES[net.family] in params.recipes else next(iter(params.recipes))
        yield "models:"
        yield f"  {name}: {{architecture: {{family: {net.family}, depth: {net.depth}{options}}}, recipe: {recipe}}}"
    yield "runs:"
    yield f"  {name}-{seed}: {{model: {name}, seed: {seed}}}"


def train(workspace: Path, params: Params, key: str) -> None:
    """`dvc repro` of the run's `train` stage.

    Raises:
        DoorError: it failed; its own message stands above.
    """
    _repro(workspace, _stage(params, "train", key))


def test(workspace: Path, params: Params, key: str) -> Metrics:
    """`dvc repro` of the run's `evaluate` stage, and the errors it wrote.

    A committed run that is up to date is kept although its weights are not here, as `make repro` does.

    Raises:
        DoorError: it failed; its own message stands above.
    """
    kept = () if key in params.ablations or key in stale_runs(workspace, params) else ("--allow-missing",)
    _repro(workspace, *kept, _stage(params, "evaluate", key))
    folder = workspace / ("reports/runs" if key in params.runs else "reports/ablations/runs") / key
    return Metrics.model_validate_json((folder / METRICS).read_text(encoding="utf-8"))


def described(params: Params, key: str, others: list[str]) -> str:
    """Which run was chosen, and which other models have this type and size."""
    run: Run = params.runs.get(key) or params.ablations[key]
    also = f"; also of this type and size: {', '.join(others)}" if others else ""
    return f"{key}: model {run.model}, recipe {params.models[run.model].recipe}{also}"


def errors_of(metrics: Metrics) -> str:
    """The errors in one line each, percent of the test images."""
    lines = [f"test error {metrics.test_error_percent:.2f}% after the last epoch"]
    if metrics.best_validation_test_error_percent is not None:
        epoch = metrics.best_validation_epoch
        lines.append(
            f"test error {metrics.best_validation_test_error_percent:.2f}% at the best-validation epoch, {epoch}"
        )
    return "\n".join(lines)


def _stage(params: Params, stage: str, key: str) -> str:
    return f"{stage}@{key}" if key in params.runs else f"ablations/dvc.yaml:{stage}@{key}"


def _repro(workspace: Path, *arguments: str) -> None:
    if subprocess.run(["dvc", "repro", *arguments], cwd=workspace, check=False).returncode:
        raise DoorError(f"`dvc repro {' '.join(arguments)}` failed; what it said stands above")
