"""Mixed weights against numbers computed one by one."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from autoliver.datasets.cases import Labels
from autoliver.networks.build import build_network
from autoliver.networks.spec import UNetSpec
from autoliver.transfer.adapt import Side, transfer_weights
from autoliver.transfer.blend import blend, source_part

LITS = Labels(values={"background": (0,), "liver": (1,), "tumor": (2,)})
CHAOS = Labels(values={"background": (0,), "kidney": (1,), "Liver": (2,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)


def side(labels: Labels = LITS, channels: tuple[str, ...] = ("CT",), **changes: object) -> Side:
    fields: dict[str, object] = {
        "features": (4, 6),
        "strides": ((1, 1), (2, 2)),
        "kernels": ((3, 3),) * 2,
        "blocks_encoder": (1, 1),
        "blocks_decoder": (1,),
        "in_channels": len(channels),
        "out_channels": labels.out_channels,
    }
    spec = UNetSpec(**fields | changes)  # type: ignore[arg-type]
    return Side(spec=spec, channels=channels, labels=labels)


def weights(side: Side, seed: int) -> dict[str, Tensor]:
    """Weights as after a training, not all equal."""
    made = build_network(side.spec, deep_supervision=True).state_dict()
    generator = Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in made.items()}


SIDES = {
    "same": (side(), side()),
    "labels": (side(), side(CHAOS)),
    "regions": (side(), side(REGIONS)),
    "classes": (side(REGIONS), side()),
    "channels": (side(), side(channels=("T1", "CT"))),
    "kernels": (side(), side(kernels=((1, 3), (5, 3)))),
    "deeper": (
        side(),
        side(
            features=(4, 6, 8),
            strides=((1, 1), (2, 2), (2, 2)),
            kernels=((3, 3),) * 3,
            blocks_encoder=(1, 1, 1),
            blocks_decoder=(1, 1),
        ),
    ),
    "wider": (side(), side(features=(4, 9))),
}


@pytest.mark.parametrize("heads", ["map", "reset"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SIDES)
def test_what_both_have_is_mixed_and_the_rest_is_tuned(name: str, share: float, heads: str) -> None:
    source, target = SIDES[name]
    theirs, tuned = weights(source, 1), weights(target, 2)
    # What does not depend on the initial weights comes from the source.
    ways = [
        transfer_weights(theirs, source, weights(target, seed), target, heads=heads)[0]  # type: ignore[arg-type]
        for seed in (3, 4)
    ]
    part = source_part(theirs, source, weights(target, 5), target, heads=heads)  # type: ignore[arg-type]
    mixed = blend(part, tuned, share)
    assert mixed.keys() == tuned.keys()
    taken = 0
    for key, found in mixed.items():
        one, other, mine = (each[key].flatten().tolist() for each in (*ways, tuned))
        expected = [
            (1 - share) * a + share * t if a == b else t
            for a, b, t in zip(one, other, mine, strict=True)
        ]
        np.testing.assert_allclose(found.flatten(), expected, rtol=1e-5, atol=1e-6, err_msg=key)
        taken += sum(a == b for a, b in zip(one, other, strict=True))
    assert taken > 0
    if share == 1.0:
        assert all(torch.equal(mixed[key], tuned[key]) for key in tuned)


def test_features_that_a_head_of_the_source_lacks_are_the_tuned_ones() -> None:
    source, target = side(), side(features=(7, 6))
    theirs, tuned = weights(source, 1), weights(target, 2)
    mixed = blend(source_part(theirs, source, weights(target, 3), target), tuned, 0.0)
    heads = [k for k in mixed if target.spec.role(k).head and mixed[k].ndim > 1]
    (full,) = (key for key in heads if mixed[key].shape[1] == 7)
    assert torch.equal(mixed[full][:, :4], theirs[full])
    assert torch.equal(mixed[full][:, 4:], tuned[full][:, 4:])
