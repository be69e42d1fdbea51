"""Computes the output of each member of a model for a case, on the member's network grid."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autoliver.datasets.cases import Labels, Modality
from autoliver.errors import ModelError
from autoliver.inference.clean import clean
from autoliver.inference.decide import decide_rows, decide_rows_on_host
from autoliver.inference.ensemble import Output, certain_background, probabilities
from autoliver.inference.fastest import as_they_are
from autoliver.inference.lesions.centred import windows_on
from autoliver.inference.lesions.union import raised
from autoliver.inference.lesions.vote import VoteOptions, vote
from autoliver.inference.model import Member, Model
from autoliver.inference.options import PredictOptions as PredictOptions
from autoliver.inference.roi import BoxRegion, Region, Window, find_region, near_windows
from autoliver.inference.window import (
    Scan,
    box_of,
    finished_rows,
    padded_shape,
    sliding_window,
    windows_of,
)
from autoliver.io.orientation import Reorientation
from autoliver.io.volume import Volume
from autoliver.networks.device import half_precision, on_gpu
from autoliver.planning.nonzero import Box
from autoliver.planning.plan import Configuration, Normalization
from autoliver.preprocessing.case import Preprocessed, backward_logits, forward, forward_cascade
from autoliver.preprocessing.crop import Bounds
from autoliver.preprocessing.histogram import match_volume
from autoliver.preprocessing.region import grown_ends, inner_box
from autoliver.training.determinism import same_bits

OnWindows = Callable[[str, int], Callable[[], object]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedCase:
    """A case, preprocessed for every member of a model.

    Attributes:
        name: Name of the case.
        prepared: The case on the network grid of each member; for a cascade, on the grid of its
            first stage.
        image: The original image if a cascade needs it for its second stage; else None.
        coarse: The case on the finder's grid; None if the model has no finder.
        modality: The modality by which the case is normalised; None to normalise it as planned.
        match: Whether its values are matched to the histograms of each member instead.
        boxes: `Roi.key` -> the box of the region that members with this region predict in, on the
            image's grid; None: nothing was found, so that they predict the whole image.
        lesions: (z, y, x) on the image's grid, where lesions are; None if they are not given.
    """

    name: str
    prepared: tuple[Preprocessed, ...]
    image: Volume | None
    coarse: Preprocessed | None = None
    modality: Modality | None = None
    match: bool = False
    boxes: Mapping[str, Bounds | None] = field(default_factory=dict)
    lesions: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        image: Volume,
        name: str,
        *,
        modality: Modality | None = None,
        match: bool = False,
        boxes: Mapping[str, Bounds | None] | None = None,
    ) -> "PreparedCase":
        """Preprocesses an image for every member of a model."""
        stages = [member.previous or member for member in model.members]
        again = model.finder is not None or any(member.previous for member in model.members)
        if again or len(stages) > 1:
            image = replace(image, spare=False)

        def prepare(stage: Member) -> Preprocessed:
            volume, configuration = _seen_by(stage, image, name, modality, match=match)
            return forward(
                volume,
                None,
                plan=stage.plan,
                configuration=configuration,
                name=name,
                modality=modality,
            )

        return cls(
            name=name,
            prepared=tuple(prepare(stage) for stage in stages),
            image=image if any(member.previous for member in model.members) else None,
            coarse=None if model.finder is None else prepare(model.finder),
            modality=modality,
            match=match,
            boxes=boxes or {},
        )


def _seen_by(
    member: Member, image: Volume, name: str, modality: Modality | None, *, match: bool
) -> tuple[Volume, Configuration]:
    """Returns an image and how to preprocess it; matched values are not normalised any more."""
    if not match:
        return image, member.configuration
    planned = member.configuration
    none: Normalization = "none"
    as_they_come = (none,) * len(planned.normalization)
    found = match_volume(image, member.histograms, modality=modality, where=name)
    return found, planned.replace(normalization=as_they_come)


@dataclass(frozen=True)
class _Found:
    """Where to look, and what brought the input's axes to the region's anatomical order."""

    region: Region
    reorientation: Reorientation


@dataclass(frozen=True)
class _Given:
    """The lesions to look at, (z, y, x) on the image's grid."""

    lesions: npt.NDArray[np.bool_]


# Where a member looks: near what a finder has found, in a box of the network's grid, or at lesions.
Where = _Found | Box | _Given


def outputs(
    model: Model,
    case: PreparedCase,
    options: PredictOptions,
    on_windows: OnWindows | None = None,
    *,
    labels_suffice: bool = False,
) -> tuple[Output, ...]:
    """Computes the output of each member for a case.

    Args:
        model: The model; if it has a finder, the members predict only near the region it finds.
        case: The preprocessed case.
        options: How to predict.
        on_windows: See `predict_jobs`.
        labels_suffice: Whether only the label map of a model's single member is needed, so that it
            may be decided on the GPU (`Output.label_map`).
    """
    labels_suffice = labels_suffice and len(model.members) == 1 and not model.votes
    region: Where | None = None
    if model.finder is not None and case.coarse is not None:
        region = _find(model.finder, case.coarse, options, on_windows)
    results = []
    for member, prepared in zip(model.members, case.prepared, strict=True):
        if member.previous is not None and case.image is not None:
            wanted = _Wanted(options, on_windows, labels_suffice=not member.previous.votes)
            low = _output(member.previous, prepared, wanted, region)
            found = _first_stage_labels(member.previous, low)
            found = clean(
                found,
                member.previous.next_stage_cleaning,
                values=model.plan.labels.values,
                spacing_mm=case.image.geometry.spacing_mm,
            )
            volume, configuration = _seen_by(
                member, case.image, case.name, case.modality, match=case.match
            )
            prepared = forward_cascade(
                volume,
                found,
                plan=member.plan,
                configuration=configuration,
                name=case.name,
                modality=case.modality,
            )
        where = _region_box(member, case, prepared) or region
        if where is None and member.classifies and case.lesions is not None:
            where = _Given(case.lesions)
        wanted = _Wanted(options, on_windows, labels_suffice=labels_suffice)
        results.append(_output(member, prepared, wanted, where))
    return tuple(results)


def decided(found: Output, labels: Labels, votes: VoteOptions) -> npt.NDArray[np.integer]:
    """Returns the label map (z, y, x) of one member, in which classes decide together on lesions.

    Args:
        found: The output of the member.
        labels: The labels of its rows.
        votes: Its classes of lesions, of which each lesion gets one afterwards.
    """
    if found.label_map is not None:
        return found.label_map
    with raised(found.logits, votes.shared, logits=found.average == "logits"):
        return backward_logits(found.logits, found.properties, labels=labels, within=found.within)


def _first_stage_labels(stage: Member, low: Output) -> npt.NDArray[np.integer]:
    """Returns the label map of a first stage, decided as those that the second was trained with."""
    from autoliver.inference.ensemble import component_means

    labels = stage.plan.labels
    votes = VoteOptions.of(labels, stage.lesion_classes, model=stage.name)
    found = decided(low, labels, votes)
    if not stage.votes:
        return found
    return vote(found, votes, functools.partial(component_means, [low], labels=labels)).segmentation


def _region_box(member: Member, case: PreparedCase, prepared: Preprocessed) -> Box | None:
    """Returns the part of the network's grid that a member predicts in; None for all of it.

    Raises:
        ModelError: The member predicts in a region, and nobody has said where it is.
    """
    roi = member.roi
    # Given lesions are told apart wherever they are.
    if roi is None or case.lesions is not None:
        return None
    if roi.key not in case.boxes:
        raise ModelError(
            f"{member.name} predicts near the {roi.label} alone, and it is not known where that "
            "is.",
            hint="Predict files: autoliver predict -i IN -o OUT -m MODEL --roi-from MODEL",
        )
    found = case.boxes[roi.key]
    if found is None:
        return None
    ends = grown_ends(found, roi.margin_mm, prepared.properties)
    return inner_box(ends, prepared.image.shape[1:])


def _find(
    finder: Member, case: Preprocessed, options: PredictOptions, on_windows: OnWindows | None
) -> "_Found | None":
    """Returns the region around the finder's foreground, with axes in the finder's order.

    None if the finder finds no foreground.
    """
    # A rough outline is enough, so flips are left out.
    rough = PredictOptions(mirror=False, exact=options.exact)
    found = _output(finder, case, _Wanted(rough, on_windows), None)
    # Foreground is where some region has a probability above 0.5, or where some class is more
    # probable than the background.
    background = 0 if finder.plan.labels.has_regions else found.logits[0]
    first = 0 if finder.plan.labels.has_regions else 1
    mask: npt.NDArray[np.bool_] = found.logits[first:].max(axis=0) > background
    inverse = case.properties.transpose_backward
    spacing = [case.properties.spacing_mm[axis] for axis in inverse]
    region = find_region(mask.transpose(inverse), spacing)
    if region is None:
        _log.warning(
            "%s: %s found nothing, so all windows are visited.",
            *(case.properties.name, finder.name),
        )
        return None
    return _Found(region=region, reorientation=case.properties.reorientation)


@dataclass(frozen=True)
class _Wanted:
    """How to predict, who is told of it, and whether a label map decided on the GPU will do."""

    options: PredictOptions
    on_windows: OnWindows | None
    labels_suffice: bool = False


def _output(member: Member, case: Preprocessed, wanted: _Wanted, where: Where | None) -> Output:
    options = wanted.options
    passes, windows = _passes(member, options), _windows(member, case, options, where)
    tick: Callable[[], object] = lambda: None  # noqa: E731
    if wanted.on_windows is not None:
        tick = wanted.on_windows(case.properties.name, len(windows) * len(passes))
    scan = Scan(
        patch_shape=member.configuration.patch_shape,
        mirror_axes=member.mirror_axes if options.mirror else (),
        slices=member.configuration.slices,
        title=f"{case.properties.name}: {member.name}",
        exact=options.exact,
    )
    visit = _Visit(member, case, where, scan, passes, windows, tick)
    with torch.inference_mode(), arithmetic(member.device, exact=options.exact):
        if wanted.labels_suffice and _decides_at_once(member, options, where):
            return visit.decided()
        return visit.output(spread=options.uncertainty)


def _decides_at_once(member: Member, options: PredictOptions, where: Where | None) -> bool:
    """Whether labels are decided while windows are computed: of whole scans, of means of logits.

    On a GPU, whose bits differ, only where they need not be equal.
    """
    hindered = options.uncertainty or where is not None or member.configuration.average != "logits"
    return not hindered and not (options.exact and on_gpu(member.device))


def _added(
    total: npt.NDArray[np.float32] | None, found: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """A sum in place, since each of these arrays takes the memory of several images."""
    if total is None:
        return found
    total += found
    return total


@dataclass(frozen=True)
class _Visit:
    """The visit of a member's networks to all windows of a case."""

    member: Member
    case: Preprocessed
    where: Where | None
    scan: Scan
    passes: Sequence[tuple[nn.Module, ...]]
    windows: Sequence[Window]
    tick: Callable[[], object]

    def decided(self) -> Output:
        """Returns the label map alone, decided where the networks are, row by row."""
        image, labels = torch.from_numpy(self.case.image), self.member.plan.labels
        rows = finished_rows(
            *(image, self.passes[0], self.scan),
            windows=self.windows,
            on_window=self.tick,
            rolling=True,
        )
        decide = decide_rows if on_gpu(self.member.device) else decide_rows_on_host
        found = decide(rows, self.case.properties, labels=labels)
        nothing = np.empty((labels.out_channels, 0, 0, 0), np.float32)
        return Output(logits=nothing, properties=self.case.properties, label_map=found)

    def output(self, *, spread: bool) -> Output:
        """Returns the logits, and the mean probabilities of the passes if they are wanted."""
        average = self.member.configuration.average
        regions = self.member.plan.labels.has_regions
        total: npt.NDArray[np.float32] | None = None
        spreads: npt.NDArray[np.float32] | None = None
        for networks in self.passes:
            found = self._logits(networks)
            total = _added(total, found.copy() if spread and total is None else found)
            if spread:
                if average == "logits":
                    probabilities(found, regions=regions)
                spreads = _added(spreads, found)
            del found
        if total is None:
            raise ValueError("the member has no networks")
        if len(self.passes) > 1:
            total /= len(self.passes)
        if spreads is not None:
            spreads /= len(self.passes)
        where, within = self.where, None
        if where is not None:
            within = box_of(self.windows, self.case.image.shape[1:], self.scan.patch_shape)
        output = Output(
            logits=total,
            properties=self.case.properties,
            spread=spreads,
            within=within,
            average=average,
        )
        return _only(output, within, where) if isinstance(where, tuple) and within else output

    def _logits(self, networks: Sequence[nn.Module]) -> npt.NDArray[np.float32]:
        """Returns the logits of one pass, with certain background where no window was."""
        image, plan = torch.from_numpy(self.case.image), self.member.plan
        whole = sliding_window(
            image, networks, self.scan, windows=self.windows, on_window=self.tick
        )
        if self.where is not None:
            average = self.member.configuration.average
            background, others = certain_background(average, regions=plan.labels.has_regions)
            _fill_gaps(whole, background, others)
        found: npt.NDArray[np.float32] = whole.numpy()
        return found


def _only(found: Output, within: Box, box: Box) -> Output:
    """Returns the part of an output in a box of the network's grid, which it covers."""
    kept = tuple(
        slice(own.start - there.start, own.stop - there.start)
        for own, there in zip(box, within, strict=True)
    )
    spread = None if found.spread is None else found.spread[:, *kept]
    return replace(found, logits=found.logits[:, *kept], spread=spread, within=box)


def _passes(member: Member, options: PredictOptions) -> list[tuple[nn.Module, ...]]:
    """The networks that are averaged within a pass over the windows, for every pass."""
    every = as_they_are(member.networks) if options.exact else member.networks
    if member.configuration.average == "probabilities":
        every = tuple(nn.Sequential(network, nn.Softmax(dim=1)) for network in every)
    return [(network,) for network in every] if options.uncertainty else [every]


def _windows(
    member: Member,
    case: Preprocessed,
    options: PredictOptions,
    where: Where | None,
) -> list[Window]:
    shape, patch = case.image.shape[1:], member.configuration.patch_shape
    windows = windows_of(shape, patch, options.step)
    if where is None:
        return windows
    padded = padded_shape(shape, patch)
    if isinstance(where, _Given):
        # Without a lesion any window will do.
        return windows_on(where.lesions, case.properties, patch, padded) or windows[:1]
    if isinstance(where, tuple):
        before = [(wide - size) // 2 for wide, size in zip(padded, shape, strict=True)]
        own = BoxRegion.of(where, padded, before=before)
        return near_windows(windows, padded, own, step=options.step)
    turn = where.reorientation.inverse.then(case.properties.reorientation)
    turned = where.region.turned(turn).transposed(case.properties.transpose_forward)
    near = near_windows(windows, padded, turned, step=options.step)
    _log.info(
        "%s: %d of %d windows are near the foreground that was found.",
        *(case.properties.name, len(near), len(windows)),
    )
    return near


def _fill_gaps(logits: Tensor, background: float, others: float) -> None:
    """Replaces NaN, which marks voxels that no window covered, with certain background."""
    logits[:1].nan_to_num_(nan=background)
    logits[1:].nan_to_num_(nan=others)


@contextlib.contextmanager
def arithmetic(device: torch.device, *, exact: bool) -> Iterator[None]:
    """Sets the precision of the networks in the block: float16 on CUDA, else float32.

    Args:
        device: The device that the networks are on.
        exact: Compute in float32 on every device, without the reduced-precision products (TF32) of
            NVIDIA GPUs, and with deterministic operations.
    """
    if not exact:
        half = half_precision(device, training=False)
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(same_bits(True))
        if device.type == "cuda":
            cudnn = torch.backends.cudnn
            stack.enter_context(
                cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            )
        yield
