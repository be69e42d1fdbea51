"""What needs a GPU to be worth knowing: epochs, waiting for data, prediction of a large scan.

    python -m benchmarks.gpu [--device cuda] [--peer DIR | --no-peer] [--quick] [--output FILE.json]

The rows `cache-...` are ours alone: the same training, its cases on the GPU, in memory, on disk.
Runs on the CPU too, with `--device cpu --quick`. nnU-Net trains as it does by default: compiled,
mixed precision, its own number of loader processes. `gpu_mb` is what PyTorch reserved.
"""

import functools
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import read_arguments, report
from benchmarks.measure import run
from benchmarks.row import Bench, Row, Skip, Target, Values
from benchmarks.rows_datasets import link_dataset, planned, predict_row, workspace

_PHANTOM = "Dataset701_BenchmarkCT"
_HIPPOCAMPUS = "Dataset004_Hippocampus"
_SEED = 20
# The first epoch (compilation, caches) is not counted.
_EPOCHS, _ITERATIONS = 4, 50
_CACHES = ("gpu", "ram", "disk")


def train_phantom(bench: Bench, cache: str = "auto") -> Row:
    """Full-sized patches: a phantom CT of usual size."""
    source = _phantoms(bench)
    return _train(bench, _PHANTOM, link_dataset(bench, source), cache)


def train_hippocampus(bench: Bench, cache: str = "auto") -> Row:
    """Small patches, where loaders and launches weigh most."""
    source = bench.needs(bench.shared / "data" / _HIPPOCAMPUS)
    few = 6 if bench.quick else None
    return _train(bench, _HIPPOCAMPUS, link_dataset(bench, source, few), cache)


def predict_phantom(bench: Bench) -> Row:
    """One CT of 512x512x400."""
    source = link_dataset(bench, _phantoms(bench))
    images = bench.folder / "large"
    shape = (20, 64, 64) if bench.quick else (400, 512, 512)
    _write_phantom(images, shape)
    preset = "tiny" if bench.quick else "default"
    row = predict_row(bench, _PHANTOM, source, images=images, preset=preset)
    return Row(
        work=f"{row.work}, {shape}",
        ours=row.ours,
        peer=row.peer,
        targets=(
            Target("speed", 3, least=True),
            Target("memory", 1),
            Target("GPU memory", 1),
            Target("dice", 0.999, least=True),
        ),
        compare=lambda ours, peer: {
            **(row.compare(ours, peer) if row.compare else {}),
            **_gpu_memory(ours, peer),
        },
    )


_ROWS = {
    "train": train_phantom,
    "train-hippocampus": train_hippocampus,
    "predict": predict_phantom,
    **{f"cache-{kind}": functools.partial(train_phantom, cache=kind) for kind in _CACHES},
    **{
        f"cache-{kind}-hippocampus": functools.partial(train_hippocampus, cache=kind)
        for kind in _CACHES
    },
}


def main() -> int:
    arguments = read_arguments(_ROWS, what=__doc__, device="cuda")
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=arguments.work) as folder:
        bench = Bench(
            folder=Path(folder),
            shared=arguments.shared,
            peer_folder=None if arguments.no_peer else arguments.peer,
            threads=arguments.threads,
            quick=arguments.quick,
            device=arguments.device,
        )
        rows = {name: _ROWS[name] for name in arguments.only or _ROWS}
        return report(bench, rows, repeats=arguments.repeats, output=arguments.output)


def _train(bench: Bench, name: str, source: Path, cache: str) -> Row:
    if cache == "gpu" and not bench.device.startswith("cuda"):
        raise Skip(f"the training runs on the device {bench.device}")
    alone = cache != "auto"
    preset = "tiny" if bench.quick else "default"
    root = workspace(bench, preset)
    run(bench.our_command("plan", source, "--preset", preset, "-w", root))
    if not alone and planned(bench, name) is not None:
        number = name.removeprefix("Dataset").partition("_")[0]
        call = bench.peer_command("nnUNetv2_preprocess", "-d", number, "-c", "3d_fullres", "-np", 2)
        if call is not None:
            run(call)
    output, results = bench.folder / "trained", bench.folder / "nnunet/results" / name
    epochs, iterations = (2, 2) if bench.quick else (_EPOCHS, _ITERATIONS)
    asked = {"epochs": epochs, "iterations": iterations, "device": bench.device}
    # On a small machine nnU-Net's own network would take minutes for a step.
    features = [4, 8, 8, 8, 8, 8, 8, 8] if bench.quick else None
    return Row(
        work=f"an epoch of {iterations} steps, {name}, {bench.device}, cache {cache}",
        ours=bench.ours(
            "train",
            dataset=source,
            workspace=root,
            output=output,
            cache=cache,
            remove=(output,),
            **asked,
        ),
        peer=None
        if alone
        else bench.peer("train", name=name, features=features, remove=(results,), **asked),
        targets=(Target("data wait", 0.02),)
        if alone
        else (
            Target("speed", 1.5, least=True),
            Target("data wait", 0.02),
            Target("memory", 1),
            Target("GPU memory", 1),
        ),
        compare=None if alone else _compare_training,
        repeats=1,
    )


def _compare_training(ours: Values, peer: Values) -> dict[str, float]:
    return {"nnU-Net's data wait": peer["data wait"], **_gpu_memory(ours, peer)}


def _gpu_memory(ours: Values, peer: Values) -> dict[str, float]:
    if "gpu_mb" not in ours or "gpu_mb" not in peer:
        return {}
    return {"GPU memory": ours["gpu_mb"] / peer["gpu_mb"], "nnU-Net's gpu_mb": peer["gpu_mb"]}


def _phantoms(bench: Bench) -> Path:
    """A dataset of phantom scans, made once."""
    from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

    folder = bench.folder / "phantoms" / _PHANTOM
    if not folder.exists():
        shape = (20, 48, 48) if bench.quick else (160, 256, 256)
        write_phantom_dataset(
            folder.parent,
            name=_PHANTOM,
            cases=6 if bench.quick else 10,
            seed=_SEED,
            options=PhantomOptions(contrast="CT", shape_zyx=shape),
        )
    return folder


def _write_phantom(folder: Path, shape: tuple[int, int, int]) -> None:
    from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

    source = write_phantom_dataset(
        folder.parent / "large phantom",
        name=_PHANTOM,
        cases=1,
        seed=_SEED,
        options=PhantomOptions(contrast="CT", shape_zyx=shape, shape_jitter=0.0),
    )
    folder.mkdir()
    for image in (source / "imagesTr").iterdir():
        image.rename(folder / image.name)


if __name__ == "__main__":
    sys.exit(main())
