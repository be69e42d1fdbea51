"""synthesize apply: a dataset of translated images, with the labels that still fit."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoliver.artifacts import Record, as_json, brief, csv_text, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, Labels, describe_labels, read_new
from autoliver.errors import ArtifactError, DatasetError, OptionError
from autoliver.evaluation.picture import Panel, Row, draw_outlines
from autoliver.io.files import read_header, read_image, read_label, write_image, write_label
from autoliver.io.orientation import USUAL, axis_codes, reorientation_to
from autoliver.locks import only_writing
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.parallel import case_bar
from autoliver.pipeline.conversion.result import check_output
from autoliver.pipeline.data import planned_dataset
from autoliver.pipeline.folder import predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.translation.fit import digest_of
from autoliver.pipeline.translation.kept import AppliedCase, AppliedCases, applied_cases
from autoliver.pipeline.translation.synthesizer import (
    SYNTHESIZER_FILE,
    SynthesisFolder,
    Synthesizer,
    find_synthesizer,
)
from autoliver.preprocessing.case import backward_image, forward
from autoliver.shards import Shard
from autoliver.synthesis.translation.apply import (
    BRIGHTEST,
    Fidelity,
    beside_real,
    fidelity_of,
    from_labels,
    translate,
    whole_numbers,
)
from autoliver.synthesis.translation.options import BEYOND
from autoliver.transfer.labels import match_labels
from autoliver.values import check_number, check_types, counted
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

FIDELITY_FILE = "fidelity.csv"
_SHEET = "fidelity.png"
_SHOWN = 16  # cases on the contact sheet
_COLUMNS = 4
_MEASURES = ("slices", "slices_below", "jumps", "real_jumps", "grey")
# Jumps between slices so many times those of real images are told.
_MANY_JUMPS = 1.5


class ApplyRequest(Record, frozen=True, kw_only=True):
    """A request to `synthesize apply`.

    Attributes:
        judge: A model that finds the labels in the target; None: the segmentor that was learnt with
            the translation.
        min_dice: Cases with a lower mean Dice are left out, and slices are ignored in training.
        shard: The part of the cases to translate, for a dataset that is made later; None for all.
        machine: The device, processes and memory that may be used.
    """

    judge: str | None = None
    min_dice: float = 0.5
    shard: Shard | None = None
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid.
        """
        check_types(self)
        check_number("min_dice", self.min_dice, least=0.0, most=1.0)


@dataclass(frozen=True, kw_only=True)
class Synthesized:
    """The result of `synthesize apply`.

    Attributes:
        folder: The new dataset.
        cases: How well the labels of each case fit.
        left_out: Names of the cases that are left out.
        ignored: Number of slices whose labels are ignored in the cases that are kept.
        warning: What is wrong with the images; empty for nothing.
        table: The CSV file with the fidelity of every case.
        sheet: A picture of the cases, the worst first.
        next_command: The command that makes sense next.
    """

    folder: Path
    cases: tuple[Fidelity, ...]
    left_out: tuple[str, ...]
    ignored: int
    warning: str
    table: Path
    sheet: Path
    next_command: str

    __repr__ = brief


def apply(workspace: Workspace, name: str, output: Path, request: ApplyRequest) -> Synthesized:
    """Makes a dataset of the translated images of the source of a translation.

    Images have the grid of the source's; labels are those of the source.

    Args:
        workspace: The workspace.
        name: Name of the translation.
        output: Folder of the new dataset.
        request: What is kept.

    Raises:
        ModelError: There is no such translation, or it is not finished.
        OptionError: The output exists already, or no model can judge the images.
        DatasetError: No case is kept.
    """
    folder, info = find_synthesizer(workspace, name)
    output = output.absolute()
    judge = judge_of(folder, info, request)
    dataset = unchanged_source(workspace, info, request)
    for place in (Path(dataset.folder), workspace.root):
        check_output(place, output)
    hint = f"Learn it again with: {info.again(workspace, fresh=True)}"
    network = generator_of(folder, info, request.machine, hint=hint)
    pairs = common_labels(workspace, judge, info)
    applied = applied_cases(workspace, info, folder, judge, output)
    with applied.shards.finishing(), only_writing(output) as beside:
        predicted = beside / "judged"
        for part in (beside / "imagesTr", beside / "labelsTr", predicted):
            part.mkdir(parents=True)
        known = _known(applied, dataset.labelled)
        axes = {name: each.axis for name, each in known.items()}
        if rest := [case for case in dataset.labelled if case.name not in known]:
            axes |= _translate_all(network, info, rest, beside)
            how = PredictRequest(modality=None, machine=request.machine)
            predict_folder(workspace, beside / "imagesTr", predicted, how, models=(judge,))
        for each in known:
            shutil.copyfile(applied.image(each), image_in(beside, each))
            shutil.copyfile(applied.found(each), predicted / f"{each}.nii.gz")
        maps = {
            case.name: judged_files(
                case,
                image_in(beside, case.name),
                predicted / f"{case.name}.nii.gz",
                axes[case.name],
            )
            for case in dataset.labelled
        }
        found = [
            known[case].fidelity if case in known else fidelity_in(case, files, pairs, info)
            for case, files in maps.items()
        ]
        kept = [each for each in found if each.mean >= request.min_dice]
        _draw(beside / _SHEET, found, maps, pairs)
        write_bytes(beside / FIDELITY_FILE, _table(found, kept, request.min_dice).encode())
        if not kept:
            raise _none_fits(folder, beside, name, found, request.min_dice)
        ignored = sum(
            _write_label(beside, each, maps[each.case], info, request.min_dice) for each in kept
        )
        _clean(beside, predicted, {each.case for each in found} - {each.case for each in kept})
        description = _description(info, dataset, [each.case for each in kept])
        write_bytes(beside / "dataset.json", as_json(description))
        info.save(beside / SYNTHESIZER_FILE)
        read_new(beside, output)
    return Synthesized(
        folder=output,
        cases=tuple(found),
        left_out=tuple(each.case for each in found if each not in kept),
        ignored=ignored,
        warning=_jumping(found),
        table=output / FIDELITY_FILE,
        sheet=output / _SHEET,
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def _none_fits(
    folder: SynthesisFolder, beside: Path, name: str, found: Sequence[Fidelity], least: float
) -> DatasetError:
    """The error that no case is kept; the table and the picture are kept for whoever looks."""
    for file in (FIDELITY_FILE, _SHEET):
        if (beside / file).exists():  # no picture if no case shows a label
            shutil.copyfile(beside / file, folder.path / file)
    return DatasetError(
        f"{name}: the labels fit none of {counted(len(found), 'translated image')}; the best mean "
        f"Dice is {max(each.mean for each in found):.2f}, expected at least {least:g}.",
        hint=f"Look at {folder.path / _SHEET} and {folder.path / FIDELITY_FILE}; learn the "
        "translation longer, or keep more with --qc-min-dice.",
    )


def _known(applied: AppliedCases, cases: Sequence[Case]) -> dict[str, AppliedCase]:
    """The cases that shards have translated and judged; nothing is done for the others."""
    mapper = applied.applied
    done = mapper.finished(_not_now, cases)
    own = [case for case in cases if case.name in done]
    return {each.fidelity.case: each for each in mapper.map(_not_now, own)}


def _not_now(case: Case) -> AppliedCase:
    raise ArtifactError(
        f"{case.name}: its translated image has been removed.", hint="Give the command again."
    )


def unchanged_source(workspace: Workspace, info: Synthesizer, request: ApplyRequest) -> Dataset:
    """The source of a translation, as it was when the translation was learnt.

    Raises:
        ArtifactError: It has changed since.
    """
    dataset = planned_dataset(workspace, info.source, machine=request.machine).dataset
    if digest_of(dataset) != info.learnt_from[info.source]:
        raise ArtifactError(
            f"{info.source} has other cases or labels than when {info.name} was learnt.",
            hint=f"Learn it again with: {info.again(workspace, fresh=True)}",
        )
    return dataset


def image_in(folder: Path, case: str) -> Path:
    """The translated image of a case."""
    return folder / f"imagesTr/{case}_0000.nii.gz"


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of a translated case.

    Attributes:
        image: The translated image.
        label: The label map of its source.
        found: What the judge finds.
        axis: The axis of the files' arrays along which slices were translated.
    """

    image: Path
    label: Path
    found: Path
    axis: int

    def arrays(self) -> tuple[Any, Any, Any]:
        """Image, label map and what was found, with the slices along the first axis."""
        one, two, three = (np.moveaxis(array, self.axis, 0) for array in self._read())
        return one, two, three

    def shown(self, z: int) -> tuple[list[Any], tuple[float, float]]:
        """Slice z of image, label map and what was found, as radiologists see it, and its pixels.

        The patient's right is on the left, and the front is up where the slice is axial.
        """
        geometry = read_header(self.image).geometry
        turn = reorientation_to(geometry, USUAL if axis_codes(geometry) else "")
        axis = turn.axes.index(self.axis)
        at = geometry.shape_zyx[self.axis] - 1 - z if turn.flips[axis] else z
        spacing = list(turn.values(geometry.spacing_mm))
        del spacing[axis]
        slices = [np.take(turn.array(array), at, axis=axis) for array in self._read()]
        return slices, (spacing[0], spacing[1])

    def _read(self) -> tuple[Any, Any, Any]:
        return (
            read_image([self.image]).array[0],
            read_label(self.label).array[0],
            read_label(self.found).array[0],
        )


def judged_files(case: Case, image: Path, found: Path, axis: int) -> _Files:
    """Returns the files of a translated case.

    Args:
        case: The case of the source.
        image: Its translated image.
        found: What the judge finds in that.
        axis: The axis of the files' arrays along which slices were translated.
    """
    return _Files(image=image, label=Path(str(case.label)), found=found, axis=axis)


def judge_of(folder: SynthesisFolder, info: Synthesizer, request: ApplyRequest) -> str:
    """Returns the model that judges whether the labels fit the images.

    Raises:
        OptionError: None is named, and none was learnt with the translation.
    """
    if request.judge is not None:
        return request.judge
    if not info.options.segments:
        raise OptionError(
            f"{info.name}: no segmentation network was learnt with it, which could judge whether "
            "the labels fit the images.",
            hint="Name a model that finds the labels in such images with --judge.",
        )
    return str(folder.segmentor.parent)


def common_labels(
    workspace: Workspace, judge: str, info: Synthesizer
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns the labels that both the source and the judge have, with their values."""
    from autoliver.models.files import MODEL_FILE, FoldModel

    files = workspace.model_to_predict(judge)
    plan = FoldModel.load(files.members[0].folds[0] / MODEL_FILE).plan
    if plan.is_foreign(info.plan.modality) and not plan.mixed:
        raise OptionError(
            f"--judge {judge}: it was trained on {plan.modality}; the images are to look like "
            f"{info.plan.modality}.",
            hint=f"Name a model of {info.plan.modality}.",
        )
    theirs = plan.labels
    names = match_labels(theirs, info.labels)
    pairs = {
        name: (info.labels.values[name], theirs.values[found])
        for name, found in names.items()
        if found
    }
    if not pairs:
        raise OptionError(
            f"--judge {judge}: it has none of the labels {', '.join(info.labels.foreground)}.",
            hint="Name a model that finds them.",
        )
    return pairs


def generator_of(
    folder: SynthesisFolder, info: Synthesizer, machine: Machine, *, hint: str
) -> "nn.Module | None":
    """The network that translates; None where nothing is learnt.

    Raises:
        ModelError: Its weights are missing or damaged; the hint says what helps.
    """
    from autoliver.networks.checkpoint import load_network
    from autoliver.networks.device import choose_device

    if not info.options.learns:
        return None
    device = choose_device(machine.device)
    return load_network(folder.generator, device=device, hint=hint).eval()


def _translate_all(
    network: "nn.Module | None", info: Synthesizer, cases: Sequence[Case], output: Path
) -> dict[str, int]:
    """Writes the images of cases; returns the axis of each along which slices lie."""
    axes = {}
    for case in case_bar("translate", len(cases))(cases):
        axes[case.name] = translate_case(network, info, case, image_in(output, case.name))
    return axes


def translate_case(network: "nn.Module | None", info: Synthesizer, case: Case, path: Path) -> int:
    """Writes the image that is made of a case; without a network, of its labels.

    Returns:
        The axis of the file's array along which the slices lie.
    """
    image = read_image([Path(name) for name in case.images])
    done = forward(
        image,
        read_label(Path(str(case.label))) if network is None else None,
        plan=info.plan,
        configuration=info.plan.configurations[info.options.configuration],
        name=case.name,
        modality=case.modality,
    )
    if network is None:
        made = from_labels(done, seed=info.options.seed)
    else:
        patch = info.options.patch if info.options.dimension == 3 else None
        made = translate(network, done, info.source_range, patch=patch)
    back = backward_image(made, done.properties, fill=-1.0)
    write_image(path, whole_numbers(back), image.geometry)
    return done.properties.reorientation.axes[done.properties.transpose_forward[0]]


def fidelity_in(case: str, files: _Files, pairs: Mapping[str, Any], info: Synthesizer) -> Fidelity:
    """Returns how well the labels of a translated case fit, and how it compares with real scans."""
    image, label, predicted = files.arrays()
    found = fidelity_of(case, label, predicted, pairs, ignore=info.labels.ignore)
    spacing_mm = read_header(files.image).geometry.spacing_mm[files.axis]
    return beside_real(found, image, info.real, spacing_mm=spacing_mm)


def _write_label(
    folder: Path, fidelity: Fidelity, files: _Files, info: Synthesizer, least: float
) -> int:
    """Writes the label map of a case; slices not to be learnt from are ignored, and counted."""
    label = read_label(files.label)
    array = label.array[0].astype(np.int32)
    wrong = [z for z, dice in enumerate(fidelity.slices) if dice is not None and dice < least]
    if info.options.learns:
        wrong += _far_slices(fidelity)
    np.moveaxis(array, files.axis, 0)[wrong] = ignored_value(info.labels)
    write_label(folder / f"labelsTr/{fidelity.case}.nii.gz", array, label.geometry)
    return len(wrong)


def _far_slices(fidelity: Fidelity) -> list[int]:
    """The slices further from those with a label than any that was learnt from.

    What the translation makes of them is not known to be background.
    """
    shown = [z for z, dice in enumerate(fidelity.slices) if dice is not None]
    if not shown:
        return []
    more = round(BEYOND * (shown[-1] + 1 - shown[0]))
    first, last = shown[0] - more, shown[-1] + more
    return [z for z in range(len(fidelity.slices)) if not first <= z <= last]


def ignored_value(labels: Labels) -> int:
    """The value of slices whose labels do not fit: the source's own, or the next free one."""
    return labels.ignore if labels.ignore is not None else max(labels.allowed) + 1


def _description(info: Synthesizer, dataset: Dataset, kept: Sequence[str]) -> dict[str, Any]:
    labels = info.labels
    stated = labels if labels.ignore is not None else labels.replace(ignore=ignored_value(labels))
    facts = {case.name: case for case in dataset.cases}
    return {
        "channel_names": {"0": info.plan.channel_names[0]},
        **describe_labels(stated, dataset.codes),
        "numTraining": len(kept),
        "file_ending": ".nii.gz",
        "modality": dict.fromkeys(kept, info.plan.modality),
        "patients": {name: facts[name].patient for name in kept},
        "origin": dict.fromkeys(kept, "synthetic"),
        "sources": dict.fromkeys(kept, dataset.short_name),
    }


def _jumping(found: Sequence[Fidelity]) -> str:
    """Says that slices do not fit together; empty if they do so about as well as in real scans."""
    ours, real = (
        sum(values) / len(found)
        for values in ([f.jumps for f in found], [f.real_jumps for f in found])
    )
    if not 0 < real * _MANY_JUMPS < ours:
        return ""
    return (
        f"Neighbouring slices differ by {ours:.2f} standard deviations, {ours / real:.1f} times as "
        f"much as in real scans ({real:.2f}): they do not fit together in 3D. Learn the "
        "translation longer, or train 2d alone on them."
    )


def _table(found: Sequence[Fidelity], kept: Sequence[Fidelity], least: float) -> str:
    names = list(found[0].dice)
    head: list[object] = ["case", "mean_dice", *names, "slices", "slices_below"]
    rows = [[*head, "jumps", "real_jumps", "grey", "kept"]]
    for each in found:
        known = [value for value in each.slices if value is not None]
        rows.append(
            [
                each.case,
                f"{each.mean:.4f}",
                *("" if each.dice[n] is None else f"{each.dice[n]:.4f}" for n in names),
                len(known),
                sum(value < least for value in known),
                f"{each.jumps:.4f}",
                f"{each.real_jumps:.4f}",
                f"{each.grey:.4f}",
                each in kept,
            ]
        )
    return csv_text(rows)


def _draw(
    path: Path,
    found: Sequence[Fidelity],
    maps: Mapping[str, _Files],
    pairs: Mapping[str, Any],
) -> None:
    """Draws the slice in the middle of each case's fidelity, the worst cases first."""
    panels = []
    for each in sorted(found, key=lambda fidelity: fidelity.mean)[:_SHOWN]:
        known = [(dice, z) for z, dice in enumerate(each.slices) if dice is not None]
        if not known:
            continue
        dice, z = sorted(known)[len(known) // 2]
        (image, label, predicted), spacing = maps[each.case].shown(z)
        panels.append(
            Panel(
                image=image,
                reference=label,
                prediction=predicted,
                spacing_mm=spacing,
                caption=f"{each.case}: {each.mean:.2f}; slice {z + 1}: {dice:.2f}",
            )
        )
    rows = [
        Row(title="", panels=tuple(panels[first : first + _COLUMNS]), window=(0, BRIGHTEST))
        for first in range(0, len(panels), _COLUMNS)
    ]
    outlined = tuple(ours for ours, _ in pairs.values())
    title = "Translated images, the slice in the middle of each: labels, and what the judge finds"
    if rows:
        draw_outlines(path, rows, outlined=outlined, title=title)


def _clean(folder: Path, predicted: Path, left_out: set[str]) -> None:
    shutil.rmtree(predicted)
    for name in left_out:
        image_in(folder, name).unlink()
