"""The values of `--augment`: the default, none, or changes of a modality's appearance."""

import difflib
import math

from autoliver.artifacts import Record
from autoliver.errors import WrongValue
from autoliver.training.augment.appearance import APPEARANCES

# Words that stand for other values; "default" and "none" do not change the appearance. What
# "cross-modality" stands for was best on real CT and MR with three seeds (docs/RESULTS.md).
MIXTURES = {
    "default": "",
    "none": "",
    "cross-modality": "gin",
}
# What such a word meant to versions that stored it.
_STORED = {"cross-modality": "gin:0.6,bezier:0.1,synthseg:0.1"}


def spelled_out(text: str) -> str:
    """Returns a value of `--augment` with the word for a mixture replaced by the mixture.

    It is what a run stores, so that a later version with another mixture goes on with this one.
    """
    return MIXTURES.get(text) or text


def as_stored(text: str) -> str:
    """Returns what a value that an earlier version stored meant to it."""
    return _STORED.get(text, text)


class AppearanceStep(Record, frozen=True, kw_only=True):
    """A change of appearance and how often it is applied.

    Attributes:
        name: Name of the change in `APPEARANCES`.
        probability: Share of the patches that are changed, 0 to 1. At most one change is applied
            to a patch, so the shares of all steps add up to at most 1; other patches are unchanged.
    """

    name: str
    probability: float


def parse_augment(text: str) -> tuple[AppearanceStep, ...]:
    """Reads the changes of appearance from a value of `--augment`.

    Args:
        text: "default" or "none" (no changes), "cross-modality", a name ("gin"), or names with
            their shares ("gin:0.5,bezier:0.25").

    Raises:
        OptionError: A name is unknown, a share is invalid, or the changes cannot be combined.
    """
    parts = [part.strip() for part in MIXTURES.get(text, text).split(",")]
    if parts == [""] and text in MIXTURES:
        return ()
    steps = tuple(_step(part, text, alone=len(parts) == 1) for part in parts)
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise WrongValue(f"--augment {text} names {name} twice.", hint="Name it only once.")
        views = APPEARANCES[name].views
        if views > 1 and len(names) > 1:
            raise WrongValue(
                f"--augment {text}: {name} shows the network each patch {views} times and cannot "
                "be mixed with others.",
                hint=f"Give --augment {name} alone, or leave it out of the mixture.",
            )
    total = math.fsum(step.probability for step in steps)
    if total > 1.0 + 1e-9:
        raise WrongValue(
            f"--augment {text}: the shares add up to {total:g}; as shares of the patches, they "
            "must add up to at most 1.",
            hint="Give smaller shares, as in --augment gin:0.5,bezier:0.25.",
        )
    return steps


def _step(part: str, text: str, *, alone: bool) -> AppearanceStep:
    name, colon, share = (piece.strip() for piece in part.partition(":"))
    _check_known(name, text)
    if not colon:
        if not alone:
            raise WrongValue(
                f"--augment {text}: in a mixture each change needs a share; {name} has none.",
                hint="Give it as in --augment gin:0.5,bezier:0.25; other patches are unchanged.",
            )
        return AppearanceStep(name=name, probability=APPEARANCES[name].share)
    try:
        probability = float(share)
    except ValueError:
        probability = math.nan
    if not 0.0 < probability <= 1.0:
        raise WrongValue(
            f"--augment {text}: the share of {name} is '{share}'; it must be above 0 and at most "
            "1.",
            hint=f"Give it as in --augment {name}:0.5.",
        )
    return AppearanceStep(name=name, probability=probability)


def _check_known(name: str, text: str) -> None:
    if name in APPEARANCES:
        return
    if name in MIXTURES:
        raise WrongValue(
            f"--augment {text}: {name} stands alone, without a share and outside of mixtures.",
            hint=f"Give --augment {name}, or a mixture of {', '.join(APPEARANCES)} with shares.",
        )
    choices = [*MIXTURES, *APPEARANCES]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), choices, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise WrongValue(
        f"--augment {text}: there is no '{name}'.",
        hint=f"{meant}There are {', '.join(choices)}, and mixtures such as gin:0.5,bezier:0.25.",
    )
