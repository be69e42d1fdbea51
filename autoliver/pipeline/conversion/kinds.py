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


def _lld_mmri() -> "Kind":
    from autoliver.pipeline.conversion.lld_mmri import LLD_MMRI

    return LLD_MMRI


def _mct_ltdiag() -> "Kind":
    from autoliver.pipeline.conversion.mct_ltdiag import MCT_LTDIAG

    return MCT_LTDIAG


def _atlas() -> "Kind":
    from autoliver.pipeline.conversion.atlas import ATLAS

    return ATLAS


def _liverhccseg() -> "Kind":
    from autoliver.pipeline.conversion.liverhccseg import LIVERHCCSEG

    return LIVERHCCSEG


def _cirrmri() -> "Kind":
    from autoliver.pipeline.conversion.cirrmri import CIRRMRI

    return CIRRMRI


def _chaos() -> "Kind":
    from autoliver.pipeline.conversion.chaos import CHAOS

    return CHAOS


def _lits() -> "Kind":
    from autoliver.pipeline.conversion.lits import LITS

    return LITS


def _msd() -> "Kind":
    from autoliver.pipeline.conversion.msd import MSD

    return MSD


def _dlds() -> "Kind":
    from autoliver.pipeline.conversion.dlds import DLDS

    return DLDS


def _btcv() -> "Kind":
    from autoliver.pipeline.conversion.btcv import BTCV

    return BTCV


def _amos() -> "Kind":
    from autoliver.pipeline.conversion.btcv import AMOS

    return AMOS


# The kind of a dataset whose lesions get their classes; it is no published data.
LESION_CLASSES = "lesion-classes"
# The kind of DICOM series, of which images are made.
DICOM = "dicom"
# The kind of label maps of series, of which DICOM segmentations are made.
DICOM_SEG = "dicom-seg"
KINDS: "dict[str, Callable[[], Kind]]" = {
    "camus": _camus,
    "brats": _brats,
    "lld-mmri": _lld_mmri,
    "mct-ltdiag": _mct_ltdiag,
    "atlas": _atlas,
    "liverhccseg": _liverhccseg,
    "cirrmri": _cirrmri,
    "chaos": _chaos,
    "lits": _lits,
    "msd": _msd,
    "dlds": _dlds,
    "btcv": _btcv,
    "amos": _amos,
}
