"""The segmentation objective: Dice plus cross-entropy, and the voxel counts of the online Dice.

The Dice is soft, computed per class and (unless `batch_dice`) per sample. It enters with a minus
sign, so a perfect prediction has a loss of -1. Isensee et al., nnU-Net, Nature Methods 2021.

Instead of its mean over all voxels, the cross-entropy may be averaged over the voxels where it is
highest ("dice-topk"; Wu et al. 2016, arXiv:1605.06885), or weighted down where the prediction is
already good ("dice-focal"; Lin et al., ICCV 2017).

"dice-bce" takes the binary cross-entropy of each class in place of the cross-entropy. Classes
remain a softmax, so that prediction is the same for all losses; regions have it in any case.

"focal-tversky" takes the Tversky index of each class in place of the Dice, raised to a power, and
no cross-entropy (Abraham & Khan, ISBI 2019, arXiv:1810.07842). Voxels that are missed count more
than voxels that are found in vain. A perfect prediction has a loss of 0.

The cross-entropy may have a weight for each class: a voxel then counts by the weight of its true
class, divided by the mean weight of all voxels that count in the batch.

Where annotations are partial, each pair of a sample and a label has a weight. A pair of weight 0 is
unknown: it counts nowhere and its row has no gradient. The loss is the weighted sum over the other
pairs divided by their number. A label that is known to be absent in a part of a patch, far from the
organ that it lies in, counts in this part alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from autoliver.artifacts import Record
from autoliver.datasets.cases import Annotation, CaseFacts, known_around
from autoliver.training.distributed import ALONE, Group
from autoliver.training.objectives.objective import Counts, Scores, Shown, Tally, counts_of

LossKind = Literal["dice-ce", "dice-topk", "dice-focal", "dice-bce", "focal-tversky"]

COUNTS = ("true_positive", "false_positive", "false_negative")
TOP_PART = 10  # one voxel in ten counts, as in nnU-Net
FOCAL_POWER = 2
# Of Abraham & Khan: the weight of voxels that are missed (those found in vain have the rest), and
# the power, which they write as 1 / (4 / 3).
MISSED_WEIGHT = 0.7
TVERSKY_POWER = 0.75
TVERSKY_SMOOTH = 1.0
# Where the index is 1, the slope of the power would be infinite.
_LEAST_ERROR = 1e-7
# The weight of Ouyang et al. for an element-wise mean, which is small.
CONSISTENCY_WEIGHT = 10.0


class LossOptions(Record, frozen=True, kw_only=True):
    """What the loss needs to know about the labels, and how it is computed.

    Attributes:
        batch_dice: Whether Dice is computed over the whole batch rather than per sample.
        kind: How the cross-entropy is averaged: over all voxels ("dice-ce"), over its highest
            tenth ("dice-topk"), or with the weights (1 - p)^2 ("dice-focal"), where p is the
            predicted probability of the true label; "dice-bce": the mean over voxels and classes
            of the binary cross-entropy. "focal-tversky": no cross-entropy, and the Tversky index
            in place of Dice.
        regions: The label values of each output row; rows are then independent (sigmoid). None:
            rows are the label values 0, 1, ... (softmax).
        ignore: The label value of voxels that do not count; None: all voxels count.
        dice_weight: Factor of the Dice part.
        entropy_weight: Factor of the cross-entropy part.
        class_weights: Weight of each class in the cross-entropy, above 0, background first; only
            their ratios matter. None: all alike. Not with regions.
        smooth: Constant added to the numerator and the denominator of Dice.
        lowest_weight: Deep-supervision weight of the lowest resolution before normalisation.
    """

    batch_dice: bool
    kind: LossKind = "dice-ce"
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore: int | None = None
    dice_weight: float = 1.0
    entropy_weight: float = 1.0
    class_weights: tuple[float, ...] | None = None
    smooth: float = 1e-5
    lowest_weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationObjective:
    """The objective that segments every foreground label and scores it by its Dice.

    Attributes:
        options: Options of the loss.
        names: The foreground labels, in the order of the rows.
        pseudo_weight: Weight of pseudo-labels in the loss, 0 to 1.
        compute: `segmentation_loss`, compiled; None: as it is.
    """

    options: LossOptions
    names: tuple[str, ...]
    pseudo_weight: float = 1.0
    compute: Callable[..., Tensor] | None = None

    @property
    def lengths(self) -> Mapping[str, int]:
        """Three counts of voxels (`COUNTS`), each with one number per foreground label."""
        return dict.fromkeys(COUNTS, len(self.names))

    @property
    def watched(self) -> str | None:
        """None: progress is measured by the mean Dice."""
        return None

    def loss(self, outputs: list[Tensor], batch: Shown, group: Group) -> tuple[Tensor, Counts]:
        """The segmentation loss of the first views plus the disagreement between the views.

        Args:
            outputs: Logits (views * b, rows, *shape), full resolution first.
            batch: The batch that the network was given.
            group: Processes that each hold a part of the batch.

        Returns:
            The loss, a float32 scalar, and the voxel counts of the first views. Labels that are
            unknown or pseudo-labels are not counted.
        """
        target, options = batch.target, self.options
        first = [output[: len(target)] for output in outputs]
        weights, around = self._weights(batch, group), self._around(batch)
        compute = self.compute or segmentation_loss
        loss = compute(
            first,
            target,
            options=options,
            group=group,
            weights=self._with_outside(weights, batch, around),
            counted=self._counted(batch, around),
        )
        views = len(batch.image) // len(target)
        if views > 1:
            disagreement = consistency_loss(
                outputs[0], views, options=options, group=group, weights=weights
            )
            loss = loss + CONSISTENCY_WEIGHT * disagreement
        with torch.no_grad():
            marked = self._by_state(batch, {"pseudo": 0.0, "none": 0.0})
            counts = hard_dice_counts(first[0], target, options=options, weights=marked)
        return loss, counts_of(dict(zip(COUNTS, counts, strict=True)), group)

    def _weights(self, batch: Shown, group: Group) -> Tensor | None:
        """The weights (b, rows) of a batch; None if all weights of all processes are 1."""
        if self.options.regions is None:
            return None
        weights = self._by_state(batch, {"pseudo": self.pseudo_weight, "none": 0.0})
        partial = group.any(weights is not None)
        if weights is None and partial:
            weights = torch.ones(len(batch.target), len(self.names), device=batch.target.device)
        return weights

    def _with_outside(
        self, weights: Tensor | None, batch: Shown, around: Sequence[Mapping[str, str]]
    ) -> Tensor | None:
        """The weights, with those of labels that are known to be absent in a part of a patch.

        They have the weight of the label that tells it, such as the liver: a model may have drawn
        it.
        """
        if weights is None or not any(around):
            return weights
        weights = weights.clone()
        for sample, found in enumerate(around):
            for inner, outer in found.items():
                state = _of_state(batch.cases[sample], outer, {"pseudo": self.pseudo_weight})
                weights[sample, self.names.index(inner)] = state
        return weights

    def _counted(self, batch: Shown, around: Sequence[Mapping[str, str]]) -> Tensor | None:
        """The voxels (b, rows, *patch) that count for each label; None if all of them do."""
        if batch.outside is None or not any(around):
            return None
        rows = [[name in found for name in self.names] for found in around]
        partly = torch.tensor(rows, device=batch.target.device)
        return batch.outside | ~_over_voxels(partly, batch.target)

    def _around(self, batch: Shown) -> list[dict[str, str]]:
        """For each case, its unknown labels with the known ones that they lie in."""
        if batch.outside is None or self.options.regions is None:
            return []
        values = dict(zip(self.names, self.options.regions, strict=True))
        return [known_around(values, case) for case in batch.cases]

    def _by_state(self, batch: Shown, values: Mapping[Annotation, float]) -> Tensor | None:
        """A value (b, rows) for the state of each label, 1 by default; None if all are 1."""
        rows = [[_of_state(case, name, values) for name in self.names] for case in batch.cases]
        if all(value == 1.0 for row in rows for value in row):
            return None
        return torch.tensor(rows, device=batch.target.device)

    def scores(self, tally: Tally) -> Scores:
        """The Dice of each label, 2 tp / (2 tp + fp + fn); None if the denominator is 0."""
        counts = zip(*(tally.counts[name] for name in COUNTS), strict=True)
        return Scores(
            labels=tuple(
                2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None for tp, fp, fn in counts
            )
        )


def _of_state(case: CaseFacts, label: str, values: Mapping[Annotation, float]) -> float:
    return values.get(case.annotated.get(label, "real"), 1.0)


class _Total(torch.autograd.Function):
    """A sum over processes, from which all processes then compute the same loss.

    In the backward pass all processes hold the same gradient, so nothing is sent: the sum of these
    gradients is one of them times the number of processes. DistributedDataParallel's mean divides
    by that number again, which gives the gradient that a single process would compute.
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


def mean_of(total: Tensor, count: Tensor | int, group: Group) -> Tensor:
    """The mean over all processes from the sum and the count of each; 0 if nothing was counted."""
    counted = count if isinstance(count, Tensor) else total.new_full((), count)
    total, counted = _total(torch.stack([total, counted.to(total)]), group).unbind()
    return total / counted.clamp_min(1)


def segmentation_loss(
    outputs: list[Tensor],
    target: Tensor,
    *,
    options: LossOptions,
    group: Group = ALONE,
    weights: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The weighted sum over resolutions of Dice plus cross-entropy.

    Args:
        outputs: Logits (b, rows, *shape), full resolution first; a single tensor without deep
            supervision. Half precision is converted to float32.
        target: Label values (b, 1, *full shape), any integer type.
        options: Options of the loss.
        group: Processes that each hold a part of the batch; the loss is that of the whole batch.
        weights: Weights (b, rows) of regions, 0 where a label is unknown; None: all are 1. In a
            group, either all processes give weights or none does.
        counted: Voxels (b, rows, *full shape) that count for each region, beside those that are
            not ignored; None: all. They have an effect only with `weights`.

    Returns:
        The loss, a float32 scalar.
    """
    deep_weights = deep_supervision_weights(len(outputs), lowest_weight=options.lowest_weight)
    total = torch.zeros((), device=target.device)
    for logits, weight in zip(outputs, deep_weights, strict=True):
        if weight > 0:
            shape = tuple(logits.shape[2:])
            scaled = downsample_target(target, shape)
            valid = _valid(scaled, options.ignore)
            if counted is not None and weights is not None:
                own = downsample_target(counted, shape)
                valid = own if valid is None else own & valid
            total = total + weight * _one_resolution(logits, scaled, valid, options, group, weights)
    return total


def consistency_loss(
    logits: Tensor,
    views: int,
    *,
    options: LossOptions,
    group: Group = ALONE,
    weights: Tensor | None = None,
) -> Tensor:
    """The divergence between the predictions for views of the same patches and their mean.

    It is KL(mean of p || p), computed element by element and averaged over views, samples, classes
    and voxels. Each region is a distribution of its own, over inside and outside. Ouyang et al.,
    IEEE TMI 2023.

    Args:
        logits: (views * b, rows, *shape): all first views, all second, ...; half precision is
            converted to float32.
        views: Number of views of each patch.
        options: Options of the loss.
        group: Processes that each hold a part of the batch.
        weights: Weights (b, rows) of regions, as in `segmentation_loss`; those of weight 0 do not
            count, the others count alike.

    Returns:
        The divergence, a float32 scalar; 0 if all views agree.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if options.regions is None:
            log_probability = F.log_softmax(logits, dim=1)
        else:
            log_probability = torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)
        versions = log_probability.reshape(views, -1, *log_probability.shape[1:])
        mean = versions.logsumexp(0, keepdim=True) - math.log(views)
        mean = mean.expand_as(versions)
        if weights is None:
            total = F.kl_div(versions, mean, reduction="sum", log_target=True)
            return mean_of(total, versions.numel(), group)
        each = F.kl_div(versions, mean, reduction="none", log_target=True)
        known = _over_voxels(weights > 0, logits).repeat(1, 2, *[1] * (logits.ndim - 2))
        known = known.expand_as(each)
    return mean_of((each * known).sum(), known.sum(), group)


def deep_supervision_weights(count: int, *, lowest_weight: float = 0.0) -> tuple[float, ...]:
    """Weights 1, 1/2, 1/4, ... with the last one replaced, normalised to a sum of 1.

    Args:
        count: Number of resolutions; a single resolution has weight 1.
        lowest_weight: Weight of the lowest resolution before normalisation.
    """
    if count == 1:
        return (1.0,)
    weights = [0.5**level for level in range(count - 1)] + [lowest_weight]
    return tuple(weight / sum(weights) for weight in weights)


def downsample_target(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resamples the target to the resolution of an output, by nearest neighbour.

    The voxel whose centre is nearest is taken, as by torch's `nearest-exact` (with an even factor
    k, the voxel k/2). This is computed on integers, so that no float copy is made.

    Args:
        target: (b, c, *spatial).
        shape: Spatial shape of the output.

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
    logits: Tensor, target: Tensor, *, options: LossOptions, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts true positives, false positives and false negatives of a batch, in voxels.

    The counts are int64: sums in half or single precision lose voxels from 2048 or 16 million on.

    Args:
        logits: (b, rows, *shape).
        target: Label values (b, 1, *shape).
        options: Options of the loss.
        weights: Weights (b, foreground rows); a label of weight 0 is not counted. None: all count.

    Returns:
        tp, fp, fn, each of shape (foreground rows,): one number per region, or per class except
        background.
    """
    valid = _valid(target, options.ignore)
    labels = logits.argmax(1, keepdim=True) if options.regions is None else None
    counts: list[Tensor] = []
    for row in range(0 if labels is None else 1, logits.shape[1]):
        predicted = logits[:, row : row + 1] > 0 if labels is None else labels == row
        wanted = _is_row(target, row, options.regions)
        if valid is not None:
            predicted, wanted = predicted & valid, wanted & valid
        if weights is not None:
            known = _over_voxels(weights > 0, logits)[:, len(counts) : len(counts) + 1]
            predicted, wanted = predicted & known, wanted & known
        both = (predicted & wanted).sum()
        counts.append(torch.stack([both, predicted.sum() - both, wanted.sum() - both]))
    if not counts:
        empty = torch.zeros(0, dtype=torch.int64, device=logits.device)
        return empty, empty, empty
    tp, fp, fn = torch.stack(counts, dim=1)
    return tp, fp, fn


def _one_resolution(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    options: LossOptions,
    group: Group,
    weights: Tensor | None,
) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if options.regions is None:
            return _softmax_loss(logits, target, valid, options, group)
        if weights is not None:
            return _partial_loss(logits, target, valid, options, group, weights)
        return _region_loss(logits, target, valid, options, group)


def _softmax_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None, options: LossOptions, group: Group
) -> Tensor:
    # Dice and cross-entropy share one log-softmax.
    log_probability = F.log_softmax(logits, dim=1)
    rows = torch.arange(logits.shape[1], device=logits.device)
    onehot = target == rows.view(1, -1, *[1] * (logits.ndim - 2))
    probability = log_probability.exp()
    if valid is not None:
        onehot = onehot & valid
        probability = probability * valid
    dice = _soft_dice(probability[:, 1:], onehot[:, 1:], options, group)
    if options.kind == "focal-tversky":
        return -options.dice_weight * dice

    index = (torch.where(valid, target, 0) if valid is not None else target).long()
    if options.kind == "dice-bce":
        each = _binary_entropy(log_probability, onehot)
    else:
        each = -log_probability.gather(1, index)
    weights = None
    if options.class_weights is not None:
        weights = _class_weights(options.class_weights, index, valid, group)
    entropy = _entropy(each, valid, options, group, weights)
    return options.entropy_weight * entropy - options.dice_weight * dice


def _class_weights(
    weights: tuple[float, ...], index: Tensor, valid: Tensor | None, group: Group
) -> Tensor:
    """The weight of each voxel (b, 1, *shape) by its class; their mean over the batch is 1."""
    each = torch.tensor(weights, device=index.device)[index]
    counted = each if valid is None else each * valid
    count = each.numel() if valid is None else valid.sum()
    mean = mean_of(counted.sum(), count, group)
    return each / torch.where(mean > 0, mean, 1.0)  # 0 if all voxels are ignored


def _binary_entropy(log_probability: Tensor, onehot: Tensor) -> Tensor:
    """The mean over classes of the binary cross-entropy of a softmax, (b, 1, *shape)."""
    # 1 - p is summed from the other classes: a difference would be 0 long before p is 1.
    others = 1 - torch.eye(log_probability.shape[1], device=log_probability.device)
    rest = torch.einsum("bc...,cd->bd...", log_probability.exp(), others)
    log_rest = rest.clamp_min(torch.finfo(rest.dtype).tiny).log()
    return -torch.where(onehot, log_probability, log_rest).mean(1, keepdim=True)


def _region_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None, options: LossOptions, group: Group
) -> Tensor:
    wanted, probability, each = _by_region(logits, target, options)
    if valid is not None:
        probability, wanted = probability * valid, wanted & valid
    dice = _soft_dice(probability, wanted, options, group)
    if options.kind == "focal-tversky":
        return -options.dice_weight * dice
    if options.kind == "dice-bce":
        each = each.mean(1, keepdim=True)
    entropy = _entropy(each, valid, options, group)
    return options.entropy_weight * entropy - options.dice_weight * dice


def _by_region(
    logits: Tensor, target: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Target, probability and cross-entropy of each region, all (b, rows, *shape)."""
    rows = range(logits.shape[1])
    wanted = torch.cat([_is_row(target, row, options.regions) for row in rows], dim=1)
    each = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")
    return wanted, torch.sigmoid(logits), each


def _partial_loss(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    options: LossOptions,
    group: Group,
    weights: Tensor,
) -> Tensor:
    """The region loss with a weight for each pair of a sample and a region."""
    wanted, probability, each = _by_region(logits, target, options)
    known = _over_voxels(weights > 0, logits).expand_as(each)
    if valid is not None:
        known = known & valid
        probability, wanted = probability * valid, wanted & valid
    dice = _weighted_dice(probability, wanted, weights, options, group)
    if options.kind == "focal-tversky":
        return -options.dice_weight * dice
    if options.kind == "dice-focal":
        each = (-torch.expm1(-each)) ** FOCAL_POWER * each
    each = each * _over_voxels(weights, logits)
    if options.kind == "dice-topk":
        entropy = _highest(each, known, group)
    else:
        entropy = mean_of((each * known).sum(), known.sum(), group)
        # A sum over regions, as in `_entropy`.
        if options.ignore is not None and options.kind != "dice-bce":
            entropy = entropy * logits.shape[1]
    return options.entropy_weight * entropy - options.dice_weight * dice


def _entropy(
    each: Tensor,
    valid: Tensor | None,
    options: LossOptions,
    group: Group,
    weights: Tensor | None = None,
) -> Tensor:
    """Averages the cross-entropies (b, rows, *shape); with softmax there is one row."""
    if options.kind == "dice-focal":
        # exp(-entropy) is the predicted probability of the true label.
        each = (-torch.expm1(-each)) ** FOCAL_POWER * each
    if weights is not None:
        each = each * weights
    if options.kind == "dice-topk":
        return _highest(each, valid, group)
    if valid is None:
        return mean_of(each.sum(), each.numel(), group)
    # `mean_of` avoids 0 / 0 if all voxels are ignored. As in nnU-Net, the result is a sum over
    # regions here (the mask has one channel), but a mean over regions without ignored voxels.
    return mean_of((each * valid).sum(), valid.sum(), group)


def _highest(each: Tensor, valid: Tensor | None, group: Group) -> Tensor:
    """The mean of the highest tenth of the values of voxels that count.

    Without ignored voxels this is what nnU-Net does. With ignored voxels nnU-Net still takes a
    tenth of all voxels, which is more than are annotated where annotations are sparse.
    """
    values = each.flatten() if valid is None else each[valid.expand_as(each)]
    if group.size > 1:
        return _highest_of_all(values, group)
    if not len(values):
        return each.sum() * 0.0
    count = max(1, len(values) // TOP_PART)
    return values.topk(count, sorted=False).values.mean()


def _highest_of_all(values: Tensor, group: Group) -> Tensor:
    """The mean of the highest tenth of the values of all processes; 0 if there are no values."""
    found = int(group.sum_(torch.tensor(len(values), device=values.device)))
    if not found:
        return values.sum()
    count = max(1, found // TOP_PART)
    # Every process contributes candidates; the highest tenth reaches down to `lowest`.
    candidates = values.new_zeros(group.size, count)
    own = values.detach().topk(min(count, len(values)), sorted=False).values
    candidates[group.rank] = F.pad(own, (0, count - len(own)), value=-torch.inf)
    lowest = group.sum_(candidates).flatten().topk(count, sorted=False).values.min()
    above, equal = values > lowest, values == lowest
    counts = group.sum_(torch.stack([above.sum(), equal.sum()]))
    # The rest is made up of values equal to `lowest`, all of them counting by the same fraction.
    part = (count - counts[0]) / counts[1]
    chosen = values[above].sum() + part * values[equal].sum()
    return _total(chosen, group) / count


def _soft_dice(probability: Tensor, wanted: Tensor, options: LossOptions, group: Group) -> Tensor:
    """The mean Dice (or what `_agreement` gives in its place) over rows, and over samples."""
    axes = tuple(range(2, probability.ndim))
    if options.batch_dice:
        axes = (0, *axes)
    sums = _sums(probability, wanted, axes, options)
    if options.batch_dice:
        return _agreement(_total(sums, group), options).mean()
    dice = _agreement(sums, options)
    return mean_of(dice.sum(), dice.numel(), group)


def _weighted_dice(
    probability: Tensor, wanted: Tensor, weights: Tensor, options: LossOptions, group: Group
) -> Tensor:
    """The soft Dice times the weights, divided by the number of pairs with a weight above 0.

    Batch Dice has one value per region. There a sample's voxels count by its weight, and the weight
    of a region is the mean over the samples in which it is known.
    """
    sums = _sums(probability, wanted, tuple(range(2, probability.ndim)), options)
    known = (weights > 0).to(weights)
    if options.batch_dice:
        every = torch.cat([sums * weights, torch.stack([weights, known])]).sum(1)
        *parts, weights, samples = _total(every, group).unbind()
        sums = torch.stack(parts)
        weights, known = weights / samples.clamp_min(1), (samples > 0).to(weights)
    dice = _agreement(sums, options)
    if options.batch_dice:
        return (weights * dice).sum() / known.sum().clamp_min(1)
    return mean_of((weights * dice).sum(), known.sum(), group)


def _sums(
    probability: Tensor, wanted: Tensor, axes: tuple[int, ...], options: LossOptions
) -> Tensor:
    """The sums over voxels that `_agreement` compares, along a new first axis."""
    overlap = (probability * wanted).sum(axes)
    if options.kind == "focal-tversky":
        # Differences of large sums would round off the voxels that the loss is about.
        missed = ((1 - probability) * wanted).sum(axes)
        return torch.stack([overlap, missed, (probability * ~wanted).sum(axes)])
    return torch.stack([overlap, probability.sum(axes) + wanted.sum(axes)])


def _agreement(sums: Tensor, options: LossOptions) -> Tensor:
    """The Dice from sums; for "focal-tversky" minus the power of 1 - the Tversky index."""
    if options.kind == "focal-tversky":
        overlap, missed, vain = sums.unbind()
        wrong = MISSED_WEIGHT * missed + (1 - MISSED_WEIGHT) * vain
        error = wrong / (overlap + wrong + TVERSKY_SMOOTH)
        return -(error.clamp_min(_LEAST_ERROR) ** TVERSKY_POWER)
    overlap, size = sums.unbind()
    return (2 * overlap + options.smooth) / (size + options.smooth).clamp_min(1e-8)


def _over_voxels(pairs: Tensor, logits: Tensor) -> Tensor:
    """Values (b, rows) with an axis of size 1 for each axis of space."""
    return pairs.reshape(*pairs.shape, *[1] * (logits.ndim - 2))


def _valid(target: Tensor, ignore: int | None) -> Tensor | None:
    return None if ignore is None else target != ignore


def _is_row(target: Tensor, row: int, regions: tuple[tuple[int, ...], ...] | None) -> Tensor:
    if regions is None:
        return target == row
    found = target == regions[row][0]
    for value in regions[row][1:]:
        found = found | (target == value)
    return found
