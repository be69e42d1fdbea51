"""synthesize apply: a dataset of translated images, with the labels that still fit."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoliver.artifacts import Record, as_json, brief, replacing, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, Labels, describe_labels, read_new
from autoliver.errors import DatasetError, ModelError, OptionError
from autoliver.evaluation.picture import Panel, Row, draw_outlines
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.parallel import case_bar
from autoliver.pipeline.folder import predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.translation.fit import CONFIGURATION, SynthesisFolder, Synthesizer
from autoliver.preprocessing.case import backward_image, forward
from autoliver.synthesis.translation.apply import (
    BRIGHTEST,
    Fidelity,
    fidelity_of,
    translate,
    whole_numbers,
)
from autoliver.synthesis.translation.domains import Range
from autoliver.transfer.labels import match_labels
from autoliver.values import check_number, check_types, counted, first_few
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    import torch

FIDELITY_FILE = "fidelity.csv"
_SHEET = "fidelity.png"
_SHOWN = 16  # cases on the contact sheet
_COLUMNS = 4


class ApplyRequest(Record, frozen=True, kw_only=True):
    """A request to `synthesize apply`.

    Attributes:
        judge: A model that finds the labels in the target; None: the segmentor that was learnt with
            the translation.
        min_dice: Cases with a lower mean Dice are left out, and slices are ignored in training.
        machine: The device, processes and memory that may be used.
    """

    judge: str | None = None
    min_dice: float = 0.5
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
        table: The CSV file with the fidelity of every case.
        sheet: A picture of the cases, the worst first.
        next_command: The command that makes sense next.
    """

    folder: Path
    cases: tuple[Fidelity, ...]
    left_out: tuple[str, ...]
    ignored: int
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
    if output.exists():
        raise OptionError(f"{output}: it exists already.", hint="Choose a new folder.")
    judge = _judge(folder, info, request)
    dataset = workspace.read(info.source)
    with replacing(output) as beside:
        for part in ("imagesTr", "labelsTr"):
            (beside / part).mkdir(parents=True)
        images = _translate_all(folder, info, dataset, beside / "imagesTr", request)
        pairs = _common(workspace, judge, info)
        predicted = beside / "judged"
        how = PredictRequest(modality=None, machine=request.machine)
        predict_folder(workspace, beside / "imagesTr", predicted, how, models=(judge,))
        maps = {case.name: (images[case.name], Path(str(case.label))) for case in dataset.labelled}
        found = [
            _fidelity(case, *files, predicted / f"{case}.nii.gz", pairs)
            for case, files in maps.items()
        ]
        kept = [each for each in found if each.mean >= request.min_dice]
        _draw(beside / _SHEET, found, maps, predicted, pairs)
        write_bytes(beside / FIDELITY_FILE, _table(found, kept, request.min_dice).encode())
        if not kept:
            raise DatasetError(
                f"{name}: the labels fit none of {counted(len(found), 'translated image')}; the "
                f"best mean Dice is {max(each.mean for each in found):.2f}, expected at least "
                f"{request.min_dice:g}.",
                hint="Learn the translation longer, or keep more with --qc-min-dice.",
            )
        ignored = sum(
            _write_label(beside, each, maps[each.case][1], info.labels, request.min_dice)
            for each in kept
        )
        _clean(beside, predicted, {each.case for each in found} - {each.case for each in kept})
        description = _description(info, dataset, [each.case for each in kept])
        write_bytes(beside / "dataset.json", as_json(description))
        read_new(beside, output)
    return Synthesized(
        folder=output,
        cases=tuple(found),
        left_out=tuple(each.case for each in found if each not in kept),
        ignored=ignored,
        table=output / FIDELITY_FILE,
        sheet=output / _SHEET,
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def find_synthesizer(workspace: Workspace, name: str) -> tuple[SynthesisFolder, Synthesizer]:
    """Finds a translation that is learnt.

    Raises:
        ModelError: There is none, or it is not finished.
    """
    folder = SynthesisFolder(path=workspace.root / "synthesis" / name)
    if not folder.info.exists():
        there = sorted(path.parent.name for path in workspace.root.glob("synthesis/*/*.json"))
        raise ModelError(
            f"{name}: there is no such translation; there is {first_few(there, 5) or 'none'}.",
            hint="Learn one with: autoliver synthesize fit --from SOURCE --to TARGET -o NAME",
        )
    info = Synthesizer.load(folder.info)
    if not info.epochs or not folder.generator.exists():
        raise ModelError(
            f"{name}: this translation is not finished.",
            hint="Give the command that began it again.",
        )
    return folder, info


def _judge(folder: SynthesisFolder, info: Synthesizer, request: ApplyRequest) -> str:
    if request.judge is not None:
        return request.judge
    if not info.options.segments:
        raise OptionError(
            f"{info.name}: no segmentation network was learnt with it, which could judge whether "
            "the labels fit the images.",
            hint="Name a model that finds the labels in such images with --judge.",
        )
    return str(folder.segmentor.parent)


def _common(
    workspace: Workspace, judge: str, info: Synthesizer
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The labels that both the source and the judge have, with their values."""
    from autoliver.models.files import MODEL_FILE, FoldModel

    files = workspace.model_to_predict(judge)
    theirs = FoldModel.load(files.members[0].folds[0] / MODEL_FILE).plan.labels
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


def _translate_all(
    folder: SynthesisFolder,
    info: Synthesizer,
    dataset: Dataset,
    output: Path,
    request: ApplyRequest,
) -> dict[str, Path]:
    from autoliver.networks.checkpoint import load_network
    from autoliver.networks.device import choose_device

    device = choose_device(request.machine.device)
    network = load_network(folder.generator, device=device).eval()
    written = {}
    cases = dataset.labelled
    for case in case_bar("translate", len(cases))(cases):
        written[case.name] = output / f"{case.name}_0000.nii.gz"
        _translate_case(network, info, case, written[case.name], device)
    return written


def _translate_case(
    network: Any, info: Synthesizer, case: Case, path: Path, device: "torch.device"
) -> None:
    image = read_image([Path(name) for name in case.images])
    done = forward(
        image,
        None,
        plan=info.plan,
        configuration=info.plan.configurations[CONFIGURATION],
        name=case.name,
        modality=case.modality,
    )
    low, high = info.source_range
    made = translate(network, done, Range(low=low, high=high), device=device)
    back = backward_image(made, done.properties, fill=-1.0)
    write_image(path, whole_numbers(back), image.geometry)


def _fidelity(
    case: str, image: Path, label: Path, found: Path, pairs: Mapping[str, Any]
) -> Fidelity:
    made = read_image([image]).array[0].astype(np.int16)
    return fidelity_of(case, made, read_label(label).array[0], read_label(found).array[0], pairs)


def _write_label(
    folder: Path, fidelity: Fidelity, source: Path, labels: Labels, least: float
) -> int:
    """Writes the label map of a case, without slices that do not fit; returns their number."""
    label = read_label(source)
    array = label.array[0].astype(np.int32)
    wrong = [z for z, dice in enumerate(fidelity.slices) if dice is not None and dice < least]
    array[wrong] = ignored_value(labels)
    write_label(folder / f"labelsTr/{fidelity.case}.nii.gz", array, label.geometry)
    return len(wrong)


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


def _table(found: Sequence[Fidelity], kept: Sequence[Fidelity], least: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    names = list(found[0].dice)
    writer.writerow(["case", "mean_dice", *names, "slices", "slices_below", "jumps", "kept"])
    for each in found:
        known = [value for value in each.slices if value is not None]
        writer.writerow(
            [
                each.case,
                f"{each.mean:.4f}",
                *("" if each.dice[n] is None else f"{each.dice[n]:.4f}" for n in names),
                len(known),
                sum(value < least for value in known),
                f"{each.jumps:.4f}",
                each in kept,
            ]
        )
    return text.getvalue()


def _draw(
    path: Path,
    found: Sequence[Fidelity],
    maps: Mapping[str, tuple[Path, Path]],
    predicted: Path,
    pairs: Mapping[str, Any],
) -> None:
    """Draws the worst slice of each case, the worst case first."""
    panels = []
    for each in sorted(found, key=lambda fidelity: fidelity.mean)[:_SHOWN]:
        known = [(dice, z) for z, dice in enumerate(each.slices) if dice is not None]
        if not known:
            continue
        dice, z = sorted(known)[len(known) // 2]
        image = read_image([maps[each.case][0]])
        panels.append(
            Panel(
                image=image.array[0, z],
                reference=read_label(maps[each.case][1]).array[0, z],
                prediction=read_label(predicted / f"{each.case}.nii.gz").array[0, z],
                spacing_mm=image.geometry.spacing_mm[1:],
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
    import shutil

    shutil.rmtree(predicted)
    for name in left_out:
        (folder / f"imagesTr/{name}_0000.nii.gz").unlink()
