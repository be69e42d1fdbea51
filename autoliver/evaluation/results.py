"""Defines scores and metric options, and summarises scores over cases."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import msgspec

from autoliver.artifacts import Artifact, Record, csv_text, write_bytes
from autoliver.datasets.cases import Labels
from autoliver.datasets.lesions import is_lesion, is_tumour
from autoliver.errors import WrongValue
from autoliver.evaluation.agreement import Agreement, agreement
from autoliver.evaluation.bootstrap import Statistic, resampled, statistic
from autoliver.evaluation.chaos import task_scores
from autoliver.evaluation.classification import ClassSummary, summarize_classes
from autoliver.evaluation.detection import LesionSummary, summarize_lesions
from autoliver.evaluation.lesions import Lesion, LesionCounts, VoxelOverlap
from autoliver.evaluation.metrics import Connectivity
from autoliver.values import check_number, check_types, meant, set_field

OVERLAP_METRICS = ("dice", "iou", "recall", "precision", "ravd", "volume")
SURFACE_METRICS = ("assd", "mad", "mssd", "hd95", "nsd")
ALL_METRICS = (*OVERLAP_METRICS, *SURFACE_METRICS, "lesions")

# Names that metrics have elsewhere.
_SYNONYMS = {"hd": "mssd"}

_CHAOS = {"dice", "ravd", "assd", "mssd"}


class _Column(NamedTuple):
    metric: str
    heading: str
    decimals: int


# Volumes of different organs have no meaningful mean.
_NOT_AVERAGED = {"volume_ml", "reference_volume_ml", "volume_difference_ml"}

# Field of a Score -> the metric that fills it, its heading in a table and its number of decimals.
COLUMNS = {
    "dice": _Column("dice", "Dice", 3),
    "iou": _Column("iou", "IoU", 3),
    "recall": _Column("recall", "recall", 3),
    "precision": _Column("precision", "precision", 3),
    "ravd_percent": _Column("ravd", "RAVD %", 1),
    "assd_mm": _Column("assd", "ASSD mm", 2),
    "mad_mm": _Column("mad", "MAD mm", 2),
    "mssd_mm": _Column("mssd", "HD (MSSD) mm", 1),
    "hd95_mm": _Column("hd95", "HD95 mm", 2),
    "nsd": _Column("nsd", "NSD", 3),
    "volume_ml": _Column("volume", "volume ml", 1),
    "reference_volume_ml": _Column("volume", "reference ml", 1),
    "volume_difference_ml": _Column("volume", "volume difference ml", 1),
    "lesion_recall": _Column("lesions", "lesion recall", 3),
    "lesion_precision": _Column("lesions", "lesion precision", 3),
    "matched_recall": _Column("lesions", "matched recall", 3),
    "matched_precision": _Column("lesions", "matched precision", 3),
    "matched_f1": _Column("lesions", "matched F1", 3),
    "matched_dice": _Column("lesions", "matched Dice", 3),
    "chaos_dice": _Column("chaos", "CHAOS Dice", 1),
    "chaos_ravd": _Column("chaos", "CHAOS RAVD", 1),
    "chaos_assd": _Column("chaos", "CHAOS ASSD", 1),
    "chaos_mssd": _Column("chaos", "CHAOS MSSD", 1),
    "chaos": _Column("chaos", "CHAOS", 1),
}


class MetricOptions(Record, frozen=True, kw_only=True):
    """Which metrics are computed, and how.

    Attributes:
        metrics: Names from `ALL_METRICS` in any case, or hd for mssd; a text may hold several with
            commas between them. `OVERLAP_METRICS` alone take a fraction of the time.
        connectivity: Neighbourhood that defines border voxels: 6, as in CHAOS' evaluation code, or
            26.
        nsd_tolerance_mm: Surfaces at most this far apart count as equal in the NSD.
        missing_distance: The distances of a label that the prediction misses entirely: "diagonal":
            the diagonal of the image (between the centres of its outermost voxels); "nan":
            undefined.
        lesion_labels: Labels whose components are counted as lesions; None: labels whose name
            contains tumour, tumor, lesion, cancer or metasta.
        lesion_overlap: A lesion is found if more than this share (0 to 1) of its voxels is covered;
            two lesions match if more than this share of each is common to both.
        chaos: Whether to add the score of the CHAOS challenge.
    """

    metrics: tuple[str, ...] = ALL_METRICS
    connectivity: Connectivity = 6
    nsd_tolerance_mm: float = 2.0
    missing_distance: Literal["diagonal", "nan"] = "diagonal"
    lesion_labels: tuple[str, ...] | None = None
    lesion_overlap: float = 0.0
    chaos: bool = False

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        check_types(self)
        known = (*ALL_METRICS, *_SYNONYMS)
        typed = [part.strip() for name in self.metrics for part in name.split(",")]
        names = (_SYNONYMS.get(name.casefold(), name.casefold()) for name in typed)
        set_field(self, "metrics", tuple(dict.fromkeys(names)))
        unknown = [name for name in typed if name.casefold() not in known]
        if unknown:
            near = meant(unknown[0], known)
            raise WrongValue(
                f"--metrics: there is no metric '{unknown[0]}'.",
                hint=f"{near} Choose from {', '.join(known)}.".strip(),
            )
        check_number("nsd_tolerance_mm", self.nsd_tolerance_mm, least=0.0)
        check_number("lesion_overlap", self.lesion_overlap, least=0.0, most=1.0)

    @property
    def wanted(self) -> set[str]:
        """The metrics to compute, including those that the CHAOS score needs."""
        return {*self.metrics, *(_CHAOS | {"chaos"} if self.chaos else ())}

    def counts_lesions(self, label: str) -> bool:
        """Whether the components of a label are counted as lesions."""
        if self.lesion_labels is not None:
            return label in self.lesion_labels
        return is_tumour(label)

    def lesion_classes(self, labels: Labels) -> dict[str, tuple[int, ...]]:
        """Name -> values of the labels that are classes of lesions; empty if there are not several.

        These are the `lesion_labels`, or else labels named as lesions are (cysts and haemangiomas
        among them), without those that hold all values of another one.
        """
        named = {
            name: values
            for name, values in labels.foreground.items()
            if (name in self.lesion_labels if self.lesion_labels is not None else is_lesion(name))
        }
        inner = {
            name: values
            for name, values in named.items()
            if not any(set(other) < set(values) for other in named.values())
        }
        return inner if len(inner) > 1 and "lesions" in self.wanted else {}


class Score(Record, frozen=True, kw_only=True):
    """The scores of one label of one case; None for a metric that is undefined or not requested.

    If both masks are empty, only the volumes are defined; in a 2D file volumes are undefined as
    well. If only the reference is empty, Dice, IoU, precision and NSD are 0; recall and distances
    are undefined. If only the prediction is empty, Dice, IoU, recall and NSD are 0, precision is
    undefined and `MetricOptions.missing_distance` determines the distances.

    Attributes:
        voxels: Number of voxels in the prediction.
        reference_voxels: Number of voxels in the reference.
        dice: 2 |P and R| / (|P| + |R|).
        iou: |P and R| / |P or R|.
        recall: |P and R| / |R|.
        precision: |P and R| / |P|.
        ravd_percent: 100 * | |P| - |R| | / |R|.
        assd_mm: Average symmetric surface distance, both surfaces pooled.
        mad_mm: Mean absolute distance of the contours, the mean of both directed means.
        mssd_mm: Maximum symmetric surface distance (Hausdorff distance).
        hd95_mm: The larger of the two directed 95th percentiles of the surface distances.
        nsd: Share of border voxels within the tolerance (normalised surface Dice).
        volume_ml: Volume of the prediction.
        reference_volume_ml: Volume of the reference.
        volume_difference_ml: Volume of the prediction minus volume of the reference.
        lesions: The counts from which the lesion-wise recall and precision are computed.
        lesion_recall: Share of the reference's lesions that were found.
        lesion_precision: Share of the predicted lesions that the reference confirms.
        matched_recall: Share of the reference's lesions that are matched one to one.
        matched_precision: Share of the predicted lesions that are matched.
        matched_f1: 2 matched / (lesions of the reference + predicted lesions).
        matched_dice: Mean Dice of the matched pairs.
        lesion_list: Each lesion, with its match; None if lesions are not counted.
        chaos_dice: Points of the CHAOS challenge for the Dice, 0 to 100; only organs that it scores
            have points. An organ that one of the masks lacks has 0.
        chaos_ravd: The same for the RAVD.
        chaos_assd: The same for the ASSD.
        chaos_mssd: The same for the MSSD.
        chaos: Score of the CHAOS challenge, the mean of these four.
    """

    voxels: int
    reference_voxels: int
    dice: float | None = None
    iou: float | None = None
    recall: float | None = None
    precision: float | None = None
    ravd_percent: float | None = None
    assd_mm: float | None = None
    mad_mm: float | None = None
    mssd_mm: float | None = None
    hd95_mm: float | None = None
    nsd: float | None = None
    volume_ml: float | None = None
    reference_volume_ml: float | None = None
    volume_difference_ml: float | None = None
    lesions: LesionCounts | None = None
    lesion_recall: float | None = None
    lesion_precision: float | None = None
    matched_recall: float | None = None
    matched_precision: float | None = None
    matched_f1: float | None = None
    matched_dice: float | None = None
    lesion_list: tuple[Lesion, ...] | None = None
    chaos_dice: float | None = None
    chaos_ravd: float | None = None
    chaos_assd: float | None = None
    chaos_mssd: float | None = None
    chaos: float | None = None


class CaseScores(Record, frozen=True, kw_only=True):
    """The scores of one case.

    Attributes:
        name: The case's name.
        prediction: Path of the file that was scored; empty for arrays.
        reference: Path of the file it was compared with; empty for arrays.
        labels: Label name -> score; labels that are not annotated by people have none.
        warnings: Suspicious findings, one sentence each.
        patient: The patient's identifier; empty if it is not known.
        lesions: Each lesion of any class, with its match; None if the labels are not several
            classes of lesions, or one of these is not scored in the case.
        lesion_voxels: The voxels of lesions of any class; None where `lesions` is, and in scores of
            earlier versions.
    """

    name: str
    prediction: str = ""
    reference: str = ""
    labels: dict[str, Score]
    warnings: tuple[str, ...] = ()
    patient: str = ""
    lesions: tuple[Lesion, ...] | None = None
    lesion_voxels: VoxelOverlap | None = None

    @property
    def mean_dice(self) -> float | None:
        """The mean Dice of the labels that define it; None if there are none."""
        known = [score.dice for score in self.labels.values() if score.dice is not None]
        return statistics.fmean(known) if known else None


class LabelSummary(Record, frozen=True, kw_only=True):
    """The scores of one label, summarised over all cases.

    Attributes:
        cases: Number of scored cases; those in which the label is not annotated are left out.
        n_empty: Cases with the label in neither prediction nor reference; they are left out of the
            means of overlap metrics.
        n_false_positive: Cases with the label in the prediction only.
        n_missed: Cases with the label in the reference only.
        metrics: Field of `Score` -> statistic; a metric that no case defines is left out.
        lesions: Its lesions, matched one to one; None if they are not counted.
        volumes: How well the volumes agree; None if volumes are not measured, or unknown.
    """

    cases: int
    n_empty: int
    n_false_positive: int
    n_missed: int
    metrics: dict[str, Statistic]
    lesions: LesionSummary | None = None
    volumes: Agreement | None = None


class Scores(Artifact, frozen=True, kw_only=True):
    """The scores of a set of predictions.

    Attributes:
        labels: The labels that were scored.
        options: The metrics that were computed, and their settings.
        cases: The scores of each case, sorted by name.
        summary: Label name -> mean, SD and counts over the cases.
        mean: Field of `Score` -> mean over the labels of their means (nnU-Net's foreground mean);
            volumes have none.
        warnings: Suspicious findings, one sentence each.
        groups: Name of a group of cases, a modality or a source -> the summary of its cases; empty
            if there is only one group.
        lesions: The lesions of all classes together, matched one to one whatever their class; None
            if the labels are not several classes of lesions.
        lesion_classes: How well these lesions were named.
        chaos: Score of each task of the CHAOS challenge whose organs are all labels, by the numbers
            of the tasks: "1, 2, 3" for the liver, "4, 5" for four organs.
    """

    KIND: ClassVar[str] = "scores"

    labels: Labels
    options: MetricOptions
    cases: tuple[CaseScores, ...]
    summary: dict[str, LabelSummary]
    mean: dict[str, float]
    warnings: tuple[str, ...] = ()
    groups: dict[str, dict[str, LabelSummary]] = msgspec.field(default_factory=dict)
    lesions: LesionSummary | None = None
    lesion_classes: ClassSummary | None = None
    chaos: dict[str, float] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, cases: Sequence[CaseScores], *, labels: Labels, options: MetricOptions) -> "Scores":
        """Summarises the scores of cases, with intervals if the patients of all cases are known."""
        summary = summarize(cases, labels.foreground)
        scores = cls(
            labels=labels,
            options=options,
            cases=tuple(cases),
            summary=summary,
            mean=mean_over_labels(summary),
            chaos=task_scores(
                {
                    name: s.metrics["chaos"].mean
                    for name, s in summary.items()
                    if "chaos" in s.metrics
                }
            ),
        )
        known = [case for case in cases if case.lesions is not None]
        if not known:
            return scores
        lesions, patients = [case.lesions or () for case in known], [c.patient for c in known]
        weights, classes = resampled(patients), tuple(options.lesion_classes(labels))
        return scores.replace(
            lesions=summarize_lesions(
                lesions,
                patients=patients,
                weights=weights,
                voxels=[case.lesion_voxels for case in known],
            ),
            lesion_classes=summarize_classes(lesions, classes, weights=weights),
        )

    @property
    def lesion_accuracy(self) -> float | None:
        """Share of the lesions that were found and have the right class; None without classes."""
        return None if self.lesion_classes is None else self.lesion_classes.of_reference.accuracy

    def with_cases(self, cases: Sequence[CaseScores]) -> "Scores":
        """Returns the scores with other facts about the same cases, summarised anew.

        Groups have to be added again.
        """
        scores = Scores.of(cases, labels=self.labels, options=self.options)
        return scores.replace(warnings=self.warnings, made_from=self.made_from)

    def by_patient(self, patients: Mapping[str, str]) -> "Scores":
        """Returns the scores with intervals, and with a summary of each patient's lesions.

        Args:
            patients: Case name -> patient; a case that is not in it is a patient of its own.
        """
        return self.with_cases(
            [case.replace(patient=patients.get(case.name, case.name)) for case in self.cases]
        )

    def grouped(self, groups: Mapping[str, Collection[str]]) -> "Scores":
        """Returns the scores with a summary of each group of cases.

        Args:
            groups: Name -> the cases; groups without a scored case are left out.
        """
        found = {name: [c for c in self.cases if c.name in cases] for name, cases in groups.items()}
        return self.replace(
            groups={
                name: summarize(cases, self.labels.foreground)
                for name, cases in found.items()
                if cases
            }
        )

    def foreground_mean(self, field: str) -> float | None:
        """Returns the mean over labels of a field of `Score`; None if no case defines it."""
        return self.mean.get(field)


def summarize(cases: Sequence[CaseScores], labels: Iterable[str] = ()) -> dict[str, LabelSummary]:
    """Summarises scores per label; means are taken over cases, as is usual in publications.

    Args:
        cases: The scores of each case.
        labels: Labels that come first in the summary, even if no case has a score of them.
    """
    names = list(dict.fromkeys([*labels, *(label for case in cases for label in case.labels)]))
    return {name: _summary(name, [case for case in cases if name in case.labels]) for name in names}


def by_mean_dice(cases: Iterable[CaseScores]) -> list[CaseScores]:
    """Sorts cases, the lowest mean Dice first; those without one last."""

    def place(case: CaseScores) -> tuple[bool, float, str]:
        mean = case.mean_dice
        return (mean is None, mean or 0.0, case.name)

    return sorted(cases, key=place)


def statistic_of(cases: Sequence[CaseScores], label: str, field: str) -> Statistic | None:
    """Summarises a field of `Score` over the cases that have the label; None without a value."""
    held = [case for case in cases if label in case.labels]
    found = [getattr(case.labels[label], field) for case in held]
    values = [() if value is None else (value,) for value in found]
    return statistic(values, resampled([case.patient for case in held]))


def mean_over_labels(summary: Mapping[str, LabelSummary]) -> dict[str, float]:
    """Averages each field of `Score` over the labels that define it, with equal weights.

    Volumes are left out: the mean volume of different organs says nothing.
    """
    means: dict[str, list[float]] = {}
    for label in summary.values():
        for field, found in label.metrics.items():
            if field in _NOT_AVERAGED:
                continue
            means.setdefault(field, []).append(found.mean)
    return {field: statistics.fmean(values) for field, values in means.items()}


def write_csv(scores: Scores, path: Path) -> None:
    """Writes a CSV file with one row per case and label; undefined values are empty cells.

    Names come from data: one that a spreadsheet would run as a formula gets an apostrophe before
    it, so that it is shown as text.
    """
    lesions = ("reference", "detected", "predicted", "confirmed")
    head = ("case", "label", "voxels", "reference_voxels", *COLUMNS)
    rows: list[list[object]] = [[*head, *(f"lesions_{name}" for name in lesions)]]
    for case in scores.cases:
        for label, score in case.labels.items():
            row = [getattr(score, field) for field in head[2:]]
            counts = [getattr(score.lesions, name, None) for name in lesions]
            rows.append([case.name, label, *row, *counts])
    write_bytes(path, csv_text(rows).encode())


def _summary(label: str, cases: Sequence[CaseScores]) -> LabelSummary:
    scores, patients = [case.labels[label] for case in cases], [case.patient for case in cases]
    weights = resampled(patients)
    found = {}
    for field in COLUMNS:
        if (mean := statistic_of(cases, label, field)) is not None:
            found[field] = mean
    present = [(score.voxels > 0, score.reference_voxels > 0) for score in scores]
    lesions = [score.lesion_list for score in scores]
    return LabelSummary(
        cases=len(scores),
        n_empty=present.count((False, False)),
        n_false_positive=present.count((True, False)),
        n_missed=present.count((False, True)),
        metrics=found,
        lesions=None
        if not lesions or None in lesions
        else summarize_lesions(
            [each or () for each in lesions], patients=patients, weights=weights
        ),
        volumes=agreement([(s.volume_ml, s.reference_volume_ml) for s in scores]),
    )
