"""Label maps in files whose compression alters values are refused, wherever they come from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import run

from autoliver.errors import AutoliverError
from autoliver.io.files import write_label
from autoliver.io.header import LOSSY
from autoliver.io.volume import Geometry

LABELS = {"background": 0, "liver": 1, "tumour": 2}
ENDINGS = (*LOSSY, *(ending.upper() for ending in LOSSY), ".Jpg")


def picture(path: Path, *, label: bool = False) -> None:
    """A picture of noise, or a label map of two labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(0, 255, (32, 40)).astype("uint8")
    if label:
        array[:] = 0
        array[8:24, 8:30], array[12:16, 12:16] = 1, 2
    small = path.with_name(f"{path.name}{path.suffix.lower()}")
    sitk.WriteImage(sitk.GetImageFromArray(array), str(small))
    small.rename(path)


def described(folder: Path, **more: object) -> None:
    raw = {"channel_names": {"0": "photo"}, "labels": LABELS, "numTraining": 1, **more}
    (folder / "dataset.json").write_text(json.dumps(raw))


def nnunet(folder: Path, ending: str) -> list[object]:
    picture(folder / "imagesTr/one_0000.png")
    picture(folder / f"labelsTr/one{ending}", label=True)
    described(folder, file_ending=".png")
    return ["plan", folder]


def all_lossy(folder: Path, ending: str) -> list[object]:
    picture(folder / f"imagesTr/one_0000{ending}")
    picture(folder / f"labelsTr/one{ending}", label=True)
    described(folder, file_ending=ending)
    return ["plan", folder]


def table(folder: Path, ending: str) -> list[object]:
    picture(folder / "one.png")
    picture(folder / f"one_label{ending}", label=True)
    described(folder, dataset={"one": {"images": ["one.png"], "label": f"one_label{ending}"}})
    return ["plan", folder]


def decathlon(folder: Path, ending: str) -> list[object]:
    picture(folder / "imagesTr/one.png")
    picture(folder / f"labelsTr/one{ending}", label=True)
    raw = {
        "modality": {"0": "photo"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "training": [{"image": "./imagesTr/one.png", "label": f"./labelsTr/one{ending}"}],
    }
    (folder / "dataset.json").write_text(json.dumps(raw))
    return ["plan", folder]


def plain(folder: Path, ending: str) -> list[object]:
    picture(folder / f"images/one{ending}")
    picture(folder / f"labels/one{ending}", label=True)
    return ["plan", folder, "--modality", "other"]


def described_pair(folder: Path, ending: str) -> list[object]:
    described_by = plain(folder, ending)
    described(folder)
    return described_by


def predictions(folder: Path, ending: str) -> list[object]:
    picture(folder / f"predicted/one{ending}", label=True)
    picture(folder / "truth/one.png", label=True)
    return ["evaluate", "-p", folder / "predicted", "-r", folder / "truth"]


def references(folder: Path, ending: str) -> list[object]:
    picture(folder / "predicted/one.png", label=True)
    picture(folder / f"truth/one{ending}", label=True)
    return ["evaluate", "-p", folder / "predicted", "-r", folder / "truth"]


def corrected(folder: Path, ending: str) -> list[object]:
    picture(folder / "images/one_0000.png")
    picture(folder / f"corrected/one{ending}", label=True)
    nnunet(folder / "Known", ".png")
    words = ["--like", folder / "Known", "--modality", "other"]
    return ["adopt", "-i", folder / "images", "-p", folder / "corrected", folder / "new", *words]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "layout",
    [
        nnunet,
        all_lossy,
        table,
        decathlon,
        plain,
        described_pair,
        predictions,
        references,
        corrected,
    ],
)
def test_a_lossy_label_map_is_refused_in_every_layout(
    layout: Callable[[Path, str], list[object]], ending: str, tmp_path: Path
) -> None:
    folder = tmp_path / "Photos"
    folder.mkdir()
    words = layout(folder, ending)
    with pytest.raises(AutoliverError) as caught:
        run(*words, *([] if words[0] == "evaluate" else ["-w", tmp_path / "w"]))
    said = str(caught.value)
    assert said.count("a label map in a JPEG file") == 1
    assert f"one{ending}" in said or f"one_label{ending}" in said
    assert "PNG or NIfTI" in said
    assert not list(tmp_path.rglob("plan.json"))
    assert not (folder / "new/dataset.json").exists()


@pytest.mark.parametrize("ending", [*LOSSY])
def test_a_lossy_image_is_read(ending: str, tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"Photos/images/case_{number}{ending}")
        picture(tmp_path / f"Photos/labels/case_{number}.png", label=True)
    words = ["--modality", "other", "--preset", "tiny", "-w", tmp_path / "w"]
    plan = run("plan", tmp_path / "Photos", *words)["plan"]
    assert plan["labels"]["values"] == {"background": [0], "label_1": [1], "label_2": [2]}  # type: ignore[index]


@pytest.mark.parametrize("ending", LOSSY)
def test_a_lossy_label_map_is_not_written(ending: str, tmp_path: Path) -> None:
    grid = Geometry(shape_zyx=(1, 4, 4), spacing_mm=(999.0, 1.0, 1.0))
    with pytest.raises(AutoliverError, match="cannot hold labels"):
        write_label(tmp_path / f"one{ending}", np.ones((1, 4, 4), np.uint8), grid)
