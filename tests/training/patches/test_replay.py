"""Patches of another dataset's cases: how many, with which labels, and what counts of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_trainings import LABELS, ArrayCase, make_case, make_task, stop_after, timeless

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.preprocessing.case import ANNOTATED
from autoliver.training.fold import FoldTask, patch_stream
from autoliver.training.loop import train_fold
from autoliver.training.objectives.choice import make_objective
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.replay import ReplayedCase, replayed_case, with_ignored
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.share import Part
from autoliver.transfer.labels import map_values

pytestmark = pytest.mark.usefixtures("one_thread")

# The replayed dataset has the values the other way round, and a label more: spleen.
OTHER = Labels(values={"background": (0,), "Tumor": (1,), "liver": (2,), "spleen": (7,)})
FURTHER = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,), "kidney": (3,)})


def other_case(number: int) -> ArrayCase:
    """A case whose images are all above 100; a part is spleen, a corner outside of the body."""
    case = make_case(100 + number)
    label = np.array([0, 2, 1], np.int16)[case.label]
    label[:, :, :5] = 7
    label[:, 0, -3:] = -1
    facts = CaseFacts.named(f"other_{number}")
    return ArrayCase(facts, case.image + 200, label, values=(1, 2, 7))


def replayed(number: int, labels: Labels) -> ReplayedCase:
    values = map_values(OTHER, labels)
    found = replayed_case(other_case(number), values, with_ignored(labels, values), name="of other")
    assert found is not None
    return found


def replaying(folder: Path, labels: Labels = LABELS, **options: object) -> FoldTask:
    """A training that replays two cases."""
    options = {"replay": "Other", **options}
    task = make_task(folder, **options)
    kept = with_ignored(labels, map_values(OTHER, labels))
    return replace(task, labels=kept, replay=[replayed(n, labels) for n in range(2)])


def by_hand(label: npt.NDArray[np.int16], *, background: int, ignored: int) -> npt.NDArray[np.int_]:
    found = np.full(label.shape, -99)
    for voxel, value in np.ndenumerate(label):
        found[voxel] = {-1: -1, 0: background, 1: 2, 2: 1, 7: ignored}[int(value)]
    return found


@pytest.mark.parametrize(("labels", "background"), [(LABELS, 0), (FURTHER, 4)])
def test_labels_are_mapped_by_name_and_the_rest_does_not_count(
    labels: Labels, background: int
) -> None:
    ignored = len(labels.values)
    case, found = other_case(0), replayed(0, labels)
    expected = by_hand(case.label, background=background, ignored=ignored)
    everything = (slice(None),) * 4
    assert found.label.shape == case.label.shape
    assert np.array_equal(found.label[everything], expected)
    box = (slice(None), slice(1, 3), slice(2, 9), slice(4, 11))
    assert np.array_equal(found.label[box], expected[box])
    for value, voxels in found.locations.items():
        there = expected[0][tuple(voxels.T)]
        assert np.isin(there, [1, 2] if value == ANNOTATED else [value]).all()
    # Where the background may hold a kidney, patches are drawn where something is known.
    assert (ANNOTATED in found.locations) == (background != 0)
    assert found.locations[1].shape == other_case(0).locations[2].shape


def test_a_case_of_which_nothing_counts_is_none() -> None:
    case = other_case(0)
    case.label[case.label != 7] = 0
    values = map_values(OTHER, FURTHER)
    assert replayed_case(case, values, with_ignored(FURTHER, values), name="x") is None
    values = map_values(OTHER, LABELS)
    assert replayed_case(case, values, with_ignored(LABELS, values), name="x") is not None


def test_labels_get_a_value_to_ignore_only_if_it_is_needed() -> None:
    assert with_ignored(LABELS, {0: 0, 1: 1, 2: 2}) == LABELS
    assert with_ignored(LABELS, {0: None, 1: 1}).ignore == 3
    assert with_ignored(LABELS.replace(ignore=9), {0: None, 1: 1}).ignore == 9


@pytest.mark.parametrize(("share", "batch"), [(0.5, 2), (0.5, 3), (0.2, 2), (0.9, 5)])
def test_the_share_of_the_patches_is_that_which_was_asked_for(
    share: float, batch: int, tmp_path: Path
) -> None:
    task = replaying(tmp_path, replay_share=share)
    task = replace(task, configuration=task.configuration.replace(batch_size=batch))
    stream = patch_stream(task, task.train, None, number=0, replay=task.replay)
    drawn = np.array([[p.case >= 4 for p in stream.places(number)] for number in range(600)])
    assert drawn.mean() == pytest.approx(share, abs=0.03)
    # Each batch holds the share, up to one patch, at any place in the batch.
    counts = drawn.sum(axis=1)
    assert set(counts) <= {int(share * batch), int(np.ceil(share * batch))}
    assert np.ptp(drawn.mean(axis=0)) < 0.12
    cases = {place.case for number in range(50) for place in stream.places(number)}
    assert cases == {0, 1, 2, 3, 4, 5}
    for number in range(5):
        whole = stream.draw(number)
        for patch, facts in zip(whole.image, whole.cases, strict=True):
            assert (patch[patch != 0] > 100).all() == (facts.name == "of other")


def test_without_replay_the_same_patches_are_drawn_as_ever(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    stream = patch_stream(task, task.train, None, number=0)
    rng = np.random.default_rng([0, 0, 3])
    assert stream.places(3)[0].case == int(rng.integers(4))


def test_two_processes_draw_the_halves_of_what_one_draws(tmp_path: Path) -> None:
    task = replaying(tmp_path)
    task = replace(task, configuration=task.configuration.replace(batch_size=5))
    stream = patch_stream(task, task.train, None, number=0, replay=task.replay)
    parts = [Part(start=0, stop=2, whole=5), Part(start=2, stop=5, whole=5)]
    for number in range(6):
        halves = [replace(stream, part=part).draw(number) for part in parts]
        whole = stream.draw(number)
        assert np.array_equal(np.concatenate([h.image for h in halves]), whole.image)
        assert np.array_equal(np.concatenate([h.label for h in halves]), whole.label)


@pytest.mark.parametrize(("cache", "workers"), [("gpu", 0), ("ram", 0), ("disk", 0), ("disk", 2)])
@pytest.mark.parametrize("labels", [LABELS, FURTHER])
def test_batches_do_not_depend_on_where_cases_are_kept(
    cache: CacheKind, workers: int, labels: Labels, tmp_path: Path
) -> None:
    task = replaying(tmp_path, labels)
    stream = patch_stream(task, task.train, None, number=0, replay=task.replay)
    patches = Patches(stream, cache, torch.device("cpu"), workers=workers)
    batches = patches.batches(range(6), patch_shape=task.configuration.patch_shape, spec=None)
    for number, batch in enumerate(batches):
        expected = stream.draw(number)
        assert np.array_equal(batch.image.numpy(), expected.image)
        assert np.array_equal(batch.target.numpy(), expected.label.clip(0))


@pytest.mark.parametrize("loss", ["dice-ce", "dice-topk", "dice-focal"])
def test_voxels_that_do_not_count_give_no_gradient(loss: str, tmp_path: Path) -> None:
    task = replaying(tmp_path, replay_share=0.9, loss=loss)
    stream = patch_stream(task, task.train, None, number=0, replay=task.replay)
    objective = make_objective(task.labels, task.configuration, task.options)
    seen = 0
    for number in range(8):
        drawn = stream.draw(number)
        target = torch.from_numpy(drawn.label).clamp_min(0)
        logits = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(number))
        logits.requires_grad_()
        batch = TrainingBatch(number, torch.from_numpy(drawn.image), target, drawn.cases, 0.0, 0.0)
        value, _ = objective.loss([logits], batch, task.group)
        value.backward()
        assert logits.grad is not None
        ignored = (target == 3).expand_as(logits)
        seen += int(ignored.sum())
        assert (logits.grad[ignored] == 0).all()
        if loss != "dice-topk":
            assert (logits.grad[~ignored] != 0).float().mean() > 0.99
    assert seen > 0


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    options = {"epochs": 3, "iterations": 3}
    whole = train_fold(replaying(tmp_path / "whole", **options))
    half = train_fold(replaying(tmp_path / "half", **options), stop=stop_after(4))
    assert not half.finished
    ended = train_fold(replaying(tmp_path / "half", **options))
    assert timeless(ended.logs) == timeless(whole.logs)
    assert all(torch.equal(ended.weights[name], whole.weights[name]) for name in whole.weights)
    alone = train_fold(make_task(tmp_path / "alone", **options))
    assert any(not torch.equal(alone.weights[n], whole.weights[n]) for n in whole.weights)
