"""One fold on its way: trained, its model written, its held-out cases scored."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.datasets.folds import Fold, Split
from autoliver.parallel import Limits
from autoliver.pipeline.data import Planned
from autoliver.pipeline.evaluation import score_held_out
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.run.begin import is_trained
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration, ConfigurationName
from autoliver.preprocessing.previous import with_previous
from autoliver.preprocessing.store import StoredCase, read_case
from autoliver.training.options import TrainingOptions
from autoliver.training.stop import Stopped, stop_on_sigterm
from autoliver.transfer.table import Transfer
from autoliver.workspace import RunFolder

if TYPE_CHECKING:
    import torch

    from autoliver.evaluation.results import Scores
    from autoliver.training.distributed import Group
    from autoliver.training.patches.cache import CacheChoice


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """A finished fold and the scores of its held-out cases (None for fold `all`)."""

    fold: Fold
    folder: Path
    scores: "Scores | None"


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """One fold: train, write the model, score the held-out cases.

    Attributes:
        planned: The dataset and its plan.
        name: The configuration's name.
        configuration: The plan's decisions, with those that were changed for this run.
        store: The preprocessed cases.
        run: The run it belongs to.
        previous: For a cascade, what its first stage found.
        previous_run: For a cascade, the first stage's run.
        pretrained: Whether it begins with the weights that the run keeps.
        options: Of the run.
        fold: Which fold.
        split: Its cases.
        cache: Where cases lie meanwhile.
        tensorboard: Whether each epoch is written for TensorBoard, too.
        limits: Of this machine.
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
    fold: Fold
    split: Split
    cache: "CacheChoice"
    tensorboard: bool
    limits: Limits

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.run.fold(self.fold)

    @property
    def trained(self) -> bool:
        """Whether its model is there, with all extensions."""
        return is_trained(self.folder, self.options)

    @property
    def finished(self) -> bool:
        """Whether its held-out cases are scored as well."""
        return self.trained and (not self.split.validation or self._scores_path.exists())

    @property
    def _scores_path(self) -> Path:
        return self.folder / "validation" / "scores.json"

    def result(self) -> FoldResult:
        """What it came to, once it is finished."""
        from autoliver.evaluation.results import Scores

        scores = Scores.load(self._scores_path) if self.split.validation else None
        return FoldResult(fold=self.fold, folder=self.folder, scores=scores)

    def run_to_end(self, device: "torch.device", group: "Group") -> None:
        """Does what is missing; of several processes the lead alone writes and predicts.

        Raises:
            Stopped: By SIGTERM; the state is saved.
            AutoliverError: See the stages.
        """
        if not group.lead_does(lambda: self.trained):
            self._train(device, group)
        if self.split.validation:
            group.lead_does(lambda: self._validate(device))

    def _train(self, device: "torch.device", group: "Group") -> None:
        from autoliver.models.files import FoldModel, save_fold
        from autoliver.networks.checkpoint import load_weights
        from autoliver.training.fold import FoldTask
        from autoliver.training.loop import train_fold
        from autoliver.training.patches.cache import CacheOptions

        plan, limits = self.planned.plan, group.own_limits(self.limits)
        task = FoldTask(
            configuration=self.configuration,
            labels=plan.labels,
            train=[self._case(name) for name in self.split.train],
            validation=[self._case(name) for name in self.split.validation],
            options=self.options,
            tensorboard=self.tensorboard,
            folder=self.folder,
            device=device,
            title=f"{self.planned.dataset.short_name} {self.run.path.name} fold {self.fold}",
            start=load_weights(self.run.start)[0] if self.pretrained else None,
            cache=CacheOptions(
                kind=self.cache,
                limits=limits,
                network_gb=max(plan.vram_gb, memory_gb(self.configuration, plan.preset)),
            ),
            group=group,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with stop_on_sigterm() as stop:
            trained = train_fold(task, stop=stop)
        if not trained.finished:
            raise Stopped(
                f"{task.title}: stopped by SIGTERM after {len(trained.logs)} epochs; "
                "the state is saved.",
                hint="Run the same command again to go on.",
            )
        if not group.leads:
            return
        # What an extended fold has found before is not what it finds now.
        shutil.rmtree(self.folder / "validation", ignore_errors=True)
        seen, augment = trained.mirror_axes, self.options.augment
        if self.pretrained and not self.options.steps and not self.options.extensions:
            # Without a step it has seen what its source has.
            source = Transfer.load(self.run.transfer)
            seen, augment = source.mirror_axes, source.augment
        if not self.pretrained:  # drawn weights know nothing of the CT that their plan follows
            plan = plan.replace(source_intensities=())
        save_fold(
            self.folder,
            trained.weights,
            FoldModel(
                made_from={"plan": self.planned.plan.digest(), "options": self.options.digest()},
                plan=plan.replace(configurations={self.name: self.configuration}),
                configuration=self.name,
                fold=str(self.fold),
                cases=self.split.train,
                epochs=len(trained.logs),
                mirror_axes=seen,
                weights_sha256="",
                previous_run=self.previous_run,
                extended=len(self.options.extensions),
                augment=augment,
            ),
        )

    def _case(self, name: str) -> StoredCase:
        case = read_case(self.store, name)
        return case if self.previous is None else with_previous(case, self.previous)

    def _validate(self, device: "torch.device") -> None:
        """Predicts and scores the held-out cases from their original files."""
        names = set(self.split.validation)
        score_held_out(
            self.run,
            self.fold,
            [case for case in self.planned.dataset.labelled if case.name in names],
            labels=self.planned.plan.labels,
            request=PredictRequest(
                modality=None,
                exact=self.options.deterministic,
                device=str(device),
                limits=self.limits,
            ),
        )
