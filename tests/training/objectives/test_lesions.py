"""The objective of segmentation and class of lesions, against hand-computed values."""

import math

import pytest
import torch

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.datasets.lesion_classes import class_rows, find_lesion_classes, with_one_lesion
from autoliver.errors import OptionError
from autoliver.networks.contract import ClassHead
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration
from autoliver.training.distributed import ALONE
from autoliver.training.objectives.choice import make_objective
from autoliver.training.objectives.lesions import ACCURACY, LesionObjective, patch_classes
from autoliver.training.objectives.segmentation import segmentation_loss
from autoliver.training.objectives.target import loss_options
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.stream import TrainingBatch

# Values with gaps, classes on both sides of the organ.
LABELS = Labels(values={"background": (0,), "cyst": (2,), "liver": (5,), "metastasis": (7,)})
CLASSES = ("cyst", "metastasis")
ROWS = (1, 3)


def objective(*, alone: bool, weight: float = 0.5, labels: Labels = LABELS) -> LesionObjective:
    network = UNetSpec(
        in_channels=1,
        out_channels=4,
        features=(4, 8),
        strides=((1, 1), (2, 2)),
        kernels=((3, 3), (3, 3)),
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
        class_head=ClassHead(rows=ROWS, alone=alone),
    )
    configuration = Configuration(
        spacing_mm=(1.0, 1.0),
        median_shape=(8, 8),
        patch_shape=(8, 8),
        batch_size=3,
        batch_dice=False,
        normalization=("ct",),
        mask_norm=(False,),
        network=network,
    )
    made = make_objective(labels, configuration, TrainingOptions(cls_weight=weight))
    assert isinstance(made, LesionObjective)
    return made


def batch(*, views: int = 1) -> TrainingBatch:
    """Three patches: mostly cyst, without a lesion, mostly metastasis."""
    target = torch.zeros(3, 1, 4, 4, dtype=torch.int16)
    target[:, :, 0] = 2
    target[0, 0, 1, :3], target[0, 0, 1, 3] = 1, 3
    target[2, 0, 2, :2], target[2, 0, 3, 0] = 3, 1
    cases = tuple(CaseFacts.named(str(number)) for number in range(3))
    return TrainingBatch(0, torch.zeros(3 * views, 1, 4, 4), target, cases, 0.0, 0.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_the_class_of_a_patch_is_that_of_most_of_its_lesion():
    assert patch_classes(batch().target, ROWS).tolist() == [0, -1, 1]
    assert patch_classes(batch().target, ROWS[::-1]).tolist() == [1, -1, 0]
    tie = torch.tensor([3, 1, 0, 0]).reshape(1, 1, 4)
    assert patch_classes(tie, ROWS).tolist() == [0]


@pytest.mark.parametrize("views", [1, 3])
def test_the_loss_is_that_of_both_parts(views):
    shown = batch(views=views)
    maps = [random(3 * views, 3, 4, 4), random(3 * views, 3, 2, 2, seed=1)]
    classes = random(3 * views, 2, seed=2)
    made = objective(alone=False, weight=0.7)
    loss, tally = made.loss([*maps, classes], shown, ALONE)
    # By hand: background 0, lesion 1, liver 2 in place of 0, cyst 1, liver 2, metastasis 3.
    merged = shown.target.clone()
    merged[merged == 3] = 1
    expected = segmentation_loss(
        [each[:3] for each in maps],
        merged,
        options=loss_options(with_one_lesion(LABELS, CLASSES), batch_dice=False),
    )
    log = classes[:3].log_softmax(1)
    expected = expected + 0.7 * -(log[0, 0] + log[2, 1]) / 2
    if views == 1:
        torch.testing.assert_close(loss, expected)
    else:  # views are compared as well
        assert float(loss.detach()) > float(expected.detach())
    right = int(classes[0].argmax() == 0) + int(classes[2].argmax() == 1)
    assert tally.counts["classes_right"] == (right,)
    assert tally.counts["classes_told"] == (2,)
    assert made.scores(tally).further == {ACCURACY: right / 2}
    assert made.names == ("lesion", "liver")
    assert len(made.scores(tally).labels) == 2


def test_a_classifier_alone_has_the_cross_entropy_and_watches_the_accuracy():
    made = objective(alone=True)
    classes = random(3, 2)
    loss, tally = made.loss([classes], batch(), ALONE)
    log = classes.log_softmax(1)
    torch.testing.assert_close(loss, -(log[0, 0] + log[2, 1]) / 2)
    assert made.names == ()
    assert made.scores(tally).labels == ()
    assert made.watched == ACCURACY
    assert set(made.lengths) == set(tally.counts)


def test_patches_without_a_lesion_leave_the_class_alone():
    shown = batch()
    empty = TrainingBatch(0, shown.image, shown.target.clamp(max=0), shown.cases, 0.0, 0.0)
    classes = random(3, 2)
    made = objective(alone=True)
    loss, tally = made.loss([classes], empty, ALONE)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(classes.grad.abs().sum()) == 0.0
    assert made.scores(tally).further == {ACCURACY: None}


def test_ignored_voxels_stay_ignored():
    ignoring = LABELS.replace(ignore=9)
    shown = batch()
    shown.target[:, :, 0] = 4  # what the table of classes makes of the ignored value
    made = objective(alone=False, labels=ignoring)
    maps, classes = random(3, 3, 4, 4), random(3, 2, seed=2)
    loss, _ = made.loss([maps, classes], shown, ALONE)
    loss.backward()
    assert float(maps.grad[:, :, 0].abs().sum()) == 0.0
    assert float(maps.grad.abs().sum()) > 0.0
    assert math.isfinite(float(loss.detach()))


def test_one_label_for_all_classes():
    merged = with_one_lesion(LABELS, CLASSES)
    assert merged.values == {"background": (0,), "lesion": (2, 7), "liver": (5,)}
    assert not merged.has_regions
    assert merged.out_channels == 3
    assert class_rows(LABELS, CLASSES) == ROWS


ABOUT = {"where": "D", "wanted_by": "--task joint"}


def test_classes_are_found_by_name_or_as_asked():
    known = Labels(values={"background": (0,), "liver": (1,), "HCC": (3,), "cyst": (2,), "A": (4,)})
    assert find_lesion_classes(known, **ABOUT) == ("cyst", "HCC")
    assert find_lesion_classes(known, ("A", "cyst"), **ABOUT) == ("cyst", "A")
    assert find_lesion_classes(known, named=("A", "HCC"), **ABOUT) == ("HCC", "A")


@pytest.mark.parametrize(
    ("values", "asked", "problem"),
    [
        ({"liver": (1,), "tumour": (2,)}, (), "at least two classes"),
        ({"liver": (1,), "cyst": (2,)}, (), "at least two classes"),
        ({"liver": (1,), "cyst": (2,), "HCC": (3,)}, ("cyst",), "at least two classes"),
        ({"liver": (1,), "cyst": (2,), "HCC": (3,)}, ("cyst", "HC"), "no label 'HC'"),
        ({"liver": (1, 2, 3), "cyst": (2,), "HCC": (3,)}, (), "regions"),
    ],
)
def test_datasets_without_classes_are_refused(values, asked, problem):
    labels = Labels(values={"background": (0,), **values})
    with pytest.raises(OptionError, match=problem):
        find_lesion_classes(labels, asked, **ABOUT)
