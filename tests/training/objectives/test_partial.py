"""The loss and the counts where not every label of every case is annotated."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from autoliver.datasets.cases import CaseFacts
from autoliver.training.distributed import ALONE, Group
from autoliver.training.objectives.segmentation import (
    LossOptions,
    SegmentationObjective,
    segmentation_loss,
)
from autoliver.training.patches.stream import TrainingBatch

KINDS = ("dice-ce", "dice-topk", "dice-focal", "focal-tversky")
REGIONS = ((1, 2), (2,))
NAMES = ("liver", "tumour")
NONE, PSEUDO = {"tumour": "none"}, {"liver": "pseudo", "tumour": "absent"}
UNKNOWN = {"liver": "none", "tumour": "none"}
STATES = [{}, NONE, PSEUDO, {"liver": "none", "tumour": "pseudo"}]
SHAPE = (4, 6)


def options(kind="dice-ce", *, batch_dice=False, ignore=None):
    return LossOptions(batch_dice=batch_dice, kind=kind, regions=REGIONS, ignore=ignore)


def batch(states, *, views=1, ignored=False):
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, 3, (len(states), 1, *SHAPE), generator=generator).to(torch.int16)
    if ignored:
        target[:, :, 0] = 3
    cases = tuple(
        CaseFacts(name=str(number), patient="p", annotated=state)
        for number, state in enumerate(states)
    )
    image = torch.zeros(views * len(states), 1, *SHAPE)
    return TrainingBatch(0, image, target, cases, 0.0, 0.0)


def logits_for(states, *, views=1):
    generator = torch.Generator().manual_seed(7)
    shape = (views * len(states), len(REGIONS), *SHAPE)
    return torch.randn(shape, generator=generator).requires_grad_()


def loss_of(states, chosen, *, views=1, ignored=False, pseudo_weight=0.5):
    shown, logits = batch(states, views=views, ignored=ignored), logits_for(states, views=views)
    coarse = logits[..., ::2, ::2]
    objective = SegmentationObjective(options=chosen, names=NAMES, pseudo_weight=pseudo_weight)
    loss, tally = objective.loss([logits, coarse], shown, ALONE)
    loss.backward()
    return loss, tally, logits.grad


def by_hand(logits, target, weights, chosen):
    """The loss, voxel by voxel in double precision, from its definition."""
    entropies, top, dice, errors = [], [], {}, {}
    for (sample, row), weight in weights.items():
        if weight == 0:
            continue
        overlap = size = total = missed = vain = 0.0
        voxels = 0
        for y, x in itertools.product(range(SHAPE[0]), range(SHAPE[1])):
            value = int(target[sample, 0, y, x])
            if value == chosen.ignore:
                continue
            p = torch.sigmoid(logits[sample, row, y, x].double()).item()
            wanted = value in REGIONS[row]
            right = p if wanted else 1 - p
            entropy = -torch.log(torch.tensor(right, dtype=torch.float64)).item()
            if chosen.kind == "dice-focal":
                entropy *= (1 - right) ** 2
            voxels, total = voxels + 1, total + entropy
            overlap, size = overlap + p * wanted, size + p + wanted
            missed, vain = missed + (1 - p) * wanted, vain + p * (not wanted)
            top.append(weight * entropy)
        entropies.append((weight, total / voxels))
        dice[sample, row] = (weight, overlap, size)
        errors[sample, row] = (weight, overlap, 0.7 * missed + 0.3 * vain)
    if chosen.kind == "focal-tversky":
        return tversky_by_hand(errors, chosen)
    entropy = sum(w * e for w, e in entropies) / len(entropies)
    if chosen.kind == "dice-topk":
        entropy = sum(sorted(top)[-(len(top) // 10) :]) / (len(top) // 10)
    elif chosen.ignore is not None:
        entropy *= len(REGIONS)
    return entropy - dice_by_hand(dice, chosen)


def tversky_by_hand(sums, chosen):
    """The focal Tversky loss from (sample, row) -> weight, overlap and weighted errors."""
    if not chosen.batch_dice:
        each = [w * (1 - (o + 1) / (o + e + 1)) ** 0.75 for w, o, e in sums.values()]
        return sum(each) / len(each)
    each = []
    for row in range(len(REGIONS)):
        own = [value for (_, r), value in sums.items() if r == row]
        if own:
            o, e = (sum(v[0] * v[i] for v in own) for i in (1, 2))
            each.append(sum(v[0] for v in own) / len(own) * (1 - (o + 1) / (o + e + 1)) ** 0.75)
    return sum(each) / len(each)


def dice_by_hand(sums, chosen):
    """The weighted Dice from (sample, row) -> weight, overlap and size."""
    if not chosen.batch_dice:
        scores = [w * (2 * o + 1e-5) / (s + 1e-5) for w, o, s in sums.values()]
        return sum(scores) / len(scores)
    scores = []
    for row in range(len(REGIONS)):
        own = [value for (_, r), value in sums.items() if r == row]
        if own:
            o, s = (sum(v[0] * v[i] for v in own) for i in (1, 2))
            weight = sum(v[0] for v in own) / len(own)
            scores.append(weight * (2 * o + 1e-5) / (s + 1e-5))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, 3])
def test_the_loss_is_the_weighted_mean_over_known_pairs(kind, batch_dice, ignore):
    chosen = options(kind, batch_dice=batch_dice, ignore=ignore)
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.5, 1.0], [0.0, 0.5]])
    shown, logits = batch(STATES, ignored=ignore is not None), logits_for(STATES)
    objective = SegmentationObjective(options=chosen, names=NAMES, pseudo_weight=0.5)
    loss, _ = objective.loss([logits], shown, ALONE)
    pairs = {(s, r): float(weights[s, r]) for s in range(len(STATES)) for r in range(2)}
    assert loss.item() == pytest.approx(by_hand(logits, shown.target, pairs, chosen), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("ignored", [False, True])
def test_unknown_labels_have_no_gradient(kind, batch_dice, views, ignored):
    chosen = options(kind, batch_dice=batch_dice, ignore=3 if ignored else None)
    _, _, gradient = loss_of(STATES, chosen, views=views, ignored=ignored)
    gradient = gradient.reshape(views, len(STATES), 2, *SHAPE)
    assert torch.all(gradient[:, 1, 1] == 0)
    assert torch.all(gradient[:, 3, 0] == 0)
    for sample, row in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 1)):
        assert bool((gradient[:, sample, row] != 0).any()) or kind == "dice-topk"
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_without_any_annotation_teaches_nothing(kind, batch_dice, views):
    loss, tally, gradient = loss_of(
        [UNKNOWN, UNKNOWN], options(kind, batch_dice=batch_dice), views=views
    )
    assert loss.item() == 0
    assert torch.all(gradient == 0)
    assert all(numbers == (0, 0) for numbers in tally.counts.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_complete_annotations_change_no_bit(kind, batch_dice, views):
    chosen = options(kind, batch_dice=batch_dice)
    plain = loss_of([{}, {}], chosen, views=views)
    stated = loss_of([{"liver": "real"}, {"tumour": "absent"}], chosen, views=views)
    whole = loss_of([PSEUDO, {}], chosen, views=views, pseudo_weight=1.0)
    assert torch.equal(plain[0], stated[0])
    assert torch.equal(plain[2], stated[2])
    assert torch.equal(plain[0], whole[0])
    if views == 1:
        shown, logits = batch([{}, {}]), logits_for([{}, {}])
        known = segmentation_loss([logits, logits[..., ::2, ::2]], shown.target, options=chosen)
        assert torch.equal(plain[0], known)


def test_weights_of_one_give_the_same_loss():
    for kind, batch_dice in itertools.product(KINDS, (False, True)):
        chosen = options(kind, batch_dice=batch_dice)
        shown, logits = batch([{}, {}]), logits_for([{}, {}])
        plain = segmentation_loss([logits], shown.target, options=chosen)
        ones = segmentation_loss([logits], shown.target, options=chosen, weights=torch.ones(2, 2))
        assert plain.item() == pytest.approx(ones.item(), abs=1e-6)


def test_only_what_people_marked_is_counted():
    chosen = options()
    _, counted, _ = loss_of(STATES, chosen)
    parts = [loss_of([{}] * 4, chosen)[1]]
    shown, logits = batch([{}] * 4), logits_for([{}] * 4)
    predicted = logits > 0
    for row, samples in enumerate(([0, 1], [0, 2])):
        wanted = torch.isin(shown.target[samples, 0], torch.tensor(REGIONS[row]))
        found = predicted[samples, row]
        expected = (found & wanted).sum(), (found & ~wanted).sum(), (~found & wanted).sum()
        names = ("true_positive", "false_positive", "false_negative")
        for name, number in zip(names, expected, strict=True):
            assert counted.counts[name][row] == int(number)
            assert parts[0].counts[name][row] >= int(number)


@dataclass(frozen=True)
class ThreadGroup(Group):
    """Two threads that stand for two processes."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    held: dict[int, Tensor] = field(default_factory=dict)

    def sum_(self, values):
        self.held[self.rank] = values.detach().clone()
        self.barrier.wait(30)
        values.copy_(self.held[0] + self.held[1])
        self.barrier.wait(30)
        return values

    def any(self, flag):
        return bool(self.sum_(torch.tensor(int(flag))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("states", [STATES, [{}, {}, NONE, UNKNOWN]])
def test_two_processes_compute_the_loss_of_one(kind, batch_dice, views, states):
    chosen = options(kind, batch_dice=batch_dice)
    whole, tally, gradient = loss_of(states, chosen, views=views)
    barrier, held = threading.Barrier(2), {}

    def half(rank):
        group = ThreadGroup(rank=rank, size=2, barrier=barrier, held=held)
        shown, mine = batch(states, views=views), slice(2 * rank, 2 * rank + 2)
        logits = logits_for(states, views=views)
        rows = logits.reshape(views, 4, 2, *SHAPE)[:, mine].reshape(-1, 2, *SHAPE)
        part = TrainingBatch(
            0, shown.image[: 2 * views], shown.target[mine], shown.cases[mine], 0.0, 0.0
        )
        objective = SegmentationObjective(options=chosen, names=NAMES, pseudo_weight=0.5)
        loss, counts = objective.loss([rows, rows[..., ::2, ::2]], part, group)
        loss.backward()
        return loss.item(), counts, logits.grad

    with ThreadPoolExecutor(2) as pool:
        (loss, counts, first), (other, _, second) = pool.map(half, (0, 1))
    assert loss == other == pytest.approx(whole.item(), abs=1e-6)
    assert counts == tally
    assert torch.allclose((first + second) / 2, gradient, atol=1e-6)
