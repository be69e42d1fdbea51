"""What `plan` does: a dataset's own plan, or one like a source's."""

from dataclasses import dataclass
from pathlib import Path

from autoliver.errors import OptionError
from autoliver.parallel import NO_LIMITS, Limits
from autoliver.pipeline.data import Planned, plan_dataset
from autoliver.pipeline.run.follow import plan_dataset_like
from autoliver.planning.plan import LikeOptions, Plan, Preset, SpacingMode
from autoliver.planning.planner import PlanOptions
from autoliver.values import check_text
from autoliver.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What `plan` was asked for; None: not given. With `like`, "default" is no choice of preset.

    Attributes:
        preset: Size of the networks.
        vram_gb: GPU memory to fit.
        spacing_mm: Spacing of the full resolution, (z, y, x).
        window_hu: What CT is clipped to, low and high.
        batch_cap: Whether a batch shows at most 5 % of the dataset's voxels.
        like: Dataset or model whose networks and patches the plan takes.
        like_spacing: With it: which spacing the dataset gets.
        limits: Processes and memory to read cases with.
    """

    preset: Preset = "default"
    vram_gb: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    window_hu: tuple[float, float] | None = None
    batch_cap: bool = True
    like: str | None = None
    like_spacing: SpacingMode | None = None
    limits: Limits = NO_LIMITS

    def __post_init__(self) -> None:
        """Refuses options that cannot be, or not together.

        Raises:
            OptionError: Naming the option and its value.
        """
        if self.like is None:
            if self.like_spacing is not None:
                raise OptionError(
                    f"--like-spacing {self.like_spacing} goes with --like SOURCE.",
                    hint="Name a source with --like, or leave it out.",
                )
            self.own_options()
            return
        check_text("--like", self.like, "the name of a dataset or model")
        preset = None if self.preset == "default" else self.preset
        taken = {"--preset": preset, "--vram": self.vram_gb, "--window": self.window_hu}
        given = [option for option, value in taken.items() if value is not None]
        if given:
            raise OptionError(
                f"--like {self.like}: {' and '.join(given)} would contradict it: they are the "
                "source's.",
                hint="Leave them out.",
            )
        self.like_options()

    def own_options(self) -> PlanOptions:
        """How the dataset is planned by itself."""
        return PlanOptions(
            preset=self.preset,
            vram_gb=self.vram_gb,
            spacing_mm=self.spacing_mm,
            batch_cap=self.batch_cap,
            window_hu=self.window_hu,
        )

    def like_options(self) -> LikeOptions:
        """How the source's plan is followed; a spacing alone is meant to be fixed."""
        mode = self.like_spacing or ("auto" if self.spacing_mm is None else "fixed")
        return LikeOptions(spacing=mode, spacing_mm=self.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A plan that was made.

    Attributes:
        planned: The dataset and the plan.
        own: The dataset's own plan, where the plan follows a source.
        file: Where the plan was written.
    """

    planned: Planned
    own: Plan | None
    file: Path


def make(workspace: Workspace, name: str | None, request: PlanRequest) -> Made:
    """Inspects a dataset and decides spacing, patches and networks.

    Args:
        workspace: Where the artefacts go.
        name: Path or name of the dataset.
        request: How.

    Raises:
        AutoliverError: See the stages.
    """
    if request.like is None:
        options = request.own_options()
        planned = plan_dataset(workspace, name, options, limits=request.limits)
        return Made(planned=planned, own=None, file=planned.folder.plan)
    planned, own = plan_dataset_like(
        workspace, name, request.like, request.like_options(), limits=request.limits
    )
    return Made(planned=planned, own=own, file=planned.folder.plan_like(planned.source))
