"""2D networks that see neighbouring slices as channels, from the plan to the label map."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import small_trainings
import torch
from commands import run, told
from torch import Tensor, nn

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.errors import AutoliverError, OptionError
from autoliver.inference.window import Scan, sliding_window
from autoliver.models.files import FoldModel
from autoliver.networks.checkpoint import load_weights
from autoliver.planning.plan import Plan, PlanOptions, neighbours
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.augment.batch import augmentation
from autoliver.training.fold import FoldTask, patch_stream
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.stream import Patches, TrainingBatch

CPU = torch.device("cpu")
NAME = "Dataset001_PhantomCT"
SHORT = ("--epochs", 1, "--iterations", 2)
CHANNELS, SHAPE, PATCH, SLICES = 2, (6, 20, 24), (16, 16), 5


class ArrayCase:
    """A case whose values say where they come from: c * 1000 + z in the image, z in the label."""

    facts = CaseFacts.named("case").replace(annotated={"tumour": "none"})
    previous = None
    spacing_mm = (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        z = np.arange(SHAPE[0]).reshape(1, -1, 1, 1)
        channel = 1000 * np.arange(1, 1 + CHANNELS).reshape(-1, 1, 1, 1)
        self.image = (z + channel + np.zeros((1, 1, *SHAPE[1:]))).astype(np.float32)
        self.label = np.broadcast_to(z, (1, *SHAPE)).astype(np.int16)
        self.locations = {1: np.argwhere(self.label[0] == 1).astype(np.int32)}


def make_task(**options: object) -> FoldTask:
    task = small_trainings.make_task(Path(), foreground=0.0, **options)
    decided = task.configuration
    configuration = decided.replace(
        batch_size=8,
        normalization=("zscore",) * CHANNELS,
        mask_norm=(False,) * CHANNELS,
        network=decided.network.replace(in_channels=CHANNELS * SLICES),
        slices=SLICES,
    )
    cases = [ArrayCase()]
    return replace(task, configuration=configuration, train=cases, validation=cases)


def drawn(kind: CacheKind, augment: str | None) -> list[TrainingBatch]:
    task = make_task()
    spec = augmentation(task.configuration, augment, mirror=True) if augment else None
    patches = Patches(patch_stream(task, task.train, spec, number=0), kind, CPU)
    shape = task.configuration.drawn_shape
    return list(patches.batches(range(8), patch_shape=shape, spec=spec))


def by_hand(z: int) -> list[int]:
    """The slices around one, where the first and last are repeated."""
    padded = [0] * (SLICES // 2) + list(range(SHAPE[0])) + [SHAPE[0] - 1] * (SLICES // 2)
    return padded[z : z + SLICES]


@pytest.mark.parametrize("kind", ["disk", "ram", "gpu"])
def test_a_patch_is_a_slice_with_its_neighbours_as_channels(kind: CacheKind) -> None:
    seen = set()
    for batch in drawn(kind, None):
        assert batch.image.shape == (8, CHANNELS * SLICES, *PATCH)
        assert batch.target.shape == (8, 1, *PATCH)
        for image, target in zip(batch.image, batch.target, strict=True):
            z = int(target.max())
            seen.add(z)
            inside = image.flatten(1).max(1).values.reshape(CHANNELS, SLICES)
            for channel, found in enumerate(inside, start=1):
                assert found.tolist() == [1000 * channel + n for n in by_hand(z)]
    assert seen == set(range(SHAPE[0]))


@pytest.mark.parametrize("augment", ["default", "gin", "gin-ipa", "palette", "synthseg"])
def test_augmented_patches_keep_their_shape_and_the_label_of_the_middle_slice(augment: str) -> None:
    views = 3 if augment == "gin-ipa" else 1
    for batch in drawn("ram", augment):
        assert batch.image.shape == (8 * views, CHANNELS * SLICES, *PATCH)
        assert batch.image.isfinite().all()
        assert batch.target.shape == (8, 1, *PATCH)
        # One slice holds one value, and 0 outside the image.
        for target in batch.target:
            assert len(set(target.unique().tolist()) - {0}) <= 1


def test_neighbouring_slices_change_alike() -> None:
    task = make_task()
    spec = augmentation(task.configuration, "default", mirror=True)
    assert spec is not None
    assert spec.mirror_axes == (1, 2)
    assert spec.spatial.dimension == 2
    # Slices of equal values stay equal in whatever is smooth: only noise tells them apart.
    quiet = spec.replace(
        intensity=tuple(s for s in spec.intensity if s.name not in ("noise", "blur"))
    )
    case = ArrayCase()
    case.image[:] = np.random.default_rng(0).normal(size=(1, 1, *SHAPE[1:]))
    stream = patch_stream(task, [case], quiet, number=0)
    for batch in Patches(stream, "ram", CPU).batches(
        range(6), patch_shape=task.configuration.drawn_shape, spec=quiet
    ):
        slices = batch.image.unflatten(1, (CHANNELS, SLICES))
        assert torch.allclose(slices, slices[:, :, :1].expand_as(slices), atol=1e-4)


def test_what_is_known_of_the_middle_slice_is_told_of_it_alone() -> None:
    organ = Labels(
        values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
    )
    task = replace(make_task(outside_negative=1.5), labels=organ)
    stream = patch_stream(task, task.train, None, number=0)
    shape = task.configuration.drawn_shape
    for batch in Patches(stream, "ram", CPU).batches(range(4), patch_shape=shape, spec=None):
        assert batch.outside is not None
        assert batch.outside.shape == batch.target.shape
        for target, outside in zip(batch.target, batch.outside, strict=True):
            z = int(target.max())
            # Slices 1 and 2 are liver; the next ones are 1 mm away, and slices 4 and 5 are far.
            inside = target > 0 if z else target == 0
            assert bool(outside[inside].any()) == (z >= 4)


class Pick(nn.Module):
    """Logits that are one of the input channels."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, image: Tensor) -> Tensor:
        return image[:, self.channel : self.channel + 1]


def test_prediction_gives_the_network_the_channels_of_training() -> None:
    image = torch.from_numpy(ArrayCase().image)
    for channel in range(CHANNELS * SLICES):
        found = sliding_window(image, [Pick(channel)], Scan(patch_shape=PATCH, slices=SLICES))[
            0, :, 0, 0
        ]
        which, offset = divmod(channel, SLICES)
        wanted = [1000 * (which + 1) + by_hand(z)[offset] for z in range(SHAPE[0])]
        assert found.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("z", "size", "wanted"), [(0, 1, [0, 0, 0]), (3, 4, [2, 3, 3])])
def test_the_first_and_last_slice_are_repeated(z: int, size: int, wanted: list[int]) -> None:
    assert neighbours(z, 3, size) == wanted


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace where a 2D network of three slices was trained on five CT phantoms."""
    place = tmp_path_factory.mktemp("slices")
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(place / "data", name=NAME, cases=5, seed=1, options=options)
    write_phantom_dataset(place / "data", name="Dataset002_Other", cases=5, seed=2, options=options)
    data, work = place / "data", place / "w"
    run("plan", data / NAME, "--preset", "tiny", "--slices", 3, "-w", work)
    run("train", NAME, "2d", "--fold", 0, *SHORT, "-w", work)
    run("plan", data / "Dataset002_Other", "--preset", "tiny", "-w", work)
    run("train", "Other", "2d", "--fold", "all", *SHORT, "-w", work)
    return place


def test_it_is_planned_trained_scored_and_predicts(trained: Path, tmp_path: Path) -> None:
    plan = Plan.load(trained / "w" / NAME / "plan.json")
    flat, deep = plan.configurations["2d"], plan.configurations["3d_fullres"]
    assert (flat.slices, flat.network.in_channels, flat.dimension) == (3, 3, 2)
    assert (deep.slices, deep.network.in_channels) == (1, 1)
    assert flat.inputs(("CT",)) == ("CT, slice -1", "CT", "CT, slice +1")
    fold = trained / "w" / NAME / "runs/2d/fold_0"
    assert (fold / "validation/scores.json").exists()
    assert load_weights(fold / "weights.safetensors")[0]["encoder.0.0.conv.weight"].shape[1] == 3
    images = trained / "data" / NAME / "imagesTr"
    done = run("predict", "-i", images, "-o", tmp_path / "out", "-m", NAME, "-w", trained / "w")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 5, done


def test_flips_are_those_of_the_patch(trained: Path, tmp_path: Path) -> None:
    """Trained and predicted with flips, as with the schedule for long trainings."""
    work = trained / "w"
    run("train", NAME, "2d", "--fold", 0, "--tag", "flipped", "--mirror", *SHORT, "-w", work)
    fold = work / NAME / "runs/2d+flipped/fold_0"
    assert FoldModel.load(fold / "model.json").mirror_axes == (0, 1)
    assert (fold / "validation/scores.json").exists()
    images, model = trained / "data" / NAME / "imagesTr", f"{NAME}/2d+flipped"
    run("predict", "-i", images, "-o", tmp_path / "out", "-m", model, "-w", work)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 5


def test_it_is_resumed_bit_by_bit_and_kept_by_the_next_plan(trained: Path) -> None:
    text = told("plan", trained / "data" / NAME, "-w", trained / "w")
    assert "--slices 3" in text
    again = run("train", NAME, "2d", "--fold", 0, *SHORT, "-w", trained / "w")
    assert again is not None


def test_weights_go_from_one_slice_to_three_and_on_to_3d(trained: Path) -> None:
    work = trained / "w"
    run("train", "Other", "2d", "--fold", 0, "--pretrained", NAME, *SHORT, "-w", work)
    follows = Plan.load(work / "Dataset002_Other/plan@PhantomCT.json").configurations["2d"]
    assert (follows.slices, follows.network.in_channels) == (3, 3)
    info = FoldModel.load(work / "Dataset002_Other/runs/2d@PhantomCT/fold_0/model.json")
    assert info.decisions.slices == 3
    deep = ("train", "Other", "3d_fullres", "--fold", 0, "--pretrained", f"{NAME}/2d")
    text = told(*deep, "--tag", "deep", *SHORT, "-w", work)
    assert "Starts from" in text


def test_a_dataset_of_single_slices_cannot_follow_it(trained: Path, tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path, name="Dataset009_Flat", cases=3, seed=1, options=options)
    for path in tmp_path.rglob("*.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(path)[:, :, 5:6], path)
    command = ("train", tmp_path / "Dataset009_Flat", "2d", "--pretrained", NAME, *SHORT)
    with pytest.raises(OptionError, match="sees 3 neighbouring slices, which the images of"):
        run(*command, "-w", trained / "w")


@pytest.mark.parametrize("slices", [0, 2, -3, 17])
def test_other_numbers_of_slices_are_refused(slices: int) -> None:
    with pytest.raises(AutoliverError, match=f"--slices {slices}: expected an odd number"):
        PlanOptions(slices=slices)


def test_images_of_one_slice_have_no_neighbours(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path, name=NAME, cases=3, seed=1, options=options)
    for path in tmp_path.rglob("*.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(path)[:, :, 5:6], path)
    with pytest.raises(OptionError, match=r"--slices 3: the images of .* are one slice deep"):
        run("plan", tmp_path / NAME, "--slices", 3, "-w", tmp_path / "w")
    run("plan", tmp_path / NAME, "--preset", "tiny", "--encoder", "resnet18", "-w", tmp_path / "w")
    with pytest.raises(OptionError, match=r"--z-strides all: the images of .* are one slice deep"):
        run("plan", NAME, "--z-strides", "all", "-w", tmp_path / "w")
    with pytest.raises(OptionError, match="this has none"):
        run("plan", NAME, "--fresh", "--z-strides", "all", "-w", tmp_path / "w")


def test_nnunet_has_no_such_network(trained: Path, tmp_path: Path) -> None:
    arguments = ("export", f"{NAME}/2d", tmp_path / "x.zip", "--format", "nnunet")
    with pytest.raises(AutoliverError, match="sees 3 neighbouring slices as channels"):
        run(*arguments, "-w", trained / "w")
