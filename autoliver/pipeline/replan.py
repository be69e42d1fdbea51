"""Plans a dataset with the options of its previous plan, and reports what changed."""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoliver.artifacts import read_json
from autoliver.errors import ArtifactError, OptionError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.pipeline.data import Planned, plan_folder, planned_dataset, to_train
from autoliver.pipeline.run.follow import plan_following, plan_to_follow
from autoliver.planning.changes import Change, plan_changes
from autoliver.planning.names import ModalityName, ZStrides
from autoliver.planning.options import (
    asked_of,
    changed_like_options,
    changed_options,
    option_words,
)
from autoliver.planning.plan import LikeOptions, Plan, PlanOptions
from autoliver.shards import Shard
from autoliver.system import entries
from autoliver.values import check_text, check_type, set_field
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

_log = logging.getLogger(__name__)

# Options that only a dataset's own plan has, and their spelling on the command line.
OF_OWN_PLAN = {
    "preset": "--preset",
    "arch": "--arch",
    "encoder": "--encoder",
    "z_strides": "--z-strides",
    "vram_gb": "--vram",
    "window_hu": "--window",
    "batch_cap": "--batch-cap",
    "keep_axes": "--keep-axes",
    "slices": "--slices",
}


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A request to `plan`.

    Attributes:
        changes: The options that were given: fields of `PlanOptions`, or of `LikeOptions` with
            `like`. Other options keep their value in the previous plan, or else take their default.
        modality: What the images of a dataset without dataset.json are: "CT", "MR" or "other"; None
            to decide it by their values.
        like: A planned dataset, or any model that `--pretrained` takes, whose plan is followed;
            None for a plan of the dataset's own.
        fresh: Whether to discard the options of the previous plan.
        shard: The part of the cases to read for a plan that is made later; None to make it.
        notify: Called with messages for the user before planning begins.
        machine: The processes and memory that may be used to read the cases.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    modality: ModalityName | None = None
    like: str | None = None
    fresh: bool = False
    shard: Shard | None = None
    notify: Callable[[str], None] = _log.info
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses options that are invalid or do not go together.

        Raises:
            OptionError: An option is refused; the message names it and its value.
        """
        modality = check_type("--modality", self.modality, ModalityName | None)
        set_field(self, "modality", modality)
        if self.like is None:
            if "spacing" in self.changes:
                raise OptionError(
                    f"--like-spacing {self.changes['spacing']} needs --like SOURCE.",
                    hint="Name a source with --like, or leave it out.",
                )
            alone = dict(self.changes)
            if not alone.keys() & {"arch", "encoder"}:
                # The previous plan may have the encoder that strides are for.
                check_type("--z-strides", alone.pop("z_strides", None), ZStrides | None)
            changed_options(PlanOptions(), alone)
            return
        check_text("--like", self.like, "the name of a dataset or model")
        if self.shard is not None:
            raise OptionError(
                f"--shard {self.shard}: --like {self.like} takes a plan over, and reads no case.",
                hint="Plan the dataset by shards without --like first.",
            )
        if self.modality is not None:
            raise OptionError(
                f"--modality {self.modality} is for a plan of the dataset's own, not for --like "
                f"{self.like}.",
                hint="Plan the dataset with --modality alone first, then with --like.",
            )
        given = [flag for name, flag in OF_OWN_PLAN.items() if name in self.changes]
        if given:
            raise OptionError(
                f"--like {self.like}: {' and '.join(given)} would contradict it: they are the "
                "source's.",
                hint="Leave them out.",
            )
        changed_like_options(LikeOptions(), self.changes)


@dataclass(frozen=True, kw_only=True)
class Replanned:
    """The result of planning a dataset, and what changed.

    Attributes:
        planned: The dataset with its new plan.
        file: The file that the plan was written to.
        own: The dataset's own plan; it is the new plan unless that follows a source.
        changes: The decisions that differ from the previous plan.
        stale_runs: Names of the runs that were started with the previous plan and cannot be resumed
            with the new one; empty if nothing changed.
    """

    planned: Planned
    file: Path
    own: Plan
    changes: tuple[Change, ...]
    stale_runs: tuple[str, ...]


def replan(workspace: Workspace, name: str | None, request: PlanRequest) -> Replanned:
    """Plans a dataset with the options of its previous plan, except for those that are given.

    Args:
        workspace: The workspace that the artefacts are written to.
        name: Path or name of the dataset; None for the only one.
        request: The options to change, and how to plan.

    Raises:
        AutoliverError: There is no such dataset or source, the dataset fails verification, or the
            options cannot work.
    """
    if request.like is None:
        return _replan_own(workspace, name, request)
    return _replan_like(workspace, name, request.like, request)


def _replan_own(workspace: Workspace, name: str | None, request: PlanRequest) -> Replanned:
    folder, dataset = to_train(workspace, name)
    before = _plan_before(folder.plan, request)
    defaults = PlanOptions()
    asked = defaults if before is None or request.fresh else asked_of(before)
    options = changed_options(asked, request.changes)
    kept = asked.replace(**{name: getattr(defaults, name) for name in request.changes})
    _note_kept(option_words(kept), request)
    planned = plan_folder(
        folder, dataset, options, machine=request.machine, modality=request.modality
    )
    return _replanned(planned, folder.plan, own=planned.plan, before=before)


def _replan_like(
    workspace: Workspace, name: str | None, source: str, request: PlanRequest
) -> Replanned:
    own = planned_dataset(workspace, name, machine=request.machine)
    followed = plan_to_follow(workspace, source, machine=request.machine)
    if followed.plan.digest() == own.plan.digest():
        raise OptionError(
            f"--like {source}: this is the plan of {own.dataset.name} itself.",
            hint="Name another dataset or model, or leave --like out.",
        )
    file = own.folder.plan_like(followed.name)
    before = _plan_before(file, request)
    options = LikeOptions()
    if before is not None and before.like is not None and not request.fresh:
        options = before.like
    if not request.changes:
        _note_kept(option_words(options), request)
    options = changed_like_options(options, request.changes)
    planned = plan_following(own, followed, options)
    return _replanned(planned, file, own=own.plan, before=before)


def _plan_before(file: Path, request: PlanRequest) -> Plan | None:
    """Loads the plan that will be replaced; an unreadable one is reported and counts as none."""
    if not file.exists():
        return None
    try:
        return Plan.load(file)
    except ArtifactError as error:
        request.notify(f"The previous plan cannot be read and is replaced. {error.problem}")
        return None


def _note_kept(words: tuple[str, ...], request: PlanRequest) -> None:
    if words:
        request.notify(f"As in the previous plan: {shlex.join(words)} (--fresh discards this).")


def _replanned(planned: Planned, file: Path, *, own: Plan, before: Plan | None) -> Replanned:
    changes = () if before is None else plan_changes(before, planned.plan)
    stale = () if before is None or not changes else _runs_with(planned.folder, before)
    return Replanned(planned=planned, file=file, own=own, changes=changes, stale_runs=stale)


def _runs_with(folder: DatasetFolder, plan: Plan) -> tuple[str, ...]:
    """Returns the names of the runs that were started with a plan."""
    runs = [RunFolder(path) for path in entries(folder.path / "runs")]
    digest = plan.digest()
    return tuple(run.path.name for run in runs if _plan_of(run) == digest)


def _plan_of(run: RunFolder) -> object:
    """Returns the digest of the plan that a run was started with; None if it is unreadable."""
    try:
        found = read_json(run.options)
    except ArtifactError:
        return None  # `train` will refuse such a run
    made_from = found.get("made_from") if isinstance(found, dict) else None
    return made_from.get("plan") if isinstance(made_from, dict) else None
