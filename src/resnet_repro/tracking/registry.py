"""MLflow's model registry: a registered model of each net, a version of each trained run, and an alias of the best."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_repro.evidence import RunEvidence
from resnet_repro.tracking.model import whole_models
from resnet_repro.tracking.record import paper_row
from resnet_repro.tracking.store import DATASET, Store, locked

BEST = "best"


@dataclass(frozen=True)
class Trained:
    """A run whose net stands in MLflow."""

    run: RunEvidence
    run_id: str
    model_id: str


def register(store: Store, trained: Sequence[Trained]) -> list[str]:
    """Give every model its page, every run its version, and the best of each model the alias `best`.

    What is there stays, but for a version whose files are gone, and only the alias moves. A version is known by the
    uid of its run, so a seed that was trained again gets a new version, and the one before stays as history.

    Returns:
        The runs whose version is new.
    """
    models: dict[str, list[Trained]] = defaultdict(list)
    for one in trained:
        models[one.run.plan.model].append(one)
    return [key for name, runs in models.items() for key in _register_model(store, name, runs)]


def best_of(trained: Sequence[Trained]) -> Trained:
    """What the alias names: by the validation error after the last step, as those are the weights that are kept;
    without held-out images the lowest seed, which nobody chose by its result. The test error decides nothing."""

    def rank(one: Trained) -> tuple[float, int]:
        return _validation_error(one.run) if one.run.plan.recipe.held_out else math.inf, one.run.provenance.seed

    return min(trained, key=rank)


def _register_model(store: Store, name: str, trained: Sequence[Trained]) -> list[str]:
    client = store.client
    with locked(store.lock):
        if not client.search_registered_models(f"name = '{name}'"):
            text = describe_model(trained[0].run)
            _unless("RESOURCE_ALREADY_EXISTS", client.create_registered_model, name, {"dataset": DATASET}, text)
        versions = _versions(client, name)
        for one in trained:
            version = versions.get(uid := one.run.provenance.uid)
            if version is None or one.model_id in version.source:
                continue
            if version.source not in whole_models(store, one.run_id).values():
                _unless("RESOURCE_DOES_NOT_EXIST", client.delete_model_version, name, version.version)
                del versions[uid]
        missing = [one for one in trained if one.run.provenance.uid not in versions]
        for one in missing:
            # `models:/ID` would be looked for in MLflow's global store, which need not be this one
            source = client.get_logged_model(one.model_id).artifact_location
            tags, text = _tags(one.run), describe_version(one.run)
            client.create_model_version(name, source, one.run_id, tags, description=text, model_id=one.model_id)
        versions = _versions(client, name) if missing else versions
        best = versions[best_of(trained).run.provenance.uid].version
        if str(client.get_registered_model(name).aliases.get(BEST)) != str(best):
            client.set_registered_model_alias(name, BEST, best)
    return [one.run.key for one in missing]


def _versions(client: Any, name: str) -> dict[str, Any]:
    """By the uid of their run. A request whose answer was lost, or two publishers at once, may have made twins."""
    by_uid: dict[str, Any] = {}
    for version in sorted(client.search_model_versions(f"name = '{name}'"), key=lambda found: int(found.version)):
        uid = version.tags.get("uid")
        if uid in by_uid:
            _unless("RESOURCE_DOES_NOT_EXIST", client.delete_model_version, name, version.version)
        elif uid:
            by_uid[uid] = version
    return by_uid


def _unless(code: str, call: Any, *arguments: Any) -> None:
    """A server has no lock: another publisher may have been quicker, which MLflow tells by `code`."""
    from mlflow.exceptions import MlflowException

    try:
        call(*arguments)
    except MlflowException as error:
        if error.error_code != code:
            raise


def _tags(run: RunEvidence) -> dict[str, str]:
    who = run.provenance
    tags = {
        "seed": str(who.seed),
        "run": run.key,
        "uid": who.uid,
        "weights_sha256": who.weights_sha256,
        "git_commit": who.git_commit,
    }
    return {key: value for key, value in tags.items() if value is not None}


def describe_model(run: RunEvidence) -> str:
    """A registered model's page in Markdown: the net, what is printed of it, how to load it, and what `best` is."""
    plan = run.plan
    ablation = run.folder.parent.parent.name == "ablations"
    page = "ablations/README.md" if ablation else f"models/{plan.model}.md"
    if plan.recipe.held_out:
        rule = (
            f"the seed with the lowest error on the {plan.recipe.held_out:,} training images held out, after the last "
            "step, whose weights these are"
        )
    else:
        rule = "the lowest seed, since no images are held out to choose by"
    return f"""**{plan.model}** (CIFAR-10): {plan.layers} layers, {plan.parameters:,} parameters; a version per seed.

Paper: {paper_row(plan)}

Alias `{BEST}`: {rule}. The test error never chooses.

Dataset: CIFAR-10; uint8 images (N, 3, 32, 32), 0 to 255, to logits (N, 10). The preprocessing is in the model.

```python
model = mlflow.pyfunc.load_model("models:/{plan.model}@{BEST}")
logits = model.predict(images)
```

Report: `reports/{page}` in the repository, and among the artifacts of the run `report`."""


def describe_version(run: RunEvidence) -> str:
    """A version's page in Markdown: its errors, its recipe, and the number that is printed."""
    plan, metrics = run.plan, run.metrics
    lines = [f"**{run.key}**: {metrics.test_error_percent:.2f}% test error after the last step"]
    if plan.recipe.held_out:
        lines.append(f"{_validation_error(run):.2f}% on the {plan.recipe.held_out:,} images held out")
    recipe = f"Recipe `{plan.recipe_name}`: {metrics.epochs} epochs, {metrics.steps:,} steps."
    return f"{', '.join(lines)}.\n\n{recipe}\n\nPaper: {paper_row(plan)}"


def _validation_error(run: RunEvidence) -> float:
    """Percent, after the last step; infinite where it is not known."""
    last = run.history["validation_error_percent"].iloc[-1]
    return math.inf if last is None or math.isnan(last) else float(last)
