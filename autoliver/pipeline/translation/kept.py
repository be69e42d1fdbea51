"""What shards of `synthesize apply` keep of each case: image, what the judge finds, how well.

The images and label maps lie beside the results of the cases.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from autoliver.artifacts import Record, digest, file_sha256
from autoliver.datasets.cases import Case
from autoliver.inference.options import PredictOptions
from autoliver.pipeline.translation.synthesizer import SynthesisFolder, Synthesizer
from autoliver.shards import InTurn, KeptCases, KeptStage, ShardFolder
from autoliver.synthesis.translation.apply import Fidelity
from autoliver.workspace import Workspace


class AppliedCase(Record, frozen=True, kw_only=True):
    """A translated case that was judged.

    Attributes:
        axis: The axis of the files' arrays along which slices were translated.
        fidelity: How well its labels fit.
    """

    axis: int
    fidelity: Fidelity


@dataclass(frozen=True, kw_only=True)
class AppliedCases:
    """Where shards keep the cases of a translation.

    Attributes:
        shards: The folder of the results.
        translation: A digest of what the images are made by.
        judge: A digest of what the labels are found by.
    """

    shards: ShardFolder
    translation: str
    judge: str

    def image(self, case: str) -> Path:
        """The translated image of a case."""
        return self.shards.path / f"images/{case}_0000.nii.gz"

    def found(self, case: str) -> Path:
        """What the judge finds in it."""
        return self.shards.path / f"found/{case}.nii.gz"

    @property
    def translated(self) -> KeptCases:
        """Keeps the axes along which cases were translated."""
        stage: KeptStage[Case, int] = KeptStage(
            name="translated",
            case=_name,
            plain=int,
            result=int,
            there=functools.partial(_are_there, folder=self, found=False),
        )
        return self.shards.kept(stage, InTurn(), way=self.translation)

    @property
    def applied(self) -> KeptCases:
        """Keeps the judged cases."""
        stage: KeptStage[Case, AppliedCase] = KeptStage(
            name="applied",
            case=_name,
            plain=msgspec.to_builtins,
            result=_to_applied,
            there=functools.partial(_are_there, folder=self, found=True),
        )
        return self.shards.kept(stage, InTurn(), way=digest([self.translation, self.judge]))


def applied_cases(
    workspace: Workspace, info: Synthesizer, folder: SynthesisFolder, judge: str, output: Path
) -> AppliedCases:
    """Returns where shards keep the cases of a new dataset of translated images.

    Args:
        workspace: The workspace.
        info: The translation.
        folder: Its folder.
        judge: The model that finds the labels.
        output: Folder of the new dataset.
    """
    from autoliver.inference.record import describe

    files = workspace.model_to_predict(judge)
    weights = file_sha256(folder.generator) if info.options.learns else ""
    return AppliedCases(
        shards=workspace.shards("synthesize-apply", info.name, output.resolve()),
        translation=digest([info.digest(), weights]),
        judge=describe(files, PredictOptions(modality=None), folds=None, roi=None).way,
    )


def _name(case: Case) -> str:
    return case.name


def _to_applied(plain: Any) -> AppliedCase:
    return msgspec.convert(plain, AppliedCase)


def _are_there(case: Case, _: object, *, folder: AppliedCases, found: bool) -> bool:
    return folder.image(case.name).is_file() and (not found or folder.found(case.name).is_file())
