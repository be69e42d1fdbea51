"""Where unknown labels are known to be absent: distances, patches, and what is learnt there."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_trainings import ArrayCase, make_task, stop_after, timeless
from traced_cases import TracedCase, TracedLabel

from autoliver.datasets.cases import Annotation, CaseFacts, Labels, known_around
from autoliver.training.augment.batch import augmentation
from autoliver.training.distributed import ALONE
from autoliver.training.fold import FoldTask, patch_stream
from autoliver.training.loop import train_fold
from autoliver.training.objectives.choice import make_objective
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.outside import outside_map
from autoliver.training.patches.stream import Patches, TrainingBatch

LABELS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
IGNORED = LABELS.replace(ignore=3)
SPACING = (3.0, 1.0, 1.5)
SHAPE = (9, 40, 31)
NONE: dict[str, Annotation] = {"tumour": "none"}
KINDS: tuple[CacheKind, ...] = ("gpu", "ram", "disk")
ALL = (slice(None),) * 4

pytestmark = pytest.mark.usefixtures("one_thread")


def liver_case(
    number: int = 0, annotated: dict[str, Annotation] = NONE, *, liver: bool = True
) -> ArrayCase:
    """A liver of two boxes, one at the border of the image, and air at the other end."""
    label = np.zeros((1, *SHAPE), np.int16)
    if liver:
        label[0, 2:5, 5 + number : 14, 3:12] = 1
        label[0, 4, 10:16, :3] = 1
        label[0, 3, 8, 6] = 2
    label[:, :, 38:] = -1
    image = np.random.default_rng(number).normal(size=label.shape).astype(np.float32) + label
    facts = CaseFacts(name=f"case_{number}", patient=f"p{number}", annotated=annotated)
    return ArrayCase(facts, image, label, spacing_mm=SPACING)


def brute_force(organ: npt.NDArray[np.bool_], distance_mm: float) -> npt.NDArray[np.bool_]:
    """The distance of every voxel to every voxel of the organ."""
    places = np.argwhere(organ) * SPACING
    everywhere = np.argwhere(np.ones_like(organ)) * SPACING
    squared = ((everywhere[:, None] - places[None]) ** 2).sum(-1).min(1)
    return (squared > distance_mm**2).reshape(organ.shape)


@pytest.mark.parametrize("distance_mm", [0.0, 2.9, 3.0, 7.5, 500.0])
def test_outside_is_further_than_the_distance_in_mm(distance_mm: float) -> None:
    case = liver_case()
    found = outside_map(case, LABELS, distance_mm)[ALL][0] > 0
    assert np.array_equal(found, brute_force(np.isin(case.label[0], (1, 2)), distance_mm))


def test_a_patch_knows_of_the_liver_beyond_its_border() -> None:
    case = liver_case()
    whole = outside_map(case, LABELS, 6.0)
    for box in (
        (0, 1, 0, 40, 0, 31),
        (3, 4, 15, 40, 12, 31),
        (8, 9, 0, 2, 0, 2),
        (0, 9, 3, 4, 0, 31),
    ):
        z0, z1, y0, y1, x0, x1 = box
        key = (slice(None), slice(z0, z1), slice(y0, y1), slice(x0, x1))
        assert np.array_equal(whole[key], whole[ALL][key])
    # This patch shows no liver, and is not outside of its surroundings for that.
    beside = (slice(None), slice(3, 4), slice(14, 18), slice(4, 9))
    assert not case.label[beside].any()
    assert not whole[beside].any()


@pytest.mark.parametrize(
    ("annotated", "liver", "share"),
    [
        ({}, True, 0.0),
        ({"tumour": "absent"}, True, 0.0),
        ({"tumour": "none", "liver": "none"}, True, 0.0),
        ({"tumour": "none", "liver": "absent"}, False, 1.0),
        ({"tumour": "none"}, False, 1.0),
    ],
)
def test_where_nothing_or_all_is_outside(
    annotated: dict[str, Annotation], liver: bool, share: float
) -> None:
    found = outside_map(liver_case(annotated=annotated, liver=liver), LABELS, 5.0)
    assert found[ALL].mean() == share


def test_voxels_that_are_ignored_may_be_liver() -> None:
    case = liver_case()
    case.label[0, 8, 30:33, 25] = 3
    found = outside_map(case, IGNORED, 4.0)[ALL][0] > 0
    assert np.array_equal(found, brute_force(case.label[0] > 0, 4.0))


def test_the_smallest_known_label_around_counts() -> None:
    values = {"liver": (1, 2, 3), "tumour": (2, 3), "necrosis": (3,), "spleen": (4,)}

    def around(**states: Annotation) -> dict[str, str]:
        return known_around(values, CaseFacts(name="a", patient="a", annotated=states))

    assert around(necrosis="none") == {"necrosis": "tumour"}
    assert around(necrosis="none", tumour="none") == {"necrosis": "liver", "tumour": "liver"}
    assert around(necrosis="none", tumour="pseudo") == {"necrosis": "tumour"}
    assert around(tumour="none", liver="none", spleen="none") == {}
    assert around(spleen="none") == {}


def task_for(cases: list[ArrayCase], folder: Path, axes: int, **options: object) -> FoldTask:
    """A training of these cases with two resolutions."""
    task = make_task(folder, **options)
    network = task.configuration.network.replace(
        out_channels=LABELS.out_channels,
        strides=((1,) * axes, (2,) * axes, (2,) * axes),
        kernels=((3,) * axes,) * 3,
        features=(4, 8, 8),
        blocks_encoder=(1, 1, 1),
        blocks_decoder=(1, 1),
    )
    configuration = task.configuration.replace(
        network=network,
        patch_shape=(8, 16, 16)[3 - axes :],
        spacing_mm=SPACING[3 - axes :],
        median_shape=SHAPE[3 - axes :],
    )
    return replace(
        task, labels=LABELS, configuration=configuration, train=cases, validation=cases[:1]
    )


def batches(
    task: FoldTask, kind: CacheKind, numbers: range, *, augment: str = "none"
) -> list[TrainingBatch]:
    spec = augmentation(task.configuration, augment, mirror=True)
    patches = Patches(patch_stream(task, task.train, spec, number=0), kind, task.device, workers=1)
    shape = task.configuration.patch_shape
    return list(patches.batches(numbers, patch_shape=shape, spec=spec))


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_measured_once_whoever_draws(kind: CacheKind, tmp_path: Path) -> None:
    plain = [liver_case(0), liver_case(1)]
    traces = [tmp_path / case.facts.name for case in plain]
    cases = [
        TracedCase(case.facts, case.image, TracedLabel(case.label, trace), case.locations)
        for case, trace in zip(plain, traces, strict=True)
    ]
    maps = [outside_map(case, LABELS, 4.0) for case in cases]
    task = task_for(plain, tmp_path, 2, outside_negative=4.0)
    stream = patch_stream(task, plain, None, number=0)
    stream = replace(stream, sampler=replace(stream.sampler, outside=maps))
    patches = Patches(stream, kind, task.device, workers=2)
    # Each epoch starts workers of its own.
    for epoch in range(2):
        numbers = range(4 * epoch, 4 * epoch + 4)
        drawn = list(patches.batches(numbers, patch_shape=(16, 16), spec=None))
        assert any(batch.outside is not None and batch.outside.any() for batch in drawn)
    assert [trace.read_text().split() for trace in traces] == [[str(os.getpid())]] * 2


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("augment", ["none", "default", "synthseg:1"])
def test_the_map_changes_nothing_else_of_a_batch(axes: int, augment: str, tmp_path: Path) -> None:
    cases = [liver_case(0), liver_case(1, {})]
    plain = batches(task_for(cases, tmp_path, axes), "ram", range(6), augment=augment)
    task = task_for(cases, tmp_path, axes, outside_negative=4.0)
    marked = {kind: batches(task, kind, range(6), augment=augment) for kind in KINDS}
    for kind in KINDS:
        for one, other, first in zip(plain, marked[kind], marked["ram"], strict=True):
            assert one.outside is None
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.target, other.target)
            assert other.outside is not None
            assert first.outside is not None
            assert torch.equal(other.outside, first.outside)
            for case, target, outside in zip(other.cases, other.target, other.outside, strict=True):
                assert not (outside & (target > 0)).any()
                assert not outside.any() or case.annotated == NONE
    assert any(batch.outside is not None and batch.outside.any() for batch in marked["disk"])


def test_patches_show_the_map_of_the_case(tmp_path: Path) -> None:
    """In the last slices there is no liver; it is near enough in some of them."""
    case = liver_case()
    task = task_for([case], tmp_path, 2, outside_negative=7.0)
    stream = patch_stream(task, task.train, None, number=0)
    expected = np.pad(
        brute_force(np.isin(case.label[0], (1, 2)), 7.0), ((0, 0), (20, 20), (20, 20))
    )
    seen = set()
    for number in range(40):
        for place, label in zip(stream.places(number), stream.draw(number).label, strict=True):
            z, y, x = place.start
            seen.add(z)
            found = label[-1] > 0
            assert np.array_equal(found, expected[z, y + 20 : y + 36, x + 20 : x + 36])
    assert {0, 8} < seen


def test_of_several_slices_the_middle_one_is_learnt(tmp_path: Path) -> None:
    tasks = [task_for([liver_case()], tmp_path, 2, outside_negative=4.0) for _ in range(2)]
    several = replace(tasks[1], configuration=tasks[1].configuration.replace(slices=3))
    one, three = batches(tasks[0], "ram", range(4)), batches(several, "ram", range(4))
    for single, neighbours in zip(one, three, strict=True):
        assert single.outside is not None
        assert neighbours.outside is not None
        assert neighbours.image.shape[1] == 3
        assert torch.equal(neighbours.target, single.target)
        assert torch.equal(neighbours.outside, single.outside)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("loss", ["dice-ce", "dice-focal", "dice-topk"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_tumour_has_a_gradient_outside_alone(
    axes: int, loss: str, batch_dice: bool, tmp_path: Path
) -> None:
    task = task_for([liver_case()], tmp_path, axes, outside_negative=4.0, loss=loss)
    configuration = task.configuration.replace(batch_dice=batch_dice)
    objective = make_objective(task.labels, configuration, task.options)
    for batch in batches(task, "ram", range(3), augment="gin-ipa"):
        assert batch.outside is not None
        generator = torch.Generator().manual_seed(batch.number)
        shape = (len(batch.image), 2, *batch.target.shape[2:])
        full = torch.randn(shape, generator=generator).requires_grad_()
        coarse = torch.randn((len(batch.image), 2, *(n // 2 for n in shape[2:])))
        coarse.requires_grad_()
        lowest = torch.zeros((len(batch.image), 2, *(n // 4 for n in shape[2:])))
        value, tally = objective.loss([full, coarse, lowest], batch, ALONE)
        value.backward()
        assert all(numbers[1] == 0 for numbers in tally.counts.values())
        assert full.grad is not None
        assert coarse.grad is not None
        tumour = full.grad[: len(batch.target), 1:]
        assert torch.all(tumour[~batch.outside] == 0)
        assert torch.all(full.grad[len(batch.target) :, 1] == 0)
        # Of two voxels the second one is the nearest to the centre of both (`nearest-exact`).
        near = ~batch.outside[(slice(None), slice(None), *[slice(1, None, 2)] * axes)]
        level = coarse.grad[: len(batch.target), 1:]
        assert torch.all(level[near] == 0)
        if loss != "dice-topk":
            outside = tumour[batch.outside]
            assert len(outside) == 0 or (outside > 0).all()


def test_a_pseudo_liver_has_the_weight_of_pseudo_labels(tmp_path: Path) -> None:
    states: dict[str, Annotation] = {"tumour": "none", "liver": "pseudo"}
    gradients = {}
    for weight, annotated in ((1.0, NONE), (0.5, states), (0.0, states)):
        task = task_for(
            [liver_case(0, annotated)], tmp_path, 2, outside_negative=4.0, pseudo_weight=weight
        )
        objective = make_objective(task.labels, task.configuration, task.options)
        batch = batches(task, "ram", range(1))[0]
        logits = torch.ones(2, 2, 16, 16).requires_grad_()
        objective.loss([logits], batch, ALONE)[0].backward()
        assert logits.grad is not None
        gradients[weight] = logits.grad[:, 1]
    assert gradients[1.0].any()
    assert torch.allclose(gradients[0.5], gradients[1.0] / 2)
    assert not gradients[0.0].any()


@pytest.mark.parametrize("axes", [2, 3])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(axes: int, tmp_path: Path) -> None:
    cases = [liver_case(0), liver_case(1, {})]
    options = {"epochs": 2, "iterations": 2, "outside_negative": 4.0}
    whole = train_fold(task_for(cases, tmp_path / "whole", axes, **options))
    train_fold(task_for(cases, tmp_path / "parts", axes, **options), stop=stop_after(3))
    parts = train_fold(task_for(cases, tmp_path / "parts", axes, **options))
    assert timeless(parts.logs) == timeless(whole.logs)
    without = train_fold(task_for(cases, tmp_path / "without", axes, epochs=2, iterations=2))
    assert timeless(without.logs) != timeless(whole.logs)
    for name, value in whole.weights.items():
        assert torch.equal(value, parts.weights[name])
