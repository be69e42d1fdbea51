"""Do held-out cases fit into the memory that their validation takes?

A training takes patches alone, so that a case may be trained with that cannot be predicted as a
whole. This is said before the training; the validation is refused after it, when the model is kept.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError
from autoliver.io.header import label_name
from autoliver.models.files import FoldFolder
from autoliver.needs import Held, Stage, single_need
from autoliver.parallel import Limits, Need, over_budget
from autoliver.pipeline.data import Planned
from autoliver.pipeline.status import train_again
from autoliver.planning.plan import Configuration
from autoliver.values import first_few
from autoliver.workspace import RunFolder

_log = logging.getLogger(__name__)

_SHOWN = 3  # names of cases in a message
_WHAT = "validate"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The prediction of held-out cases by folds of a run.

    Attributes:
        planned: The dataset and its plan, with the labels that are learnt.
        configuration: The configuration of the run.
        run: The run's folder.
        pretrained: What the run was started from (`TrainingOptions.pretrained`).
        limits: The memory that may be used.
    """

    planned: Planned
    configuration: Configuration
    run: RunFolder
    pretrained: str | None
    limits: Limits

    def warn(self, fold: Fold, names: Collection[str]) -> None:
        """Warns before a fold is trained that held-out cases cannot be predicted after it.

        Args:
            fold: The fold.
            names: Its held-out cases.
        """
        refused = over_budget(self._needs(fold, names), self.limits, _WHAT)
        for error in list(refused.values())[:1]:
            _log.warning(
                "Fold %s can be trained, but not validated afterwards (%s): %s Allow more with "
                "--memory-gb, now or after the training, which goes on with the validation then.",
                *(fold, first_few(list(refused), _SHOWN), error.problem),
            )

    def refuse(self, fold: Fold, names: Collection[str]) -> None:
        """Refuses to validate a fold if a case does not fit into the memory; nothing is begun.

        Args:
            fold: The fold.
            names: Its held-out cases.

        Raises:
            OptionError: Naming the case and the numbers, and the command that goes on.
        """
        needs = self._needs(fold, names)
        for error in over_budget(needs, self.limits, _WHAT).values():
            enough = ["--memory-gb", str(math.ceil(max(need.gb for need in needs)))]
            again = train_again(self.run, self.pretrained, str(fold), more=enough)
            raise OptionError(
                f"Fold {fold} is trained and kept, but not validated. {error.problem}",
                hint="Where there is as much memory, this goes on with the validation alone:\n"
                + again,
            )

    def _needs(self, fold: Fold, names: Collection[str]) -> list[Need]:
        """What the held-out cases take that are not predicted yet."""
        plan, own = self.planned.plan, self.configuration
        previous = plan.configurations.get(own.previous_stage) if own.previous_stage else None
        stages = [Stage(plan, each) for each in (own, previous) if each is not None]
        classes = self.planned.lesion_classes
        votes = len(classes) > 1
        held = Held()
        if votes or own.network.classifies or own.average != "logits":
            held = Held(logits=1, rows=3 * len(classes) * votes, values=int(votes))
        folder = FoldFolder(self.run.fold(fold)).validation
        return [
            single_need(case.name, [Path(image) for image in case.images], stages, held)
            for case in self.planned.dataset.labelled
            if case.name in names and not (folder / label_name(case.name, case.images[0])).is_file()
        ]
