"""A trained net as an MLflow model that any MLflow client loads, without this package."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_repro.tracking.store import Store

if TYPE_CHECKING:
    from torch.nn import Module

IMAGE = (3, 32, 32)
CLASSES = 10


def find_model(store: Store, run_id: str) -> str | None:
    """The id of the run's model, if all of it is there."""
    return next(iter(whole_models(store, run_id)), None)


def whole_models(store: Store, run_id: str) -> dict[str, str]:
    """The run's models by their ids, with where they lie: those whose files are there, which somebody may have deleted
    for space, while the database stays."""
    from mlflow.entities import LoggedModelStatus

    client: Any = store.client
    models = client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    return {
        model.model_id: model.artifact_location
        for model in models
        if model.status == LoggedModelStatus.READY
        and any(file.path == "MLmodel" for file in client.list_logged_model_artifacts(model.model_id))
    }


def export_model(module: "Module", folder: Path) -> Path:
    """Save `module` as an MLflow model with torch.export, MLflow's default, as pickles run code when loaded.

    The batch dimension is free: MLflow takes a -1 of the signature as dynamic if the example has several
    images there (`mlflow.pytorch.save_model`).

    Args:
        module: uint8 images (N, 3, 32, 32), 0 to 255, to float32 logits (N, 10); on the CPU, in eval mode.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.arange(2 * np.prod(IMAGE), dtype=np.int64).astype(np.uint8).reshape(2, *IMAGE)
    model = Model()
    mlflow.pytorch.save_model(
        module,
        str(folder),
        mlflow_model=model,
        input_example=example,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, *IMAGE))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, CLASSES))]),
        ),
        serialization_format="pt2",
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
    )
    # An exported net stays on the device it was exported on; by itself MLflow would ask for CUDA where it is.
    model.flavors["python_function"]["config"] = {"device": "cpu"}
    model.save(str(folder / "MLmodel"))
    return folder


def upload_model(store: Store, run_id: str, name: str, folder: Path) -> str:
    """Log the model in `folder` as `runs:/RUN_ID/NAME`, with the run's parameters. Returns its id."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client: Any = store.client
    params = client.get_run(run_id).data.params
    logged = client.create_logged_model(store.experiment_id, name, run_id, params=params, model_type="classifier")
    try:
        model = Model.load(str(folder))
        model.run_id, model.model_id, model.model_uuid = run_id, logged.model_id, logged.model_id
        model.artifact_path = logged.artifact_location
        model.save(str(folder / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)
