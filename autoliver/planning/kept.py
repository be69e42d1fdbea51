"""What shards of `plan` keep of each case: its check, and its share of the fingerprint.

The arrays of a summary are kept as the bytes of little-endian numbers, so that they are the same
when they are read again.
"""

from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from autoliver.datasets.cases import Case
from autoliver.planning.findings import PASSING
from autoliver.planning.fingerprint import CaseSummary
from autoliver.planning.intensities import Intensities
from autoliver.planning.plan import CaseFingerprint
from autoliver.planning.verify import CaseCheck
from autoliver.shards import KeptStage

_VALUES, _COUNTS = "<f4", "<i8"


class _KeptIntensities(msgspec.Struct, frozen=True, kw_only=True):
    values: bytes
    counts: bytes
    mean: float
    variance: float
    low: float
    high: float


class _KeptSummary(msgspec.Struct, frozen=True, kw_only=True):
    grid: CaseFingerprint
    relative_size_after_crop: float
    foreground: tuple[_KeptIntensities | None, ...]


def _name(case: Case) -> str:
    return case.name


def _to_check(plain: Any) -> CaseCheck:
    return msgspec.convert(plain, CaseCheck)


def _of_summary(summary: CaseSummary) -> object:
    return _KeptSummary(
        grid=summary.grid,
        relative_size_after_crop=summary.relative_size_after_crop,
        foreground=tuple(map(_packed, summary.foreground)),
    )


def _packed(found: Intensities | None) -> _KeptIntensities | None:
    if found is None:
        return None
    arrays = {
        "values": found.values.astype(_VALUES).tobytes(),
        "counts": found.counts.astype(_COUNTS).tobytes(),
    }
    return _KeptIntensities(**{**asdict(found), **arrays})


def _to_summary(plain: Any) -> CaseSummary:
    kept = msgspec.convert(plain, _KeptSummary)
    return CaseSummary(
        grid=kept.grid,
        relative_size_after_crop=kept.relative_size_after_crop,
        foreground=tuple(map(_unpacked, kept.foreground)),
    )


def _unpacked(kept: _KeptIntensities | None) -> Intensities | None:
    if kept is None:
        return None
    values = np.frombuffer(kept.values, _VALUES).astype(np.float32)
    counts = np.frombuffer(kept.counts, _COUNTS).astype(np.int64)
    fields = msgspec.structs.asdict(kept)
    return Intensities(**{**fields, "values": values, "counts": counts})


def _lasts(_: Case, check: CaseCheck) -> bool:
    """Whether a check still holds: a file that was missing or unreadable may be there by now."""
    return not any(finding.code in PASSING for finding in check.findings)


CHECKS: KeptStage[Case, CaseCheck] = KeptStage(
    name="verify", case=_name, plain=msgspec.to_builtins, result=_to_check, there=_lasts
)
SUMMARIES: KeptStage[Case, CaseSummary] = KeptStage(
    name="fingerprint", case=_name, plain=_of_summary, result=_to_summary
)
