"""What this machine can do, for a dataset if one is named, and what to change."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoliver.datasets.folds import Folds
from autoliver.errors import AutoliverError
from autoliver.machine import check_device_name
from autoliver.pipeline.checkup.estimate import (
    Course,
    estimate,
    judge_batch,
    judge_case,
    judge_disk,
    judge_time,
    runs_gb,
    store_gb,
)
from autoliver.pipeline.checkup.findings import Checkup, Estimate, Finding
from autoliver.pipeline.checkup.judge import judge
from autoliver.pipeline.checkup.probe import STANDARD, STANDARD_LABELS, Timing, time_training
from autoliver.pipeline.checkup.surroundings import Surroundings, look_around
from autoliver.pipeline.run.batch import least_patch_gb
from autoliver.planning.plan import Configuration, Fingerprint, Plan
from autoliver.planning.presets import SMALLEST
from autoliver.preprocessing.store import finished_cases, store_key
from autoliver.system import in_words
from autoliver.training.options import TrainingOptions, choose_recipe, default_epochs
from autoliver.workspace import DatasetFolder, Workspace

if TYPE_CHECKING:
    import torch

PROBE_S = 10.0
_FOLDS = 5
_CUDA_VALUE_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class _Patient:
    """A planned dataset.

    Attributes:
        folder: Its folder in the workspace.
        plan: Its plan.
        fingerprint: Its fingerprint.
        folds: Number of folds.
    """

    folder: DatasetFolder
    plan: Plan
    fingerprint: Fingerprint
    folds: int

    def sizes(self, configuration: Configuration) -> list[tuple[int, int, int]]:
        """The sizes of its preprocessed cases."""
        from autoliver.needs import network_shape

        return [network_shape(case, self.plan, configuration) for case in self.fingerprint.cases]


def doctor(
    workspace: Workspace, name: str | None = None, *, probe: bool = True, device: str = "auto"
) -> Checkup:
    """Examines the machine, and how long the work on a dataset takes on it.

    Nothing is kept: the disk is timed with a file that is removed again.

    Args:
        workspace: The workspace.
        name: Path or name of a planned dataset; None for the machine alone.
        probe: Whether to time training steps, for about ten seconds with each network, and the
            disk.
        device: The device to train on, by its name.

    Raises:
        DatasetError: No such dataset was planned.
        ArtifactError: A file of the dataset is damaged.
        OptionError: The device cannot be used here.
    """
    check_device_name(device)
    patient = None if name is None else _patient(workspace, name)
    here = look_around(workspace.root, time_disk=probe)
    findings = judge(here, device=device)
    # Without code for the GPU, nothing can be timed; the finding says so.
    useless = any(f.level == "will fail" and f.topic.startswith("GPU") for f in findings)
    on = None if useless else _device(device)
    estimates: list[Estimate] = []
    if patient is not None:
        findings += _findings_of(patient, here, on)
    if probe and on is not None:
        times = _standard(here, on) if patient is None else _times(patient, here, on)
        for found in times:
            if isinstance(found, Finding):
                findings.append(found)
            else:
                estimates.append(found)
    if patient is not None:
        small = patient.plan.preset == SMALLEST
        named = patient.folder.name
        findings += [judge_time(each, small=small, dataset=named) for each in estimates]
    return Checkup(findings=tuple(findings), estimates=tuple(estimates))


def _device(name: str) -> "torch.device":
    from autoliver.networks.device import choose_device

    return choose_device(name)


def _patient(workspace: Workspace, name: str) -> _Patient:
    folder = workspace.planned(name)
    splits = Folds.load(folder.folds).splits if folder.folds.exists() else ()
    return _Patient(
        folder=folder,
        plan=Plan.load(folder.plan, mend="autoliver plan DATASET"),
        fingerprint=Fingerprint.load(folder.fingerprint, mend="autoliver plan DATASET"),
        folds=len(splits) or _FOLDS,
    )


def _findings_of(
    patient: _Patient, here: Surroundings, device: "torch.device | None"
) -> Iterator[Finding]:
    """What the dataset needs of disk and memory."""
    plan, cases, named = patient.plan, patient.fingerprint.cases, patient.folder.name
    yield judge_disk(_needed_gb(patient), here.disk.free_gb)
    for name, configuration in plan.configurations.items():
        yield judge_case(plan, name, cases, here.free_gb)
        if device is not None:
            room = _room_gb(here, device)
            yield judge_batch(name, _step_gb(configuration, device), room, dataset=named)


def _needed_gb(patient: _Patient) -> float:
    """What preprocessing and a cross-validation of each configuration are still to write."""
    needed = 0.0
    for name, configuration in patient.plan.configurations.items():
        folder = patient.folder.store(store_key(patient.plan, name))
        done = finished_cases(folder) if folder.is_dir() else {}
        left = [case for case in patient.fingerprint.cases if case.name not in done]
        finished = len(patient.folder.run(name).finished)
        folds = max(0, patient.folds - finished)
        needed += store_gb(patient.plan, name, left) + runs_gb(_weights(configuration), folds)
    return needed


def _weights(configuration: Configuration) -> int:
    from autoliver.networks.build import build_without_weights

    network = build_without_weights(configuration.network, deep_supervision=True)
    return sum(weight.numel() for weight in network.parameters())


def _room_gb(here: Surroundings, device: "torch.device") -> float:
    if device.type == "cuda":
        return here.torch.gpus[device.index or 0].total_gb
    return here.free_gb


def _step_gb(configuration: Configuration, device: "torch.device") -> float:
    if device.type == "cuda":
        patch = least_patch_gb(configuration, value_bytes=_CUDA_VALUE_BYTES)
    else:
        patch = least_patch_gb(configuration)
    return configuration.batch_size * patch


def _standard(here: Surroundings, device: "torch.device") -> Iterator[Estimate | Finding]:
    timing = time_training(
        STANDARD,
        STANDARD_LABELS,
        channels=1,
        device=device,
        seconds=PROBE_S,
        room_gb=_room_gb(here, device),
    )
    if timing is not None:
        yield _estimate("standard", STANDARD, timing)


def _times(
    patient: _Patient, here: Surroundings, device: "torch.device"
) -> Iterator[Estimate | Finding]:
    """Times each configuration; a finding where that is not possible."""
    plan = patient.plan
    for name, configuration in plan.configurations.items():
        try:
            with in_words():
                timing = time_training(
                    configuration,
                    plan.labels,
                    channels=len(plan.channel_names),
                    device=device,
                    seconds=PROBE_S,
                    room_gb=_room_gb(here, device),
                )
        except AutoliverError as error:
            yield Finding(
                topic=name,
                found=error.problem,
                level="will fail",
                why="a training step could not be taken",
                todo=error.hint,
            )
            continue
        if timing is not None:
            yield _estimate(name, configuration, timing, patient)


def _estimate(
    name: str,
    configuration: Configuration,
    timing: Timing,
    patient: _Patient | None = None,
) -> Estimate:
    """Works out times for the options that a training has if none are given."""
    from autoliver.training.fold import held_out_steps

    options = TrainingOptions()
    cases = [] if patient is None else patient.sizes(configuration)
    course = Course(
        iterations=options.iterations,
        held_out_steps=held_out_steps(options.iterations),
        epochs=default_epochs(None, len(cases)),
        folds=_FOLDS if patient is None else patient.folds,
        cases=cases,
        mirrored=choose_recipe(options).mirror,
    )
    return estimate(name, configuration, timing, course)
