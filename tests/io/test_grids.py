"""Differences of grids."""

import pytest

from autoliver.io.grids import compare_grids
from autoliver.io.volume import Geometry


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ((3996.0, 4.0, 4.0), (1998.0, 2.0, 2.0), ("(4, 4)", "(2, 2)")),  # two pictures
        ((3996.0, 4.0, 4.0), (5.0, 4.0, 4.0), ("(3996, 4, 4)", "(5, 4, 4)")),
        ((5.0, 4.0, 4.0), (5.0, 2.0, 2.0), ("(5, 4, 4)", "(5, 2, 2)")),
    ],
)
def test_spacings_are_shown_as_files_have_them(
    first: tuple[float, float, float],
    second: tuple[float, float, float],
    shown: tuple[str, str],
) -> None:
    one, other = (Geometry(shape_zyx=(1, 8, 8), spacing_mm=each) for each in (first, second))
    (found,) = compare_grids(one, other)
    assert found.what == "spacing"
    assert found.values() == shown
