"""Cases among others, unlike them in one way each; and mixed but healthy sets without a finding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from autoliver.datasets.cases import read_dataset
from autoliver.planning.compare import Difference, compare_cases
from autoliver.planning.ranges import CaseRange, channel_range
from autoliver.planning.verify import verify

SHARED = Path(__file__).parents[2] / "../shared/data"
SHAPE = (24, 40, 44)
SPACING = (5.0, 1.5, 1.5)
Array = npt.NDArray[np.float64]
Change = Callable[[Array], Array]


def body(seed: int) -> npt.NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[1:]), indexing="ij")
    radius = rng.uniform(0.6, 0.9)
    return np.broadcast_to(y**2 + x**2 < radius, SHAPE)


def ct(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    inside = body(seed)
    image = np.where(inside, rng.normal(40, 60, SHAPE), rng.normal(-1000, 8, SHAPE))
    bone = inside & (rng.random(SHAPE) < 0.03)
    image[bone] = rng.uniform(300, 1100, int(bone.sum()))
    return np.clip(np.round(image), -1024, 3071)


def mr(seed: int) -> Array:
    rng = np.random.default_rng(seed + 100)
    scale = rng.uniform(300, 1500)
    signal = np.where(body(seed), rng.uniform(0.2, 1, SHAPE), np.abs(rng.normal(0, 0.01, SHAPE)))
    return np.round(scale * signal)


def case(
    name: str,
    image: Array,
    spacing: tuple[float, float, float] = SPACING,
) -> CaseRange:
    shape = (image.shape[0], image.shape[1], image.shape[2])
    array = image.astype(np.float32)
    return CaseRange(name=name, spacing_mm=spacing, shape=shape, channels=(channel_range(array),))


def compare(cases: list[CaseRange], kind: str) -> list[Difference]:
    return compare_cases(cases, {one.name: kind for one in cases}, ("image",))


def others(make: Callable[[int], Array], number: int) -> list[CaseRange]:
    return [case(f"good_{n}", make(n)) for n in range(number)]


def window(image: Array) -> Array:
    return np.round(np.clip((image + 160) / 400, 0, 1) * 255)


# Of CT among CT.
INTENSITIES: dict[str, tuple[Change, str]] = {
    "offset 1024": (lambda a: a + 1024, "offset of about 1024"),
    "offset 1000": (lambda a: a + 1000, "offset of about 1024"),
    "offset -1024": (lambda a: a - 2048, "offset of about -1024"),
    "window as bytes": (window, "windowed to 0 to 255"),
    "0 to 1": (lambda a: window(a) / 255, "scaled to 0 to 1"),
    "whole range 0 to 1": (lambda a: (a + 1024) / 4095, "scaled to 0 to 1"),
    "whole range 0 to 255": (lambda a: np.round((a + 1024) / 4095 * 255), "0 to 255"),
    "-1 to 1": (lambda a: (a + 1024) / 2047.5 - 1, "scale"),
    "standardised": (lambda a: (a - a.mean()) / a.std(), "scale"),
    "negated": (lambda a: -a, "inverted"),
    "turned about": (lambda a: a.max() - a, "inverted"),
    "unsigned 16": (lambda a: a % 65536, "unsigned"),
    "unsigned 32": (lambda a: a % 2.0**32, "unsigned"),
    "times 10": (lambda a: 10 * a, "scale"),
    "a tenth": (lambda a: a / 10, "scale"),
    "attenuation": (lambda a: (a + 1000) * 2e-5, "scale"),
}


@pytest.mark.parametrize("number", [2, 5, 11])
@pytest.mark.parametrize("what", INTENSITIES)
def test_a_ct_stored_otherwise_is_found_among_ct(what: str, number: int) -> None:
    change, words = INTENSITIES[what]
    (found,) = compare([*others(ct, number), case("odd", change(ct(50)))], "CT")
    assert (found.case, found.severity, found.code) == ("odd", "warning", "intensities")
    assert words in found.problem
    assert "those of the others typically" in found.problem
    assert found.hint


@pytest.mark.parametrize(
    ("make", "kind", "image", "words"),
    [
        (ct, "CT", mr(7), "MR"),
        (mr, "MR", ct(7), "CT in Hounsfield units"),
        (mr, "MR", np.clip(ct(7), -125, 275), "CT in Hounsfield units"),
        (mr, "MR", mr(7) / 4096, "0 to 1"),
        (mr, "MR", mr(7) * 1e6, "scale"),
        (mr, "MR", -mr(7), "inverted"),
        (mr, "MR", (mr(7) - 4) % 65536, "unsigned"),
        (lambda n: ct(n) + 1024, "CT", ct(7), "Hounsfield"),
        (lambda n: window(ct(n)), "CT", ct(7), "Hounsfield"),
        (lambda n: np.clip(ct(n), -125, 275), "CT", np.clip(ct(7), -125, 275) + 1024, "1024"),
        (lambda n: np.clip(ct(n), -125, 275), "CT", -np.clip(ct(7), -125, 275), "inverted"),
    ],
)
def test_another_modality_or_scale_is_found(
    make: Callable[[int], Array], kind: str, image: Array, words: str
) -> None:
    (found,) = compare([*others(make, 5), case("odd", image)], kind)
    assert (found.case, found.code) == ("odd", "intensities")
    assert words in found.problem


@pytest.mark.parametrize("number", [2, 6])
@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ((100.0, 100.0, 100.0), "about 100 times"),
        ((1e-3, 1e-3, 1e-3), "metres"),
        ((1e3, 1e3, 1e3), "micrometres"),
        ((0.1, 0.1, 0.1), "centimetres"),
        ((100.0, 1.0, 1.0), "along z"),
        ((1.0, 100.0, 1.0), "along y"),
        ((1.0, 1.0, 1e-3), "along x"),
        ((1e-3, 1.0, 1.0), "along z"),
        ((1.0, 30.0, 30.0), "along y, x"),
    ],
)
def test_a_spacing_far_from_the_others_is_found(
    factors: tuple[float, float, float], words: str, number: int
) -> None:
    z, y, x = (f * mm for f, mm in zip(factors, SPACING, strict=True))
    (found,) = compare([*others(ct, number), case("odd", ct(9), (z, y, x))], "CT")
    single = factors == (1e-3, 1e-3, 1e-3)
    assert found.severity == ("error" if single else "warning")
    assert found.case == "odd"
    assert found.code == ("size" if single else "spacing")
    assert words in found.problem + found.hint
    assert f"{z:.3g} x {y:.3g} x {x:.3g} mm" in found.problem


@pytest.mark.parametrize(
    ("image", "spacing", "severity"),
    [
        (ct(3)[:1], SPACING, "warning"),  # one slice
        (ct(3)[:3], SPACING, "warning"),
        (ct(3)[:, :2], SPACING, "warning"),
        (ct(3)[:1, :1, :1], SPACING, "error"),
        (ct(3), (0.4, 1.5, 1.5), "warning"),  # 24 slices of together 10 mm
    ],
)
def test_a_size_that_no_other_has_is_found(
    image: Array, spacing: tuple[float, float, float], severity: str
) -> None:
    # A single voxel is a constant image: its intensities are not compared.
    found = [
        one
        for one in compare([*others(ct, 5), case("odd", image, spacing)], "CT")
        if one.code != "intensities"
    ]
    assert [(one.case, one.severity, one.code) for one in found] == [("odd", severity, "size")]


def test_a_longest_axis_of_metres_or_of_nothing_in_all_cases_is_found() -> None:
    for factor in (1e3, 1e-3):
        z, y, x = (factor * mm for mm in SPACING)
        (found,) = compare([case(f"c{n}", ct(n), (z, y, x)) for n in range(3)], "CT")
        assert (found.case, found.severity) == (None, "warning")


def healthy() -> dict[str, tuple[list[CaseRange], str]]:
    ct_set = [
        case("thick", ct(0), (10.0, 0.7, 0.7)),
        case("thin", np.repeat(ct(1), 4, axis=0), (0.6, 0.9, 0.9)),
        case("whole body", np.repeat(ct(2), 10, axis=0), (3.0, 1.4, 1.4)),
        case("padded", np.where(body(3), ct(3), -2048), (5.0, 1.0, 1.0)),
        case("clipped", np.clip(ct(4), -200, 300), (2.5, 0.8, 0.8)),
        case("metal", np.where(ct(5) > 1000, 20000, ct(5)), (5.0, 1.0, 1.0)),
    ]
    mr_set = [
        case("bytes", np.round(mr(0) / mr(0).max() * 255), (7.0, 1.2, 1.2)),
        case("noise", mr(1) + np.random.default_rng(0).normal(0, 25, SHAPE), (3.0, 1.0, 1.0)),
        *(case(f"mr{n}", mr(n) * n) for n in range(2, 7)),
    ]
    two_scanners = [case(f"a{n}", mr(n)) for n in range(8)]
    two_scanners += [case(f"b{n}", 400 * mr(n)) for n in range(4)]
    return {
        "CT": (ct_set, "CT"),
        "MR": (mr_set, "MR"),
        "two scanners": (two_scanners, "MR"),
        "one": ([case("a", ct(0))], "CT"),
        "two": ([case("a", ct(0)), case("b", ct(1) + 1024, (0.5, 0.15, 0.15))], "CT"),
        "none": ([], "CT"),
        "slices": ([case(f"s{n}", ct(n)[:1], (1.0, 1.0, 1.0)) for n in range(4)], "CT"),
    }


@pytest.mark.parametrize("name", list(healthy()))
def test_a_mixed_but_healthy_set_gives_no_finding(name: str) -> None:
    cases, kind = healthy()[name]
    assert compare(cases, kind) == []


def test_a_set_of_both_modalities_that_says_so_gives_no_finding() -> None:
    cases = [*others(ct, 3), *(case(f"m{n}", mr(n)) for n in range(3))]
    kinds = {one.name: "MR" if one.name.startswith("m") else "CT" for one in cases}
    assert compare_cases(cases, kinds, ("image",)) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    "name",
    [
        "Dataset101_AbdomenCT",
        "Dataset102_AbdomenMR",
        "Dataset103_LiverTumourCT",
        "Dataset104_BrainMR4",
        "Dataset004_Hippocampus",
    ],
)
def test_real_datasets_give_no_finding(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name}")
    found = verify(read_dataset(SHARED / name))
    assert not [f for f in found.findings if f.code in ("spacing", "size", "intensities")]
    assert found.ranges


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ((9.99 * 400, 4.0, 4.0), "its spacing (y, x) is 4 x 4 mm, along y, x about 100 times"),
        ((999 * 30.0, 0.04, 30.0), "its spacing (y, x) is 0.04 x 30 mm, along x about"),
    ],
)
def test_a_picture_has_no_spacing_along_z(spacing: tuple[float, float, float], words: str) -> None:
    picture = (999 * 0.04, 0.04, 0.04)
    alike = [case(f"good_{n}", mr(n)[12:13], picture) for n in range(4)]
    (found,) = compare([*alike, case("odd", mr(9)[12:13], spacing)], "MR")
    assert words in found.problem
    assert "e+0" not in found.problem
    assert "z" not in found.problem


def test_a_picture_among_volumes_is_told_as_one() -> None:
    _, y, x = SPACING
    odd = case("odd", ct(9), (999 * y, y, x))
    (found,) = compare([*others(ct, 4), odd], "CT")
    assert "a 2D file without a spacing along z; the other cases have z" in found.problem
