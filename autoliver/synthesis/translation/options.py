"""How a translation between modalities is learnt, as values without torch."""

from typing import TYPE_CHECKING, Literal

from autoliver.artifacts import Record
from autoliver.values import check_number, check_types, check_whole, flag_of

if TYPE_CHECKING:
    from torch import Tensor

TranslationModel = Literal["essnet", "cyclegan", "labels"]
# The least size of a patch of which a discriminator sees more than one patch.
LEAST_PATCH = 24
# Generators halve each axis twice: what the size of a patch or slice is a multiple of.
MULTIPLE = 4
# Field -> its option.
WEIGHTS = {"cycle": "--lambda-cyc", "segmentation": "--lambda-seg", "identity": "--lambda-id"}


class TranslationOptions(Record, frozen=True, kw_only=True):
    """The options of a translation; the defaults are those of SynSeg-Net (METHODS of EssNet).

    Attributes:
        model: "essnet": a segmentation network must find the labels of the first domain in the
            translated images; "cyclegan": nothing does; "labels": nothing is learnt, images get
            random grey values for each label and each part of the background.
        features: Features of the generators at full resolution; discriminators have as many.
        blocks: Residual blocks of the generators.
        patch: Size of the patches (y, x); None: 256, or what the images and a multiple of 4 allow.
        batch_size: Patches per domain and step.
        epochs: Number of epochs.
        iterations: Steps per epoch.
        decay_start: Epoch from which the learning rate falls linearly to 0; None: half of them.
        lr: Learning rate of Adam.
        cycle: Weight of the L1 distance between an image and its translation there and back.
        segmentation: Weight of the loss of the segmentation network, for "essnet".
        identity: Weight of the L1 distance between an image and its translation into its own
            domain.
        pool: Number of translated images that the discriminators are shown again.
        seed: Seed of all random numbers.
    """

    model: TranslationModel = "essnet"
    features: int = 64
    blocks: int = 9
    patch: tuple[int, int] | None = None
    batch_size: int = 4
    epochs: int = 200
    iterations: int = 250
    decay_start: int | None = None
    lr: float = 2e-4
    cycle: float = 10.0
    segmentation: float = 1.0
    identity: float = 0.0
    pool: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        check_types(self)
        for name in ("features", "blocks", "batch_size", "epochs", "iterations"):
            check_whole(flag_of(name), getattr(self, name), least=1)
        for name in ("pool", "seed"):
            check_whole(flag_of(name), getattr(self, name), least=0)
        for size in self.patch or ():
            check_whole("--patch", size, least=LEAST_PATCH)
        for name, option in WEIGHTS.items():
            check_number(option, getattr(self, name), least=0.0)
        check_number("--lr", self.lr, above=0.0)
        if self.decay_start is not None:
            check_whole("--decay-start", self.decay_start, least=0)

    @property
    def segments(self) -> bool:
        """Whether a segmentation network is trained."""
        return self.model == "essnet"

    @property
    def learns(self) -> bool:
        """Whether anything is learnt."""
        return self.model != "labels"

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.epochs * self.iterations

    def rate(self, step: int) -> float:
        """The learning rate of a step: constant, then falling linearly to 0 after the last one."""
        first = self.epochs // 2 if self.decay_start is None else self.decay_start
        start = first * self.iterations
        if step < start:
            return self.lr
        return self.lr * (self.steps - step) / max(1, self.steps - start)


class Range(Record, frozen=True, kw_only=True):
    """The normalised values of a domain that are -1 and 1 in a translation.

    Attributes:
        low: The value that is -1.
        high: The value that is 1.
    """

    low: float
    high: float

    def squeezed(self, image: "Tensor") -> "Tensor":
        """Brings normalised values to -1 to 1; what lies beyond is cut off."""
        scaled = (image - self.low) * (2.0 / (self.high - self.low)) - 1.0
        return scaled.clamp(-1.0, 1.0)

    def normalised(self, image: "Tensor") -> "Tensor":
        """Brings values from -1 to 1 back to normalised ones."""
        return (image + 1.0) * ((self.high - self.low) / 2.0) + self.low
