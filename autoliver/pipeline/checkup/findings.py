"""What `doctor` finds, as values."""

from dataclasses import dataclass
from typing import Literal

from autoliver.artifacts import brief

Level = Literal["ok", "worth changing", "will fail"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found of one matter.

    Attributes:
        topic: The matter, in a word or two.
        found: What was found.
        level: "ok", "worth changing", or "will fail": commands will end with an error.
        why: Why it matters; empty if it is ok.
        todo: What to do about it; empty if it is ok.
    """

    topic: str
    found: str
    level: Level = "ok"
    why: str = ""
    todo: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """How long the work with one network takes on this machine.

    Attributes:
        configuration: Name of the configuration; "standard" for a network that needs no dataset.
        step_s: Seconds of a training step.
        held_out_s: Seconds of a step on held-out patches.
        epoch_s: Seconds of an epoch with the patches of the held-out cases.
        epochs: Epochs of a training without further options.
        fold_s: Seconds of a fold, with the prediction of its held-out cases.
        folds: Number of folds of the cross-validation.
        all_s: Seconds of all folds, one after another.
        case_s: Seconds of the prediction of a median case by the network of one fold, without
            reading and writing; None for the standard network.
        scaled: The share of the voxels of a batch that was timed, 0 to 1; 1: whole batches.
    """

    configuration: str
    step_s: float
    held_out_s: float
    epoch_s: float
    epochs: int
    fold_s: float
    folds: int
    all_s: float
    case_s: float | None
    scaled: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkup:
    """What was found of a machine.

    Attributes:
        findings: What was found, matter by matter.
        estimates: How long trainings take; empty without a probe.
    """

    findings: tuple[Finding, ...]
    estimates: tuple[Estimate, ...]

    __repr__ = brief

    @property
    def will_fail(self) -> bool:
        """Whether commands will end with an error here."""
        return any(finding.level == "will fail" for finding in self.findings)
