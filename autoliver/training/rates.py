"""Learning rates of the parts of a network, as factors of the recipe's rate."""

from collections.abc import Iterator

from autoliver.networks.contract import ENCODER, Part
from autoliver.networks.spec import NetworkSpec
from autoliver.training.options import TrainingOptions


def rate_factor(name: str, network: NetworkSpec, options: TrainingOptions) -> float:
    """The factor of a weight's learning rate.

    It is `layer_decay ** depth`, in the encoder times `encoder_factor`. Heads have depth 0.

    Args:
        name: Name of the weight in the state dict.
        network: The network.
        options: The options of the training.
    """
    part = network.role(name).part
    if part is None:
        return 1.0
    encoder = options.encoder_factor if part[0] == ENCODER else 1.0
    if options.layer_decay == 1.0:
        return encoder
    return float(encoder * options.layer_decay ** depths(network)[part])


def depths(network: NetworkSpec) -> dict[Part, int]:
    """Counts the parts from the output of a network to its input, from 1.

    The network lists its groups from the input to the output, and says of each at which end its
    part 0 is. A group beside another one, such as a front whose features only the decoder sees,
    comes after it, so that it does not count as deeper than a pre-trained stem.
    """
    return {part: depth for depth, part in enumerate(_from_output(network), start=1)}


def _from_output(network: NetworkSpec) -> Iterator[Part]:
    for group in reversed(network.parts):
        stages = range(group.stages)
        for stage in reversed(stages) if group.from_image else stages:
            yield (group.name, stage)
