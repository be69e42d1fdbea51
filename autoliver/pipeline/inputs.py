"""The cases that predict is given: files, folders, DICOM series, and the lesions in them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.datasets.cases import find_case_images
from autoliver.datasets.layouts import image_files, label_files
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.record import RECORD_FILE, REPLACED
from autoliver.io.dicom.series import Series
from autoliver.io.header import split_ending
from autoliver.pipeline.dicom.cases import (
    REFUSED,
    find_dicom,
    images_beside,
    several_channels,
)
from autoliver.system import entries
from autoliver.values import counted, first_few

if TYPE_CHECKING:
    from autoliver.models.files import FoldModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A case that was not predicted.

    Attributes:
        case: Its name.
        problem: Why.
        hint: What to do about it.
    """

    case: str
    problem: str
    hint: str = ""


def find_cases(
    sources: Sequence[Path],
    channels: int,
    failures: list[Failure],
    place: dict[str, Path] | None = None,
) -> dict[str, tuple[Path, ...]]:
    """Finds the images of all cases.

    Args:
        sources: Folders of cases, or files.
        channels: Number of channels of a case.
        failures: Takes the cases that lack a channel, which are left out.
        place: Takes the source of each case, of failures as well; None if that is no matter.

    Raises:
        DatasetError: A source has no images.
        OptionError: Two sources have a case of the same name.
    """

    def note(name: str, error: DatasetError) -> None:
        failures.append(Failure(case=name, problem=error.problem, hint=error.hint))

    found: dict[str, tuple[Path, ...]] = {}
    place = {} if place is None else place
    for source in sources:
        before = len(failures)
        cases = find_case_images(source, channels=channels, file_ending=None, on_problem=note)
        for name in (*cases, *(failure.case for failure in failures[before:])):
            if name in place:
                raise _twice(name, place[name], source)
            place[name] = source
        found |= cases
    return found


def _twice(name: str, first: Path, second: Path) -> OptionError:
    return OptionError(
        f"-i: the case {name} is in {first} and in {second}.",
        hint="Predict them into two folders, or rename one of them.",
    )


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What -i names.

    Attributes:
        plain: The folders and files without DICOM.
        files: Case -> its image files, in any folder.
        series: Case -> its DICOM series.
    """

    plain: tuple[Path, ...]
    files: dict[str, tuple[Path, ...]]
    series: dict[str, Series]


def find_sources(
    sources: Sequence[Path],
    channels: Sequence[str],
    failures: list[Failure],
    wanted: Sequence[str] = (),
) -> Sources:
    """Finds the cases of all sources, image files and DICOM series.

    Args:
        sources: Folders of cases, folders with DICOM series, or files.
        channels: Names of the channels of a case.
        failures: Takes the cases that cannot be predicted.
        wanted: Which DICOM series are taken, as for `find_dicom`.

    Raises:
        DatasetError: A source has no images, or the model needs several channels.
        OptionError: Two sources have a case of the same name, or there is no series as is wanted.
    """
    found = {source: cases for source in sources if (cases := find_dicom(source, wanted))}
    if wanted and not found:
        raise OptionError(
            f"--series is for DICOM, and -i {sources[0]} holds none.", hint="Leave it out."
        )
    plain = tuple(source for source in sources if source not in found)
    place: dict[str, Path] = {}
    files = find_cases(plain, len(channels), failures, place)
    series: dict[str, Series] = {}
    for source, cases in found.items():
        if len(channels) > 1:
            raise several_channels(source, channels)
        beside = {} if wanted else images_beside(source)
        for name in (*cases.series, *cases.refused, *beside):
            if name in place:
                raise _twice(name, place[name], source)
            place[name] = source
        files |= beside
        series |= cases.series
        for name, no in cases.refused.items():
            failures.append(Failure(case=name, problem=f"{name}: {no.problem}.", hint=REFUSED))
    return Sources(plain=plain, files=files, series=series)


def check_lesions(model: str, first: "FoldModel", folder: Path | None) -> None:
    """Refuses lesions that a model has no use for, and a classifier without lesions.

    Raises:
        OptionError: One of both.
    """
    if folder is None and first.needs_lesions:
        from autoliver.inference.lesions.given import without_lesions

        raise without_lesions(model)
    if folder is not None and not first.lesion_classes:
        raise OptionError(
            f"--lesions: {model} does not tell classes of lesions apart.",
            hint="Leave it out, or predict with a model of --task joint, ynet or classify.",
        )


def find_lesions(
    folder: Path | None, cases: dict[str, tuple[Path, ...]], failures: list[Failure]
) -> dict[str, Path]:
    """Finds the label maps of the lesions of all cases.

    Args:
        folder: The folder of the label maps; None if lesions are not given.
        cases: The cases; those without a label map are taken out.
        failures: Takes the cases without a label map.

    Raises:
        OptionError: There is no such folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise OptionError(
            f"--lesions {folder}: there is no such folder.",
            hint="Name a folder with a label map of each case, such as labelsTr.",
        )
    known = {split_ending(path.name)[0]: path for path in label_files(folder)}
    for name in [name for name in cases if name not in known]:
        problem = f"{name}: {folder} has no label map of its lesions."
        failures.append(Failure(case=name, problem=problem, hint=f"Add {name}.nii.gz to it."))
        del cases[name]
    return {name: known[name] for name in cases}


def name_folders_left_out(sources: Sequence[Path], output: Path) -> None:
    """Says which folders inside a folder of cases hold images that are not predicted."""
    for source in (source for source in sources if source.is_dir()):
        inside = [path for path in entries(source) if path.is_dir() and path.name != REPLACED]
        left = [
            f"{path.name} ({counted(len(found), 'file')})"
            for path in inside
            if path.resolve() != output.resolve() and not (path / RECORD_FILE).exists()
            if (found := image_files(path, on_problem=lambda _, __: None))
        ]
        if left:
            _log.warning(
                "%s: folders inside it are not predicted: %s. Name each with an -i of its own.",
                *(source, first_few(left, 3)),
            )
