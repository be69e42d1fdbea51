"""The focal Tversky loss against its definition, voxel by voxel in double precision."""

import numpy as np
import pytest
import torch

from autoliver.training.objectives.segmentation import LossOptions, segmentation_loss

REGIONS = ((1, 2), (2,))
SHAPE = (2, 3, 4, 6)


def options(regions, *, batch_dice=False, ignore=None):
    return LossOptions(batch_dice=batch_dice, kind="focal-tversky", regions=regions, ignore=ignore)


def example(regions, *, ignored=False, size=SHAPE):
    generator = torch.Generator().manual_seed(3)
    rows = 3 if regions is None else len(regions)
    logits = 2 * torch.randn(size[0], rows, *size[2:], generator=generator)
    target = torch.randint(0, 3, (size[0], 1, *size[2:]), generator=generator).to(torch.int16)
    if ignored:
        target[:, :, 0] = 3
    return logits, target


def by_hand(logits, target, chosen):
    x, t = logits.double().numpy(), target.numpy()[:, 0]
    if chosen.regions is None:
        p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        rows = [(p[:, row], t == row) for row in range(1, x.shape[1])]
    else:
        p = 1 / (1 + np.exp(-x))
        rows = [(p[:, row], np.isin(t, values)) for row, values in enumerate(chosen.regions)]
    samples = [list(range(len(t)))] if chosen.batch_dice else [[b] for b in range(len(t))]
    losses = []
    for group in samples:
        for probability, wanted in rows:
            tp = fn = fp = 0.0
            for b in group:
                for place in np.ndindex(*t.shape[1:]):
                    if t[b][place] == chosen.ignore:
                        continue
                    q = probability[b][place]
                    tp, fn, fp = (tp + q, fn + 1 - q, fp) if wanted[b][place] else (tp, fn, fp + q)
            losses.append((1 - (tp + 1) / (tp + 0.7 * fn + 0.3 * fp + 1)) ** 0.75)
    return np.mean(losses)


@pytest.mark.parametrize("regions", [None, REGIONS])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, 3])
def test_the_loss_is_its_definition(regions, batch_dice, ignore):
    chosen = options(regions, batch_dice=batch_dice, ignore=ignore)
    logits, target = example(regions, ignored=ignore is not None)
    loss = segmentation_loss([logits], target, options=chosen)
    assert loss.item() == pytest.approx(by_hand(logits, target, chosen), abs=1e-6)
    coarse = logits[..., ::2, ::2]
    deep = segmentation_loss([logits, coarse], target, options=chosen.replace(lowest_weight=0.5))
    # An even factor k takes the voxel k/2.
    second = by_hand(coarse, target[..., 1::2, 1::2], chosen)
    assert float(deep) == pytest.approx((float(loss) + 0.5 * second) / 1.5, abs=1e-6)


@pytest.mark.parametrize("regions", [None, REGIONS])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_gradient_agrees_with_differences(regions, batch_dice):
    chosen = options(regions, batch_dice=batch_dice, ignore=3)
    logits, target = example(regions, ignored=True, size=(2, 3, 2, 3))
    inputs = logits.clone().requires_grad_()
    segmentation_loss([inputs], target, options=chosen).backward()
    step = 1e-4
    for place in np.ndindex(*logits.shape):
        up, down = logits.double(), logits.double()
        up[place] += step
        down[place] -= step
        slope = (by_hand(up, target, chosen) - by_hand(down, target, chosen)) / (2 * step)
        assert float(inputs.grad[place]) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_missing_costs_more_than_finding_in_vain_and_nothing_is_left_of_a_perfect_one(regions):
    chosen = options(regions)
    target = torch.tensor([[[[0, 0, 1, 1], [0, 0, 2, 2]]]], dtype=torch.int16)
    values = [0, 1, 2] if regions is None else [1, 2]

    def logits(found):
        rows = [
            found == v if regions is None else torch.isin(found, torch.tensor(REGIONS[v - 1]))
            for v in values
        ]
        return torch.where(torch.cat(rows, 1), 40.0, -40.0).requires_grad_()

    less, more = target.clone(), target.clone()
    less[0, 0, 0, 2], more[0, 0, 0, 1] = 0, 1
    perfect = logits(target)
    loss = segmentation_loss([perfect], target, options=chosen)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert torch.isfinite(perfect.grad).all()
    missed, vain = (
        segmentation_loss([logits(x)], target, options=chosen).item() for x in (less, more)
    )
    assert missed > vain > loss.item()
