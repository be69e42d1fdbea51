from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autoliver.training.objectives.segmentation import (
    LossOptions,
    consistency_loss,
    deep_supervision_weights,
    downsample_target,
    hard_dice_counts,
    segmentation_loss,
)

SOFTMAX = LossOptions(batch_dice=False)
REGIONS = ((1, 2), (2,), (1,))


def wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    i = np.arange(np.prod(shape), dtype=np.float64)
    values = 3 * np.sin(0.7 * i + phase) * np.cos(0.013 * i * i % 7)
    return torch.from_numpy(values.reshape(shape)).float()


def wave_outputs() -> list[torch.Tensor]:
    return [wave((2, 3, 6, 8, 10), 0.0), wave((2, 3, 6, 4, 5), 1.0), wave((2, 3, 3, 2, 5), 2.0)]


def striped_target(*, ignored: bool) -> torch.Tensor:
    i = np.arange(2 * 6 * 8 * 10)
    label = ((i // 7) % 5 % 3).reshape(2, 1, 6, 8, 10).astype(np.int16)
    label[1, 0, :2] = 3 if ignored else 0
    if not ignored:
        label[label == 3] = 0
    return torch.from_numpy(label)


# nnU-Net 2.8.1: DC_and_CE_loss and DC_and_BCE_loss with MemoryEfficientSoftDiceLoss, alone and in
# DeepSupervisionWrapper((2/3, 1/3, 0)) with targets of DownsampleSegForDSTransform.
@pytest.mark.parametrize(
    ("regions", "batch_dice", "ignore", "single", "deep"),
    [
        (None, False, None, 1.3639264, 1.4206511),
        (None, False, 3, 1.3319141, 1.3773084),
        (None, True, None, 1.3616736, 1.4185771),
        (None, True, 3, 1.3324004, 1.3787817),
        (REGIONS, False, None, 0.5667465, 0.5888983),
        (REGIONS, False, 3, 2.3734550, 2.4324188),
        (REGIONS, True, None, 0.5628823, 0.5852768),
        (REGIONS, True, 3, 2.3721716, 2.4316697),
    ],
)
def test_losses_are_nnunets(regions, batch_dice, ignore, single, deep):
    options = LossOptions(batch_dice=batch_dice, regions=regions, ignore=ignore)
    outputs = wave_outputs()
    target = striped_target(ignored=ignore is not None)
    assert float(segmentation_loss(outputs[:1], target, options=options)) == pytest.approx(
        single, abs=2e-6
    )
    assert float(segmentation_loss(outputs, target, options=options)) == pytest.approx(
        deep, abs=2e-6
    )


@pytest.mark.parametrize("batch_dice", [False, True])
def test_softmax_loss_equals_a_loop_in_numpy(batch_dice):
    logits, target = wave((2, 3, 5, 4), 0.3), striped_target(ignored=False)[:, :, 0, :5, :4]
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    t = target.numpy()[:, 0]
    entropy = np.mean(
        [-np.log(p[b, t[b, y, x], y, x]) for b in range(2) for y in range(5) for x in range(4)]
    )
    groups = [slice(0, 2)] if batch_dice else [slice(0, 1), slice(1, 2)]
    dice = [
        (2 * (p[g, c] * (t[g] == c)).sum() + 1e-5) / (p[g, c].sum() + (t[g] == c).sum() + 1e-5)
        for g in groups
        for c in (1, 2)
    ]
    loss = segmentation_loss([logits], target, options=LossOptions(batch_dice=batch_dice))
    assert float(loss) == pytest.approx(entropy - np.mean(dice), abs=1e-6)


# nnU-Net 2.8.1: DC_and_topk_loss, k = 10.
@pytest.mark.parametrize(("batch_dice", "expected"), [(False, 4.5815473), (True, 4.5792942)])
def test_the_hardest_tenth_is_nnunets(batch_dice, expected):
    options = LossOptions(batch_dice=batch_dice, kind="dice-topk")
    loss = segmentation_loss(wave_outputs()[:1], striped_target(ignored=False), options=options)
    assert float(loss) == pytest.approx(expected, abs=2e-6)


def entropies_in_numpy(logits, target, regions):
    """Cross-entropy of each voxel, or of each voxel and region; NaN where 3 is ignored."""
    x, t = logits.double().numpy(), target.numpy()[:, 0]
    if regions is None:
        p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        each = -np.log(np.take_along_axis(p, np.where(t == 3, 0, t)[:, None], axis=1))
    else:
        wanted = np.stack([np.isin(t, values) for values in regions], axis=1)
        p = 1 / (1 + np.exp(-x))
        each = -np.log(np.where(wanted, p, 1 - p))
    return np.where((t == 3)[:, None], np.nan, each)


@pytest.mark.parametrize("regions", [None, REGIONS])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("kind", ["dice-ce", "dice-topk", "dice-focal"])
def test_entropies_count_as_in_numpy_at_every_resolution(regions, ignored, kind):
    outputs, target = wave_outputs(), striped_target(ignored=ignored)
    options = LossOptions(
        batch_dice=False,
        kind=kind,
        regions=regions,
        ignore=3 if ignored else None,
        dice_weight=0.0,
    )
    expected = []
    for logits in outputs[:2]:
        scaled = downsample_target(target, tuple(logits.shape[2:]))
        each = entropies_in_numpy(logits, scaled, regions)
        known = np.sort(each[~np.isnan(each)])[::-1]
        if kind == "dice-topk":
            expected.append(known[: len(known) // 10].mean())
            continue
        known = (1 - np.exp(-known)) ** (2 if kind == "dice-focal" else 0) * known
        # With ignored voxels nnU-Net adds the regions up.
        expected.append(known.mean() * (3 if regions and ignored else 1))
    loss = segmentation_loss(outputs, target, options=options)
    assert float(loss) == pytest.approx((2 * expected[0] + expected[1]) / 3, rel=1e-5)


@pytest.mark.parametrize("regions", [None, REGIONS])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_bce_is_its_formula_in_numpy(regions, ignored, batch_dice):
    logits, target = wave_outputs()[0], striped_target(ignored=ignored)
    x, t = logits.double().numpy(), target.numpy()[:, 0]
    values = regions or [(0,), (1,), (2,)]
    g = np.stack([np.isin(t, each) for each in values], axis=1)
    y = 1 / (1 + np.exp(-x)) if regions else np.exp(x) / np.exp(x).sum(1, keepdims=True)
    counted = np.broadcast_to((t != 3)[:, None], y.shape)
    entropy = -(g * np.log(y) + (1 - g) * np.log(1 - y))[counted].mean()
    y, g = y * counted, g * counted
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    dice = (2 * (y * g).sum(axes) + 1e-5) / (y.sum(axes) + g.sum(axes) + 1e-5)
    dice = dice if regions else dice[..., 1:]  # without the background
    options = LossOptions(
        batch_dice=batch_dice, kind="dice-bce", regions=regions, ignore=3 if ignored else None
    )
    loss = segmentation_loss([logits], target, options=options)
    assert float(loss) == pytest.approx(entropy - dice.mean(), abs=1e-5)


def test_dice_bce_by_hand():
    # Three classes, each with p = 1/3, on two voxels of class 1: the entropy of a voxel is
    # (-ln 1/3 - 2 ln 2/3) / 3; the Dice of class 1 is 2 * 2/3 / (2/3 + 2) = 1/2, of class 2 it
    # is 0.
    target = torch.ones(1, 1, 1, 2, dtype=torch.int16)
    options = LossOptions(batch_dice=False, kind="dice-bce")
    loss = segmentation_loss([torch.zeros(1, 3, 1, 2)], target, options=options)
    expected = (np.log(3) + 2 * np.log(1.5)) / 3 - (1 / 2 + 0) / 2
    assert float(loss) == pytest.approx(expected, abs=1e-4)


def test_dice_bce_learns_from_what_is_certain_and_wrong():
    logits = torch.tensor([[[[200.0]], [[0.0]], [[-200.0]]]], requires_grad=True)
    options = LossOptions(batch_dice=False, kind="dice-bce")
    loss = segmentation_loss([logits], torch.full((1, 1, 1, 1), 2), options=options)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] > 0.3
    assert logits.grad[0, 2] < -0.3


def test_of_fewer_than_ten_voxels_the_hardest_counts():
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 4.0]]]])
    options = LossOptions(batch_dice=False, kind="dice-topk", dice_weight=0.0)
    loss = segmentation_loss([logits], torch.zeros(1, 1, 1, 2, dtype=torch.int16), options=options)
    assert float(loss) == pytest.approx(np.log1p(np.exp(4.0)), rel=1e-6)


def test_two_voxels_by_hand():
    # p(foreground) = 1/2 on both voxels, one of them foreground:
    # entropy = ln 2, Dice = 2 * 0.5 / (1 + 1) = 0.5.
    target = torch.tensor([[[[0, 1]]]])
    loss = segmentation_loss([torch.zeros(1, 2, 1, 2)], target, options=SOFTMAX)
    assert float(loss) == pytest.approx(np.log(2) - 0.5, abs=1e-5)


def test_a_perfect_prediction_has_a_loss_of_minus_one():
    target = torch.tensor([[[[0, 1, 1, 0]]]])
    logits = torch.where(torch.cat([target == 0, target == 1], 1), 50.0, -50.0)
    assert float(segmentation_loss([logits], target, options=SOFTMAX)) == pytest.approx(-1.0)


@pytest.mark.parametrize("regions", [None, REGIONS])
@pytest.mark.parametrize("value", [0, 9])
@pytest.mark.parametrize(
    "kind", ["dice-ce", "dice-topk", "dice-focal", "dice-bce", "focal-tversky"]
)
def test_gradient_is_finite_without_foreground_and_without_anything_to_learn_from(
    regions, value, kind
):
    logits = wave((2, 3, 4, 4), 0.0).requires_grad_()
    target = torch.full((2, 1, 4, 4), value, dtype=torch.int16)
    options = LossOptions(batch_dice=False, kind=kind, regions=regions, ignore=9)
    loss = segmentation_loss([logits], target, options=options)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    if value == 9:
        assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_what_is_predicted_on_ignored_voxels_is_no_matter(regions):
    options = LossOptions(batch_dice=True, regions=regions, ignore=3)
    target = striped_target(ignored=True)
    logits = wave((2, 3, 6, 8, 10), 0.0)
    other = torch.where(target == 3, wave((2, 3, 6, 8, 10), 2.0), logits)
    first, second = (segmentation_loss([x], target, options=options) for x in (logits, other))
    assert float(first) == pytest.approx(float(second), abs=1e-6)
    for one, two in zip(
        hard_dice_counts(logits, target, options=options),
        hard_dice_counts(other, target, options=options),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_gradient_agrees_with_differences():
    logits = wave((1, 3, 2, 3), 0.4)
    target = torch.tensor([[[[0, 1, 2], [2, 1, 0]]]])
    for options in (SOFTMAX, LossOptions(batch_dice=True, regions=REGIONS)):
        inputs = logits.clone().requires_grad_()
        segmentation_loss([inputs], target, options=options).backward()
        step = 1e-2
        for place in np.ndindex(1, 3, 2, 3):
            up, down = logits.clone(), logits.clone()
            up[place] += step
            down[place] -= step
            slope = (
                segmentation_loss([up], target, options=options)
                - segmentation_loss([down], target, options=options)
            ) / (2 * step)
            assert float(inputs.grad[place]) == pytest.approx(float(slope), abs=2e-4)


def test_half_precision_is_computed_in_single_also_under_autocast():
    logits, target = wave((2, 3, 6, 8, 10), 0.0).bfloat16(), striped_target(ignored=False)
    expected = segmentation_loss([logits.float()], target, options=SOFTMAX)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = segmentation_loss([logits], target, options=SOFTMAX)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_deep_supervision_weights():
    assert deep_supervision_weights(1) == (1.0,)
    assert deep_supervision_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0.0))
    lifted = deep_supervision_weights(3, lowest_weight=1e-6)
    assert lifted[-1] == pytest.approx(1e-6 / 1.500001)
    assert sum(lifted) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 2, 6, 12, 20, 33, 48])
def test_downsampling_by_whole_factors_is_torchs_nearest_exact(size):
    target = torch.arange(size * 6, dtype=torch.int16).reshape(1, 1, size, 6)
    for wanted in (n for n in range(1, size + 1) if size % n == 0):
        found = downsample_target(target, (wanted, 3))
        expected = F.interpolate(target.float(), (wanted, 3), mode="nearest-exact")
        assert found.dtype == torch.int16
        assert torch.equal(found.float(), expected)


def test_downsampling_takes_the_voxel_under_the_centre():
    for size in range(1, 30):
        for wanted in range(1, 40):
            centres = [Fraction(2 * i + 1, 2) * Fraction(size, wanted) for i in range(wanted)]
            found = downsample_target(torch.arange(size)[None, None], (wanted,))
            assert found[0, 0].tolist() == [int(centre) for centre in centres]


def test_counts_hold_where_half_precision_overflows():
    voxels = 70_001
    logits = torch.zeros(1, 2, 1, voxels, dtype=torch.float16)
    logits[:, 1] = 1
    target = torch.ones(1, 1, 1, voxels, dtype=torch.uint8)
    target[..., 0] = 0
    tp, fp, fn = hard_dice_counts(logits, target, options=SOFTMAX)
    assert tp.dtype == torch.int64
    assert (tp.tolist(), fp.tolist(), fn.tolist()) == ([voxels - 1], [1], [0])


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_counts_equal_a_loop(regions):
    logits, target = wave((2, 3, 6, 8, 10), 0.0), striped_target(ignored=True)
    options = LossOptions(batch_dice=True, regions=regions, ignore=3)
    x, t = logits.numpy(), target.numpy()[:, 0]
    keep = t != 3
    rows = range(1, 3) if regions is None else range(3)
    expected = []
    for row in rows:
        predicted = (x.argmax(1) == row) if regions is None else (x[:, row] > 0)
        wanted = np.isin(t, [row] if regions is None else regions[row])
        expected.append(
            [
                int((predicted & wanted & keep).sum()),
                int((predicted & ~wanted & keep).sum()),
                int((~predicted & wanted & keep).sum()),
            ]
        )
    found = torch.stack(hard_dice_counts(logits, target, options=options), dim=1)
    assert found.tolist() == expected


def divergence(probability: np.ndarray) -> float:
    """The mean of m (log m - log p), m being the mean over the first axis."""
    mean = probability.mean(0, keepdims=True)
    return float((mean * (np.log(mean) - np.log(probability))).mean())


@pytest.mark.parametrize("views", [2, 3])
def test_consistency_is_the_divergence_from_the_mean(views):
    logits = wave((views * 2, 3, 6, 8), 0.0)
    exp = np.exp(logits.double().numpy().reshape(views, 2, 3, 6, 8))
    found = consistency_loss(logits, views, options=SOFTMAX)
    assert float(found) == pytest.approx(divergence(exp / exp.sum(2, keepdims=True)), rel=1e-5)
    # As Ouyang et al. compute it.
    p = logits.softmax(1)
    mean = p.view(views, 2, 3, 6, 8).mean(0).repeat(views, 1, 1, 1)
    theirs = F.kl_div(logits.log_softmax(1), mean, reduction="none").mean()
    assert float(found) == pytest.approx(float(theirs), rel=1e-5)


def test_consistency_of_regions_is_that_of_each_as_two_classes():
    logits = wave((6, 3, 6, 8), 0.0)
    inside = 1 / (1 + np.exp(-logits.double().numpy().reshape(3, 2, 3, 6, 8)))
    options = LossOptions(batch_dice=False, regions=REGIONS)
    mean = inside.mean(0)
    both = mean * np.log(mean / inside) + (1 - mean) * np.log((1 - mean) / (1 - inside))
    assert float(consistency_loss(logits, 3, options=options)) == pytest.approx(
        both.mean() / 2, rel=1e-5
    )


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_views_that_agree_cost_nothing_and_certain_ones_are_finite(regions):
    options = LossOptions(batch_dice=False, regions=regions)
    one = wave((2, 3, 6, 8), 0.0)
    assert float(consistency_loss(one.repeat(3, 1, 1, 1), 3, options=options)) == pytest.approx(
        0.0, abs=1e-6
    )
    certain = (1000 * wave((6, 3, 6, 8), 1.0)).requires_grad_()
    loss = consistency_loss(certain.half().float(), 3, options=options)
    loss.backward()
    assert torch.isfinite(loss)
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()
