"""How well predicted volumes agree with those of the reference.

Bias and limits of agreement are those of Bland and Altman (Lancet 1986; 327: 307-310), the
concordance correlation is that of Lin (Biometrics 1989; 45: 255-268).
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

# With two cases the limits are those of a single difference and say nothing.
LEAST_CASES = 3

_WITHIN = 1.96  # standard deviations around the mean that hold 95 % of normal differences
_Values = npt.NDArray[np.float64]


class Limits(Record, frozen=True, kw_only=True):
    """The differences, prediction minus reference, over cases.

    Attributes:
        bias: Their mean.
        sd: Their sample standard deviation.
        low: bias - 1.96 sd.
        high: bias + 1.96 sd.
    """

    bias: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: _Values) -> "Limits":
        """Summarises at least two differences."""
        bias, sd = float(differences.mean()), float(differences.std(ddof=1))
        return cls(bias=bias, sd=sd, low=bias - _WITHIN * sd, high=bias + _WITHIN * sd)


class Agreement(Record, frozen=True, kw_only=True):
    """The agreement of the volumes of one label.

    Attributes:
        cases: Cases with the label in the prediction, the reference or both.
        ml: Limits of agreement in ml; None for fewer than `LEAST_CASES` cases.
        percent: The same of the difference in percent of the mean of both volumes.
        concordance: Lin's concordance correlation, 1 if all volumes are equal; None for fewer
            cases, or if no volume differs from any other.
    """

    cases: int
    ml: Limits | None = None
    percent: Limits | None = None
    concordance: float | None = None


def agreement(volumes_ml: Iterable[tuple[float | None, float | None]]) -> Agreement | None:
    """Compares the volumes of cases; None if none is known.

    Args:
        volumes_ml: Volume of the prediction and of the reference in each case; None where it is not
            known. Cases in which both are 0 agree on nothing and are left out.
    """
    known = [(p, r) for p, r in volumes_ml if p is not None and r is not None]
    if not known:
        return None
    pairs = [pair for pair in known if any(pair)]
    if len(pairs) < LEAST_CASES:
        return Agreement(cases=len(pairs))
    ours, theirs = np.array(pairs, np.float64).T
    difference, mean = ours - theirs, (ours + theirs) / 2
    return Agreement(
        cases=len(pairs),
        ml=Limits.of(difference),
        percent=Limits.of(100 * difference / mean),
        concordance=concordance(ours, theirs),
    )


def concordance(one: _Values, other: _Values) -> float | None:
    """Returns Lin's concordance correlation of two raters; None if no value differs.

    Args:
        one: (n,) values of one rater.
        other: (n,) values of the other one; as Lin does, moments are divided by n.
    """
    spread = one.var() + other.var() + (one.mean() - other.mean()) ** 2
    covariance = ((one - one.mean()) * (other - other.mean())).mean()
    return float(2 * covariance / spread) if spread else None
