import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import morphology as reference
from torch import Generator

from autoliver.training.augment.cascade import (
    OPERATIONS,
    OutlineChange,
    PieceLoss,
    apply_outlines,
    apply_pieces,
    morphology,
    sample_outlines,
    sample_pieces,
    show_previous,
)

torch.set_num_threads(1)


def blobs(shape, threshold=0.6, seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return noise > np.quantile(noise, threshold)


def expected(mask, operation, radius):
    """scipy's operations with scikit-image's ball, beyond the border the other of each step."""
    element = reference.ball(radius) if mask.ndim == 3 else reference.disk(radius)

    def dilate(array):
        return ndimage.binary_dilation(array, element)

    def erode(array):
        return ndimage.binary_erosion(array, element, border_value=1)

    steps = {
        "dilate": [dilate],
        "erode": [erode],
        "open": [erode, dilate],
        "close": [dilate, erode],
    }[operation]
    for step in steps:
        mask = step(mask)
    return mask


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("shape", "radius"), [((18, 20, 15), 1), ((18, 20, 15), 4), ((40, 36), 8)])
def test_operations_are_those_of_scipy_with_a_ball(operation, shape, radius):
    mask = blobs(shape)
    result = morphology(torch.from_numpy(mask), operation, radius)
    np.testing.assert_array_equal(result.numpy(), expected(mask, operation, radius))


def test_what_one_label_gains_the_others_lose():
    channels = np.zeros((2, 3, 10, 20, 20), np.float32)
    channels[:, 0, 2:8, 2:8, 2:8] = 1
    channels[:, 1, 2:8, 2:8, 8:14] = 1
    before = torch.from_numpy(channels.copy())
    image = before.clone()
    change = OutlineChange(sample=1, channel=0, operation="dilate", radius=2)
    apply_outlines(image, [change])
    grown = expected(channels[1, 0] > 0, "dilate", 2)
    np.testing.assert_array_equal(image[1, 0].numpy(), grown)
    np.testing.assert_array_equal(image[1, 1].numpy(), (channels[1, 1] > 0) & ~grown)
    assert not image[1, 2].any()
    assert torch.equal(image[0], before[0])


def test_a_component_goes_unless_it_is_large():
    channel = torch.zeros(1, 1, 10, 10, 10)
    channel[0, 0, :5, :5, :8] = 1  # a fifth of the patch
    channel[0, 0, 8, 8, 8] = 1
    channel[0, 0, 8, 1, 1:3] = 1
    for position, (z, y, x) in ((0.0, (8, 1, 1)), (0.99, (8, 8, 8))):
        image = channel.clone()
        apply_pieces(image, [PieceLoss(sample=0, channel=0, position=position)])
        gone = (channel - image)[0, 0]
        assert gone[z, y, x] == 1
        assert int(gone.sum()) == (2 if position == 0.0 else 1)
    nothing = torch.zeros(1, 1, 4, 4, 4)
    apply_pieces(nothing, [PieceLoss(sample=0, channel=0, position=0.5)])
    assert not nothing.any()


def test_the_draws_follow_their_probabilities_and_seed():
    outlines = sample_outlines(4000, 3, Generator().manual_seed(1))
    assert outlines == sample_outlines(4000, 3, Generator().manual_seed(1))
    assert len(outlines) == pytest.approx(4000 * 0.4 * 1.5, rel=0.05)
    assert {c.radius for c in outlines} == set(range(1, 9))
    assert {c.operation for c in outlines} == set(OPERATIONS)
    first = [c.channel for c in outlines[:200]]
    assert first != sorted(first)
    pieces = sample_pieces(4000, 2, Generator().manual_seed(1))
    assert len(pieces) == pytest.approx(4000 * 0.2 * 1.0, rel=0.08)
    assert all(0 <= p.position < 1 for p in pieces)


def test_what_the_first_stage_found_moves_to_the_image():
    image, target = torch.randn(2, 1, 4, 5, 6), torch.zeros(2, 2, 4, 5, 6, dtype=torch.int16)
    target[:, 0] = 1
    target[0, 1, 2, 3, 4], target[1, 1, 0, 0, 0] = 2, 1
    shown, rest = show_previous(image, target, channels=2, generator=None)
    assert torch.equal(shown[:, :1], image)
    assert torch.equal(rest, target[:, :1])
    expected = torch.zeros(2, 2, 4, 5, 6)
    expected[0, 1, 2, 3, 4] = expected[1, 0, 0, 0, 0] = 1
    assert torch.equal(shown[:, 1:], expected)
    changed = [
        show_previous(image, target, channels=2, generator=Generator().manual_seed(s))[0]
        for s in (1, 1, *range(8))
    ]
    assert torch.equal(changed[0], changed[1])
    assert any(not torch.equal(c, shown) for c in changed)
    assert all(
        torch.equal(c[:, :1], image) and set(c[:, 1:].unique().tolist()) <= {0, 1} for c in changed
    )


def test_every_view_of_a_patch_shows_what_the_first_stage_found():
    image, target = torch.randn(6, 1, 4, 5, 6), torch.zeros(2, 2, 4, 5, 6, dtype=torch.int16)
    target[0, 1, 2:, 3:, 4:], target[1, 1, :2] = 2, 1
    shown, rest = show_previous(image, target, channels=2, generator=Generator().manual_seed(0))
    once, _ = show_previous(image[:2], target, channels=2, generator=Generator().manual_seed(0))
    assert torch.equal(shown[:, :1], image)
    assert len(rest) == 2
    for view in shown.split(2):
        assert torch.equal(view[:, 1:], once[:, 1:])
