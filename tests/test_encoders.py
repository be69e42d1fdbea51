"""Networks with a classification encoder through all commands, on phantoms at the smallest size."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from safetensors.numpy import load_file

from autoliver.errors import ModelError, OptionError
from autoliver.io.files import read_label
from autoliver.networks.spec import DSNetSpec, EncoderUNetSpec
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
STEPS = ("--epochs", 1, "--iterations", 2, "--batch-size", 2, "--deterministic")
LITE = ("--preset", "tiny", "--encoder", "efficientnet_lite0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, a plan of Omnia-Net for the first, and a trained fold of it."""
    folder = tmp_path_factory.mktemp("encoders")
    ct = PhantomOptions(contrast="CT", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    mr = PhantomOptions(contrast="T2", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    write_phantom_dataset(folder / "data", name=CT, cases=5, seed=1, options=ct)
    write_phantom_dataset(folder / "data", name=MR, cases=2, seed=2, options=mr, test_cases=1)
    workspace = folder / "workspace"
    run("plan", folder / "data" / CT, *LITE, "--arch", "omnia", "-w", workspace)
    run("train", CT, "2d", "--fold", 0, *STEPS, "--ema", 0.9, "-w", workspace)
    return folder


def fold(place: Path, name: str, run_name: str, number: int | str = 0) -> Path:
    return place / "workspace" / name / "runs" / run_name / f"fold_{number}"


def test_the_plan_says_its_network_and_keeps_it(place: Path) -> None:
    path = place / "workspace" / CT / "plan.json"
    plan = Plan.load(path)
    assert (plan.arch, plan.encoder, plan.z_strides) == ("omnia", "efficientnet_lite0", "auto")
    for name, axes in (("2d", 2), ("3d_fullres", 3)):
        network = plan.configurations[name].network  # type: ignore[index]
        assert isinstance(network, EncoderUNetSpec)
        assert (network.dimension, network.feed, network.drop_path) == (axes, "front", 0.4)
    reason = plan.configurations["2d"].reasons["topology"]
    assert "Encoder efficientnet_lite0 applied to the features of the front" in reason
    run("plan", CT, "-w", place / "workspace")
    assert Plan.load(path).configurations == plan.configurations


def test_it_learns_and_its_held_out_case_is_scored(place: Path) -> None:
    made = fold(place, CT, "2d")
    assert (made / "validation/scores.json").is_file()
    weights = load_file(made / "weights.safetensors")
    count = weights["encoder.bn1.num_batches_tracked"]
    assert (count.dtype, int(count)) == (np.int64, 2)


def test_a_3d_network_starts_from_all_of_the_2d_one(place: Path) -> None:
    source = ("--pretrained", "PhantomCT/2d/fold_0", "--inflate", "center")
    run("train", CT, "3d_fullres", "--fold", "all", *source, *STEPS, "-w", place / "workspace")
    made = place / "workspace" / CT / "runs/3d_fullres@PhantomCT"
    transfer = json.loads((made / "transfer.json").read_text())
    assert transfer["share"] == 1.0
    assert {weight["action"] for weight in transfer["table"]["weights"]} == {"loaded", "adapted"}
    start = load_file(made / "start.safetensors")
    flat = load_file(fold(place, CT, "2d") / "weights.safetensors")
    name = "encoder.bn1.running_var"
    assert np.array_equal(start[name], flat[name])


def test_frozen_parts_keep_weights_and_statistics(place: Path) -> None:
    source = ("--pretrained", "PhantomCT/2d/fold_0", "--freeze", "encoder,front")
    words = ("train", place / "data" / MR, "2d", "--fold", "all", *source, *STEPS)
    run(*words, "-w", place / "workspace")
    before = load_file(fold(place, CT, "2d") / "weights.safetensors")
    tuned = load_file(fold(place, MR, "2d@PhantomCT", "all") / "weights.safetensors")
    for name, value in tuned.items():
        frozen = name.startswith(("encoder.", "front."))
        assert np.array_equal(before[name], value) == frozen, name


def test_it_predicts_the_same_from_its_file(place: Path) -> None:
    images = ("-i", place / "data" / MR / "imagesTs", "--exact", "--modality", "MR")
    model = f"{CT}/2d"
    run("predict", *images, "-o", place / "by_name", "-m", model, "-w", place / "workspace")
    file = place / "omnia.autoliver"
    run("export", model, file, "-w", place / "workspace")
    run("import", file, "--name", "OurOmnia", "-w", place / "other")
    run("predict", *images, "-o", place / "by_file", "-m", "OurOmnia", "-w", place / "other")
    (one,) = (place / "by_name").glob("*.nii.gz")
    labels = [read_label(place / name / one.name).array for name in ("by_name", "by_file")]
    assert np.array_equal(*labels)
    scored = ("-p", place / "by_name", "-r", place / "by_file", "-d", CT)
    run("evaluate", *scored, "-w", place / "workspace")


def test_nnunet_cannot_have_it(place: Path) -> None:
    target = place / "nnunet"
    words = ("export", f"{CT}/2d", target, "--format", "nnunet")
    with pytest.raises(ModelError, match="nnU-Net has no network of kind 'encoder-unet'"):
        run(*words, "-w", place / "workspace")
    assert not target.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--encoder", "resnet18"), "encoder is efficientnet_lite0, the target's resnet18"),
        (("--encoder", "efficientnet_lite0"), "encoder is applied to the features of the front"),
        ((), "network is efficientnet_lite0 [+] 4-8-16-32-64, the target's unet"),
    ],
)
def test_weights_of_another_encoder_are_refused(
    place: Path, options: tuple[str, ...], told: str
) -> None:
    workspace = place / "-".join(("own", *options))
    run("plan", place / "data" / MR, "--preset", "tiny", *options, "-w", workspace)
    source = ("--pretrained", fold(place, CT, "2d"), "--own-plan")
    with pytest.raises(ModelError, match=told):
        run("train", MR, "2d", "--fold", "all", *source, *STEPS, "-w", workspace)


def test_published_strides_need_patches_of_32_slices_and_more_than_one_voxel(place: Path) -> None:
    workspace = place / "published"
    words = ("--preset", "tiny", "--arch", "dxnet")
    run("plan", place / "data" / MR, *words, "-w", workspace)
    run("plan", MR, "--z-strides", "all", "-w", workspace)  # the encoder is that of the plan
    plan = Plan.load(workspace / MR / "plan.json")
    assert plan.encoder == "efficientnet_b0"
    assert plan.configurations["3d_fullres"].patch_shape == (32, 32, 64)
    assert plan.configurations["3d_fullres"].network.total_stride == (32, 32, 32)
    assert plan.configurations["2d"].patch_shape == (32, 32)
    train = ("train", MR, "3d_fullres", "--fold", "all", *STEPS[:4], "-w", workspace)
    with pytest.raises(OptionError, match="and leave more than one voxel"):
        run(*train, "--patch", "32,32,32")
    run(*train, "--batch-size", 1)


def test_ds_net_learns_goes_on_and_predicts(place: Path) -> None:
    workspace = place / "stacked"
    words = ("--preset", "tiny", "--arch", "dsnet", "--encoder", "resnet18")
    run("plan", place / "data" / MR, *words, "-w", workspace)
    network = Plan.load(workspace / MR / "plan.json").configurations["3d_fullres"].network
    assert isinstance(network, DSNetSpec)
    assert network.depths == (10, 5, 5, 5, 3)
    train = ("train", MR, "3d_fullres", "--fold", "all", *STEPS, "-w", workspace)
    run(*train)
    images = ("-i", place / "data" / MR / "imagesTs", "-o", place / "by_stack", "--exact")
    run("predict", *images, "-m", f"{MR}/3d_fullres", "-w", workspace)
    assert len(list((place / "by_stack").glob("*.nii.gz"))) == 1
    source = ("--pretrained", f"{MR}/3d_fullres", "--freeze", "encoder,stack", "--tag", "again")
    run(*train, *source)
    runs = workspace / MR / "runs"
    before = load_file(runs / "3d_fullres/fold_all/weights.safetensors")
    (tuned,) = runs.glob("3d_fullres@*/fold_all/weights.safetensors")
    after = load_file(tuned)
    for name, value in after.items():
        frozen = name.startswith(("plane.encoder.", "stack."))
        assert np.array_equal(before[name], value) == frozen, name
