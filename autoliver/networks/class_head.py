"""The head that tells the class of a lesion from the deepest features of a network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoliver.networks.contract import ClassHead, NetworkContract

# Logit of what a classifier of patches cannot find: the probability is 0 in single precision.
_NEVER = -200.0


class Classifier(nn.Module):
    """The mean over all positions, a layer norm, and one linear layer.

    Args:
        features: Number of the deepest features.
        classes: Number of classes.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, classes)

    def forward(self, deepest: Tensor) -> Tensor:
        """Features (b, features, *shape) -> logits of the classes (b, classes)."""
        result: Tensor = self.linear(self.norm(deepest.flatten(2).mean(dim=2)))
        return result


def classifier(spec: NetworkContract, features: int) -> Classifier | None:
    """The classifier that a spec asks for on that many features; None if it asks for none."""
    return None if spec.classifier is None else Classifier(features, len(spec.classifier.rows))


def joined(logits: Tensor, classes: Tensor, head: ClassHead) -> Tensor:
    """Joins the logits of segmentation and classification into one channel per label.

    The channel of a class is that of the lesion plus the logarithm of the class's probability. In a
    softmax, the classes then share exactly the probability of the lesion.

    Args:
        logits: (b, channels, *shape), where lesions of all classes have a single channel, in the
            place of their first class.
        classes: Logits of the classes (b, classes).
        head: The head that told them.

    Returns:
        (b, channels - 1 + classes, *shape).
    """
    shares = F.log_softmax(classes, dim=1).to(logits.dtype)
    lesion = min(head.rows)
    rows: list[Tensor] = []
    others = iter(range(logits.shape[1]))
    for row in range(logits.shape[1] - 1 + len(head.rows)):
        if row == lesion:
            next(others)
        if row in head.rows:
            share = shares[:, head.rows.index(row)]
            rows.append(logits[:, lesion] + share.reshape(-1, *(1,) * (logits.ndim - 2)))
        else:
            rows.append(logits[:, next(others)])
    return torch.stack(rows, dim=1)


def with_classes(
    logits: list[Tensor],
    classes: Tensor | None,
    spec: NetworkContract,
    image: Tensor,
    *,
    every: bool,
) -> Tensor | list[Tensor]:
    """What a network returns: all outputs for training, or one map for prediction.

    Args:
        logits: The outputs of the segmentation heads, full resolution first.
        classes: The output of the class head; None without one.
        spec: The network.
        image: (b, channels, *shape).
        every: Whether all outputs are returned.

    Returns:
        A list of all outputs, that of the class head last; or (b, out_channels, *shape).
    """
    if spec.classifier is None or classes is None:
        return logits if every else logits[0]
    if every:
        return [*logits, classes]
    if spec.classifier.alone:
        return everywhere(classes, spec, image)
    return joined(logits[0], classes, spec.classifier)


def everywhere(classes: Tensor, spec: NetworkContract, image: Tensor) -> Tensor:
    """The classes of patches as channels of segmentation, alike at every position of the patch.

    Args:
        classes: Logits of the classes (b, classes).
        spec: The network, whose other channels are never the most probable.
        image: (b, channels, *shape).

    Returns:
        (b, out_channels, *shape).
    """
    head = spec.classifier
    if head is None:
        raise ValueError("the network has no head that tells classes")
    result = classes.new_full((len(image), spec.out_channels), _NEVER)
    result[:, list(head.rows)] = F.log_softmax(classes, dim=1)
    return result.reshape(*result.shape, *(1,) * (image.ndim - 2)).expand(-1, -1, *image.shape[2:])
