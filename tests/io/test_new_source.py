"""Another type of image file: what docs/architecture.md says to change is enough."""

import json
from pathlib import Path

import numpy as np
from copied import CopiedPackage

from autoliver.io.files import read_image
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

READER = '''
"""Arrays of numpy with their spacing beside them."""

from pathlib import Path

import numpy as np

from autoliver.io.header import Header, OpenedFile
from autoliver.io.volume import Geometry


def open_npz(path: Path) -> OpenedFile:
    """Opens a file with `array` (z, y, x) and `spacing_mm` (z, y, x)."""
    file = np.load(path)
    array, spacing = file["array"], tuple(float(mm) for mm in file["spacing_mm"])
    header = Header(
        geometry=Geometry(shape_zyx=array.shape, spacing_mm=spacing),
        channels=1,
        pixel_type=str(array.dtype),
        integer=array.dtype.kind in "iu",
    )
    return OpenedFile(header, lambda: array[None])
'''


def test_images_of_a_new_type_are_planned_and_preprocessed(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 32, 32), spacing_mm=(6.0, 5.0, 5.0))
    source = write_phantom_dataset(
        tmp_path, name="Dataset001_Npz", cases=3, seed=1, options=options, test_cases=0
    )
    for path in list((source / "imagesTr").iterdir()):
        image = read_image([path])
        np.savez(
            path.with_name(path.name.replace(".nii.gz", ".npz")),
            array=image.array[0],
            spacing_mm=image.geometry.spacing_mm,
        )
        path.unlink()
    for path in list((source / "labelsTr").iterdir()):
        label = read_image([path])
        np.savez(
            path.with_name(path.name.replace(".nii.gz", ".npz")),
            array=label.array[0].astype(np.uint8),
            spacing_mm=label.geometry.spacing_mm,
        )
        path.unlink()
    head = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**head, "file_ending": ".npz"}))

    copied = CopiedPackage(tmp_path / "copied")
    refused = copied.run("plan", source, "-w", tmp_path / "w", code=1)
    assert "file_ending: expected one of" in refused.stderr
    copied.add("io/npz.py", READER)
    copied.edit("io/header.py", '".nii.gz", ".nii", ', '".nii.gz", ".nii", ".npz", ')
    copied.edit(
        "io/files.py",
        "_OPENERS: dict[str, Callable[[Path], OpenedFile]] = {",
        'from autoliver.io.npz import open_npz\n_OPENERS = {".npz": open_npz, ',
    )
    assert copied.changed == {"io/npz.py", "io/header.py", "io/files.py"}
    found = copied.run("plan", source, "--preset", "tiny", "-w", tmp_path / "w", "--json")
    assert json.loads(found.stdout)["plan"]["file_ending"] == ".npz"
    copied.run("preprocess", source, "2d", "-w", tmp_path / "w")
    assert len(list((tmp_path / "w/Dataset001_Npz/store").glob("*/*.label.b2nd"))) == 3
