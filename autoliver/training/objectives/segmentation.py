"""Segmentation: the loss, Dice plus cross-entropy, and the voxel counts of the online Dice.

The Dice is soft, computed per class and (unless `batch_dice`) per sample; it enters with a minus
sign, so a perfect prediction has a loss of -1. Isensee et al., nnU-Net, Nature Methods 2021.

Instead of the mean, the cross-entropy may count only where it is highest ("dice-topk"; Wu et al.
2016, arXiv:1605.06885) or less where the prediction is already good ("dice-focal"; Lin et al., ICCV
2017).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from autoliver.artifacts import Record
from autoliver.training.distributed import ALONE, Group
from autoliver.training.objectives.objective import Scores, Shown, Tally, tally_of

LossKind = Literal["dice-ce", "dice-topk", "dice-focal"]

COUNTS = ("true_positive", "false_positive", "false_negative")
TOP_PART = 10  # one voxel of so many, as nnU-Net
FOCAL_POWER = 2
# As Ouyang et al. weigh an element-wise mean, which is small.
CONSISTENCY_WEIGHT = 10.0


class LossOptions(Record, frozen=True, kw_only=True):
    """What the loss needs to know about labels and batch.

    Attributes:
        batch_dice: Whether Dice is computed over the batch as one rather than per sample.
        kind: What of the cross-entropy counts: its mean, its highest tenth, or its mean with
            weights (1 - p)^2, p being the probability of the truth.
        regions: Per output row the label values it stands for; rows are then independent
            (sigmoid). None: rows are the label values 0, 1, ... (softmax).
        ignore: The label value of voxels that do not count.
        dice_weight: Factor of the Dice part.
        entropy_weight: Factor of the cross-entropy part.
        smooth: Added to the numerator and denominator of Dice.
        lowest_weight: Deep-supervision weight of the lowest resolution before normalisation.
    """

    batch_dice: bool
    kind: LossKind = "dice-ce"
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore: int | None = None
    dice_weight: float = 1.0
    entropy_weight: float = 1.0
    smooth: float = 1e-5
    lowest_weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationObjective:
    """Every foreground label is segmented, and scored by its Dice.

    Attributes:
        options: Of the loss.
        rows: How many foreground labels there are.
    """

    options: LossOptions
    rows: int

    @property
    def lengths(self) -> Mapping[str, int]:
        """Voxels per foreground label."""
        return dict.fromkeys(COUNTS, self.rows)

    @property
    def watched(self) -> str | None:
        """None: the mean Dice."""
        return None

    def loss(self, outputs: list[Tensor], batch: Shown, group: Group) -> tuple[Tensor, Tally]:
        """The segmentation loss of the first views, to which disagreement of the views is added.

        Args:
            outputs: Logits (views * b, rows, *shape), full resolution first.
            batch: What the network was shown.
            group: Processes that each hold a part of the batch.

        Returns:
            A scalar, float32, and the voxel counts of the first views.
        """
        target, options = batch.target, self.options
        first = [output[: len(target)] for output in outputs]
        loss = segmentation_loss(first, target, options=options, group=group)
        views = len(batch.image) // len(target)
        if views > 1:
            disagreement = consistency_loss(outputs[0], views, options=options, group=group)
            loss = loss + CONSISTENCY_WEIGHT * disagreement
        with torch.no_grad():
            counts = hard_dice_counts(first[0], target, options=options)
        return loss, tally_of(dict(zip(COUNTS, counts, strict=True)), group)

    def scores(self, tally: Tally) -> Scores:
        """The Dice of each label: twice what is right of all that was predicted or wanted."""
        counts = zip(*(tally.counts[name] for name in COUNTS), strict=True)
        return Scores(
            labels=tuple(
                2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None for tp, fp, fn in counts
            )
        )


class _Total(torch.autograd.Function):
    """The sum over processes that all go on to compute the same from it.

    Backward they all hold the same gradient, so that nothing is sent: adding it up over them is to
    multiply it. Divided by their number again, by DistributedDataParallel's mean, it is what one
    process would find.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.size = group.size
        return group.sum_(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.size, None


def _total(values: Tensor, group: Group) -> Tensor:
    if group.size == 1:
        return values
    total: Tensor = _Total.apply(values, group)  # type: ignore[no-untyped-call]
    return total


def _mean(total: Tensor, count: Tensor | int, group: Group) -> Tensor:
    """A mean over all processes, of what each has added up and counted; 0 of nothing."""
    counted = count if isinstance(count, Tensor) else total.new_full((), count)
    total, counted = _total(torch.stack([total, counted.to(total)]), group).unbind()
    return total / counted.clamp_min(1)


def segmentation_loss(
    outputs: list[Tensor], target: Tensor, *, options: LossOptions, group: Group = ALONE
) -> Tensor:
    """The weighted sum over resolutions of Dice plus cross-entropy.

    Args:
        outputs: Logits (b, rows, *shape), full resolution first; a single one without deep
            supervision. Half precision is computed in float32.
        target: Label values (b, 1, *full shape), any integer type.
        options: See there.
        group: Processes that each hold a part of the batch; the loss is that of all of it.

    Returns:
        A scalar, float32.
    """
    total = torch.zeros((), device=target.device)
    weights = deep_supervision_weights(len(outputs), lowest_weight=options.lowest_weight)
    for logits, weight in zip(outputs, weights, strict=True):
        if weight > 0:
            scaled = downsample_target(target, tuple(logits.shape[2:]))
            total = total + weight * _one_resolution(logits, scaled, options, group)
    return total


def consistency_loss(
    logits: Tensor, views: int, *, options: LossOptions, group: Group = ALONE
) -> Tensor:
    """How far the predictions for views of the same patches are from their mean.

    The divergence KL(mean of p || p), taken element by element and averaged over views, samples,
    classes and voxels. A region is a distribution of its own, of inside and outside. Ouyang et al.,
    IEEE TMI 2023.

    Args:
        logits: (views * b, rows, *shape): all first views, all second, ...; half precision is
            computed in float32.
        views: How many of each patch there are.
        options: Of the loss.
        group: Processes that each hold a part of the batch.

    Returns:
        A scalar, float32; 0 where all views agree.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if options.regions is None:
            log_probability = F.log_softmax(logits, dim=1)
        else:
            log_probability = torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)
        versions = log_probability.reshape(views, -1, *log_probability.shape[1:])
        mean = versions.logsumexp(0, keepdim=True) - math.log(views)
        total = F.kl_div(versions, mean.expand_as(versions), reduction="sum", log_target=True)
    return _mean(total, versions.numel(), group)


def deep_supervision_weights(count: int, *, lowest_weight: float = 0.0) -> tuple[float, ...]:
    """Weights 1, 1/2, 1/4, ... with that of the lowest resolution replaced, normalised to sum 1.

    Args:
        count: Number of resolutions; a single one has weight 1.
        lowest_weight: In place of the last weight, before normalisation.
    """
    if count == 1:
        return (1.0,)
    weights = [0.5**level for level in range(count - 1)] + [lowest_weight]
    return tuple(weight / sum(weights) for weight in weights)


def downsample_target(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The target at the resolution of an output, by nearest neighbour.

    The voxel whose centre lies nearest is taken (torch's `nearest-exact`; with an even factor k the
    voxel k/2), computed on integers so that no float copy is made.

    Args:
        target: (b, c, *spatial).
        shape: The spatial shape wanted.

    Returns:
        (b, c, *shape), of the same type.
    """
    for axis, (size, wanted) in enumerate(zip(target.shape[2:], shape, strict=True), start=2):
        if size != wanted:
            position = torch.arange(wanted, device=target.device)
            index = ((2 * position + 1) * size).div(2 * wanted, rounding_mode="floor")
            target = target.index_select(axis, index)
    return target


def hard_dice_counts(
    logits: Tensor, target: Tensor, *, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, false positives and false negatives of a batch, in voxels.

    Counted in int64: sums in half or single precision lose voxels from 2048 and 16 million on.

    Args:
        logits: (b, rows, *shape).
        target: Label values (b, 1, *shape).
        options: Of the loss.

    Returns:
        tp, fp, fn, each of shape (foreground rows,): every region, or every class but background.
    """
    valid = _valid(target, options.ignore)
    labels = logits.argmax(1, keepdim=True) if options.regions is None else None
    counts = []
    for row in range(0 if labels is None else 1, logits.shape[1]):
        predicted = logits[:, row : row + 1] > 0 if labels is None else labels == row
        wanted = _is_row(target, row, options.regions)
        if valid is not None:
            predicted, wanted = predicted & valid, wanted & valid
        both = (predicted & wanted).sum()
        counts.append(torch.stack([both, predicted.sum() - both, wanted.sum() - both]))
    if not counts:
        empty = torch.zeros(0, dtype=torch.int64, device=logits.device)
        return empty, empty, empty
    tp, fp, fn = torch.stack(counts, dim=1)
    return tp, fp, fn


def _one_resolution(logits: Tensor, target: Tensor, options: LossOptions, group: Group) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        valid = _valid(target, options.ignore)
        if options.regions is None:
            return _softmax_loss(logits, target, valid, options, group)
        return _region_loss(logits, target, valid, options, group)


def _softmax_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None, options: LossOptions, group: Group
) -> Tensor:
    # One log-softmax serves both parts.
    log_probability = F.log_softmax(logits, dim=1)
    rows = torch.arange(logits.shape[1], device=logits.device)
    onehot = target == rows.view(1, -1, *[1] * (logits.ndim - 2))
    probability = log_probability.exp()
    if valid is not None:
        onehot = onehot & valid
        probability = probability * valid
    dice = _soft_dice(probability[:, 1:], onehot[:, 1:], options, group)

    index = target[:, 0].long() if valid is None else torch.where(valid, target, 0)[:, 0].long()
    entropy = _entropy(-log_probability.gather(1, index[:, None]), valid, options, group)
    return options.entropy_weight * entropy - options.dice_weight * dice


def _region_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None, options: LossOptions, group: Group
) -> Tensor:
    rows = range(logits.shape[1])
    wanted = torch.cat([_is_row(target, row, options.regions) for row in rows], dim=1)
    probability = torch.sigmoid(logits)
    each = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")
    entropy = _entropy(each, valid, options, group)
    if valid is not None:
        probability, wanted = probability * valid, wanted & valid
    dice = _soft_dice(probability, wanted, options, group)
    return options.entropy_weight * entropy - options.dice_weight * dice


def _entropy(each: Tensor, valid: Tensor | None, options: LossOptions, group: Group) -> Tensor:
    """One number from the cross-entropies (b, rows, *shape); one row with softmax."""
    if options.kind == "dice-topk":
        return _highest(each, valid, group)
    if options.kind == "dice-focal":
        # exp(-entropy) is the probability of the truth.
        each = (-torch.expm1(-each)) ** FOCAL_POWER * each
    if valid is None:
        return _mean(each.sum(), each.numel(), group)
    # No voxel to learn from is no reason for 0 / 0. As nnU-Net, this is a sum over regions (the
    # mask has one channel), while without ignored voxels it is a mean.
    return _mean((each * valid).sum(), valid.sum(), group)


def _highest(each: Tensor, valid: Tensor | None, group: Group) -> Tensor:
    """The mean of the highest tenth of what counts.

    Without ignored voxels as nnU-Net; it takes a tenth of all voxels with them, too, which is more
    than there are where few are annotated.
    """
    values = each.flatten() if valid is None else each[valid.expand_as(each)]
    if group.size > 1:
        return _highest_of_all(values, group)
    if not len(values):
        return each.sum() * 0.0
    count = max(1, len(values) // TOP_PART)
    return values.topk(count, sorted=False).values.mean()


def _highest_of_all(values: Tensor, group: Group) -> Tensor:
    """The mean of the highest tenth of what all processes hold; of nothing, 0."""
    found = int(group.sum_(torch.tensor(len(values), device=values.device)))
    if not found:
        return values.sum()
    count = max(1, found // TOP_PART)
    # Candidates of every process; the tenth goes down to `lowest`.
    candidates = values.new_zeros(group.size, count)
    own = values.detach().topk(min(count, len(values)), sorted=False).values
    candidates[group.rank] = F.pad(own, (0, count - len(own)), value=-torch.inf)
    lowest = group.sum_(candidates).flatten().topk(count, sorted=False).values.min()
    above, equal = values > lowest, values == lowest
    counts = group.sum_(torch.stack([above.sum(), equal.sum()]))
    # Of those that are equal to it as many as are missing, all of them in part.
    part = (count - counts[0]) / counts[1]
    chosen = values[above].sum() + part * values[equal].sum()
    return _total(chosen, group) / count


def _soft_dice(probability: Tensor, wanted: Tensor, options: LossOptions, group: Group) -> Tensor:
    axes = tuple(range(2, probability.ndim))
    if options.batch_dice:
        axes = (0, *axes)
    overlap = (probability * wanted).sum(axes)
    size = probability.sum(axes) + wanted.sum(axes)
    if options.batch_dice:
        overlap, size = _total(torch.stack([overlap, size]), group).unbind()
    dice = (2 * overlap + options.smooth) / (size + options.smooth).clamp_min(1e-8)
    return dice.mean() if options.batch_dice else _mean(dice.sum(), dice.numel(), group)


def _valid(target: Tensor, ignore: int | None) -> Tensor | None:
    return None if ignore is None else target != ignore


def _is_row(target: Tensor, row: int, regions: tuple[tuple[int, ...], ...] | None) -> Tensor:
    if regions is None:
        return target == row
    found = target == regions[row][0]
    for value in regions[row][1:]:
        found = found | (target == value)
    return found
