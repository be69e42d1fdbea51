"""The table and the dataset.json of a dataset with labels of a model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from autoliver.artifacts import csv_text
from autoliver.datasets.cases import Dataset, Labels, describe_labels
from autoliver.io.dicom.codes import SegmentCodes
from autoliver.pipeline.pseudo.compose import Quality
from autoliver.pipeline.pseudo.labelling import Judged, missing_in


def table_of(judged: Sequence[Judged]) -> str:
    """The table of all cases: one row for each label."""
    names = list(Quality.__struct_fields__)
    rows: list[list[object]] = [["case", "label", *names, "kept", "refused"]]
    for each in judged:
        if not each.quality:
            rows.append([each.case, "", *[""] * len(names), True, "drawn by people"])
        for label, quality in each.quality.items():
            values = msgspec.to_builtins(quality)
            numbers = ["" if values[n] is None else f"{values[n]:.4g}" for n in names]
            rows.append([each.case, label, *numbers, not each.refused, each.refused])
    return csv_text(rows)


def description_of(
    dataset: Dataset,
    labels: Labels,
    kept: Collection[str],
    given: Sequence[str],
    codes: Mapping[str, SegmentCodes],
) -> dict[str, Any]:
    """The dataset.json of the new dataset; the codes are those of the model's labels."""
    cases = [case for case in dataset.cases if case.name in kept]
    annotated = {}
    for case in cases:
        known = "real" if case.label else "none"
        states: dict[str, str] = {n: case.annotated.get(n, known) for n in labels.foreground}
        states |= dict.fromkeys(missing_in(case, dataset.labels, given), "pseudo")
        annotated[case.name] = {name: state for name, state in states.items() if state != "real"}
    return {
        "channel_names": {str(i): name for i, name in enumerate(dataset.channel_names)},
        **describe_labels(labels, {**codes, **dataset.codes}),
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "dataset": {
            case.name: {"images": list(case.images), "label": f"labelsTr/{case.name}.nii.gz"}
            for case in cases
        },
        "modality": {case.name: case.modality for case in cases},
        "patients": {case.name: case.patient for case in cases},
        "annotated": annotated,
        # Without any label of a person, a case says nothing about how good a model is.
        "origin": {c.name: "pseudo" if c.label is None else c.origin for c in cases},
    }
