from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from autoliver.datasets.cases import CaseFacts, Modality
from autoliver.preprocessing.case import ANNOTATED
from autoliver.training.patches.sampling import PatchSampler, PatchStream
from autoliver.training.recipes import SamplerKind
from autoliver.training.share import Part


@dataclass
class ArrayCase:
    """A case in memory whose image values tell where they came from."""

    name: str
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    locations: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    previous: npt.NDArray[np.int16] | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def facts(self) -> CaseFacts:
        return CaseFacts.named(self.name)


def make_case(name: str, shape: tuple[int, int, int], voxels: list[tuple[int, ...]]) -> ArrayCase:
    image = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
    label = np.zeros((1, *shape), np.int16)
    for z, y, x in voxels:
        label[0, z, y, x] = 2
    return ArrayCase(name, image, label, {2: np.array(voxels, np.int32).reshape(-1, 3)})


def sampler(
    cases: list[ArrayCase], patch: tuple[int, ...], margin: tuple[int, ...], foreground: float
) -> PatchSampler:
    return PatchSampler(
        cases=cases, patch_shape=patch, margin=margin, batch_size=3, foreground=foreground
    )


def test_equal_generators_give_equal_batches() -> None:
    draw = sampler([make_case("a", (9, 8, 7), [(1, 2, 3)])], (4, 4, 4), (0, 0, 0), 0.33).draw
    first, again = draw(np.random.default_rng(5)), draw(np.random.default_rng(5))
    other = draw(np.random.default_rng(6))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_patches_are_boxes_of_the_image_with_zeros_outside() -> None:
    case = make_case("a", (6, 5, 7), [(0, 0, 0)])
    draws = sampler([case], (8, 4, 4), (0, 2, 0), 0.33)
    padded = np.pad(case.image[0], 8)
    for seed in range(30):
        batch = draws.draw(np.random.default_rng(seed))
        for image, label in zip(batch.image[:, 0], batch.label[:, 0], strict=True):
            inside = np.argwhere(image > 0)[0]
            place = np.argwhere(padded == image[tuple(inside)])[0] - inside
            box = tuple(slice(p, p + n) for p, n in zip(place, (8, 4, 4), strict=True))
            assert np.array_equal(image, padded[box])
            assert np.array_equal(label == -1, image == 0)


def test_the_last_third_of_a_batch_shows_foreground() -> None:
    far = make_case("a", (30, 30, 30), [(29, 0, 15)])
    empty = make_case("b", (30, 30, 30), [])
    draws = sampler([far], (4, 4, 4), (0, 0, 0), 0.33)
    batches = [draws.draw(np.random.default_rng(seed)) for seed in range(40)]
    shown = np.array([[(patch == 2).any() for patch in batch.label] for batch in batches])
    assert shown[:, 2].all()
    assert shown[:, :2].mean() < 0.2
    assert sampler([empty], (4, 4, 4), (0, 0, 0), 1.0).draw(np.random.default_rng(0)).image.size


def test_every_place_is_drawn() -> None:
    case = make_case("a", (3, 3, 3), [])
    draws = sampler([case], (2, 2, 2), (0, 0, 0), 0.0)
    starts = {
        float(patch[0, 0, 0, 0])
        for seed in range(60)
        for patch in draws.draw(np.random.default_rng(seed)).image
    }
    assert starts == {1.0, 2.0, 4.0, 5.0, 10.0, 11.0, 13.0, 14.0}


def test_2d_patches_lie_in_one_slice_which_shows_foreground_if_asked() -> None:
    case = make_case("a", (12, 6, 6), [(7, 2, 2)])
    batch = sampler([case], (4, 4), (0, 0), 1.0).draw(np.random.default_rng(1))
    assert batch.image.shape == (3, 1, 4, 4)
    slices = (batch.image - 1) // 36
    assert (slices == 7).all()
    assert (batch.label == 2).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_with_an_ignore_label_every_patch_shows_something_annotated(foreground: float) -> None:
    case = make_case("a", (30, 30, 30), [])
    case.locations[ANNOTATED] = np.array([[3, 4, 5]], np.int32)
    batch = sampler([case], (4, 4, 4), (0, 0, 0), foreground).draw(np.random.default_rng(1))
    value = case.image[0, 3, 4, 5]
    assert (batch.image == value).any(axis=(1, 2, 3, 4)).all()


def test_a_cascade_draws_what_its_first_stage_found_with_the_label() -> None:
    case = make_case("a", (6, 7, 8), [(2, 3, 4)])
    case.previous = (np.arange(6 * 7 * 8, dtype=np.int16).reshape(1, 6, 7, 8) % 3) * 5
    table = np.zeros(12, np.int16)
    table[0], table[6], table[11] = -1, 1, 2
    sampler = PatchSampler(
        cases=[case],
        patch_shape=(4, 4, 4),
        margin=(4, 4, 4),
        batch_size=3,
        foreground=0.33,
        previous=table,
    )
    batch = sampler.draw(np.random.default_rng(0))
    assert batch.label.shape == (3, 2, 4, 4, 4)
    place = sampler.places(np.random.default_rng(0))[0]
    for index in np.ndindex(4, 4, 4):
        z, y, x = (start + i for start, i in zip(place.start, index, strict=True))
        inside = 0 <= z < 6 and 0 <= y < 7 and 0 <= x < 8
        expected = (z * 56 + y * 8 + x) % 3 if inside else -1
        assert batch.label[(0, 1, *index)] == expected
    case.previous = None
    with pytest.raises(ValueError, match="a has no label, or none of the first stage"):
        sampler.draw(np.random.default_rng(0))


@dataclass
class KnownCase(ArrayCase):
    """A case with a source and a modality."""

    source: str = ""
    modality: Modality = "other"

    @property
    def facts(self) -> CaseFacts:
        return CaseFacts(
            name=self.name, patient=self.name, source=self.source, modality=self.modality
        )


def known_sampler(kind: SamplerKind, *, batch: int = 2, replayed: int = 0) -> PatchSampler:
    """A sampler of 9 cases of source x (CT) and 1 of y (MR), with one voxel each."""
    cases = []
    for number in range(10 + replayed):
        source, modality = ("y", "MR") if number == 3 else ("x", "CT")
        case = make_case(f"{number:02d}", (1, 1, 1), [])
        cases.append(
            KnownCase(case.name, case.image, case.label, {}, None, source=source, modality=modality)
        )
    return PatchSampler(
        cases=cases,
        patch_shape=(1, 1, 1),
        margin=(0, 0, 0),
        batch_size=batch,
        foreground=0.33,
        kind=kind,
        replayed=replayed,
        replay_share=0.5,
    )


def drawn_cases(sampler: PatchSampler, batches: int) -> npt.NDArray[np.int64]:
    stream = PatchStream(sampler=sampler, seed=(4, 0))
    return np.array([[place.case for place in stream.places(n)] for n in range(batches)])


@pytest.mark.parametrize(
    ("kind", "share"), [("proportional", 1 / 10), ("sqrt", 1 / 4), ("balanced", 1 / 2)]
)
def test_sources_are_drawn_by_their_shares(kind: SamplerKind, share: float) -> None:
    drawn = drawn_cases(known_sampler(kind), 2000)
    assert np.mean(drawn == 3) == pytest.approx(share, abs=0.03)
    others = np.bincount(drawn[drawn != 3], minlength=10)[[0, 1, 2, 4, 5, 6, 7, 8, 9]]
    assert others.min() > 0.7 * others.mean()  # alike within a source


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_batch_shows_each_modality_if_it_can(batch: int) -> None:
    is_mr = drawn_cases(known_sampler("modality-balanced", batch=batch), 60) == 3
    if batch > 1:
        assert all(0 < row.sum() < batch for row in is_mr)
    # So does each place in the batch, since the last ones show foreground.
    assert is_mr.mean(axis=0) == pytest.approx([0.5] * batch)


@pytest.mark.parametrize("batch", [1, 2])
def test_modalities_take_turns_in_batches_that_are_too_small(batch: int) -> None:
    names: tuple[Modality, ...] = ("CT", "MR", "other")
    cases = [make_case(str(n), (1, 1, 1), []) for n in range(3)]
    sampler = PatchSampler(
        cases=[
            KnownCase(c.name, c.image, c.label, {}, None, source=c.name, modality=names[n])
            for n, c in enumerate(cases)
        ],
        patch_shape=(1, 1, 1),
        margin=(0, 0, 0),
        batch_size=batch,
        foreground=0.33,
        kind="modality-balanced",
    )
    drawn = drawn_cases(sampler, 120)
    shares = [np.mean(drawn == n) for n in range(3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)
    assert all(len(set(row)) == min(batch, 3) for row in drawn)


@pytest.mark.parametrize("kind", ["proportional", "sqrt", "balanced", "modality-balanced"])
def test_batches_are_functions_of_their_numbers_for_every_kind(kind: SamplerKind) -> None:
    sampler = known_sampler(kind, batch=4, replayed=2)
    whole = PatchStream(sampler=sampler, seed=(1, 0))
    parts = [
        PatchStream(sampler=sampler, seed=(1, 0), part=Part(start=s, stop=s + 2, whole=4))
        for s in (0, 2)
    ]
    for number in (7, 3, 7):
        places = whole.places(number)
        assert [place for part in parts for place in part.places(number)] == places
        assert sum(place.case >= 10 for place in places) == 2
