"""autoliver as a library: one function for each command.

Large dependencies are imported when a function is called, so `import autoliver` is fast. Options
have the names of the commands' options with underscores: `--batch-size 4` is `batch_size=4`.
"""

from autoliver.api.datasets import adopt, convert, mend, plan, pool, pseudolabel, verify
from autoliver.api.machine import clean, doctor, status
from autoliver.api.models import export, import_model
from autoliver.api.prediction import Predictor, evaluate, load_model, predict, report
from autoliver.api.synthesis import synthesize_apply, synthesize_fit
from autoliver.api.training import finish, select, train
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

__all__ = [
    "WORKSPACE",
    "Predictor",
    "adopt",
    "clean",
    "convert",
    "doctor",
    "evaluate",
    "export",
    "finish",
    "import_model",
    "load_model",
    "mend",
    "plan",
    "pool",
    "predict",
    "pseudolabel",
    "report",
    "select",
    "status",
    "synthesize_apply",
    "synthesize_fit",
    "train",
    "verify",
]
