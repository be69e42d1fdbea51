"""Patches lie on the box of an organ."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_trainings import PATCH, ArrayCase, make_task, stop_after, timeless

from autoliver.datasets.cases import CaseFacts
from autoliver.training.augment.batch import augmentation
from autoliver.training.fold import patch_stream
from autoliver.training.loop import train_fold
from autoliver.training.patches.region import PatchBox
from autoliver.training.patches.sampling import PatchSampler, PatchStream

SHAPE = (30, 40, 36)
BOUNDS = ((8, 20), (10, 30), (5, 25))


def make_case(name, shape, voxels):
    label = np.zeros((1, *shape), np.int16)
    label[0][tuple(np.array(voxels).T)] = 2
    image = np.zeros((1, *shape), np.float32)
    return ArrayCase(facts=CaseFacts.named(name), image=image, label=label)


def sampler(cases, patch, margin, foreground):
    return PatchSampler(
        cases=cases, patch_shape=patch, margin=margin, batch_size=3, foreground=foreground
    )


def boxed(patch, margin, *, jitter=(0.0, 0.0, 0.0), voxels=((10, 12, 8),), foreground=0.33):
    case = make_case("a", SHAPE, list(voxels))
    box = PatchBox(bounds=BOUNDS, jitter=jitter)
    return replace(sampler([case], patch, margin, foreground), boxes=[box])


def seen_by_network(draws, seed, patch, margin):
    """Ends of the network's patches, without the margin for rotation."""
    for place in draws.places(np.random.default_rng(seed)):
        yield [
            (start + more // 2, start + more // 2 + size - more)
            for start, size, more in zip(place.start, patch, margin, strict=True)
        ]


@pytest.mark.parametrize("foreground", [0.0, 1.0])
@pytest.mark.parametrize("margin", [(0, 0, 0), (2, 5, 4)])
def test_small_patches_are_inside_and_reach_every_place(foreground, margin):
    patch = tuple(size + more for size, more in zip((6, 9, 8), margin, strict=True))
    voxels = [(z, y, x) for z in (8, 13, 19) for y in (10, 20, 29) for x in (5, 15, 24)]
    draws = boxed(patch, margin, voxels=voxels, foreground=foreground)
    starts = set()
    for seed in range(150):
        for ends in seen_by_network(draws, seed, patch, margin):
            for (low, high), (first, last) in zip(ends, BOUNDS, strict=True):
                assert first <= low < high <= last
            starts.add(ends[0][0])
    assert {8, 14} <= starts


@pytest.mark.parametrize("margin", [(0, 0, 0), (3, 4, 2)])
def test_large_patches_are_centred(margin):
    patch = tuple(size + more for size, more in zip((16, 28, 20), margin, strict=True))
    for seed in range(10):
        for ends in seen_by_network(boxed(patch, margin), seed, patch, margin):
            for (low, high), (first, last) in zip(ends, BOUNDS, strict=True):
                assert abs((low + high) - (first + last)) <= 1


# An image of 40 voxels; a box of its first or its last 12.
@pytest.mark.parametrize(
    ("size", "near", "far"), [(20, 0, 20), (30, 0, 10), (40, 0, 0), (44, -4, 0), (60, -20, 0)]
)
def test_large_patches_do_not_leave_the_image_in_order_to_be_centred(size, near, far):
    case = make_case("a", (40, 40, 40), [(1, 1, 1)])
    box = PatchBox(bounds=((0, 12), (28, 40), (28, 40)), jitter=(0.0, 0.0, 0.0))
    draws = replace(sampler([case], (size,) * 3, (0,) * 3, 0.33), boxes=[box])
    for place in draws.places(np.random.default_rng(1)):
        assert place.start == (near, far, far)


def test_slices_of_a_2d_training_are_those_of_the_box():
    draws = boxed((10, 10), (0, 0))
    slices = {p.start[0] for seed in range(100) for p in draws.places(np.random.default_rng(seed))}
    assert slices == set(range(8, 20))


def test_foreground_outside_of_the_box_is_not_forced():
    draws = boxed((4, 6, 6), (0, 0, 0), voxels=[(0, 0, 0), (10, 20, 15)], foreground=1.0)
    for seed in range(20):
        for place in draws.places(np.random.default_rng(seed)):
            assert place.start == (8, 17, 12)


def test_each_side_is_moved_by_up_to_the_jitter_and_the_image_is_not_left():
    box = PatchBox(bounds=((0, 20), (10, 30), (5, 36)), jitter=(3.0, 2.0, 0.0))
    drawn = np.array([box.drawn(np.random.default_rng(seed), SHAPE) for seed in range(400)])
    low, high = drawn[..., 0], drawn[..., 1]
    assert (low.min(0).tolist(), low.max(0).tolist()) == ([0, 8, 5], [3, 12, 5])
    assert (high.min(0).tolist(), high.max(0).tolist()) == ([17, 28, 36], [23, 32, 36])
    # Sides are independent of one another.
    assert abs(np.corrcoef(low[:, 1], high[:, 1])[0, 1]) < 0.2
    assert box.drawn(np.random.default_rng(3), SHAPE) == box.drawn(np.random.default_rng(3), SHAPE)


def test_a_tiny_box_is_never_empty():
    box = PatchBox(bounds=((4, 5), (39, 40), (0, 1)), jitter=(9.0, 9.0, 9.0))
    for seed in range(200):
        drawn = box.drawn(np.random.default_rng(seed), SHAPE)
        for (low, high), size in zip(drawn, SHAPE, strict=True):
            assert 0 <= low < high <= size


def test_batches_depend_on_the_seed_and_their_number_alone():
    draws = boxed((6, 9, 8), (0, 0, 0), jitter=(2.0, 2.0, 2.0))
    one, two = PatchStream(sampler=draws, seed=(1, 0)), PatchStream(sampler=draws, seed=(1, 0))
    assert one.places(7) == two.places(7)
    assert [one.places(n) for n in range(5)][3] == two.places(3)
    assert one.places(7) != PatchStream(sampler=draws, seed=(2, 0)).places(7)


def test_cases_without_a_box_are_drawn_as_ever():
    case = make_case("a", SHAPE, [(1, 2, 3)])
    plain = sampler([case], (6, 9, 8), (0, 0, 0), 0.33)
    without = replace(plain, boxes=[None])
    places = [s.places(np.random.default_rng(4)) for s in (plain, without)]
    assert places[0] == places[1]


def boxed_task(folder, **options):
    """All cases but the first have a box, in slices 1 to 3."""
    task = make_task(folder, schedule="nnunet", **options)
    box = PatchBox(bounds=((1, 4), (2, 18), (4, 22)), jitter=(1.0, 3.0, 3.0))
    names = [case.facts.name for case in (*task.train, *task.validation)]
    return replace(task, boxes=dict.fromkeys(names[1:], box))


def test_boxes_of_held_out_cases_are_not_moved(tmp_path):
    task = boxed_task(tmp_path)
    spec = augmentation(task.configuration, "default", mirror=True)
    moved = patch_stream(task, task.train, spec, number=0)
    exact = patch_stream(task, task.validation, None, number=1)

    def slices(stream, cases):
        places = [place for number in range(150) for place in stream.places(number)]
        return {place.start[0] for place in places if place.case in cases}

    assert slices(moved, {1, 2, 3}) == {0, 1, 2, 3, 4}
    assert slices(moved, {0}) == set(range(6))
    assert slices(exact, {0}) == {1, 2, 3}
    columns = {place.start[2] for number in range(150) for place in exact.places(number)}
    assert columns == set(range(4, 22 - PATCH[1] + 1))


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    given = {"epochs": 2, "iterations": 3, "deterministic": True}
    whole = train_fold(boxed_task(tmp_path / "whole", **given))
    part = boxed_task(tmp_path / "part", **given)
    assert not train_fold(part, stop=stop_after(4)).finished
    resumed = train_fold(part)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert timeless(resumed.logs) == timeless(whole.logs)
    other = train_fold(boxed_task(tmp_path / "other", **given, seed=1))
    assert any(not torch.equal(other.weights[name], whole.weights[name]) for name in whole.weights)
