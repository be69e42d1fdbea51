"""What a person should know of how a case lies in its file before a model sees it."""

import logging

from autoliver.inference.model import Model
from autoliver.io.orientation import USUAL, axis_codes
from autoliver.io.volume import Volume

_log = logging.getLogger(__name__)


def check_axes(model: Model, image: Volume, *, name: str) -> None:
    """Warns of doubtful headers, and of an order of axes that a model may never have seen.

    A model whose plan knows its order of axes gets every case in that order. Others (older ones,
    nnU-Net's, those planned with --keep-axes) see cases as they are stored, and mix up left and
    right or up and down where that is not as in training.

    Args:
        model: What is to predict the case.
        image: The case.
        name: The case, for the messages.
    """
    for note in image.notes:
        _log.warning("%s: %s", name, note)
    codes = axis_codes(image.geometry) if image.oriented else ""
    for part in model.parts:
        known = part.plan.seen_axes or (USUAL,)
        if not codes or part.plan.axis_codes or codes in known:
            continue
        why = "was trained on" if part.plan.seen_axes else "does not say its own, usually"
        _log.warning(
            "%s: its axes are stored in the order %s; %s %s %s, and sees the case as it is "
            "stored. Check that its training cases had this order, or left and right may be "
            "swapped; a model that is planned and trained anew brings cases to its own order.",
            *(name, codes, part.name, why, ", ".join(known)),
        )
        return
