"""Rows on made-up arrays: resampling, augmentation, export; and planning from fingerprints."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from benchmarks.row import Bench, Row, Target, Values

_SEED = 12345
_GRAIN = 4  # voxels per blob of the made-up images


def cubic(bench: Bench) -> Row:
    """The anisotropic rule: slices on their own."""
    shape = (20, 128, 128) if bench.quick else (100, 512, 512)
    return _cubic(bench, "cubic", shape, spacing_mm=(3.0, 0.75, 0.75), target_mm=(1.5, 1.0, 1.0))


def cubic_3d(bench: Bench) -> Row:
    """The same image with thinner slices, so that all three axes are interpolated."""
    shape = (20, 128, 128) if bench.quick else (100, 512, 512)
    return _cubic(bench, "cubic-3d", shape, spacing_mm=(1.5, 0.75, 0.75), target_mm=(1.0, 1.0, 1.0))


def labels(bench: Bench) -> Row:
    shape = (20, 128, 128) if bench.quick else (100, 512, 512)
    spacing_mm, target_mm = (3.0, 0.75, 0.75), (1.5, 1.0, 1.0)
    folder = _folder(bench, "labels")
    values = _levels(_blobs(shape, 4 * _GRAIN), 5)
    np.save(folder / "image.npy", values[None].astype(np.int16))
    arguments = {
        "image": folder / "image.npy",
        "shape": _resampled(shape, spacing_mm, target_mm),
        "spacing_mm": spacing_mm,
        "target_mm": target_mm,
    }
    return Row(
        work=f"5 labels {shape} {_mm(spacing_mm)} -> {_mm(target_mm)}",
        ours=bench.ours("labels", **arguments, output=folder / "ours.npy"),
        peer=bench.peer("labels", **arguments, output=folder / "peer.npy"),
        targets=(Target("speed", 10, least=True), Target("equal voxels", 0.9999, least=True)),
        compare=lambda _ours, _peer: _equal(folder),
    )


def export(bench: Bench) -> Row:
    before, after = (
        ((38, 64, 64), (75, 128, 128)) if bench.quick else ((150, 250, 250), (300, 512, 512))
    )
    folder = _folder(bench, "export")
    logits = np.stack([_blobs(before, 2 * _GRAIN, seed=row) for row in range(5)]) * 10
    np.save(folder / "logits.npy", logits)
    spacing_mm = (1.0, 0.8, 0.8)
    arguments = {
        "logits": folder / "logits.npy",
        "shape": after,
        "spacing_mm": spacing_mm,
        "network_mm": [s * a / b for s, a, b in zip(spacing_mm, after, before, strict=True)],
    }
    return Row(
        work=f"5 classes {before} -> {after}",
        ours=bench.ours("export", **arguments, output=folder / "ours.npy"),
        peer=bench.peer("export", **arguments, output=folder / "peer.npy"),
        targets=(
            Target("speed", 10, least=True),
            Target("memory", 0.25),
            Target("equal voxels", 0.9999, least=True),
        ),
        compare=lambda _ours, _peer: _equal(folder),
    )


def augmentation(bench: Bench) -> Row:
    """Two patches with room to rotate, augmented again and again; drawn at random on each side."""
    from autoliver.training.augment.batch import default_augment_spec, initial_patch_shape

    patch, count = ((48,) * 3, 8) if bench.quick else ((128,) * 3, 120)
    shape = initial_patch_shape(patch, default_augment_spec(patch))
    folder = _folder(bench, "augmentation")
    images = np.stack([_blobs(shape, _GRAIN, seed=row)[None] for row in range(2)])
    np.save(folder / "image.npy", images)
    np.save(folder / "label.npy", _levels(images, 5).astype(np.int16))
    arguments = {
        "image": folder / "image.npy",
        "label": folder / "label.npy",
        "patch": patch,
        "count": count,
    }
    return Row(
        work=f"{count} patches of {patch[0]}^3, one thread",
        ours=bench.ours("augment", **arguments),
        peer=bench.peer("augment", **arguments),
        targets=(Target("speed", 4, least=True),),
    )


def plan(bench: Bench) -> Row:
    """Both sides plan from the same golden fingerprints."""
    oracle = bench.needs(bench.shared / "oracle/planner")
    tasks = [path.name for path in sorted(oracle.iterdir())]
    presets = ["default", "M", "L"]
    if bench.quick:
        tasks, presets = ["Dataset004_Hippocampus"], ["default"]
    arguments = {"folder": oracle, "tasks": tasks, "presets": presets}
    return Row(
        work=f"{len(tasks) * len(presets)} fingerprints",
        ours=bench.ours("plan", **arguments),
        peer=bench.peer("plan", **arguments),
        targets=(Target("slowest seconds", 0.5), Target("differing", 0)),
        compare=_differing,
        repeats=1,
    )


def scores(bench: Bench) -> Row:
    """All metrics of five labels of a phantom CT; predicted outlines are off by a few voxels.

    One core is enough: a case is scored by one process. Reading the files is part of it.
    """
    from autoliver.io.files import write_label
    from autoliver.io.volume import Geometry
    from autoliver.synthesis.phantom_anatomy import paint_anatomy, sample_anatomy
    from autoliver.synthesis.phantom_solids import Grid

    shape = (40, 64, 64) if bench.quick else (400, 512, 512)
    step_mm = (400 / shape[0], 380 / shape[1], 380 / shape[2])  # (z, y, x), of an adult's abdomen
    matrix = np.diag(step_mm[::-1])[:, ::-1].copy()
    grid = Grid(shape_zyx=shape, matrix=matrix, origin_mm=-matrix @ ((np.array(shape) - 1) / 2))
    rng = np.random.default_rng(_SEED)
    _, reference = paint_anatomy(sample_anatomy(rng, lesions=(2, 4)), grid)
    moved = np.roll(reference, (1, 2, -2), axis=(0, 1, 2))
    where = _blobs(shape, 4 * _GRAIN) > 0
    folder, geometry = _folder(bench, "scores"), Geometry(shape_zyx=shape, spacing_mm=step_mm)
    for side, array in (("pred", np.where(where, moved, reference)), ("ref", reference)):
        write_label(folder / side / "case.nii.gz", array, geometry)
    words = ("evaluate", "-p", folder / "pred", "-r", folder / "ref", "--overwrite")
    return Row(
        work=f"{len(np.unique(reference)) - 1} labels {shape}, all metrics, from files",
        ours=bench.our_command(*words, "-o", folder / "out", "--workers", 1),
        peer=None,
        targets=(Target("seconds", 10),),
    )


def _cubic(
    bench: Bench,
    name: str,
    shape: tuple[int, ...],
    *,
    spacing_mm: tuple[float, ...],
    target_mm: tuple[float, ...],
) -> Row:
    folder = _folder(bench, name)
    np.save(folder / "image.npy", _blobs(shape, _GRAIN)[None])
    arguments = {
        "image": folder / "image.npy",
        "shape": _resampled(shape, spacing_mm, target_mm),
        "spacing_mm": spacing_mm,
        "target_mm": target_mm,
    }
    return Row(
        work=f"{shape} {_mm(spacing_mm)} -> {_mm(target_mm)}",
        ours=bench.ours("cubic", **arguments, output=folder / "ours.npy"),
        peer=bench.peer("cubic", **arguments, output=folder / "peer.npy"),
        targets=(
            Target("speed", 10, least=True),
            Target("memory", 0.5),
            Target("difference/SD", 1e-4),
        ),
        compare=lambda _ours, _peer: _difference(folder),
    )


def _folder(bench: Bench, name: str) -> Path:
    folder = bench.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _blobs(shape: tuple[int, ...], grain: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Smooth noise with some white noise on it, about 0 +- 1."""
    rng = np.random.default_rng([_SEED, seed])
    coarse = rng.normal(size=[-(-size // grain) + 1 for size in shape]).astype(np.float32)
    smooth = ndimage.zoom(coarse, grain, order=1, grid_mode=True, mode="nearest")
    cut = smooth[tuple(slice(size) for size in shape)]
    return cut + 0.05 * rng.standard_normal(shape, dtype=np.float32)


def _levels(image: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    return np.digitize(image, np.linspace(-0.8, 0.8, count - 1))


def _resampled(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], target_mm: tuple[float, ...]
) -> tuple[int, ...]:
    return tuple(
        round(size * before / after)
        for size, before, after in zip(shape, spacing_mm, target_mm, strict=True)
    )


def _mm(spacing: tuple[float, ...]) -> str:
    return "x".join(f"{value:g}" for value in spacing) + " mm"


def _difference(folder: Path) -> dict[str, float]:
    ours, peer = np.load(folder / "ours.npy"), np.load(folder / "peer.npy")
    return {"difference/SD": float(np.abs(ours - peer).max() / peer.std())}


def _equal(folder: Path) -> dict[str, float]:
    ours, peer = np.load(folder / "ours.npy"), np.load(folder / "peer.npy")
    return {"equal voxels": float(np.mean(ours == peer))}


def _differing(ours: Values, peer: Values) -> dict[str, float]:
    a, b = ours["decisions"], peer["decisions"]
    return {
        "differing": sum(a.get(key) != b.get(key) for key in a.keys() | b.keys()),
        "nnU-Net's slowest seconds": peer["slowest seconds"],
    }
