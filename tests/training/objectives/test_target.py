import numpy as np
import pytest
import torch

from autoliver.datasets.cases import Labels
from autoliver.training.objectives.segmentation import segmentation_loss
from autoliver.training.objectives.target import class_table, loss_options, previous_table

CLASSES = Labels(values={"background": (0,), "tumour": (5,), "liver": (2,)}, ignore=7)
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)},
    regions_class_order=(1, 2),
    ignore=3,
)


def test_classes_follow_the_order_of_labels_and_the_ignored_one_is_last() -> None:
    table = class_table(CLASSES)
    label = np.array([-1, 0, 5, 2, 7], np.int16)
    assert table[label + 1].tolist() == [-1, 0, 1, 2, 3]
    assert loss_options(CLASSES, batch_dice=True).ignore == 3
    assert loss_options(CLASSES, batch_dice=True).regions is None


def test_with_regions_values_stay_what_they_are() -> None:
    table = class_table(REGIONS)
    label = np.arange(-1, 4, dtype=np.int16)
    assert table[label + 1].tolist() == label.tolist()
    options = loss_options(REGIONS, batch_dice=False)
    assert options.regions == ((1, 2), (2,))
    assert options.ignore == 3


@pytest.mark.parametrize("batch_dice", [True, False])
def test_batch_dice_is_handed_on(batch_dice: bool) -> None:
    for labels in (CLASSES, REGIONS):
        assert loss_options(labels, batch_dice=batch_dice).batch_dice == batch_dice


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_the_loss_does_not_depend_on_what_is_predicted_where_voxels_are_ignored(
    labels: Labels,
) -> None:
    rng = np.random.default_rng(0)
    values = sorted(labels.allowed)
    label = rng.choice(values, (2, 1, 6, 7)).astype(np.int16)
    target = torch.from_numpy(class_table(labels)[label + 1])
    options = loss_options(labels, batch_dice=False)
    logits = torch.from_numpy(rng.normal(size=(2, labels.out_channels, 6, 7)).astype(np.float32))
    ignored = torch.from_numpy(label == labels.ignore)
    first_row = torch.eye(labels.out_channels)[0].view(1, -1, 1, 1)

    def loss(changed: torch.Tensor) -> float:
        return float(segmentation_loss([logits + changed * first_row], target, options=options))

    assert ignored.any()
    assert loss(3.0 * ignored) == pytest.approx(loss(0.0 * ignored))
    assert loss(3.0 * ~ignored) != pytest.approx(loss(0.0 * ignored))


def test_what_a_first_stage_found_becomes_numbers_of_channels():
    regions = Labels(
        values={"background": (0,), "liver": (2, 7), "tumour": (7,)},
        regions_class_order=(2, 7),
        ignore=9,
    )
    table = previous_table(regions)
    assert table[np.array([-1, 0, 2, 7, 9]) + 1].tolist() == [-1, 0, 1, 2, 0]
