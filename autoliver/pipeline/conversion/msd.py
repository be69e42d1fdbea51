"""Medical Segmentation Decathlon (Antonelli et al. 2022): read in place, so only linked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoliver.datasets.cases import read_dataset
from autoliver.datasets.description import read_description
from autoliver.pipeline.conversion.kind import Found, Kind, Layer


def _find(source: Path) -> Iterator[Found]:
    if not (source / "dataset.json").is_file() or read_description(source).layout != "msd":
        return
    dataset = read_dataset(source)
    values = {value: value for value in sorted(dataset.labels.allowed)}
    for case in dataset.cases:
        yield Found(
            name=case.name,
            images=case.images,
            layers=() if case.label is None else (Layer(path=case.label, values=values),),
            patient=case.patient,
        )


def _describe(source: Path) -> Mapping[str, Any]:
    dataset = read_dataset(source)
    labels = {
        name: values[0] if len(values) == 1 else list(values)
        for name, values in dataset.labels.values.items()
    }
    names = {str(number): name for number, name in enumerate(dataset.channel_names)}
    return {"channel_names": names, "labels": labels}


MSD = Kind(
    title="Medical Segmentation Decathlon",
    layout="dataset.json, imagesTr/liver_0.nii.gz, labelsTr/liver_0.nii.gz",
    description={},
    find=_find,
    describe=_describe,
    note="Data of the Decathlon are read in place too: plan takes their folder as it is.",
)
