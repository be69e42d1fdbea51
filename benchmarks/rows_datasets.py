"""Rows on datasets of files: fingerprint, preprocessing, prediction, start-up."""

import json
from pathlib import Path

import numpy as np

from benchmarks.measure import Call, run
from benchmarks.row import Bench, Row, Target, Values

_CT, _MR, _TINY = "Dataset101_AbdomenCT", "Dataset102_AbdomenMR", "Dataset004_Hippocampus"
_QUICK_CASES = 3
# Of training before `predict`: enough for labels that hang together; the full-sized patches take
# 10 to 30 s a step on two cores.
_STEPS, _QUICK_STEPS = 12, 30


def fingerprint(bench: Bench) -> Row:
    name, source = _source(bench, _CT)
    arguments = {"dataset": source, "name": name}
    return Row(
        work=name,
        ours=bench.ours("fingerprint", dataset=source),
        peer=bench.peer("fingerprint", **arguments),
        targets=(Target("speed", 3, least=True), Target("relative difference", 1e-4)),
        compare=_compare_fingerprints,
    )


def preprocess_ct(bench: Bench) -> Row:
    return _preprocess(bench, _CT)


def preprocess_mr(bench: Bench) -> Row:
    return _preprocess(bench, _MR)


def predict(bench: Bench) -> Row:
    """A small network, trained for a few steps."""
    name, source = _source(bench, _TINY if bench.quick else _MR)
    images = bench.folder / "predict images"
    cases = sorted((source / "imagesTr").iterdir())[: 1 if bench.quick else 2]
    link_all(images, cases)
    return predict_row(bench, name, source, images=images, preset="tiny")


def help_command(bench: Bench) -> Row:
    return Row(
        work="autoliver --help",
        ours=bench.our_command("--help"),
        peer=bench.peer_command("nnUNetv2_plan_and_preprocess", "-h"),
        targets=(Target("seconds", 0.5),),
    )


def plan_again(bench: Bench) -> Row:
    """Planning anew from the fingerprint there is."""
    name, source = _source(bench, _CT)
    _plan_ours(bench, source, "default")
    planned(bench, name)
    return Row(
        work=f"autoliver plan on a planned {name}",
        ours=bench.our_command("plan", source, "-w", workspace(bench, "default")),
        peer=bench.peer_command("nnUNetv2_plan_experiment", "-d", _number(name)),
        targets=(Target("seconds", 1.5),),
    )


def predict_row(bench: Bench, name: str, source: Path, *, images: Path, preset: str) -> Row:
    """End to end on a folder of images, the same weights on both sides.

    They are trained a little: nnU-Net adds up logits in half precision, in which those of random
    weights tie, so that labels differ for no fault of either side.
    """
    plans = planned(bench, name)
    _plan_ours(bench, source, preset)
    root, steps = workspace(bench, preset), _QUICK_STEPS if bench.quick else _STEPS
    words = ("train", source, "3d_fullres", "--fold", "all", "--epochs", 1, "--iterations", steps)
    run(bench.our_command(*words, "--device", bench.device, "-w", root))
    model, results = bench.folder / f"model {name} {preset}", bench.folder / "nnunet/model"
    made = {
        "trained": root / name / "runs/3d_fullres/fold_all",
        "fold": model / "fold_all",
        "results": results,
        "plans": plans,
        "dataset_json": source / "dataset.json",
    }
    run(bench.ours("make_model", **made))
    ours, theirs = bench.folder / "predicted ours", bench.folder / "predicted peer"
    shared = {"images": images, "device": bench.device}
    number = len(list(images.iterdir()))
    return Row(
        work=f"{number} case(s) of {name}, mirrored, {preset} network, {bench.device}",
        ours=bench.ours("predict", fold=model / "fold_all", output=ours, remove=(ours,), **shared),
        peer=bench.peer("predict", model=results, output=theirs, remove=(theirs,), **shared),
        targets=(Target("speed", 1.5, least=True), Target("dice", 0.999, least=True)),
        compare=lambda _ours, _peer: lowest_dice(ours, theirs),
        repeats=2,
    )


def planned(bench: Bench, name: str) -> Path | None:
    """NnU-Net's plans of a dataset, made where they are missing; None without nnU-Net."""
    plans = bench.folder / "nnunet/preprocessed" / name / "nnUNetPlans.json"
    call = bench.peer_command(
        "nnUNetv2_plan_and_preprocess", "-d", _number(name), "--no_pp", "-npfp", bench.threads
    )
    if call is not None and not plans.exists():
        run(call)
    return plans if call is not None else None


def workspace(bench: Bench, preset: str) -> Path:
    """Our workspace for plans of one preset."""
    return bench.folder / f"workspace {preset}"


def link_all(folder: Path, files: list[Path]) -> None:
    """A folder with links to files."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())


def link_dataset(bench: Bench, source: Path, cases: int | None = None) -> Path:
    """The dataset under nnU-Net's raw folder, by links; only the first cases if asked for."""
    target = bench.folder / "nnunet/raw" / source.name
    labels = sorted((source / "labelsTr").iterdir())[:cases]
    images = [
        path
        for label in labels
        for path in (source / "imagesTr").glob(label.name.replace(".nii.gz", "_*.nii.gz"))
    ]
    link_all(target / "labelsTr", labels)
    link_all(target / "imagesTr", images)
    head = json.loads((source / "dataset.json").read_text())
    # nnU-Net takes our optional "modality" for its old table of channels and counts its letters.
    head.pop("modality", None)
    text = json.dumps({**head, "numTraining": len(labels)})
    description = target / "dataset.json"
    if not description.exists() or description.read_text() != text:
        description.write_text(text)
    return target


def _source(bench: Bench, name: str) -> tuple[str, Path]:
    source = bench.needs(bench.shared / "data" / name)
    return name, link_dataset(bench, source, _QUICK_CASES if bench.quick else None)


def _number(name: str) -> str:
    return name.removeprefix("Dataset").partition("_")[0]


def _plan_ours(bench: Bench, source: Path, preset: str) -> None:
    run(bench.our_command("plan", source, "--preset", preset, "-w", workspace(bench, preset)))


def _preprocess(bench: Bench, name: str) -> Row:
    name, source = _source(bench, name)
    _plan_ours(bench, source, "default")
    planned(bench, name)
    root = workspace(bench, "default")
    store = root / name / "store"
    theirs = bench.folder / "nnunet/preprocessed" / name / "nnUNetPlans_3d_fullres"
    words = ("preprocess", source, "3d_fullres", "-w", root, "--workers", bench.threads)
    asked = ("-d", _number(name), "-c", "3d_fullres", "-np", bench.threads)
    ours: Call = bench.our_command(*words, remove=(store,))
    return Row(
        work=f"{name} 3d_fullres",
        ours=ours,
        peer=bench.peer_command("nnUNetv2_preprocess", *asked, remove=(theirs,)),
        targets=(
            Target("speed", 4, least=True),
            Target("cpu", 4, least=True),
            Target("memory", 0.5),
            Target("difference/SD", 1e-4),
            Target("equal labels", 0.9999, least=True),
        ),
        compare=lambda _ours, _peer: _compare_stores(next(store.iterdir()), theirs),
    )


def _compare_fingerprints(ours: Values, peer: Values) -> dict[str, float]:
    numbers = (
        np.array([_flat(a), _flat(b)])
        for a, b in zip(ours["intensities"], peer["intensities"], strict=True)
    )
    grids = all(ours[key] == peer[key] for key in ("spacings", "shapes"))
    return {
        "relative difference": max(
            float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1.0))) for a, b in numbers
        ),
        "equal grids": float(grids),
    }


def _flat(values: Values) -> list[float]:
    return [values[key] for key in sorted(values)]


def _compare_stores(ours: Path, peer: Path) -> dict[str, float]:
    import blosc2

    worst, equal, total = 0.0, 0, 0
    for label in sorted(peer.glob("*_seg.b2nd")):
        case = label.name.removesuffix("_seg.b2nd")
        files = (ours / f"{case}.image.b2nd", peer / f"{case}.b2nd")
        images = [blosc2.open(str(file))[:] for file in files]
        worst = max(worst, float(np.abs(images[0] - images[1]).max() / images[1].std()))
        same = blosc2.open(str(ours / f"{case}.label.b2nd"))[:] == blosc2.open(str(label))[:]
        equal, total = equal + int(same.sum()), total + same.size
    return {"difference/SD": worst, "equal labels": equal / total}


def lowest_dice(ours: Path, peer: Path) -> dict[str, float]:
    """The lowest over cases of the mean over labels, and the lowest of any label."""
    import nibabel

    means, lowest = [], 1.0
    for path in sorted(ours.glob("*.nii.gz")):
        a, b = (np.asarray(nibabel.load(folder / path.name).dataobj) for folder in (ours, peer))
        values = sorted((set(np.unique(a)) | set(np.unique(b))) - {0})
        each = [
            2 * np.count_nonzero((a == v) & (b == v)) / (np.sum(a == v) + np.sum(b == v))
            for v in values
        ]
        means.append(float(np.mean(each)))
        lowest = min([lowest, *map(float, each)])
    return {"dice": min(means), "lowest label's dice": lowest}
