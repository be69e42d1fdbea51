"""Groups the files of a dataset into cases, almost always by their names alone."""

import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoliver.commands import command
from autoliver.errors import DatasetError
from autoliver.io.dicom.walk import holds_dicom
from autoliver.io.drawn import is_drawn
from autoliver.io.files import read_header
from autoliver.io.header import ENDINGS, PICTURES, SEGMENTATION, label_ending, split_ending
from autoliver.io.paths import check_printable, link_target, missing_file, printable
from autoliver.system import entries, refuse_special
from autoliver.values import counted, name_problem, shortened

# Case name -> (image files, label file)
Files = dict[str, tuple[tuple[Path, ...], Path | None]]

# Takes the name of a case and what is wrong with its files.
OnProblem = Callable[[str, DatasetError], object]

# What the name of a map of uncertainty has behind the name of its label map.
UNCERTAINTY = "_uncertainty"
# Pictures that lie beside the label maps of a prediction, and are none.
PREVIEW = "_preview.png"
RELIABILITY_FILE, VOLUMES_FILE = "reliability.png", "volumes.png"
# Beside them lies what was written with them, also with the name of a single case before it.
RECORD_FILE, SCORES_FILE = "predict.json", "scores.json"

# The folders of images and labels.
_FOLDERS = ("images", "labels", "imagesTr", "labelsTr")
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def find_case_images(
    folder: str | Path,
    *,
    channels: int,
    file_ending: str | None,
    on_problem: OnProblem | None = None,
) -> dict[str, tuple[Path, ...]]:
    """Finds the images to predict on.

    The files of a case are `<case>_0000.nii.gz` and so on, one per channel, or a single file
    `<case>.nii.gz` that holds all channels.

    Args:
        folder: A folder of images, or one image file; if a case has several files, any of them.
        channels: Number of channels that the model expects.
        file_ending: The ending to take if a case exists in two file types, None for no preference;
            all supported types are read.
        on_problem: Takes the name and the error of a case of the folder that lacks a channel, has
            too many, exists twice or has a name that cannot be shown, and the case is left out;
            None: the error is raised.

    Returns:
        Case name -> its image files, sorted by name.

    Raises:
        DatasetError: There are no images, or a case lacks a channel.
    """
    source = Path(folder)
    check_printable(source)
    if source.is_file():
        return _images_of_one_file(source, channels, file_ending)
    if link_target(source) is not None:
        raise missing_file(source)
    if not source.is_dir():
        refuse_special(source)
        raise DatasetError(f"{source}: there is no such folder or file.", hint="Check the path.")
    problems: list[str] = []

    def note(name: str, error: DatasetError) -> None:
        _hand_over(name, error, on_problem)
        problems.append(name)

    files = image_files(source, on_problem=note)
    if not files and not problems:
        raise DatasetError(
            f"{source}: no images, {_endings_found(source)}.", hint=_where_images_are(source)
        )
    stems = by_stem(files, prefer=file_ending, on_problem=on_problem)
    return group_channels(stems, channels=channels, on_problem=on_problem)


def check_spelling(folder: Path) -> None:
    """Refuses folders of images or labels whose names differ from the expected ones in capitals.

    Where capitals count, they would be overlooked.

    Args:
        folder: The folder of a dataset.

    Raises:
        DatasetError: There are such folders; the error names them.
    """
    wrong = {
        path.name: wanted
        for path in entries(folder)
        for wanted in _FOLDERS
        if path.name.casefold() == wanted.casefold()
        and path.is_dir()
        and not (folder / wanted).is_dir()
    }
    if wrong:
        moves = [
            f"mv {shlex.quote(str(folder / a))} {shlex.quote(str(folder / b))}"
            for a, b in wrong.items()
        ]
        raise DatasetError(
            f"{folder}: found {' and '.join(f'{name}/' for name in wrong)}, expected "
            f"{' and '.join(f'{name}/' for name in wrong.values())}: only the capitals differ.",
            hint=f"Rename them: {' && '.join(moves)}",
        )


def paired_files(images: Path, labels: Path, *, ending: str | None, channels: int) -> Files:
    """Pairs the files of a folder of images with those of a folder of labels by their stems.

    Args:
        images: The folder of images; they are named `<case>_0000<ending>` and so on, or
            `<case><ending>` if a file holds all channels. A folder with the slices of a DICOM
            series counts as a file of that name.
        labels: The folder of labels, which are named `<case>` with any ending. It may lack labels
            of some images, and it need not exist.
        ending: The ending of the images; None for any.
        channels: Number of channels of a case.

    Raises:
        DatasetError: There are no images, a case lacks a channel, or a label has no image.
    """
    found = sorted([*image_files(images), *_series_folders(images)])
    if not found:
        raise DatasetError(
            f"{images}: no images" + ("." if images.is_dir() else ", there is no such folder."),
            hint=dicom_hint(images)
            or f"Put the training images there, e.g. case_001_0000{ending or '.nii.gz'}.",
        )
    label_of = by_stem(label_files(labels), prefer=ending)
    chosen = _chosen(found, ending, wanted=label_of)
    if not chosen:
        raise DatasetError(
            f"{images}: no file ends with {ending}, which dataset.json gives as file_ending; "
            f"found {found[0].name} and {len(found) - 1} more.",
            hint=f'Set "file_ending": "{commonest_ending(found)}".',
        )
    cases = group_channels(by_stem(chosen, prefer=ending), channels=channels, labels=label_of)
    orphans = [n for n in label_of if n not in cases and not is_uncertainty(n, cases)]
    if orphans:
        raise DatasetError(
            f"{orphans[0]}: {label_of[orphans[0]]} is a label without an image in {images} "
            f"({len(orphans)} such label(s)).",
            hint="Add the image, or move the label out of the folder.",
        )
    return {name: (paths, label_of.get(name)) for name, paths in cases.items()}


def table_files(where: Path, table: Mapping[str, Any], channels: int) -> Files:
    """Reads the files of each case from the `dataset` table of a dataset.json.

    Args:
        where: The dataset.json; the paths in the table are relative to its folder.
        table: Case name -> {"images": [...], "label": ...}.
        channels: Number of channels of a case.

    Raises:
        DatasetError: An entry has the wrong form, a file does not exist, or a case has the wrong
            number of channels.
    """
    files: Files = {}
    for name, entry in table.items():
        if name_problem(name):
            raise DatasetError(
                f"{where}: dataset: a case is named {shortened(repr(name), 80)}, expected "
                f"{name_problem(name)}.",
                hint="Give the case another name.",
            )
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
            raise DatasetError(
                f'{where}: dataset: {name}: expected {{"images": [...], "label": ...}}, '
                f"found {entry!r}.",
                hint="Correct it in a text editor.",
            )
        images = tuple(_existing_image(where, name, image) for image in entry["images"])
        if len(images) not in (1, channels):
            raise DatasetError(
                f"{where}: dataset: {name}: {counted(len(images), 'image')}, expected {channels}.",
                hint="List one file per channel, or one 4D file.",
            )
        label = entry.get("label")
        files[name] = (images, None if label is None else _existing(where, name, label))
    return files


def listed_files(where: Path, entries: Iterable[Any]) -> Files:
    """Reads the files of each case from the `training` list of a Decathlon dataset.

    Args:
        where: The dataset.json; the paths in the list are relative to its folder.
        entries: The list: {"image": ..., "label": ...} or the path of an image.

    Raises:
        DatasetError: An entry has the wrong form, or a file does not exist.
    """
    files: Files = {}
    for entry in entries:
        image = entry["image"] if isinstance(entry, dict) and "image" in entry else entry
        if not isinstance(image, str):
            raise DatasetError(
                f'{where}: training: expected {{"image": ..., "label": ...}}, found {entry!r}.',
                hint="Correct it in a text editor.",
            )
        path = Path(os.path.normpath(where.parent / image))
        if path.name.startswith("._"):  # macOS adds such files to some archives
            continue
        name = split_ending(path.name)[0]
        images = _listed_images(path) or (_existing_image(where, name, image),)
        if name in files:
            raise DatasetError(
                f"{where}: training: two images are named {name}: {files[name][0][0]} and {path}.",
                hint="Give their files different names, since they name the cases.",
            )
        label = entry.get("label") if isinstance(entry, dict) else None
        files[name] = (images, None if label is None else _existing(where, name, label))
    return files


def _chosen(found: Sequence[Path], ending: str | None, *, wanted: Collection[str]) -> list[Path]:
    """The images of the stated ending, in capitals as well, series, and others of lacking cases.

    Such others are files of another type among the rest. Pictures of cases that are whole, or of
    none that has a label, stay out.
    """
    if ending is None:
        return list(found)
    chosen = [path for path in found if split_ending(path.name)[1].lower() in (ending, "")]
    if not chosen:
        return []
    stems = {_stem(path) for path in chosen}
    others = [path for path in found if _stem(path) not in stems]
    in_channels = {match[1] for stem in stems if (match := _CHANNEL.fullmatch(stem))}
    for path in others:
        match = _CHANNEL.fullmatch(_stem(path))
        if match is None or _stem(path) in wanted:
            lacks = _stem(path) in wanted and _stem(path) not in in_channels
        else:
            lacks = match[1] in {*wanted, *in_channels} - stems
        if lacks:
            chosen.append(path)
    return sorted(chosen)


def _existing_image(where: Path, name: str, file: object) -> Path:
    folder = Path(os.path.normpath(where.parent / str(file)))
    return folder if holds_dicom(folder) else _existing(where, name, file)


def _existing(where: Path, name: str, file: object) -> Path:
    path = Path(os.path.normpath(where.parent / str(file)))
    if not path.is_file():
        target = link_target(path)
        missing = "does not exist" if target is None else f"is a link to {target}, which is missing"
        raise DatasetError(
            f"{name}: {path} is listed in {where.name} but {missing}.",
            hint="Put the file there, or take the case out of the list.",
        )
    return path


def image_files(folder: Path, *, on_problem: OnProblem | None = None) -> list[Path]:
    """Returns what a folder holds under the name of an image, sorted.

    Hidden files and segmentations of 3D Slicer are left out. Links to nothing and folders stay in,
    so that they are noticed when they are read.

    Args:
        folder: The folder.
        on_problem: As for `find_case_images`.

    Raises:
        DatasetError: A name cannot be shown (`io.paths.check_printable`).
    """
    return [p for p in label_files(folder, on_problem=on_problem) if not _is_segmentation(p)]


def label_files(folder: Path, *, on_problem: OnProblem | None = None) -> list[Path]:
    """Returns what a folder holds under the name of an image or a segmentation, sorted.

    Pictures that were drawn of label maps or scores in the folder are left out.

    Args:
        folder: The folder.
        on_problem: As for `find_case_images`.

    Raises:
        DatasetError: As for `image_files`.
    """
    if not folder.is_dir():
        return []
    there = {path.name: path for path in folder.iterdir()}
    files = sorted(
        path
        for name, path in there.items()
        if not name.startswith(".") and split_ending(name)[1] and not _is_drawn(path, there)
    )
    shown = []
    for path in files:
        try:
            check_printable(path)
        except DatasetError as error:
            _hand_over(printable(_stem(path)), error, on_problem)
        else:
            shown.append(path)
    return shown


def is_uncertainty(name: str, cases: Container[str]) -> bool:
    """Whether a file, named without its ending, is the map of uncertainty of one of some cases."""
    return name.endswith(UNCERTAINTY) and name.removesuffix(UNCERTAINTY) in cases


def _series_folders(folder: Path) -> list[Path]:
    """The folders in a folder of images that hold the slices of a DICOM series, at any depth."""
    return [
        path
        for path in entries(folder)
        if path.is_dir() and not path.name.startswith(".") and not split_ending(path.name)[1]
        if holds_dicom(path)
    ]


def _is_drawn(path: Path, there: Container[str]) -> bool:
    """Whether a file is a picture that `predict` or `evaluate` drew, among those of a folder.

    Pictures that were drawn before they had a mark are known by what lies beside them.
    """
    name = path.name
    if name.endswith(PREVIEW):
        case = name.removesuffix(PREVIEW)
        return RECORD_FILE in there or f"{case}_{RECORD_FILE}" in there or is_drawn(path)
    return any(
        f"{name.removesuffix(picture)}{SCORES_FILE}" in there or is_drawn(path)
        for picture in (RELIABILITY_FILE, VOLUMES_FILE)
        if name == picture or name.endswith(f"_{picture}")
    )


def _is_segmentation(path: Path) -> bool:
    return split_ending(path.name)[1].lower() == SEGMENTATION


def by_stem(
    files: Iterable[Path], *, prefer: str | None, on_problem: OnProblem | None = None
) -> dict[str, Path]:
    """Returns a mapping from stem to file.

    Args:
        files: Files with an ending in `io.header.ENDINGS`.
        prefer: The ending to take if two files have the same stem; None for no preference.
        on_problem: As for `find_case_images`; takes a stem.

    Raises:
        DatasetError: Two files have the same stem, and neither has the preferred ending.
    """
    found: dict[str, Path] = {}
    doubtful: dict[str, DatasetError] = {}
    for path in files:
        stem, ending = split_ending(path.name)
        other = found.get(stem)
        if other is not None and split_ending(other.name)[1].lower() == prefer:
            continue
        if other is not None and ending.lower() != prefer:
            doubtful[stem] = DatasetError(
                f"{path.parent}: {other.name} and {path.name} are one image in two file types.",
                hint="Move one of them out of the folder.",
            )
        found[stem] = path
    for stem, error in doubtful.items():
        _hand_over(stem, error, on_problem)
        del found[stem]
    return found


def _hand_over(name: str, error: DatasetError, on_problem: OnProblem | None) -> None:
    if on_problem is None:
        raise error
    on_problem(name, error)


def group_channels(
    files: Mapping[str, Path],
    *,
    channels: int,
    labels: Collection[str] = (),
    on_problem: OnProblem | None = None,
) -> dict[str, tuple[Path, ...]]:
    """Groups image files into cases.

    Args:
        files: Stem -> file.
        channels: Number of channels of a case.
        labels: Stems of label files. An image with one of these stems is a case of its own, even if
            the stem ends with four digits.
        on_problem: As for `find_case_images`.

    Returns:
        Case name -> its image files, sorted by name.

    Raises:
        DatasetError: A case lacks a channel or has too many.
    """
    whole: dict[str, Path] = {}
    split: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        match = None if stem in labels else _CHANNEL.fullmatch(stem)
        if match is None:
            whole[stem] = path
        else:
            split.setdefault(match[1], {})[int(match[2])] = path
    for name, found in list(split.items()):
        # Digits that cannot be a channel belong to the name, e.g. "liver_0041".
        if all(index >= channels for index in found) and name not in labels:
            whole |= {split_ending(path.name)[0]: path for path in found.values()}
            del split[name]
    cases: dict[str, tuple[Path, ...]] = {}
    for name in sorted({*split, *whole}):
        try:
            cases[name] = _files_of(name, whole.get(name), split.get(name, {}), channels)
        except DatasetError as error:
            _hand_over(name, error, on_problem)
    return cases


def _files_of(
    name: str, path: Path | None, found: Mapping[int, Path], channels: int
) -> tuple[Path, ...]:
    """Returns the files of a case: one with all channels, or one for each of them."""
    if path is None:
        return _all_channels(name, found, channels)
    if found:
        raise DatasetError(
            f"{name}: both {path.name} and {next(iter(found.values())).name} exist.",
            hint="Move one of them out of the folder.",
        )
    return _one_file(name, path, channels)


def commonest_ending(files: Iterable[Path]) -> str:
    """Returns the ending, in small letters, that most of the files have.

    Folders of slices count as files with the ending of their label maps.
    """
    endings = (split_ending(path.name)[1].lower() for path in files)
    counts = Counter(ending or label_ending(ending) for ending in endings)
    return counts.most_common(1)[0][0]


def _listed_images(path: Path) -> tuple[Path, ...]:
    # nnU-Net v1 lists <case>.nii.gz although the folder holds <case>_0000.nii.gz and so on.
    if path.is_file():
        return (path,)
    stem, ending = split_ending(path.name)
    names = f"{glob.escape(stem)}_[0-9][0-9][0-9][0-9]{glob.escape(ending)}"
    return tuple(entries(path.parent, names))


def _images_of_one_file(
    path: Path, channels: int, file_ending: str | None
) -> dict[str, tuple[Path, ...]]:
    stem, ending = split_ending(path.name)
    if not ending:
        raise DatasetError(
            f"{path}: not an image by its file ending; expected one of {', '.join(ENDINGS)}.",
            hint="Convert it to .nii.gz.",
        )
    if _is_segmentation(path):
        raise DatasetError(
            f"{path}: a segmentation of 3D Slicer, expected an image.",
            hint="Give the image that it belongs to.",
        )
    match = _CHANNEL.fullmatch(stem)
    if match is None or int(match[2]) >= channels:
        return group_channels({stem: path}, channels=channels)
    siblings = image_files(path.parent) if channels > 1 else []
    near = by_stem(
        (p for p in siblings if re.fullmatch(re.escape(match[1]) + r"_\d{4}", _stem(p))),
        prefer=file_ending,
    )
    return group_channels({**near, stem: path}, channels=channels)


def _stem(path: Path) -> str:
    return split_ending(path.name)[0]


def _all_channels(name: str, found: Mapping[int, Path], channels: int) -> tuple[Path, ...]:
    one = next(iter(found.values()))
    ending = split_ending(one.name)[1]
    # As nnU-Net has it, a colour image is one file, although each colour is a channel.
    if channels > 1 and [*found] == [0] and (held := _held(one)) > 1:
        return _one_file(name, one, channels, held=held)
    have = ", ".join(path.name for _, path in sorted(found.items()))
    for index in range(channels):
        if index not in found:
            raise DatasetError(
                f"{name}: channel {index} of {channels} is missing: expected "
                f"{one.with_name(f'{name}_{index:04d}{ending}')}, found {have}.",
                hint="Add the file, or take the case out of the folder.",
            )
    if len(found) > channels:
        raise DatasetError(
            f"{name}: {counted(len(found), 'channel')} in {one.parent} ({have}), expected "
            f"{channels}.",
            hint="Move the extra files out of the folder, or name each channel in dataset.json.",
        )
    return tuple(found[index] for index in range(channels))


def _held(path: Path) -> int:
    """The number of channels of a file; 0 if it cannot be read."""
    try:
        return read_header(path).channels
    except DatasetError:
        return 0


def _one_file(name: str, path: Path, channels: int, *, held: int | None = None) -> tuple[Path, ...]:
    if channels == 1:
        return (path,)
    held = read_header(path).channels if held is None else held
    if held != channels:
        ending = split_ending(path.name)[1]
        mend = "Add the missing" if held < channels else "Leave out the surplus"
        raise DatasetError(
            f"{name}: {path} holds {counted(held, 'channel')}, expected {channels}: "
            f"{name}_0000{ending} to {name}_{channels - 1:04d}{ending}, or one file with all.",
            hint=transparency([path], held=held, channels=channels)
            or f"{mend} channels, or take the case out of the folder.",
        )
    return (path,)


def transparency(images: Iterable[str | Path], *, held: int, channels: int) -> str:
    """Hints at pictures with transparency, which counts as a channel; empty if it is not that.

    Args:
        images: The files of a case.
        held: Number of their channels.
        channels: The expected number.
    """
    pictures = all(split_ending(str(path))[1].lower() in PICTURES for path in images)
    if not pictures or (held, channels) != (4, 3):
        return ""
    return "The fourth channel is transparency (alpha): save the pictures as RGB, without it."


def _endings_found(folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"found {shown}" if names else "the folder is empty"


def dicom_hint(folder: Path) -> str:
    """Says how to make images of a folder with DICOM series; empty if it holds none."""
    if not holds_dicom(folder):
        return ""
    convert = command("convert", "dicom", str(folder), "OUT", options=["--labels", "LABELS"])
    plan = command("plan", "OUT")
    return (
        "This folder holds DICOM. For a dataset, put the slices of each case into a folder of its "
        "own, images/CASE/, beside labels/CASE.nii.gz. Or make image files of the series: "
        f"{convert} && {plan} (OUT is a new folder; LABELS holds a label map of each case, without "
        "--labels images alone are made)."
    )


def _where_images_are(folder: Path) -> str:
    if hint := dicom_hint(folder):
        return hint
    for name in ("imagesTs", "imagesTr", "images"):
        if image_files(folder / name):
            return f"Did you mean {folder / name}?"
    return f"Expected files ending with {', '.join(ENDINGS)}."
