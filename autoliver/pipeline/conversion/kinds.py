"""The kinds of published data that convert knows; a kind is one row here and one module."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoliver.pipeline.conversion.kind import Kind


# The modules are imported late because `autoliver --help` reads only the names.
def _camus() -> "Kind":
    from autoliver.pipeline.conversion.camus import CAMUS

    return CAMUS


def _brats() -> "Kind":
    from autoliver.pipeline.conversion.brats import BRATS

    return BRATS


KINDS: "dict[str, Callable[[], Kind]]" = {
    "camus": _camus,
    "brats": _brats,
}
