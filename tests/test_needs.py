import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import STATS, SaveFold, configuration_of, plan, save

from autoliver.datasets.cases import Case, Labels
from autoliver.errors import OptionError
from autoliver.inference.model import Model, load_model
from autoliver.inference.predict import make_jobs
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.machine import Machine
from autoliver.models.files import MemberFiles, ModelFiles
from autoliver.needs import (
    Held,
    Stage,
    prepare_need,
    read_need,
    score_need,
    show_need,
    single_need,
)
from autoliver.parallel import Limits, Need, refuse_over_budget
from autoliver.pipeline.prediction import PredictRequest, held_by, stages_of, too_large
from autoliver.planning.plan import Normalization, Plan
from autoliver.preprocessing.prepare import PrepareTask

__all__ = ["plan", "save"]

SHAPE = (64, 128, 128)
IMAGE_GB = 64 * 128 * 128 * 4 / 2**30


@pytest.fixture
def case(tmp_path: Path) -> Case:
    geometry = Geometry(shape_zyx=SHAPE, spacing_mm=(2.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    image = rng.normal(0, 100, (1, *SHAPE)).astype(np.float32)
    write_image(tmp_path / "a_0000.nii.gz", image, geometry)
    write_label(tmp_path / "a.nii.gz", (image[0] > 0).astype(np.uint8), geometry)
    return Case(
        name="a",
        images=(str(tmp_path / "a_0000.nii.gz"),),
        label=str(tmp_path / "a.nii.gz"),
        patient="a",
    )


def test_needs_are_known_from_headers(case: Case) -> None:
    assert read_need(case).gb == pytest.approx(1.35 * IMAGE_GB)
    assert read_need(case.replace(images=case.images * 3)).gb == pytest.approx(3 * 1.35 * IMAGE_GB)
    pair = (Path(str(case.label)), Path(str(case.label)))
    assert score_need(("a", pair)).gb == score_need(pair[0]).gb == pytest.approx(1.25 * IMAGE_GB)


def test_a_file_that_cannot_be_read_needs_nothing(case: Case, tmp_path: Path) -> None:
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    bad = case.replace(images=(str(tmp_path / "b.nii.gz"), str(tmp_path / "none.nii.gz")))
    assert read_need(bad).gb == 0
    plan = make_plan("ct")
    stages = [Stage(plan, plan.configurations["3d_fullres"])]
    assert single_need("a", [Path(path) for path in bad.images], stages, Held()).gb < 1e-6


# Prints by how many bytes the peak rises from a small case to a large one, of the same process.
MEASURE = """
import sys
from pathlib import Path
import blosc2, nibabel, scipy.ndimage, SimpleITK
from autoliver.datasets.cases import Case
from autoliver.planning.fingerprint import _read_case
from autoliver.planning.plan import Plan
from autoliver.planning.verify import check_case
from autoliver.preprocessing.prepare import PrepareTask, prepare_case

stage, folder = sys.argv[1], Path(sys.argv[2])
plan = Plan.load(folder / f"plan-{sys.argv[3]}.json")
configuration = plan.configurations["3d_fullres"]

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

for size in ("small", "large"):
    before = peak()
    case = Case(
        name=size,
        images=(str(folder / f"{size}_0000.nii"),),
        label=str(folder / f"{size}.nii"),
        patient=size,
    )
    if stage == "verify":
        check_case(case, labels=plan.labels, channels=1)
    elif stage == "fingerprint":
        _read_case(case, draws=10**5, most_values=1 << 22, labels=plan.labels)
    else:
        wanted = configuration.replace(spacing_mm=(float(stage),) * 3)
        prepare_case(PrepareTask(case=case, plan=plan, configuration=wanted, folder=folder))
print(peak() - before)
"""
_LARGE = (80, 384, 384)


def make_plan(scheme: Normalization) -> Plan:
    return Plan(
        dataset="Dataset009_Toy",
        preset="tiny",
        vram_gb=1.0,
        channel_names=("CT",),
        modality="other",
        labels=Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)}),
        file_ending=".nii",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        intensities=(STATS,),
        configurations={"3d_fullres": configuration_of(3).replace(normalization=(scheme,))},
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, and a small and a large case on a grid of 1 mm."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for name, shape in (("small", (16, 32, 32)), ("large", _LARGE)):
        geometry = Geometry(shape_zyx=shape, spacing_mm=(1.0, 1.0, 1.0))
        image = rng.integers(-100, 100, (1, *shape)).astype(np.int16)
        image[..., shape[2] // 2 :] = -1000  # air
        write_image(folder / f"{name}_0000.nii", image, geometry)
        label = np.zeros(shape, dtype=np.uint8)
        label[: shape[0] // 2, : shape[1] // 4] = 1
        write_label(folder / f"{name}.nii", label, geometry)
    for scheme in ("ct", "zscore"):
        make_plan(scheme).save(folder / f"plan-{scheme}.json")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux tells it")
@pytest.mark.parametrize(
    ("stage", "scheme"),
    [
        *(("verify", "ct"), ("fingerprint", "ct"), ("1", "ct"), ("2", "ct"), ("1.4", "ct")),
        *(("1", "zscore"), ("2", "zscore")),
    ],
)
def test_estimates_cover_what_stages_take(stage: str, scheme: Normalization, large: Path) -> None:
    command = [sys.executable, "-c", MEASURE, stage, str(large), scheme]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    case = Case(name="a", images=(str(large / "large_0000.nii"),), label=None, patient="a")
    needed = read_need(case)
    if stage in ("1", "2", "1.4"):
        plan = make_plan(scheme)
        wanted = plan.configurations["3d_fullres"].replace(spacing_mm=(float(stage),) * 3)
        task = PrepareTask(case=case, plan=plan, configuration=wanted, folder=large)
        needed = prepare_need(task)
    # What a process takes whatever the size is, such as the parts of a file, weighs more here.
    assert int(found) / 2**30 <= 1.1 * needed.gb + 0.01


@pytest.mark.parametrize(
    ("memory_gb", "needed", "refused"),
    [(1.0, 0.5, False), (1.0, 1.0, False), (1.0, 1.5, True), (None, 1.0, False), (None, 1e6, True)],
)
def test_a_case_far_over_the_budget_is_refused(
    memory_gb: float | None, needed: float, refused: bool
) -> None:
    needs = [Need(name="small", gb=0.01), Need(name="large", gb=needed)]
    limits = Limits(memory_gb=memory_gb)
    if not refused:
        refuse_over_budget(needs, limits, "predict")
        return
    with pytest.raises(OptionError, match=f"large: to predict it needs about {needed:.1f} GB"):
        refuse_over_budget(needs, limits, "predict")


# The members of a model and what is asked of it -> the memory in images, by hand: the image on the
# network's grid; 3 rows of logits and their weights, or those of all 9 slices of a slab; the label
# map. Reading takes 3.5.
MEMBERS: dict[str, tuple[tuple[str, ...], dict[str, Any], int]] = {
    "a label map": (("fold_0",), {}, 1 + (3 + 1) + 1),
    "two folds": (("fold_0 fold_1",), {}, 1 + (3 + 1) + 1),
    "an ensemble": (("fold_0", "fold_1"), {}, 2 + 2 * 3 + 1 + 1),
    "probabilities": (("fold_0",), {"probabilities": True}, 1 + 3 + 1 + 1 + 2 * 3),
    "uncertainty": (("fold_0",), {"uncertainty": True}, 1 + 2 * 3 + 1 + 1 + 3),
    "of two folds": (("fold_0 fold_1",), {"uncertainty": True}, 1 + 3 * 3 + 1 + 1 + 3),
    "of members": (("fold_0", "fold_1"), {"uncertainty": True}, 2 + 4 * 3 + 1 + 1 + 3),
    "how sure lesions are": (("fold_0",), {"outputs": True}, 1 + 3 + 1 + 1 + 1),
    "a class for each lesion": (("fold_0",), {"classes": ("liver", "tumour")}, 1 + 3 + 6 + 1 + 1),
}
_GRID = Geometry(shape_zyx=(9, 8, 8), spacing_mm=(2.0, 2.0, 2.0))
_ONE_GB = 9 * 8 * 8 * 4 / 2**30


def model_of(members: tuple[str, ...], save: SaveFold) -> Model:
    names = {name for member in members for name in member.split()}
    folders = {name: save(name, seed=seed) for seed, name in enumerate(sorted(names))}
    parts = [MemberFiles(folds=tuple(folders[name] for name in m.split())) for m in members]
    files = ModelFiles(name="model", members=tuple(parts))
    return load_model(files, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", MEMBERS)
def test_predictions_that_do_not_fit_are_refused(kind: str, save: SaveFold, tmp_path: Path) -> None:
    members, asked, images = MEMBERS[kind]
    outputs = asked.get("outputs", False)
    options = {
        name: value for name, value in asked.items() if name in PredictRequest.__annotations__
    }
    write_image(tmp_path / "a_0000.nii.gz", np.ones((1, 9, 8, 8), np.float32), _GRID)
    jobs = make_jobs({"a": [tmp_path / "a_0000.nii.gz"]}, tmp_path / "out")
    model = model_of(members, save)
    classes = asked.get("classes", ())
    parts = tuple(replace(member, lesion_classes=classes) for member in model.members)
    model = replace(model, members=parts)

    def refused(share: float) -> dict[str, OptionError]:
        machine = Machine(limits=Limits(memory_gb=share * images * _ONE_GB))
        request = PredictRequest(machine=machine, **options)
        return too_large(model, jobs, request, outputs=outputs)

    assert not refused(1.001)
    (error,) = refused(0.999).values()
    number = r"[\d.e-]+ GB"
    assert re.fullmatch(
        f"a: to predict it needs about {number}, --memory-gb allows {number}.", error.problem
    )
    assert "Allow more with --memory-gb" in error.hint
    for option in options:
        assert f"predict without --{option}" in error.hint
    assert ("one of its members alone" in error.hint) == (len(members) > 1)


# Prints by how many bytes the peak rises from a case of one window to one of eight.
PREDICT = """
import sys
from pathlib import Path
import torch, scipy.ndimage, SimpleITK
from autoliver.inference.model import load_model
from autoliver.inference.options import PredictOptions
from autoliver.inference.predict import Listener, make_jobs, predict_jobs
from autoliver.models.files import MemberFiles, ModelFiles
from autoliver.inference import window
from autoliver.preprocessing import case

# What is computed at a time takes little memory beside large scans.
case._SLAB_VOXELS, window._BATCH_VOXELS = 1 << 14, 1
folder, members, asked = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(",")
torch.set_num_threads(1)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

parts = [MemberFiles(folds=tuple(map(Path, m.split()))) for m in members]
model = load_model(ModelFiles(name="m", members=tuple(parts)), device=torch.device("cpu"))
options = PredictOptions(
    step=1.0, mirror=False, exact=True, overlap=False, modality=None,
    probabilities="probabilities" in asked, uncertainty="uncertainty" in asked,
)
listener = Listener(on_lesions=(lambda _, __: None) if "outputs" in asked else None)
for size in ("small", "large"):
    before = peak()
    jobs = make_jobs({size: [folder / f"{size}_0000.nii"]}, folder / "out")
    predict_jobs(model, jobs, options, listener=listener)
print(peak() - before)
"""
_PATCH = (32, 128, 128)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux tells it")
@pytest.mark.parametrize("kind", ["a label map", "an ensemble", "of two folds"])
def test_estimates_cover_what_predictions_take(
    kind: str, plan: Plan, save: SaveFold, tmp_path: Path
) -> None:
    members, asked, _ = MEMBERS[kind]
    rng = np.random.default_rng(0)
    large = (64, 256, 256)
    for name, shape in (("small", _PATCH), ("large", large)):
        image = rng.normal(0, 100, (1, *shape)).astype(np.float32)
        geometry = Geometry(shape_zyx=shape, spacing_mm=(2.0, 2.0, 2.0))
        write_image(tmp_path / f"{name}_0000.nii", image, geometry)
    wide = {"3d_fullres": plan.configurations["3d_fullres"].replace(patch_shape=_PATCH)}
    folders = {
        name: str(save(name, seed=seed, configurations=wide))
        for seed, name in enumerate(("fold_0", "fold_1"))
    }
    words = [" ".join(folders[name] for name in member.split()) for member in members]
    command = [sys.executable, "-c", PREDICT, str(tmp_path), ",".join(words), ",".join(asked)]
    # Otherwise arrays of up to 32 MB, as here, may lie where their memory is not given back.
    command = ["env", "MALLOC_MMAP_THRESHOLD_=1000000", *command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = int(done.stdout) / 2**30
    parts = [MemberFiles(folds=tuple(map(Path, m.split()))) for m in words]
    model = load_model(ModelFiles(name="m", members=tuple(parts)), device=torch.device("cpu"))
    held = held_by(model, PredictRequest(**asked), outputs=False)
    needed = single_need("large", [tmp_path / "large_0000.nii"], stages_of(model), held)
    # The outputs of one window, which are there while the next one is computed, weigh more here.
    assert 0.4 * needed.gb <= found <= needed.gb + 0.03


@pytest.mark.parametrize(("maps", "images"), [(0, 1.35), (2, 1.35), (4, 4 * 0.25 + 0.5)])
def test_slices_take_their_label_maps_first_and_then_the_image(
    maps: int, images: float, case: Case
) -> None:
    need = show_need("a", Path(case.images[0]), [Path(str(case.label))] * maps)
    assert need.gb == pytest.approx(images * IMAGE_GB)
