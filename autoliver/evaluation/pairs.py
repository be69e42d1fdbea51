"""Which prediction belongs to which reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoliver.datasets.layouts import dicom_hint, is_uncertainty, label_files
from autoliver.errors import DatasetError
from autoliver.io.header import ENDINGS, split_ending
from autoliver.values import counted, first_few

_SHOWN = 5  # names in one message


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Predictions with their references.

    Attributes:
        files: Case name -> (prediction, reference), sorted by name.
        extra: Names of predictions without a reference.
        missing: Names of references without a prediction; empty unless a subset was asked for.
    """

    files: dict[str, tuple[Path, Path]]
    extra: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def references(self) -> list[Path]:
        """The reference of each pair."""
        return [reference for _, reference in self.files.values()]


def find_pairs(
    prediction_folder: Path, reference: Path | Mapping[str, Path], *, subset: bool = False
) -> Pairs:
    """Pairs the files of two folders by their names without endings, or pairs two single files.

    Maps of uncertainty that lie beside the predictions are left out, unless a reference has their
    name.

    Args:
        prediction_folder: Folder of predicted label maps, or one file.
        reference: Folder of reference label maps, or one file; or the file of each case.
        subset: Whether references without a prediction are left out rather than refused.

    Raises:
        DatasetError: A folder is missing or holds no label files, two files have one name, or a
            reference has no prediction (for a subset: none of them has one).
    """
    predictions = _label_files(prediction_folder)
    references = _label_files(reference) if isinstance(reference, Path) else dict(reference)
    if prediction_folder.is_file() and isinstance(reference, Path) and reference.is_file():
        predictions = dict(zip(references, predictions.values(), strict=True))
    missing = sorted(references.keys() - predictions.keys())
    if len(missing) == len(references) or (missing and not subset):
        raise DatasetError(
            f"{prediction_folder}: {len(missing)} of {counted(len(references), 'reference')} "
            f"without a prediction: {first_few(missing, _SHOWN)}.",
            hint="Predict them first, or score those that are there with --subset."
            if len(missing) < len(references)
            else "Give predictions whose names are those of the references.",
        )
    shared = sorted(references.keys() & predictions.keys())
    return Pairs(
        files={name: (predictions[name], references[name]) for name in shared},
        extra=tuple(
            name
            for name in sorted(predictions.keys() - references.keys())
            if not is_uncertainty(name, predictions)
        ),
        missing=tuple(missing),
    )


def _label_files(folder: Path) -> dict[str, Path]:
    if folder.is_file():
        return {split_ending(folder.name)[0]: folder}
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder.", hint="Check the path.")
    found: dict[str, Path] = {}
    for path in label_files(folder):
        stem = split_ending(path.name)[0]
        other = found.setdefault(stem, path)
        if other != path:
            raise DatasetError(
                f"{folder}: {other.name} and {path.name} both belong to case '{stem}'.",
                hint="Keep one of them.",
            )
    if not found:
        raise DatasetError(
            f"{folder}: there are no label files; expected names that end with one of "
            f"{', '.join(ENDINGS)}.",
            hint=dicom_hint(folder) or "Give the folder that holds the files themselves.",
        )
    return found
