"""Trains the folds of a run, writes their models and scores their held-out cases."""

import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoliver.artifacts import brief
from autoliver.datasets.cases import Case
from autoliver.datasets.contents import image_key
from autoliver.datasets.folds import Fold, Split
from autoliver.errors import AutoliverError
from autoliver.locks import only_one
from autoliver.machine import Machine
from autoliver.models.files import FoldFolder, FoldModel, save_fold
from autoliver.pipeline.data import Planned, plan_command
from autoliver.pipeline.evaluation import score_held_out
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.run.begin import being_trained, is_trained
from autoliver.pipeline.run.keep import choose_share, try_shares
from autoliver.pipeline.run.region import RunRegion
from autoliver.pipeline.run.replay import Replay, seen_before
from autoliver.pipeline.run.source_scores import SourceScores
from autoliver.pipeline.run.task import check_lesions
from autoliver.pipeline.run.threads import threads_for
from autoliver.pipeline.run.validation import Validation
from autoliver.planning.fit import memory_gb
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration
from autoliver.planning.presets import SMALLEST
from autoliver.preprocessing.crop import OUTSIDE, Bounds
from autoliver.preprocessing.histogram import Histogram, histogram_of_parts, mean_histograms
from autoliver.preprocessing.previous import with_previous
from autoliver.preprocessing.store import StoredCase, known_places, only_places, read_case
from autoliver.system import in_words
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.replay import with_ignored
from autoliver.training.progress import add_to_log, failure_line
from autoliver.training.stop import Stopped, name_of, stop_on_signal
from autoliver.transfer.table import Transfer
from autoliver.values import counted
from autoliver.workspace import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoliver.evaluation.results import Scores
    from autoliver.training.distributed import Group
    from autoliver.training.fold import FoldTask, TrainedFold

_READ_VOXELS = 1 << 26  # of a stored image at a time
_HISTOGRAM_CASES = 50  # training cases whose values are read at the end of a training, at most


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """The result of training a fold.

    Attributes:
        fold: Number of the fold, or "all".
        folder: The fold's folder.
        scores: The scores of its held-out cases; None for fold `all` and for a fold that failed.
        source: The scores of unseen cases of the dataset that its weights come from; None if it has
            none.
        problem: Why the fold was not finished; empty if it was.
        hint: What to do about the problem; empty if there is none.
    """

    fold: Fold
    folder: Path
    scores: "Scores | None" = None
    source: SourceScores | None = None
    problem: str = ""
    hint: str = ""

    __repr__ = brief

    @property
    def failed(self) -> bool:
        """Whether the fold was not finished."""
        return bool(self.problem)


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """A run and the folds of it that are requested.

    For each fold it trains, writes the model and scores the held-out cases.

    Attributes:
        planned: The dataset and its plan, with the labels that are learnt.
        name: The configuration's name.
        configuration: The configuration of the plan, with the changes made for this run.
        store: Folder of the preprocessed cases.
        run: The run's folder.
        previous: For a cascade, the folder of the first stage's label maps; else None.
        previous_run: For a cascade, the name of the first stage's run; else None.
        pretrained: Whether training starts from the run's transferred weights
            (`start.safetensors`).
        options: The training options of the run.
        splits: Maps the requested folds to their cases.
        machine: The devices, processes and memory that may be used.
        replay: The dataset whose cases are replayed; None if none is.
        region: The region that patches are drawn on; None for whole scans.
        boxes: With a region, the box of each case on its image's grid; None: not found.
    """

    planned: Planned
    name: ConfigurationName
    configuration: Configuration
    store: Path
    run: RunFolder
    previous: Path | None
    previous_run: str | None
    pretrained: bool
    options: TrainingOptions
    splits: Mapping[Fold, Split]
    machine: Machine
    replay: Replay | None = None
    region: RunRegion | None = None
    boxes: Mapping[str, Bounds | None] = field(default_factory=dict)

    def folder(self, fold: Fold) -> FoldFolder:
        """Returns the folder of a fold."""
        return FoldFolder(self.run.fold(fold))

    def trained(self, fold: Fold) -> bool:
        """Whether a fold has a model that was trained with all extensions."""
        return is_trained(self.folder(fold), self.options)

    def finished(self, fold: Fold) -> bool:
        """Whether a fold is trained and its held-out cases are scored."""
        held_out = self.splits[fold].validation
        return self.trained(fold) and (not held_out or self.folder(fold).scores.exists())

    def result(self, fold: Fold) -> FoldResult:
        """Returns the result of a finished fold."""
        from autoliver.evaluation.results import Scores

        files = self.folder(fold)
        scores = Scores.load(files.scores) if self.splits[fold].validation else None
        return FoldResult(fold=fold, folder=files.path, scores=scores)

    def failure(self, fold: Fold, error: AutoliverError) -> FoldResult:
        """Returns the result of a fold that ended with an error."""
        # The error itself is not kept: its traceback would keep the fold's tensors in memory.
        return FoldResult(
            fold=fold, folder=self.folder(fold).path, problem=error.problem, hint=error.hint
        )

    def run_to_end(self, fold: Fold, device: "torch.device", group: "Group") -> None:
        """Trains and scores a fold as far as that is not done yet.

        Of several processes that train together, only the lead writes files and predicts.

        Raises:
            Stopped: A signal was received; the state is saved.
            AutoliverError: A stage failed, or another process trains the fold.
        """
        with contextlib.ExitStack() as held:
            group.lead_does(lambda: held.enter_context(self.only_here(fold)))
            if group.leads:
                held.enter_context(_failure_in(self.folder(fold).log))
            if not group.lead_does(lambda: self.trained(fold)):
                self._train(fold, device, group)
            if self.splits[fold].validation:
                group.lead_does(lambda: self._validate(fold, device))

    def only_here(self, fold: Fold) -> contextlib.AbstractContextManager[None]:
        """Returns a block in which no other process may train the fold."""
        return only_one(self.run.lock(fold), being_trained(fold))

    def _train(self, fold: Fold, device: "torch.device", group: "Group") -> None:
        from autoliver.training.loop import train_fold

        task = self._task(fold, device, group)
        task.folder.mkdir(parents=True, exist_ok=True)
        with stop_on_signal() as stop, threads_for(task, stop) as asked:
            trained = train_fold(task, stop=asked)
        if not trained.finished:
            # Of processes that train together, perhaps only one has received it.
            number = max(map(int, group.gather([str(stop.number)])))
            raise Stopped(
                f"{task.title}: stopped by {name_of(number)} after "
                f"{counted(len(trained.logs), 'epoch')}; the state is saved.",
                number,
                hint="Run the same command again to continue.",
            )
        group.lead_does(lambda: self._save(fold, trained, device))

    def _task(self, fold: Fold, device: "torch.device", group: "Group") -> "FoldTask":
        from autoliver.networks.checkpoint import load_weights
        from autoliver.training.fold import FoldTask

        plan, split = self.planned.plan, self.splits[fold]
        labels = plan.labels
        if self.replay is not None:
            labels = with_ignored(labels, self.replay.values)
        train, held_out = self._cases(split.train), self._cases(split.validation)
        check_lesions(self.planned, train)
        boxes = self.region and self.region.patch_boxes([*train, *held_out], self.boxes)
        return FoldTask(
            configuration=self.configuration,
            labels=labels,
            train=train,
            validation=held_out,
            boxes=boxes or {},
            options=self.options.of_fold(fold),
            folder=self.run.fold(fold),
            device=device,
            title=f"{self.planned.dataset.short_name} {self.run.path.name} fold {fold}",
            start=load_weights(self.run.start)[0] if self.pretrained else None,
            machine=self.machine.replace(limits=group.own_limits(self.machine.limits)),
            network_gb=max(
                plan.vram_gb,
                memory_gb(self.configuration, plan.preset, plan.arch, plan.encoder),
            ),
            group=group,
            replay=self.replay.stored(self.replayed(fold), labels) if self.replay else (),
            smaller=self._smaller(),
        )

    def _smaller(self) -> str:
        """The command that plans a smaller network; empty if this is the smallest or a source's."""
        planned = self.planned
        if planned.source or planned.plan.preset == SMALLEST:
            return ""
        return plan_command(planned.folder, planned.dataset, ["--preset", SMALLEST])

    def replayed(self, fold: Fold) -> list[Case]:
        """Returns the cases that a fold replays."""
        return [] if self.replay is None else self.replay.cases(fold, self._held_out(fold))

    def _save(self, fold: Fold, trained: "TrainedFold", device: "torch.device") -> None:
        """Writes the model of a trained fold, mixed with its source if that is asked for."""
        from autoliver.networks.checkpoint import load_weights
        from autoliver.transfer.blend import blend

        files, info, weights = self.folder(fold), self._info(fold, trained), trained.weights
        # Predictions made before an extension are outdated.
        for folder in (files.validation, files.on_source):
            shutil.rmtree(folder, ignore_errors=True)
        share = self.options.keep_source
        if share is not None:
            source = load_weights(self.run.source_part)[0]
            if share == "auto":
                share = self._share(info, device, lambda part: blend(source, weights, part))
            weights = blend(source, weights, share)
        save_fold(files.path, weights, info.replace(keep_source=share))

    def _share(
        self,
        info: FoldModel,
        device: "torch.device",
        mixed: "Callable[[float], dict[str, Tensor]]",
    ) -> float:
        """Chooses the share of the tuned weights by the held-out cases, and says so."""
        fold: Fold = "all" if info.fold == "all" else int(info.fold)
        validation_of(self).refuse(fold, self.splits[fold].validation)
        dice = try_shares(self.run, info, mixed, self._held_out(fold), self._request(device))
        share = choose_share(dice)
        tried = ", ".join(f"{s:g}: {'-' if d is None else f'{d:.3f}'}" for s, d in dice.items())
        add_to_log(
            self.folder(fold).log,
            f"--keep-source auto: Dice for each share of the tuned weights: {tried}; "
            f"{share:g} is kept.",
            also=sys.stderr,
        )
        return share

    def _info(self, fold: Fold, trained: "TrainedFold") -> FoldModel:
        """Describes a trained fold."""
        plan, options = self.planned.plan, self.options
        mirror_axes, augment = trained.mirror_axes, options.augment
        source = Transfer.load(self.run.transfer, mend=self.run.mend) if self.pretrained else None
        if source is not None and not options.steps and not options.extensions:
            # Without a training step the network has seen the same augmentation as its source.
            mirror_axes, augment = source.mirror_axes, source.augment
        if not self.pretrained:  # random weights know nothing of the CT that their plan follows
            plan = plan.replace(source_intensities=())
        if self.replay is not None and not plan.source_intensities:
            plan = plan.replace(source_intensities=self.replay.ct_scale(plan))
        replayed = [image_key(case) for case in self.replayed(fold)]
        return FoldModel(
            made_from={"plan": self.planned.plan.digest(), "options": options.digest()},
            plan=plan.replace(configurations={self.name: self.configuration}),
            configuration=self.name,
            fold=str(fold),
            cases=self.splits[fold].train,
            epochs=len(trained.logs),
            mirror_axes=mirror_axes,
            weights_sha256="",
            previous_run=self.previous_run,
            extended=len(options.extensions),
            augment=augment,
            trained_on=tuple(dict.fromkeys([*self._keys(self.splits[fold].train), *replayed])),
            seen_before=seen_before(source, self.replay),
            ancestors=() if source is None else source.ancestors,
            replay=self.replay.dataset.name if self.replay else "",
            replay_share=options.replay_share if self.replay else 0.0,
            outside_negative=options.outside_negative,
            histograms=self._histograms(fold),
            lesion_classes=self.planned.lesion_classes,
            roi=None if self.region is None else self.region.roi,
        )

    def _histograms(self, fold: Fold) -> tuple[Histogram, ...]:
        """Returns what the training images look like to the network, from some of them."""
        names = self.splits[fold].train
        cases = self._cases(names[:: -(-len(names) // _HISTOGRAM_CASES)])
        channels = len(self.planned.plan.channel_names)
        found = [_histograms_of(case, channels) for case in cases]
        return mean_histograms(found)

    def _keys(self, names: Sequence[str]) -> tuple[str, ...]:
        keys = {case.name: image_key(case) for case in self.planned.dataset.cases}
        return tuple(keys[name] for name in names)

    def _cases(self, names: Sequence[str]) -> list[StoredCase]:
        facts = {case.name: case.facts for case in self.planned.dataset.cases}
        labels = self.planned.plan.labels
        cases = [known_places(read_case(self.store, n, facts[n]), labels) for n in names]
        if self.configuration.network.classifies:  # patches without a lesion have no class
            values = {v for name in self.planned.lesion_classes for v in labels.values[name]}
            cases = [only_places(case, values) for case in cases]
        if self.previous is None:
            return cases
        return [with_previous(case, self.previous) for case in cases]

    def _validate(self, fold: Fold, device: "torch.device") -> None:
        """Predicts and scores the held-out cases from their original files."""
        validation_of(self).refuse(fold, self.splits[fold].validation)
        score_held_out(
            self.run,
            fold,
            self._held_out(fold),
            labels=self.planned.plan.labels,
            request=self._request(device),
        )

    def _held_out(self, fold: Fold) -> list[Case]:
        names = set(self.splits[fold].validation)
        return [case for case in self.planned.dataset.labelled if case.name in names]

    def _request(self, device: "torch.device") -> PredictRequest:
        return PredictRequest(
            modality=None,
            exact=self.options.deterministic,
            roi_from=self.options.roi_from,
            machine=self.machine.replace(device=str(device)),
        )


def validation_of(job: RunJob) -> Validation:
    """Returns how the held-out cases of a run's folds are predicted."""
    return Validation(
        planned=job.planned,
        configuration=job.configuration,
        run=job.run,
        pretrained=job.options.pretrained,
        limits=job.machine.limits,
    )


def _histograms_of(case: StoredCase, channels: int) -> list[Histogram]:
    """The histograms of the channels of a case, of which one is in memory at a time, and once."""
    shape = case.image.shape[1:]
    depth = max(1, _READ_VOXELS // math.prod(shape[1:]))
    parts = [slice(start, start + depth) for start in range(0, shape[0], depth)]
    inside = np.ones(shape, bool)
    if (label := case.label) is not None:
        for part in parts:
            inside[part] = label[0, part] != OUTSIDE
    if not inside.any():
        inside[:] = True
    count = int(np.count_nonzero(inside))
    return [
        histogram_of_parts(((case.image[index, part], inside[part]) for part in parts), count)
        for index in range(channels)
    ]


@contextlib.contextmanager
def _failure_in(log: Path) -> Iterator[None]:
    """Writes why the block failed to the log of a fold, for whoever looks at it later."""
    try:
        with in_words():
            yield
    except Stopped:
        raise
    except AutoliverError as error:
        with contextlib.suppress(OSError):  # it may be the reason
            add_to_log(log, failure_line(error))
        raise
