"""Prediction near what a coarse model finds, against prediction everywhere: our side alone."""

import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks.measure import run
from benchmarks.row import Bench, Row, Target
from benchmarks.rows_datasets import lowest_dice

_NAME = "Dataset702_LiverCT"
_SEED = 3
# With so little memory to fit, the plan's patches are to these scans what 128^3 is to clinical
# ones, and there is a low resolution. A minute or two of training each on two cores.
_VRAM_GB = 0.5
_STEPS, _QUICK_STEPS = 40, 10


def roi(bench: Bench) -> Row:
    """A CT of nearly the whole body, of which the liver is wanted.

    Both networks are trained by our commands on smaller phantoms for a short time, so they are
    poor; both sides use the same ones, and their label maps are compared with one another.
    """
    scale = 2 if bench.quick else 1
    source = _phantoms(bench.folder / "roi", _NAME, cases=4, shape=(200, 240, 240), scale=scale)
    large = _phantoms(
        bench.folder / "roi/large", _NAME, cases=1, shape=(900, 512, 512), scale=scale
    )
    root, images = bench.folder / "workspace roi", large / "imagesTr"
    run(bench.our_command("plan", source, "--preset", "tiny", "--vram", _VRAM_GB, "-w", root))
    steps = _QUICK_STEPS if bench.quick else _STEPS
    for configuration in ("3d_lowres", "3d_fullres"):
        words = (
            "train",
            _NAME,
            configuration,
            "--fold",
            "all",
            "--epochs",
            1,
            "--iterations",
            steps,
        )
        run(bench.our_command(*words, "--device", bench.device, "-w", root))
    near, everywhere = bench.folder / "predicted near", bench.folder / "predicted everywhere"
    words = ("predict", "-i", images, "-m", f"{_NAME}/3d_fullres", "-w", root)
    words = (*words, "--device", bench.device)
    return Row(
        work=f"liver in a phantom CT of {_shape((900, 512, 512), scale)}, tiny network, with --roi "
        f"auto; not against nnU-Net but against autoliver without, {bench.device}",
        ours=bench.our_command(*words, "-o", near, "--roi", "auto", remove=(near,)),
        peer=bench.our_command(*words, "-o", everywhere, remove=(everywhere,)),
        targets=(Target("speed", 5, least=True), Target("dice", 0.999, least=True)),
        compare=lambda _ours, _peer: (
            lowest_dice(near, everywhere)
            | {f"to the truth, {k}": v for k, v in lowest_dice(near, large / "labelsTr").items()}
        ),
        repeats=1,
    )


def _phantoms(
    folder: Path, name: str, *, cases: int, shape: tuple[int, int, int], scale: int
) -> Path:
    """Phantoms with the liver alone as their label."""
    import nibabel

    from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

    spacing_mm = (1.0, 0.75, 0.75) if cases == 1 else (1.6, 1.6, 1.6)
    z, y, x = (scale * mm for mm in spacing_mm)
    options = PhantomOptions(contrast="CT", shape_zyx=_shape(shape, scale), spacing_mm=(z, y, x))
    shutil.rmtree(folder / name, ignore_errors=True)
    dataset = write_phantom_dataset(folder, name=name, cases=cases, seed=_SEED, options=options)
    for path in (dataset / "labelsTr").iterdir():
        image = nibabel.load(path)
        # With its tumours.
        liver = np.isin(np.asarray(image.dataobj), (1, 2)).astype(np.uint8)
        nibabel.Nifti1Image(liver, image.affine, image.header).to_filename(path)
    description = dataset / "dataset.json"
    head = json.loads(description.read_text())
    description.write_text(json.dumps({**head, "labels": {"background": 0, "liver": 1}}))
    return dataset


def _shape(shape: tuple[int, int, int], scale: int) -> tuple[int, int, int]:
    z, y, x = (size // scale for size in shape)
    return z, y, x
