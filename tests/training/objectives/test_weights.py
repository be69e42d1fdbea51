"""Weights of classes: read, counted, and applied to each kind of cross-entropy."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.errors import OptionError
from autoliver.training.objectives.choice import check_classes, weights_of_classes
from autoliver.training.objectives.segmentation import LossOptions, segmentation_loss
from autoliver.training.objectives.weights import class_weights, describe_weights
from autoliver.training.options import TrainingOptions, check_options, given_options

LABELS = Labels(values={"background": (0,), "liver": (3,), "tumour": (5,)}, ignore=9)
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
WEIGHTS = (0.2, 1.0, 3.0)


@dataclass
class Case:
    label: np.ndarray
    facts: CaseFacts = field(default_factory=lambda: CaseFacts.named("case"))

    @property
    def image(self):
        return self.label


def entropies(kind, p, t):
    """The cross-entropy of each voxel that is not ignored, and its class."""
    found = []
    for b, y, x in np.ndindex(*t.shape):
        if t[b, y, x] == 3:
            continue
        own, q = t[b, y, x], p[b, :, y, x]
        if kind == "dice-bce":
            value = -np.mean([np.log(q[c] if c == own else 1 - q[c]) for c in range(3)])
        else:
            value = -np.log(q[own]) * ((1 - q[own]) ** 2 if kind == "dice-focal" else 1)
        found.append((value, own))
    return found


@pytest.mark.parametrize("kind", ["dice-ce", "dice-topk", "dice-focal", "dice-bce"])
def test_voxels_count_by_the_weight_of_their_class(kind):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 5, 7, generator=generator)
    target = torch.randint(0, 4, (2, 1, 5, 7), generator=generator)  # 3 is ignored
    options = LossOptions(batch_dice=True, kind=kind, ignore=3)
    plain, weighted = (
        float(segmentation_loss([logits], target, options=options.replace(class_weights=w)))
        for w in (None, WEIGHTS)
    )
    found = entropies(kind, torch.softmax(logits.double(), 1).numpy(), target[:, 0].numpy())
    mean = np.mean([WEIGHTS[c] for _, c in found])

    def average(values):
        kept = len(values) // 10 if kind == "dice-topk" else len(values)
        return np.mean(sorted(values)[-kept:])

    gain = average([v * WEIGHTS[c] / mean for v, c in found]) - average([v for v, _ in found])
    assert weighted - plain == pytest.approx(gain, abs=1e-5)
    scaled = options.replace(class_weights=tuple(7 * w for w in WEIGHTS))
    again = float(segmentation_loss([logits], target, options=scaled))
    assert again == pytest.approx(weighted, abs=1e-6)


def test_the_mean_is_that_of_torch():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    target = torch.randint(0, 3, (2, 1, 4, 4), generator=generator)
    options = LossOptions(batch_dice=True, class_weights=WEIGHTS, dice_weight=0.0)
    expected = torch.nn.functional.cross_entropy(logits, target[:, 0], weight=torch.tensor(WEIGHTS))
    assert float(segmentation_loss([logits], target, options=options)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_a_batch_of_ignored_voxels_has_no_gradient():
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    options = LossOptions(batch_dice=False, ignore=3, class_weights=WEIGHTS)
    target = torch.full((1, 1, 4, 4), 3)
    segmentation_loss([logits], target, options=options).backward()
    assert torch.all(logits.grad == 0)


def test_balanced_weights_are_counted_without_ignored_voxels_and_limited():
    label = np.zeros((1, 10, 10, 10), np.int16)
    label[:, 0, :2] = 3  # 20 voxels
    label[:, 1, 0, 0] = 5  # 1 voxel
    label[:, 2] = 9
    label[:, 3, :, :5] = -1
    cases = [Case(label), Case(np.zeros((1, 1, 1, 1), np.int16))]
    background = 1000 - 21 - 100 - 50 + 1
    asked = TrainingOptions(class_weights="balanced")
    found = class_weights(asked, LABELS, cases)
    expected = np.array([1.0, background / 20, 100.0])
    assert found == pytest.approx((expected / expected.mean()).tolist())
    assert np.mean(found) == pytest.approx(1)
    assert describe_weights(found, LABELS).startswith("\nWeights in the cross-entropy: background")
    assert describe_weights(None, LABELS) == ""
    given = TrainingOptions(class_weights=(1.0, 2.0, 3.0))
    assert class_weights(given, LABELS, []) == pytest.approx((0.5, 1.0, 1.5))
    assert class_weights(TrainingOptions(), LABELS, cases) is None


@pytest.mark.parametrize("text", ["balanced", "Balanced ", "0.1,1,2", [0.1, 1, 2], (0.1, 1.0, 2)])
def test_weights_are_read(text):
    expected = "balanced" if isinstance(text, str) and "al" in text else (0.1, 1.0, 2.0)
    assert weights_of_classes(text) == expected
    assert given_options({"class_weights": text}).class_weights == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"class_weights": "much"}, "neither balanced nor a list"),
        ({"class_weights": "1,two"}, "neither balanced nor a list"),
        ({"class_weights": ","}, "neither balanced nor a list"),
        ({"class_weights": "0,1"}, "--class-weights"),
        ({"class_weights": "-1,1"}, "--class-weights"),
        ({"class_weights": "nan,1"}, "--class-weights"),
        ({"class_weights": "inf,1"}, "--class-weights"),
        ({"class_weights": "balanced", "loss": "focal-tversky"}, "--loss focal-tversky"),
    ],
)
def test_other_weights_are_refused(given, says):
    with pytest.raises(OptionError, match=says) as caught:
        check_options(given_options(given))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("labels", "weights", "says"),
    [
        (REGIONS, "balanced", "regions: liver, tumour"),
        (LABELS, (1.0, 2.0), "has 2 weights; there are 3 classes: background, liver, tumour"),
    ],
)
def test_weights_that_do_not_fit_the_labels_are_refused(labels, weights, says):
    with pytest.raises(OptionError, match=says):
        check_classes(TrainingOptions(class_weights=weights), labels)
    check_classes(TrainingOptions(class_weights="balanced"), LABELS)
