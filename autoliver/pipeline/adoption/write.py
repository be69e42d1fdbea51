"""Writes an adopted dataset: images as they are, label maps on their grids, whole or not at all."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoliver.artifacts import as_json, write_bytes
from autoliver.datasets.cases import Case, describe_labels, read_new
from autoliver.datasets.description import modality_of
from autoliver.datasets.layouts import commonest_ending
from autoliver.errors import DatasetError
from autoliver.io.detached import data_files
from autoliver.io.files import read_label, write_label
from autoliver.io.header import file_type, label_name, split_ending
from autoliver.locks import only_writing
from autoliver.pipeline.adoption.corrected import (
    WHEN_WHOLE,
    Examined,
    changed_meanwhile,
    on_image_grid,
)
from autoliver.pipeline.adoption.record import ADOPTED_FILE, AdoptedCase, AdoptedFile, Adoption
from autoliver.pipeline.adoption.source import LabelSource
from autoliver.system import in_words, open_file

_BLOCK_BYTES = 1 << 24


def image_names(case: Case) -> dict[str, Path]:
    """Maps the name that each file of a case's image gets in imagesTr to the file."""
    names: dict[str, Path] = {}
    for channel, image in enumerate(map(Path, case.images)):
        stem, ending = split_ending(image.name)
        new = f"{case.name}_{channel:04d}"
        names[f"{new}{ending.lower()}"] = image
        for file in data_files(image)[1:]:
            # The voxels of .hdr are found by their name, others are named in the header.
            own = f"{new}{file.name[len(stem) :].lower()}" if file_type(image) == ".hdr" else ""
            names[own or file.name] = file
    return names


def adopted_case(case: Case, found: Examined) -> AdoptedCase:
    """Says which files a case will have, and where they come from."""
    mask = str(case.label)
    return AdoptedCase(
        name=case.name,
        images=tuple(
            AdoptedFile(name=f"imagesTr/{name}", source=str(file), sha256=found.hashes[str(file)])
            for name, file in image_names(case).items()
        ),
        label=AdoptedFile(
            name=f"labelsTr/{label_name(case.name, case.images[0])}",
            source=mask,
            sha256=found.hashes[mask],
            rewritten=found.rewrite,
        ),
        corrected=found.changed,
    )


def write_dataset(
    output: Path, adoption: Adoption, *, source: LabelSource, channel_names: Sequence[str]
) -> None:
    """Writes the dataset of an adoption, whose labels are those of its source.

    Raises:
        DatasetError: The dataset could not be read again.
        MachineError: The system refuses to write.
    """
    description = _description(adoption, source, channel_names)
    with only_writing(output) as beside:
        with in_words(output, verb="written"):
            for folder in ("imagesTr", "labelsTr"):
                (beside / folder).mkdir(parents=True)
            for case in adoption.cases:
                _write_case(beside, case, link=adoption.linked)
            write_bytes(beside / "dataset.json", as_json(description))
        adoption.save(beside / ADOPTED_FILE)
        read_new(beside, output)


def _write_case(folder: Path, case: AdoptedCase, *, link: bool) -> None:
    for image in case.images:
        if link:
            (folder / image.name).symlink_to(image.source)
        else:
            _copy(image, folder)
    if case.label.rewritten:
        mask = Path(case.label.source)
        label, _ = on_image_grid(read_label(mask), mask, Path(case.images[0].source))
        write_label(folder / case.label.name, label.array[0], label.geometry)
    else:
        _copy(case.label, folder)


def _copy(file: AdoptedFile, folder: Path) -> None:
    """Copies a file, whose content has to be what was checked.

    Raises:
        DatasetError: It was changed since.
    """
    found = hashlib.sha256()
    with open_file(Path(file.source)) as source, (folder / file.name).open("wb") as target:
        while block := source.read(_BLOCK_BYTES):
            found.update(block)
            target.write(block)
    if found.hexdigest() != file.sha256:
        raise DatasetError(changed_meanwhile(Path(file.source)), hint=WHEN_WHOLE)


def _description(
    adoption: Adoption, source: LabelSource, channel_names: Sequence[str]
) -> dict[str, Any]:
    """The dataset.json of an adopted dataset."""
    images = [Path(image.name) for case in adoption.cases for image in case.images]
    images = [image for image in images if split_ending(image.name)[1]]
    found: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(channel_names)},
        **describe_labels(source.labels, source.codes),
        "numTraining": len(adoption.cases),
        "file_ending": commonest_ending(images),
    }
    # nnU-Net counts the entries of `modality` for channels, so it is only there if it is needed.
    if modality_of(channel_names) != adoption.modality:
        found["modality"] = {case.name: adoption.modality for case in adoption.cases}
    return found
