"""How a translation between modalities is learnt, as values without torch."""

from typing import TYPE_CHECKING, Literal

from autoliver.artifacts import Record
from autoliver.errors import OptionError
from autoliver.planning.names import ConfigurationName
from autoliver.values import check_number, check_types, check_whole, flag_of, refused

if TYPE_CHECKING:
    from torch import Tensor

TranslationModel = Literal["essnet", "cyclegan", "cut", "labels"]
# The least size of a patch of which a discriminator sees more than one patch, and the least number
# of slices of a 3D one, whose borders can be mirrored.
LEAST_PATCH, LEAST_SLICES = 24, 4
# Generators halve each axis twice: what the size of a patch or slice is a multiple of.
MULTIPLE = 4
# How much is kept of the slices beyond the labels, as a share of their extent.
BEYOND = 0.1
# Field -> its option.
WEIGHTS = {
    "cycle": "--lambda-cyc",
    "contrast": "--lambda-nce",
    "segmentation": "--lambda-seg",
    "identity": "--lambda-id",
}


def option_of(field: str) -> str:
    """The option of a field of `TranslationOptions`, such as --lambda-cyc."""
    return WEIGHTS.get(field, flag_of(field))


# What each model takes for an option that is not given: Park et al. (ECCV 2020) compare images of
# the target with their translations as well, and show their discriminator new images alone.
_CYCLE: dict[str, float] = {"segmentation": 0.0, "identity": 0.0, "pool": 50}
_OWN: dict[TranslationModel, dict[str, float]] = {
    "essnet": {**_CYCLE, "segmentation": 1.0},
    "cyclegan": _CYCLE,
    "cut": {"segmentation": 0.0, "identity": 1.0, "pool": 0},
    "labels": _CYCLE,
}


# Options that do nothing for a model, and why.
_TRAINING = ("features", "blocks", "batch_size", "epochs", "iterations", "decay_start", "lr")
_ONLY_CUT, _NO_SEGMENTOR = "it compares no places; cut does", "it has no segmentation network"
IDLE: dict[TranslationModel, dict[str, str]] = {
    "essnet": {"contrast": _ONLY_CUT},
    "cyclegan": {"contrast": _ONLY_CUT, "segmentation": _NO_SEGMENTOR},
    "cut": {"cycle": "it has no way back"},
    "labels": dict.fromkeys((*_TRAINING, *WEIGHTS, "pool"), "it learns nothing"),
}


class TranslationOptions(Record, frozen=True, kw_only=True):
    """The options of a translation; the defaults are those of SynSeg-Net (METHODS of EssNet).

    Attributes:
        model: "essnet": a segmentation network must find the labels of the first domain in the
            translated images; "cyclegan": nothing does; "cut": each place of a translated image
            must resemble the same place of its source more than others; "labels": nothing is
            learnt, images get random grey values for each label and each part of the background.
        features: Features of the generators at full resolution; discriminators have as many.
        blocks: Residual blocks of the generators.
        patch: Size of the patches (y, x), or (z, y, x) for a translation in 3D; None: 256 x 256, or
            what the images and a multiple of 4 allow.
        batch_size: Patches per domain and step.
        epochs: Number of epochs.
        iterations: Steps per epoch.
        decay_start: Epoch from which the learning rate falls linearly to 0; None: half of them.
        lr: Learning rate of Adam.
        cycle: Weight of the L1 distance between an image and its translation there and back.
        contrast: Weight of the comparison of places, for "cut".
        segmentation: Weight of the loss of the segmentation network; None: 1 for "essnet", else 0.
            With a weight above 0 "cut" has a segmentation network as well.
        identity: Weight of the L1 distance between an image and its translation into its own
            domain, or for "cut" of the comparison of their places; None: 1 for "cut", else 0.
        pool: Number of translated images that the discriminators are shown again; None: 0 for
            "cut", else 50.
        seed: Seed of all random numbers.
    """

    model: TranslationModel = "essnet"
    features: int = 64
    blocks: int = 9
    patch: tuple[int, ...] | None = None
    batch_size: int = 4
    epochs: int = 200
    iterations: int = 250
    decay_start: int | None = None
    lr: float = 2e-4
    cycle: float = 10.0
    contrast: float = 1.0
    segmentation: float | None = None
    identity: float | None = None
    pool: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        check_types(self, flags=WEIGHTS)
        for name in ("features", "blocks", "batch_size", "epochs", "iterations"):
            check_whole(flag_of(name), getattr(self, name), least=1)
        for name in ("pool", "seed", "decay_start"):
            if getattr(self, name) is not None:
                check_whole(flag_of(name), getattr(self, name), least=0)
        for name, option in WEIGHTS.items():
            if getattr(self, name) is not None:
                check_number(option, getattr(self, name), least=0.0)
        self._check_patch()
        check_number("--lr", self.lr, above=0.0)
        if self.model == "essnet" and self.segmentation == 0:
            raise refused("--lambda-seg", 0, "above 0 for essnet; without labels it is cyclegan")
        if self.decay_start is not None and self.decay_start > self.epochs:
            raise refused("--decay-start", self.decay_start, f"at most the {self.epochs} epochs")

    def _check_patch(self) -> None:
        if self.patch is None:
            return
        if len(self.patch) not in (2, 3):
            raise refused("--patch", self.patch, "2 or 3 sizes, such as 256 256 or 16 128 128")
        for size in self.patch[-2:]:
            check_whole("--patch", size, least=LEAST_PATCH)
        for size in self.patch[:-2]:
            check_whole("--patch", size, least=LEAST_SLICES)

    def settled(self, patch: tuple[int, ...] | None) -> "TranslationOptions":
        """These options with the size of the patches, and the model's own values where none is."""
        own = _OWN[self.model]
        given = {name: getattr(self, name) for name in own}
        chosen = {name: own[name] if value is None else value for name, value in given.items()}
        return self.replace(patch=patch, **chosen)

    @property
    def segments(self) -> bool:
        """Whether a segmentation network is trained."""
        return self.model == "essnet" or (self.model == "cut" and bool(self.segmentation))

    @property
    def dimension(self) -> Literal[2, 3]:
        """Whether slices or parts of scans are translated."""
        return 3 if self.patch is not None and len(self.patch) == 3 else 2

    @property
    def configuration(self) -> ConfigurationName:
        """The configuration of the target's plan by which both sides are preprocessed."""
        return "3d_fullres" if self.dimension == 3 else "2d"

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


def refuse_idle(options: TranslationOptions) -> None:
    """Refuses options that were given and do nothing for the model.

    Raises:
        OptionError: There is one; the message says why it does nothing.
    """
    default = TranslationOptions()
    for name, why in IDLE[options.model].items():
        value = getattr(options, name)
        if value not in (getattr(default, name), _OWN[options.model].get(name)):
            raise OptionError(
                f"{option_of(name)} {value:g} does nothing for --model {options.model}: {why}.",
                hint="Leave it out, or choose another --model.",
            )


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
