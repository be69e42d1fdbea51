"""Labels single cases with a model's probabilities, judges the labels and draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Case, Labels
from autoliver.datasets.label_values import refuse_other_values
from autoliver.evaluation.picture import Panel, Row, draw_outlines, shown_window, slice_with_most
from autoliver.io.files import read_image, read_label, write_label
from autoliver.io.volume import Volume
from autoliver.pipeline.pseudo.compose import Quality, composed, label_of, probability_of
from autoliver.pipeline.pseudo.request import PseudolabelRequest


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A case with the labels that a model gave it.

    Attributes:
        case: Its name.
        quality: Label -> how plausible it is; empty if people have drawn all of them.
        refused: Why the case is left out; empty if it is not.
    """

    case: str
    quality: dict[str, Quality]
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How the cases of a dataset are labelled.

    Attributes:
        theirs: The model's labels.
        parts: Label -> the model's labels that count as it.
        own: The labels of the dataset, which people have drawn.
        labels: The labels of the new dataset.
        request: What is refused.
        output: Folder of the new dataset.
    """

    theirs: Labels
    parts: Mapping[str, Sequence[str]]
    own: Labels
    labels: Labels
    request: PseudolabelRequest
    output: Path

    def label(self, case: Case, probabilities: Path) -> Judged:
        """Labels one case, judges the labels, and draws them.

        Args:
            case: The case.
            probabilities: The file that `predict` writes them to.

        Returns:
            The quality of the labels. The label map is written unless the case is refused.
        """
        image = read_image([Path(path) for path in case.images])
        spacing, values = image.geometry.spacing_mm, self.labels.values
        rows = np.load(probabilities)["probabilities"]
        drawn = None if case.label is None else self._drawn(case.label)
        given, quality, reasons = {}, {}, []
        missing = missing_in(case, self.own, list(self.parts))
        for label in missing:
            inner = np.zeros(image.geometry.shape_zyx, bool)
            if drawn is not None:
                inner = np.isin(drawn, values[label][1:])
            inside, uncertain, found = label_of(
                probability_of(rows, self.theirs, self.parts[label]),
                band=self.request.band,
                largest=self.request.largest,
                inner=inner,
                spacing_mm=spacing,
            )
            given[label], quality[label] = (inside, uncertain), found
            reasons += _reasons(label, found, self.request)
        real = [name for name in self.labels.foreground if name not in missing]
        shape = image.geometry.shape_zyx
        result = composed(drawn, given, self.labels, real=real, shape_zyx=shape)
        self._draw(case, image, drawn, result)
        if not reasons:
            write_label(self.output / f"labelsTr/{case.name}.nii.gz", result, image.geometry)
        return Judged(case=case.name, quality=quality, refused="; ".join(reasons))

    def _drawn(self, path: str) -> npt.NDArray[np.uint16]:
        """The label map of a person, with the values of the new dataset."""
        found = read_label(path).array[0]
        refuse_other_values(found, self.own.allowed, path)
        result = np.zeros(found.shape, np.uint16)
        known = [name for name in self.labels.foreground if name in self.own.foreground]
        # Regions first, and over them what lies in them.
        for name in sorted(known, key=lambda name: -len(self.own.values[name])):
            result[np.isin(found, self.own.values[name])] = self.labels.values[name][0]
        if self.own.ignore is not None and self.labels.ignore is not None:
            result[found == self.own.ignore] = self.labels.ignore
        return result

    def _draw(
        self,
        case: Case,
        image: Volume,
        drawn: npt.NDArray[np.uint16] | None,
        result: npt.NDArray[np.uint16],
    ) -> None:
        """Draws what people have drawn, solid, and the new label map, dashed, on three slices."""
        first = next(iter(self.labels.foreground.values()))[0]
        there = np.flatnonzero((result == first).any(axis=(1, 2)))
        slices = {slice_with_most(result, first)}
        if len(there):
            slices |= {int(there[len(there) // 4]), int(there[3 * len(there) // 4])}
        before = np.zeros_like(result) if drawn is None else drawn
        panels = tuple(
            Panel(
                image=image.array[0, z],
                reference=before[z],
                prediction=result[z],
                spacing_mm=image.geometry.spacing_mm[1:],
                caption=f"slice {z + 1} of {len(result)}",
            )
            for z in sorted(slices)
        )
        window = shown_window(image.array[0], is_ct=case.modality == "CT")
        draw_outlines(
            self.output / f"pictures/{case.name}.png",
            [Row(title=case.name, panels=panels, window=window)],
            outlined=tuple(self.labels.foreground.values()),
            title="Drawn by people, and with the model's labels",
        )


def missing_in(case: Case, own: Labels, labels: Sequence[str]) -> list[str]:
    """Returns the labels that people have not drawn in a case.

    Args:
        case: The case.
        own: The labels of its dataset.
        labels: Names of labels, spelt as there.
    """
    if case.label is None:
        return list(labels)
    return [n for n in labels if n not in own.foreground or case.annotated.get(n) == "none"]


def _reasons(label: str, found: Quality, request: PseudolabelRequest) -> list[str]:
    """Why a label is not plausible, in words."""
    low, high = request.volume_ml
    if found.volume_ml == 0.0:
        return [f"no {label} was found"]
    reasons = []
    if found.volume_ml is not None and not low <= found.volume_ml <= high:
        reasons.append(f"{label} of {found.volume_ml:.0f} ml, expected {low:g} to {high:g}")
    if found.confidence < request.least_confidence:
        reasons.append(
            f"{label} with a mean probability of {found.confidence:.2f}, expected at least "
            f"{request.least_confidence:g}"
        )
    if found.outside is not None and found.outside > request.most_outside:
        reasons.append(f"{found.outside:.0%} of what is drawn lies outside the {label}")
    return reasons
