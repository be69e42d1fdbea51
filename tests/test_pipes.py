"""Named pipes, whose reading never ends, in every place where a file is expected."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_models import SaveFold, plan, save
from test_workspace import make_dataset

from autoliver.artifacts import file_sha256
from autoliver.datasets.names import is_dataset
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry

__all__ = ["plan", "save"]

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
GRID = Geometry(shape_zyx=(9, 8, 8), spacing_mm=(2.0, 2.0, 2.0))


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def cli(*arguments: object, cwd: Path) -> tuple[int, str]:
    """Runs a command; one that hangs fails the test."""
    done = subprocess.run(
        [sys.executable, "-m", "autoliver", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file",
    [
        "imagesTr/case_1_0000.nii.gz",
        "labelsTr/case_1.nii.gz",
        "imagesTr/case_1_0000.mhd",
        "imagesTr/case_1_0000.nhdr",
        "dataset.json",
    ],
)
@pytest.mark.parametrize("command", ["plan", "verify"])
def test_in_a_dataset(command: str, file: str, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "Dataset001_Toy")
    assert is_dataset(dataset)
    for number in range(3):
        image = np.random.default_rng(number).uniform(0, 500, (1, *GRID.shape_zyx))
        write_image(dataset / f"imagesTr/case_{number}_0000.nii.gz", image, GRID)
        write_label(dataset / f"labelsTr/case_{number}.nii.gz", (image[0] > 250).astype("u1"), GRID)
    if file.endswith("hdr") or file.endswith("mhd"):
        (dataset / "imagesTr/case_1_0000.nii.gz").unlink()
    pipe(dataset / file)
    code, said = cli(command, dataset, cwd=tmp_path)
    assert code == 1
    assert Path(file).name in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "place", ["in/case_0.nii.gz", "run/fold_0/model.json", "run/fold_0/weights.safetensors",
              "out/predict.json", "out/case_0.nii.gz"],
)  # fmt: skip
def test_in_predict(place: str, save: SaveFold, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save("fold_0").rename(tmp_path / "run/fold_0")
    image = np.random.default_rng(0).uniform(0, 500, (1, *GRID.shape_zyx)).astype("f4")
    write_image(tmp_path / "in/case_0.nii.gz", image, GRID)
    pipe(tmp_path / place)
    code, said = cli(*["predict", "-i", "in", "-o", "out", "-m", "run"], cwd=tmp_path)
    assert code == 1
    assert Path(place).name in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["file", "plans.json", "checkpoint"])
def test_in_import(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        source = pipe(tmp_path / "liver.autoliver")
    else:
        source = tmp_path / "model"
        pipe(source / ("plans.json" if kind == "plans.json" else "fold_0/checkpoint_final.pth"))
        (source / "dataset.json").write_text("{}")
    code, said = cli("import", source, cwd=tmp_path)
    assert code == 1
    assert "Traceback" not in said


def test_in_evaluate(tmp_path: Path) -> None:
    label = np.ones(GRID.shape_zyx, dtype=np.uint8)
    for place in ("out", "truth"):
        write_label(tmp_path / place / "case_0.nii.gz", label, GRID)
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    pipe(tmp_path / "other/case_0.nii.gz")
    for pair in (("out", "other"), ("other", "out")):
        code, said = cli("evaluate", "-p", pair[0], "-r", pair[1], cwd=tmp_path)
        assert code == 1
        assert "found a device or a pipe" in said


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_nothing_is_written_over_a_pipe(
    overwrite: list[str], save: SaveFold, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    save("fold_0").rename(tmp_path / "run/fold_0")
    image = np.random.default_rng(0).uniform(0, 500, (1, *GRID.shape_zyx)).astype("f4")
    write_image(tmp_path / "in/case_0.nii.gz", image, GRID)
    for place, command in {
        "m.autoliver": "export run m.autoliver",
        "o.nii.gz": "predict -i in/case_0.nii.gz -o o.nii.gz -m run",
        "out/case_0.nii.gz": "predict -i in -o out -m run",
    }.items():
        file = pipe(tmp_path / place)
        code, said = cli(*command.split(), *overwrite, cwd=tmp_path)
        assert code == 1
        assert file.name in said
        assert file.is_fifo()


def test_where_nothing_is_read_from(tmp_path: Path, save: SaveFold) -> None:
    (tmp_path / "run").mkdir()
    save("fold_0").rename(tmp_path / "run/fold_0")
    pipe(tmp_path / "in.nii.gz")
    code, said = cli(*["predict", "-i", "in.nii.gz", "-o", "out", "-m", "run"], cwd=tmp_path)
    assert (code, "found a device or a pipe" in said) == (1, True)


def test_the_hash_of_a_pipe(tmp_path: Path) -> None:
    from autoliver.errors import MachineError

    call: Callable[[Path], str] = file_sha256
    with pytest.raises(MachineError, match="found a device or a pipe, expected a file"):
        call(pipe(tmp_path / "x"))
