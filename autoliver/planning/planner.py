"""Makes a plan from a fingerprint: spacing, patch, batch, network and normalisation, with reasons.

For the same fingerprint, the decisions are those of nnU-Net 2.8.1 (Isensee et al. 2021, Nature
Methods 18, 203-211), except that M, L and XL keep the limit on the batch.
"""

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Dataset, Modality, is_mixed
from autoliver.errors import DatasetError, OptionError
from autoliver.io.orientation import commonest, reorientation
from autoliver.planning import reasons
from autoliver.planning.fit import Budget, Fit, fit_patch
from autoliver.planning.grid import full_resolution
from autoliver.planning.names import ENCODER_OF, ConfigurationName
from autoliver.planning.nonzero import MASK_BELOW
from autoliver.planning.plan import (
    CaseFingerprint,
    Configuration,
    Fingerprint,
    IntensityStats,
    Normalization,
    Plan,
    PlanOptions,
)
from autoliver.planning.presets import preset_row
from autoliver.values import counted

# If a patch covers less than this share of the median case, a low-resolution configuration is
# tried. It is kept if the median case has at most half as many voxels there.
_LOWRES_BELOW = 0.25
_LOWRES_FEWER_VOXELS = 2
_LOWRES_STEP = 1.03
# Coarsening starts with the axes that are finer than the coarsest by more than this factor.
_LOWRES_SIMILAR = 2
_BATCH_SHARE = 0.05

_NORMALIZATIONS: dict[str, Normalization] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale01",
    "rgb_to_0_1": "rgb",
}

FloatArray = npt.NDArray[np.float64]


def make_plan(dataset: Dataset, fingerprint: Fingerprint, options: PlanOptions) -> Plan:
    """Decides spacing, patch, batch, network and normalisation of every configuration.

    Args:
        dataset: The dataset, whose channels, labels and name are used.
        fingerprint: The fingerprint of the dataset.
        options: The user's options.

    Raises:
        DatasetError: The fingerprint has no cases, or another number of channels.
        OptionError: The spacing, the memory target or the window cannot be used.
    """
    _check(dataset, fingerprint)
    planner = _Planner(dataset, fingerprint, options)
    configurations, dropped = _deep_enough(*planner.configurations(), name=dataset.name)
    order = planner.grid.transpose
    z, y, x = (order.index(axis) for axis in range(3))
    return Plan(
        made_from={"dataset": dataset.digest(), "fingerprint": fingerprint.digest()},
        dataset=dataset.name,
        preset=options.preset,
        arch=options.arch,
        encoder=options.encoder or ENCODER_OF.get(options.arch),
        z_strides=options.z_strides,
        vram_gb=planner.budget.vram_gb,
        channel_names=dataset.channel_names,
        modality=_modality(dataset, planner.schemes),
        mixed=is_mixed(dataset) and "ct" in planner.schemes,
        labels=dataset.labels,
        codes=dataset.codes,
        file_ending=dataset.file_ending,
        axis_codes=planner.axis_codes,
        seen_axes=planner.seen_axes if options.keep_axes else (),
        transpose_forward=order,
        transpose_backward=(z, y, x),
        intensities=planner.intensities,
        asked=options,
        seen=fingerprint.seen,
        configurations=configurations,
        reasons={
            "transpose": planner.grid.transpose_reason,
            **reasons.labels(dataset.labels),
            **planner.axes_reason,
            **dropped,
        },
    )


# Asked for more, a plan is hardly meant: so many times the voxels of the images, so many GB.
_MOST_FINER = 8.0
_MOST_VRAM_GB = 1000.0


def doubts(plan: Plan, fingerprint: Fingerprint, options: PlanOptions) -> list[str]:
    """Describes, one sentence each, what was asked for and is hardly meant.

    Args:
        plan: The plan that was made.
        fingerprint: The fingerprint it was made from.
        options: The user's options.
    """
    found = []
    full = max(plan.configurations.values(), key=lambda one: float(np.prod(one.median_shape)))
    axes = list(plan.transpose_forward[-len(full.spacing_mm) :])
    native = np.array([case.spacing_mm for case in fingerprint.cases])[:, axes]
    finer = float(np.median(np.prod(native / full.spacing_mm, axis=1)))
    if options.spacing_mm is not None and finer > _MOST_FINER:
        found.append(
            f"--spacing {' '.join(f'{mm:g}' for mm in options.spacing_mm)}: the median case gets "
            f"{finer:,.0f} times the voxels that it has ({reasons.times(full.median_shape)}), "
            "which memory, disk and time grow with. Is it in mm?"
        )
    if plan.vram_gb > _MOST_VRAM_GB:
        found.append(
            f"--vram {plan.vram_gb:g}: no GPU has so many GB, so that the patches and batches of "
            "this plan will not fit. Give the memory of yours in GB, e.g. --vram 8"
        )
    return found


# Pooling halves an axis only down to 4 voxels.
_LEAST_POOLED = 8


def _deep_enough(
    found: dict[ConfigurationName, Configuration], dropped: dict[str, str], *, name: str
) -> tuple[dict[ConfigurationName, Configuration], dict[str, str]]:
    """Drops configurations whose images are too small to be pooled at all.

    Raises:
        DatasetError: They are in all of them.
    """
    flat = {key for key, one in found.items() if max(one.patch_shape) < _LEAST_POOLED}
    if len(flat) == len(found):
        sizes = " x ".join(f"{n:g}" for n in next(reversed(found.values())).median_shape)
        raise DatasetError(
            f"{name}: the median case has {sizes} voxels at the planned spacing. A network needs "
            f"at least {_LEAST_POOLED} along one axis.",
            hint="Plan with a finer --spacing, or resample or pad the images.",
        )
    why = f"dropped: no axis of the median case has {_LEAST_POOLED} voxels to be pooled."
    kept = {key: one for key, one in found.items() if key not in flat}
    return kept, {**dropped, **dict.fromkeys(sorted(flat), why)}


class _Planner:
    """Makes the decisions that all configurations of a plan share, and the configurations."""

    def __init__(self, dataset: Dataset, fingerprint: Fingerprint, options: PlanOptions) -> None:
        names = dataset.channel_names
        kept = fingerprint.median_relative_size_after_cropping
        orders = [case.axis_codes for case in fingerprint.cases if case.axis_codes]
        self.seen_axes = tuple(sorted(set(orders)))
        self.axes_reason = reasons.axes(orders, kept=options.keep_axes)
        self.axis_codes = "" if options.keep_axes else commonest(orders)
        cases = [_in_order(case, self.axis_codes) for case in fingerprint.cases]
        self.grid = full_resolution(cases, spacing_mm=options.spacing_mm)
        self.budget = _budget(dataset, options)
        self.slices = options.slices
        if self.grid.flat:
            _refuse_depth(dataset, options)
        self.cases = len(fingerprint.cases)
        self.previous_channels = len(dataset.labels.foreground_values)
        # If a channel's name does not decide, the modality does; nnU-Net uses names only.
        all_ct = {case.modality for case in dataset.cases} == {"CT"}
        unnamed: Normalization = "ct" if all_ct or is_mixed(dataset) else "zscore"
        self.schemes = tuple(_NORMALIZATIONS.get(name.casefold(), unnamed) for name in names)
        self.masked = tuple(kept < MASK_BELOW and s == "zscore" for s in self.schemes)
        window = options.window_hu
        self.intensities = tuple(
            _windowed(stats, window) if scheme == "ct" else stats
            for stats, scheme in zip(fingerprint.intensities, self.schemes, strict=True)
        )
        if window is not None and "ct" not in self.schemes:
            raise OptionError(
                f"--window: {dataset.name} has no CT channel ({', '.join(names)}).",
                hint="Leave it out: other images have no Hounsfield units. If the previous plan "
                "was made with it, --fresh resets it.",
            )
        self.normalization_reason = reasons.normalization(
            names,
            self.schemes,
            self.intensities,
            masked=self.masked,
            kept=kept,
            asked=window is not None,
        )
        if is_mixed(dataset) and "ct" in self.schemes:
            self.normalization_reason = reasons.of_both_modalities(self.normalization_reason)

    def configurations(
        self,
    ) -> tuple[dict[ConfigurationName, Configuration], dict[str, str]]:
        """Returns the configurations, and the reasons why others were dropped."""
        grid = self.grid
        voxels = float(np.prod(grid.median_shape))
        flat = self._fit(grid.spacing_mm[1:], grid.median_shape[1:], voxels)
        slices = self._configuration(
            flat,
            spacing=reasons.spacing_of_slices(flat.spacing_mm),
            batch_dice=True,
            dice=reasons.dice_of_slices(),
        )
        found: dict[ConfigurationName, Configuration] = {
            "2d": slices if self.slices == 1 else self._with_neighbours(slices)
        }
        if grid.flat:
            why = "dropped: the images are one slice deep."
            return found, dict.fromkeys(("3d_lowres", "3d_fullres", "3d_cascade"), why)
        full = self._fit(grid.spacing_mm, grid.median_shape, voxels)
        covered = full.patch_voxels / voxels
        low, dropped = self._lowres(full, voxels)
        if low is not None:
            found["3d_lowres"] = low
        pooled = low is not None
        found["3d_fullres"] = self._configuration(
            full,
            spacing=grid.spacing_reason,
            batch_dice=pooled,
            dice=reasons.dice_of_full(covered, pooled=pooled),
        )
        if low is not None:
            found["3d_cascade"] = self._cascade(found["3d_fullres"], low)
        return found, dropped

    def _fit(self, spacing_mm: FloatArray, median_shape: FloatArray, voxels: float) -> Fit:
        return fit_patch(
            spacing_mm.tolist(),
            median_shape.tolist(),
            self.budget,
            dataset_voxels=voxels * self.cases,
        )

    def _lowres(self, full: Fit, full_voxels: float) -> tuple[Configuration | None, dict[str, str]]:
        """Coarsens the spacing until a patch covers enough of the median case.

        Returns:
            The low-resolution configuration and no reasons; or None, and the reasons why it and the
            cascade were dropped.
        """
        grid = self.grid
        spacing, voxels, fit = grid.spacing_mm.copy(), full_voxels, full
        while fit.patch_voxels / voxels < _LOWRES_BELOW:
            finer = spacing.max() / spacing > _LOWRES_SIMILAR
            spacing[finer if finer.any() else ...] *= _LOWRES_STEP
            shape = grid.spacing_mm / spacing * grid.median_shape
            voxels = float(np.prod(shape))
            fit = self._fit(spacing, np.maximum(np.rint(shape), 1), voxels)
        covered = full.patch_voxels / full_voxels
        if fit is full:
            why = reasons.lowres_not_needed(full.topology.patch_shape, covered)
        elif full_voxels / voxels < _LOWRES_FEWER_VOXELS:
            why = reasons.lowres_too_similar(fit.spacing_mm, full_voxels / voxels)
        else:
            now = fit.patch_voxels / voxels
            configuration = self._configuration(
                fit,
                spacing=reasons.spacing_of_lowres(
                    full.spacing_mm, fit.spacing_mm, covered=covered, now=now
                ),
                batch_dice=False,
                dice=reasons.dice_of_lowres(now),
            )
            return configuration, {}
        return None, {"3d_lowres": why, "3d_cascade": "dropped: it needs 3d_lowres."}

    def _configuration(
        self, fit: Fit, *, spacing: str, batch_dice: bool, dice: str
    ) -> Configuration:
        topology, network = fit.topology, fit.network
        most = self.budget.preset.max_batch
        batch_size = fit.batch_size if most is None else min(fit.batch_size, most)
        axes = self.grid.axes[-network.dimension :]
        return Configuration(
            spacing_mm=fit.spacing_mm,
            median_shape=fit.median_shape,
            patch_shape=topology.patch_shape,
            batch_size=batch_size,
            batch_dice=batch_dice,
            normalization=self.schemes,
            mask_norm=self.masked,
            network=network,
            reasons={
                "spacing": spacing,
                "patch": reasons.patch(fit, vram_gb=self.budget.vram_gb),
                "batch": reasons.batch(fit, share_allowed=self.budget.batch_share, most=most),
                "topology": network.describe(topology.patch_shape, axes=axes),
                "normalization": self.normalization_reason,
                "batch_dice": dice,
            },
        )

    def _with_neighbours(self, single: Configuration) -> Configuration:
        """Returns the 2D configuration with further slices as channels."""
        channels = single.network.in_channels * self.slices
        return single.replace(
            network=single.network.replace(in_channels=channels),
            slices=self.slices,
            reasons={**single.reasons, "slices": reasons.neighbours(self.slices)},
        )

    def _cascade(self, full: Configuration, low: Configuration) -> Configuration:
        """Returns full resolution with the low-resolution prediction as additional channels."""
        further = self.previous_channels
        why = reasons.previous_stage(further, low.spacing_mm)
        return full.replace(
            network=full.network.replace(in_channels=full.network.in_channels + further),
            previous_stage="3d_lowres",
            reasons={**full.reasons, "previous_stage": why},
        )


def _check(dataset: Dataset, fingerprint: Fingerprint) -> None:
    if not fingerprint.cases:
        raise DatasetError(
            f"{dataset.name}: the fingerprint holds no labelled case; at least one is needed.",
            hint="Put the label maps into labelsTr, named like their images without the channel.",
        )
    named, found = len(dataset.channel_names), len(fingerprint.intensities)
    if named != found:
        raise DatasetError(
            f"{dataset.name}: dataset.json names {counted(named, 'channel')}, the images hold "
            f"{found}.",
            hint="Name every channel under 'channel_names' in dataset.json, in order.",
        )


def _in_order(case: CaseFingerprint, codes: str) -> CaseFingerprint:
    """What a case contributes once its axes are in the plan's order."""
    turn = reorientation(case.axis_codes, codes)
    return case.replace(
        spacing_mm=turn.values(case.spacing_mm),
        shape=turn.values(case.shape),
        shape_after_crop=turn.values(case.shape_after_crop),
    )


def _refuse_depth(dataset: Dataset, options: PlanOptions) -> None:
    """Refuses what only volumes have; the images of the dataset are single slices."""
    slices, strides = f"--slices {options.slices}", f"--z-strides {options.z_strides}"
    for option, given in ((slices, options.slices > 1), (strides, options.z_strides != "auto")):
        if given:
            raise OptionError(
                f"{option}: the images of {dataset.name} are one slice deep.",
                hint="Leave it out. If the previous plan was made with it, --fresh resets it.",
            )


def _windowed(stats: IntensityStats, window: tuple[float, float] | None) -> IntensityStats:
    if window is None:
        return stats
    return stats.replace(percentile_00_5=window[0], percentile_99_5=window[1])


def _budget(dataset: Dataset, options: PlanOptions) -> Budget:
    labels = dataset.labels
    row = preset_row(options.preset, options.arch, options.encoder, z_strides=options.z_strides)
    return Budget(
        preset=row,
        vram_gb=row.vram_gb if options.vram_gb is None else options.vram_gb,
        batch_share=_BATCH_SHARE if options.batch_cap else 1.0,
        in_channels=len(dataset.channel_names),
        out_channels=labels.out_channels,
        rated_channels=len(labels.values) + (labels.ignore is not None),
    )


def _modality(dataset: Dataset, schemes: tuple[Normalization, ...]) -> Modality:
    """Returns the common modality of all cases; if none is stated, CT for channels named CT."""
    kinds = {case.modality for case in dataset.cases}
    if kinds <= {"other"} or is_mixed(dataset):
        return "CT" if "ct" in schemes else "other"
    return kinds.pop() if len(kinds) == 1 else "other"
