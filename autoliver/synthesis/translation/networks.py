"""The networks of a translation: generators, what judges their images, and the segmentor."""

from collections.abc import Sequence

import torch
from torch import nn

from autoliver.networks.build import CONVOLUTIONS, build_network
from autoliver.networks.spec import NetworkSpec
from autoliver.networks.translator import PatchDiscriminator, PatchHeads
from autoliver.networks.translator_spec import TranslatorSpec
from autoliver.synthesis.translation.options import TranslationOptions

_STD = 0.02  # of initial weights
_LEVELS = 2  # below full resolution
_JUDGED = 3  # strided layers of a discriminator
# Slices are halved with the pixels where they are less than so many times as thick.
_THICK = 2.0
# The names of the networks: those that learn to please, and those that judge them.
THERE, BACK, SEGMENTOR, HEADS = "there", "back", "segmentor", "heads"
GENERATORS = (THERE, BACK, SEGMENTOR, HEADS)
JUDGES = {"target": "judge of target", "source": "judge of source"}


def generator_spec(options: TranslationOptions, spacing_mm: Sequence[float] = ()) -> TranslatorSpec:
    """The network that translates images with one channel.

    Args:
        options: How it is learnt; patches of three axes make it a network in 3D.
        spacing_mm: Spacing (z, y, x) of the images of a translation in 3D; slices that are much
            thicker than pixels are wide are halved once instead of twice.
    """
    strides: tuple[tuple[int, ...], ...] = ((2, 2),) * _LEVELS
    if options.dimension == 3:
        thick = spacing_mm[0] >= _THICK * min(spacing_mm[1:])
        strides = ((1 if thick else 2, 2, 2), (2, 2, 2))
    return TranslatorSpec(
        in_channels=1,
        out_channels=1,
        features=options.features,
        blocks=options.blocks,
        strides=strides,
        outputs=(-1.0, 1.0),
    )


def segmentor_spec(
    options: TranslationOptions, classes: int, spacing_mm: Sequence[float] = ()
) -> TranslatorSpec:
    """The network that finds labels in images: as a generator, with linear outputs."""
    return generator_spec(options, spacing_mm).replace(out_channels=classes, outputs=None)


def make_networks(
    options: TranslationOptions, spacing_mm: Sequence[float], segmentor: NetworkSpec
) -> nn.ModuleDict:
    """Makes the networks of a translation, with the same initial weights for the same seed.

    Args:
        options: How it is learnt.
        spacing_mm: See `generator_spec`.
        segmentor: The network that finds labels, for a translation that has one.

    Returns:
        Name of a network -> network; `GENERATORS` and `JUDGES` have the names.
    """
    spec = generator_spec(options, spacing_mm)
    generator = torch.Generator().manual_seed(options.seed)
    both = options.model != "cut"
    networks: dict[str, nn.Module] = {
        name: build_network(spec, deep_supervision=False)
        for name in ((THERE, BACK) if both else (THERE,))
    }
    if options.segments:
        networks[SEGMENTOR] = build_network(segmentor, deep_supervision=True)
    if not both:
        networks[HEADS] = PatchHeads(spec.compared_features)
    for side in ("source", "target") if both else ("target",):
        networks[JUDGES[side]] = _judge(spec)
    for network in networks.values():
        _initialise(network, generator)
    return nn.ModuleDict(networks)


def _judge(spec: TranslatorSpec) -> PatchDiscriminator:
    """A discriminator for the images of a generator; slices are halved as often as there."""
    last = (1,) * (spec.dimension - 2) + (2, 2)
    strides = (*spec.strides, *[last] * (_JUDGED - len(spec.strides)))
    return PatchDiscriminator(spec.out_channels, features=spec.features, strides=strides)


@torch.no_grad()
def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draws the weights from a narrow normal distribution, as CycleGAN does."""
    for module in network.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            nn.init.normal_(module.weight, std=_STD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
