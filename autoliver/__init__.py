"""Self-configuring segmentation of liver and liver tumours in CT and MR, with transfer learning."""

from autoliver.api import (
    Predictor,
    adopt,
    clean,
    convert,
    evaluate,
    export,
    import_model,
    load_model,
    plan,
    pool,
    predict,
    pseudolabel,
    report,
    select,
    train,
    verify,
)
from autoliver.errors import AutoliverError

__all__ = [
    "AutoliverError",
    "Predictor",
    "adopt",
    "clean",
    "convert",
    "evaluate",
    "export",
    "import_model",
    "load_model",
    "plan",
    "pool",
    "predict",
    "pseudolabel",
    "report",
    "select",
    "train",
    "verify",
]
