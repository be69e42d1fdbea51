"""Mixes fine-tuned weights with those they started from (WiSE-FT, Wortsman et al., CVPR 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from autoliver.transfer.adapt import Side, transfer_weights
from autoliver.transfer.table import Heads, Inflation


def source_part(
    state: Mapping[str, Tensor],
    source: Side,
    drawn: Mapping[str, Tensor],
    target: Side,
    *,
    heads: Heads = "map",
    inflate: Inflation = "mean",
) -> dict[str, Tensor]:
    """Returns the source's weights in the shapes of the target, NaN where the source has none.

    The arguments and errors are those of `transfer_weights`.
    """
    nothing = {name: torch.full(weight.shape, torch.nan) for name, weight in drawn.items()}
    weights, _ = transfer_weights(state, source, nothing, target, heads=heads, inflate=inflate)
    for name, weight in weights.items():
        # Features that the source's heads lack count as zeros when a training starts.
        if name in state and target.spec.role(name).head and weight.ndim > 1:
            weight[:, state[name].shape[1] :] = torch.nan
    return weights


def blend(
    source: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Mixes weights, number by number: (1 - share) * source + share * tuned.

    Statistics of norms are mixed as well; integers, which only count batches, stay the tuned ones.

    Args:
        source: The source's weights, from `source_part`; numbers that are NaN stay the tuned ones.
        tuned: The tuned weights, of the same names and shapes.
        share: Share of the tuned weights, 0 to 1.
    """
    return {
        name: _mixed(source[name], weight, share) if weight.is_floating_point() else weight
        for name, weight in tuned.items()
    }


def _mixed(source: Tensor, tuned: Tensor, share: float) -> Tensor:
    return torch.where(torch.isnan(source), tuned, source.lerp(tuned.float(), share))
