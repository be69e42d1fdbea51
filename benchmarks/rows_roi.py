"""Prediction near what a coarse model finds, against prediction everywhere: our side alone."""

from pathlib import Path

import numpy as np

from benchmarks.row import Bench, Row, Target
from benchmarks.rows_datasets import lowest_dice

_SEED = 3
_SHAPE = (900, 512, 512)
_SPACING_MM = (1.0, 0.75, 0.75)
# A patch is to the body what 128^3 is at 0.8 mm.
_FINE_MM, _COARSE_MM, _PATCH = 1.6, 4.8, 64


def roi(bench: Bench) -> Row:
    """A CT of nearly the whole body, of which the liver is wanted."""
    scale = 4 if bench.quick else 1
    image, truth = _phantom(bench.folder / "roi", scale)
    near, everywhere = bench.folder / "predicted near", bench.folder / "predicted everywhere"
    shared = {
        "image": image,
        "fine_mm": _FINE_MM * scale,
        "coarse_mm": _COARSE_MM * scale,
        "patch": _PATCH // scale,
    }
    shape = " x ".join(str(size // scale) for size in _SHAPE)
    return Row(
        work=f"liver in a phantom CT of {shape}, near what a coarse model finds; the other side is "
        "no nnU-Net but autoliver everywhere; both see the liver by its brightness",
        ours=bench.ours("predict_bright", output=near, near=True, remove=(near,), **shared),
        peer=bench.ours(
            "predict_bright", output=everywhere, near=False, remove=(everywhere,), **shared
        ),
        targets=(Target("speed", 5, least=True), Target("dice", 0.999, least=True)),
        compare=lambda _ours, _peer: {
            "dice": lowest_dice(near, everywhere)["dice"],
            "dice to the truth": lowest_dice(near, truth)["dice"],
        },
        repeats=1,
    )


def _phantom(folder: Path, scale: int) -> tuple[Path, Path]:
    """Folders of the image and of its label map, the liver painted bright."""
    from autoliver.io.files import write_image, write_label
    from autoliver.synthesis.phantom import PhantomOptions, make_phantom
    from benchmarks.bright import BRIGHT_HU

    z, y, x = (size // scale for size in _SHAPE)
    options = PhantomOptions(
        contrast="CT",
        shape_zyx=(z, y, x),
        spacing_mm=(scale * _SPACING_MM[0], scale * _SPACING_MM[1], scale * _SPACING_MM[2]),
        lesions=(0, 0),
    )
    phantom = make_phantom(np.random.default_rng(_SEED), options)
    liver = phantom.label.array == 1
    array = phantom.image.array.astype(np.int16)
    array[liver] = BRIGHT_HU
    write_image(folder / "images/body_0000.nii.gz", array, phantom.image.geometry)
    write_label(folder / "labels/body.nii.gz", liver[0].astype(np.uint8), phantom.image.geometry)
    return folder / "images", folder / "labels"
