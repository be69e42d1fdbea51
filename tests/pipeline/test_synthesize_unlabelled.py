"""synthesize fit where the images that are imitated have no labels, on phantoms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run
from ct_and_mr import CT, MR, write_ct_and_mr

import autoliver
from autoliver.datasets.cases import read_dataset
from autoliver.errors import AutoliverError
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.models.files import FoldModel
from autoliver.pipeline.translation.fit import FitRequest, fit
from autoliver.pipeline.translation.synthesizer import SynthesisFolder, Synthesizer
from autoliver.synthesis.translation import domains
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.workspace import Workspace

SHORT = TranslationOptions(
    features=4, blocks=1, batch_size=2, epochs=1, iterations=1, patch=(32, 32), lr=1e-3
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned CT phantom, an MR phantom with labels, and its images alone."""
    root = tmp_path_factory.mktemp("unlabelled")
    write_ct_and_mr(root, cases=3)
    autoliver.plan(root / CT, preset="tiny", workspace=root / "ws")
    shutil.copytree(root / MR / "imagesTr", root / "scans")
    return root


def learn(root: Path, target: object, name: str, **given: object) -> SynthesisFolder:
    values = {"source": CT, "target": str(target), "name": name, "options": SHORT, **given}
    return fit(Workspace(root / "ws"), FitRequest(**values))


def test_images_without_labels_are_imitated_by_the_command_line(place: Path) -> None:
    short = "--features 4 --blocks 1 --epochs 1 --iterations 1 --batch-size 1 --patch 32 32"
    words = ("synthesize", "fit", "--from", "CT", "--to", place / "scans", "-o", "bare")
    run(*words, *short.split(), "-w", place / "ws")
    info = Synthesizer.load(place / "ws/synthesis/bare/synthesizer.json")
    assert (info.target, info.plan.modality, info.finished) == ("scans", "MR", True)
    assert len(info.seen) == 3
    model = FoldModel.load(place / "ws/synthesis/bare/segmentor/2d/fold_all/model.json")
    assert model.plan.labels == read_dataset(place / CT).labels
    out = place / "Dataset933_Bare"
    found = run("synthesize", "apply", "bare", out, "--qc-min-dice", 0, "-w", place / "ws")
    assert all(value > 0 for value in found["real_jumps"].values())
    assert all(value > 0 for value in found["grey"].values())
    run("verify", out, "-w", place / "ws")
    assert "mr" not in {p.name.casefold() for p in (place / "ws").iterdir()}  # nothing is planned


def test_a_plan_without_labels_is_that_of_the_dataset_with_labels(place: Path) -> None:
    """Spacing, order of axes and normalisation do not depend on labels; nor do other folders."""
    bare = learn(place, place / "scans", "one")
    shutil.copytree(place / MR / "imagesTr", place / "Folder_T2/imagesTr")
    described = place / "Dataset940_Described"
    shutil.copytree(place / MR / "imagesTr", described / "imagesTr")
    shutil.copyfile(place / MR / "dataset.json", described / "dataset.json")
    whole = place / "Dataset941_Whole"
    shutil.copytree(place / MR, whole)
    plans = [Synthesizer.load(bare.info)]
    for index, target in enumerate(("Folder_T2", "Dataset940_Described", "Dataset941_Whole")):
        folder = learn(place, place / target, f"plan-{index}")
        plans.append(Synthesizer.load(folder.info))
    assert [each.target for each in plans[1:]] == [
        p.name for p in (place / "Folder_T2", described, whole)
    ]
    first, *others = (each.plan.configurations["2d"] for each in plans)
    for other in others:
        assert other.spacing_mm == first.spacing_mm
        assert other.normalization == first.normalization == ("zscore",)
    assert len({each.plan.axis_codes for each in plans}) == 1
    assert len({each.seen for each in plans}) == 1


def test_spacing_and_held_out_cases_of_images_without_labels(place: Path) -> None:
    folder = learn(
        place, place / "scans", "coarse", spacing_mm=(8.0, 5.0, 5.0), held_out=("MR_000",)
    )
    info = Synthesizer.load(folder.info)
    assert info.plan.configurations["2d"].spacing_mm == (5.0, 5.0)
    assert len(info.seen) == 2
    stored = {path.name.partition(".")[0] for path in folder.target.rglob("*.image.b2nd")}
    assert stored == {"MR_001", "MR_002"}


def test_cases_of_a_dataset_that_lack_labels_are_seen_too(place: Path, tmp_path: Path) -> None:
    partly = tmp_path / "Dataset942_Partly"
    shutil.copytree(place / MR, partly)
    (partly / "labelsTr/MR_001.nii.gz").unlink()
    raw = json.loads((partly / "dataset.json").read_text())
    (partly / "dataset.json").write_text(json.dumps({**raw, "numTraining": 2}))
    folder = learn(place, partly, "partly")
    assert len(Synthesizer.load(folder.info).seen) == 3
    stored = {path.name.partition(".")[0] for path in folder.target.rglob("*.label.b2nd")}
    assert stored == {"MR_000", "MR_002"}


def test_slices_without_labels_reach_as_far_as_those_of_the_source(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MR from head to foot: as many slices are seen as CT shows labels in, those in the middle."""
    drawn: dict[str, object] = {}
    stream = domains.Domain.stream

    def kept(self: domains.Domain, *args: object, **more: object) -> object:
        drawn["source" if not self.shown else "target"] = self
        return stream(self, *args, **more)

    monkeypatch.setattr(domains.Domain, "stream", kept)
    for path in sorted((place / "scans").iterdir()):
        image = read_image([path])
        longer = np.concatenate([image.array] * 3, axis=1)
        geometry = image.geometry
        shape = (24, *geometry.shape_zyx[1:])
        write_image(tmp_path / "long" / path.name, longer, msgspec_replace(geometry, shape))
    learn(place, tmp_path / "long", "long")
    source, target = drawn["source"], drawn["target"]
    assert isinstance(source, domains.Domain)
    assert isinstance(target, domains.Domain)
    ends = [source.slices(case) for case in source.cases]
    extent = np.mean([(end - first) for first, end in ends])
    for case, (first, end) in target.shown.items():
        assert end - first == round(extent), case
        assert abs((first + end) / 2 - 12) <= 1
    patches = target.stream((32, 32), batch_size=50, seed=(0,))
    places = patches.sampler.places(np.random.default_rng(0))
    inside = {place.start[0] for place in places}
    assert inside <= set(
        range(min(f for f, _ in target.shown.values()), max(e for _, e in target.shown.values()))
    )
    assert len(inside) > 2


def msgspec_replace(geometry: object, shape: tuple[int, int, int]) -> object:
    import dataclasses

    import msgspec

    if dataclasses.is_dataclass(geometry):
        return dataclasses.replace(geometry, shape_zyx=shape)  # type: ignore[type-var]
    return msgspec.structs.replace(geometry, shape_zyx=shape)


def spoiled(images: Path, folder: Path, how: str) -> Path:
    """The images, spoiled in some way."""
    folder.mkdir()
    if how == "empty":
        return folder
    for path in images.iterdir():
        shutil.copyfile(path, folder / path.name)
    first = sorted(folder.iterdir())[0]
    image = read_image([first])
    if how == "unreadable":
        first.write_bytes(first.read_bytes()[:200])
    elif how == "constant":
        write_image(first, np.full_like(image.array, 7), image.geometry)
    elif how == "two channels":
        shutil.copyfile(first, folder / first.name.replace("_0000", "_0001"))
    elif how == "CT":
        write_image(first, image.array.astype(np.int16) - 1024, image.geometry)
    elif how == "alone":
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "problem", "given"),
    [
        ("empty", "no images", {}),
        ("unreadable", "MR_000", {}),
        ("constant", "MR_000: every voxel of .* is 7", {}),
        ("two channels", "MR_000.*channel", {}),
        ("CT", "are these CT or MR", {}),
        ("alone", "slices to learn from, fewer than the 50 of a batch", {"batch_size": 50}),
    ],
)
def test_images_that_cannot_be_imitated(
    place: Path, tmp_path: Path, how: str, problem: str, given: dict[str, int]
) -> None:
    folder = spoiled(place / "scans", tmp_path / "mr", how)
    with pytest.raises(AutoliverError, match=problem) as caught:
        learn(place, folder, "never", options=SHORT.replace(**given))
    assert caught.value.hint
    assert not (place / "ws/synthesis/never/synthesizer.json").exists()


@pytest.mark.parametrize(
    ("target", "given", "problem"),
    [
        ("scans", {"modality": "CT"}, "HU"),
        ("scans", {"held_out": ("MR_000", "MR_001", "MR_002")}, "names all"),
        ("scans", {"name": "ct"}, "CT is called that as well"),
        ("Nope", {}, "Nope"),
        (MR, {"spacing_mm": (8.0, 4.0, 4.0)}, "has a plan, which says the spacing"),
        (MR, {"modality": "CT"}, "--modality CT"),
    ],
)
def test_options_that_do_not_go_with_the_images(
    place: Path, target: str, given: dict[str, object], problem: str
) -> None:
    with pytest.raises(AutoliverError, match=problem):
        learn(place, place / target, **{"name": "never", **given})


@pytest.mark.parametrize("where", [CT, MR])
def test_slices_that_are_all_the_same(place: Path, tmp_path: Path, where: str) -> None:
    """The slices with labels are blank, and something is above them."""
    for name in (CT, MR):
        shutil.copytree(place / name, tmp_path / name)
    case = read_dataset(tmp_path / where).cases[1]
    image = read_image([Path(case.images[0])])
    shown = read_label(Path(str(case.label))).array[0].any(axis=(1, 2))
    array = image.array.copy()
    array[:, 1:] = array[:, :1].max()
    label = read_label(Path(str(case.label)))
    assert shown[2:].any()
    marked = label.array[0].astype(np.uint8)
    marked[:3] = 0
    write_image(Path(case.images[0]), array, image.geometry)
    write_label(Path(str(case.label)), marked, label.geometry)
    for name in (CT, MR):
        autoliver.plan(tmp_path / name, preset="tiny", workspace=tmp_path / "ws")
    with pytest.raises(AutoliverError, match=rf"{where}: {case.name}: slices .* same value"):
        learn(tmp_path, MR, "never")


def test_sources_without_labels_and_of_other_anatomy(place: Path, tmp_path: Path) -> None:
    bare = tmp_path / "Dataset943_Bare"
    shutil.copytree(place / CT, bare)
    shutil.rmtree(bare / "labelsTr")
    with pytest.raises(AutoliverError, match="none with a label"):
        learn(place, place / "scans", "never", source=str(bare))
    brain = tmp_path / "Dataset944_Brain"
    shutil.copytree(place / MR, brain)
    text = (brain / "dataset.json").read_text()
    for name in read_dataset(brain).labels.foreground:
        text = text.replace(f'"{name}"', f'"brain_{name}"').replace("liver", "lobe")
    (brain / "dataset.json").write_text(text)
    autoliver.plan(brain, preset="tiny", workspace=place / "ws")
    with pytest.raises(AutoliverError, match="no label in common") as caught:
        learn(place, brain, "never")
    assert "imagesTr" in caught.value.hint
    assert read_label(next((brain / "labelsTr").iterdir())).array.any()
