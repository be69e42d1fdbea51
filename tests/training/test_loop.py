import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.errors import AutoliverError, ModelError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import load_training_state, save_training_state
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration
from autoliver.training.distributed import ALONE
from autoliver.training.fold import FoldTask, TrainedFold
from autoliver.training.loop import _Loop, train_fold
from autoliver.training.objectives.objective import Tally
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.stream import TrainingBatch
from autoliver.training.progress import EpochLog, read_progress

LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
GOLDEN = Path(__file__).parents[1] / "golden/losses_20_steps.json"


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class ArrayCase:
    """A preprocessed case in memory."""

    name: str
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    previous: npt.NDArray[np.int16] | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def facts(self) -> CaseFacts:
        return CaseFacts.named(self.name)

    @property
    def locations(self) -> dict[int, npt.NDArray[np.int32]]:
        return {v: np.argwhere(self.label[0] == v).astype(np.int32) for v in (1, 2)}


def make_case(name: str, seed: int, shape: tuple[int, int, int] = (6, 20, 24)) -> ArrayCase:
    """Blobs that are brighter the higher their label; a corner outside of the non-zero region."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 2.0)
    label = np.digitize(field, np.quantile(field, [0.6, 0.85])).astype(np.int16)
    image = (label - 0.5 + rng.normal(size=shape) * 0.3).astype(np.float32)
    label[:2, :3, :3] = -1
    return ArrayCase(name, image[None], label[None])


def make_cases(count: int = 4) -> list[ArrayCase]:
    return [make_case(f"case_{number}", number) for number in range(count)]


def make_task(folder: Path, patch: tuple[int, ...] = (16, 16), **changes: object) -> FoldTask:
    """A small training in 2D, or in 3D where the patch has three axes."""
    labels = changes.pop("labels", LABELS)
    assert isinstance(labels, Labels)
    options = {"epochs": 2, "iterations": 3, "schedule": "nnunet", "augment": "default"}
    options |= changes.pop("options", {})  # type: ignore[arg-type]
    axes = len(patch)
    network = UNetSpec(
        in_channels=1,
        out_channels=labels.out_channels,
        features=(4, 8),
        strides=((1,) * axes, (2,) * axes),
        kernels=((3,) * axes,) * 2,
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    configuration = Configuration(
        spacing_mm=(1.0,) * axes,
        median_shape=(20.0,) * axes,
        patch_shape=patch,
        batch_size=2,
        batch_dice=False,
        normalization=("zscore",),
        mask_norm=(True,),
        network=network,
    )
    fields = {
        "configuration": configuration,
        "labels": labels,
        "train": make_cases(),
        "validation": [],
        "options": TrainingOptions(**options),  # type: ignore[arg-type]
        "folder": folder,
        "device": torch.device("cpu"),
        "title": "Toy 2d fold 0",
    }
    return FoldTask(**fields | changes)  # type: ignore[arg-type]


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop after so many steps; the loop asks once a step."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def timeless(logs: tuple[EpochLog, ...]) -> list[EpochLog]:
    return [log.replace(seconds=0.0, data_wait=0.0) for log in logs]


def assert_equal(one: TrainedFold, other: TrainedFold) -> None:
    assert timeless(one.logs) == timeless(other.logs)
    assert one.weights.keys() == other.weights.keys()
    for name, weights in one.weights.items():
        assert torch.equal(weights, other.weights[name]), name


@pytest.mark.parametrize("patch", [(16, 16), (6, 16, 16)], ids=["2d", "3d"])
def test_losses_of_twenty_steps_stay_what_they_were(patch: tuple[int, ...], tmp_path: Path) -> None:
    task = make_task(tmp_path, patch, options={"epochs": 20, "iterations": 1})
    losses = [log.train_loss for log in train_fold(task).logs]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())[f"{len(patch)}d"], abs=1e-5)


def test_a_training_learns(tmp_path: Path) -> None:
    task = make_task(
        tmp_path,
        validation=[make_case("held_out", 9)],
        options={"epochs": 2, "iterations": 80, "schedule": "short", "augment": "none"},
    )
    logs = train_fold(task).logs
    assert logs[-1].mean_validation_dice is not None
    assert logs[-1].mean_validation_dice > 0.5  # chance is about 0.25
    assert (logs[-1].train_loss or 0) < (logs[0].train_loss or 0) - 0.2


@pytest.mark.parametrize(
    ("patch", "schedule"), [((16, 16), "short"), ((6, 16, 16), "nnunet")], ids=["2d", "3d"]
)
def test_a_training_resumed_after_every_step_is_the_uninterrupted_one(
    patch: tuple[int, ...], schedule: str, tmp_path: Path
) -> None:
    options = {"schedule": schedule, "iterations": 2}
    settings = {"options": options, "validation": make_cases(1)}
    whole = train_fold(make_task(tmp_path / "whole", patch, **settings))
    broken = make_task(tmp_path / "broken", patch, **settings)
    for step in range(1, 4):
        part = train_fold(broken, stop=stop_after(1))
        assert not part.finished
        assert len(part.logs) == step // 2
        assert load_training_state(broken.files.resume)["step"] == step
    rest = train_fold(broken, stop=stop_after(1))
    assert whole.finished
    assert rest.finished
    assert_equal(rest, whole)


def test_a_log_ahead_of_the_state_is_cut(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    train_fold(task, stop=stop_after(3))
    first = tmp_path / "first.pt"
    shutil.copy(task.files.resume, first)
    whole = train_fold(task)
    first.replace(task.files.resume)
    again = train_fold(task)
    assert_equal(again, whole)
    assert timeless(tuple(read_progress(task.files.progress))) == timeless(whole.logs)


def test_a_resumed_training_keeps_the_recipe_it_was_begun_with(tmp_path: Path) -> None:
    begun = make_task(tmp_path, options={"schedule": "short"})
    train_fold(begun, stop=stop_after(2))
    today = make_task(tmp_path, options={"schedule": "nnunet"})
    assert train_fold(today).recipe.optimizer == "adamw"


def test_damaged_and_foreign_states_are_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    train_fold(task, stop=stop_after(1))
    with pytest.raises(ModelError, match=r"resume\.pt.*has the shape"):
        train_fold(make_task(tmp_path, (6, 16, 16)))
    content = task.files.resume.read_bytes()
    task.files.resume.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"resume\.pt: cut short"):
        train_fold(task)


def test_another_seed_gives_another_training(tmp_path: Path) -> None:
    one = train_fold(make_task(tmp_path / "0"), stop=stop_after(1)).weights
    other = train_fold(make_task(tmp_path / "1", options={"seed": 1}), stop=stop_after(1)).weights
    assert any(not torch.equal(weights, other[name]) for name, weights in one.items())


@pytest.mark.parametrize("patch", [(16, 16), (6, 16, 16)], ids=["2d", "3d"])
def test_deterministic_trainings_end_with_the_same_bits(
    patch: tuple[int, ...], tmp_path: Path
) -> None:
    options = {"deterministic": True, "schedule": "short", "mirror": True, "loss": "dice-topk"}
    one, other = (train_fold(make_task(tmp_path / n, patch, options=options)) for n in "ab")
    assert_equal(one, other)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_during_a_deterministic_training_pytorch_allows_nothing_else(tmp_path: Path) -> None:
    seen = []

    def look() -> bool:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return False

    train_fold(make_task(tmp_path / "0", options={"deterministic": True}), stop=look)
    assert set(seen) == {True}
    train_fold(make_task(tmp_path / "1"), stop=look)
    assert seen[-1] is False


def test_a_training_without_progress_ends_early_with_the_rate_at_its_end(tmp_path: Path) -> None:
    # So small a rate that the mean of the held-out Dice stays where it is.
    options = {"epochs": 100, "iterations": 2, "patience": 2, "lr": 1e-12}
    settings = {"options": options, "validation": make_cases(1)}
    whole = train_fold(make_task(tmp_path / "whole", **settings))
    rates = [log.learning_rate for log in whole.logs]
    assert whole.finished
    assert len(rates) == 3 + 5
    assert rates[2] == pytest.approx(1e-12 * 0.98**0.9)
    assert rates[3:] == pytest.approx([1e-12 * (0.97 * (1 - i / 5)) ** 0.9 for i in range(5)])
    # Killed before, at and after the turn, it takes the same way.
    broken = make_task(tmp_path / "broken", **settings)
    for steps in (3, 2, 1, 2, 3):
        assert not train_fold(broken, stop=stop_after(steps)).finished
    assert_equal(train_fold(broken), whole)


def test_an_extension_goes_on_where_the_training_ended(tmp_path: Path) -> None:
    task = make_task(tmp_path / "0", options={"epochs": 3})
    ended = train_fold(task)
    begun = {"epochs": 3, "extensions": (2,)}
    longer = make_task(tmp_path / "0", options=begun)
    extended = train_fold(longer)
    assert timeless(extended.logs[:3]) == timeless(ended.logs)
    assert [(log.epoch, log.step) for log in extended.logs[3:]] == [(3, 12), (4, 15)]
    rates = [log.learning_rate for log in extended.logs[3:]]
    assert rates == pytest.approx([1e-2 * 0.4**0.9, 1e-2 * 0.2**0.9])
    assert any(not torch.equal(w, extended.weights[n]) for n, w in ended.weights.items())
    # Asked for from the first step on and killed on the way, the end is the same.
    broken = make_task(tmp_path / "1", options=begun)
    for steps in (8, 2, 3):
        assert not train_fold(broken, stop=stop_after(steps)).finished
    assert_equal(train_fold(broken), extended)
    assert_equal(train_fold(broken), extended)


def test_a_state_without_a_course_is_one_of_the_recipe_alone(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    train_fold(task, stop=stop_after(4))
    saved = load_training_state(task.files.resume)
    del saved["course"]
    save_training_state(task.files.resume, saved)
    assert_equal(train_fold(task), train_fold(make_task(tmp_path / "whole")))


def test_half_an_epoch_of_version_0_1_is_gone_on_with(tmp_path: Path) -> None:
    """Its resume.pt holds the counts as one tensor: true positives, false ones, missed ones."""
    whole = train_fold(make_task(tmp_path / "whole"))
    task = make_task(tmp_path / "old")
    train_fold(task, stop=stop_after(5))
    saved = load_training_state(task.files.resume)
    counts = saved["counts"]
    rows = [counts[name] for name in ("true_positive", "false_positive", "false_negative")]
    saved["counts"] = torch.tensor(rows, dtype=torch.int64)
    assert saved["counts"].shape == (3, 2)
    assert (saved["counts"].sum(0) > 0).all()
    save_training_state(task.files.resume, saved)
    assert_equal(train_fold(task), whole)


def test_axes_that_were_flipped_are_known(tmp_path: Path) -> None:
    axes = {}
    for mirror in (True, False, None):
        task = make_task(tmp_path / str(mirror), options={"mirror": mirror, "schedule": "short"})
        axes[mirror] = train_fold(task, stop=stop_after(1)).mirror_axes
    assert axes == {True: (0, 1), False: (), None: ()}


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
def test_every_loss_trains(labels: Labels, tmp_path: Path) -> None:
    losses = set()
    for loss in ("dice-ce", "dice-topk", "dice-focal"):
        task = make_task(tmp_path / loss, options={"loss": loss}, labels=labels)
        log = train_fold(task, stop=stop_after(3)).logs[0]
        assert log.train_loss is not None
        losses.add(log.train_loss)
    assert len(losses) == 3


def test_held_out_cases_are_scored_by_label_and_missing_labels_are_none(tmp_path: Path) -> None:
    held_out = make_case("held_out", 5)
    held_out.label[held_out.label == 2] = 0
    validation = [held_out]
    log = train_fold(make_task(tmp_path, validation=validation)).logs[-1]
    assert log.validation_loss is not None
    assert log.validation_dice is not None
    liver, tumour = log.validation_dice
    assert liver is not None
    assert 0 <= liver <= 1
    assert tumour in (None, 0.0)  # 0 where some was predicted


def test_without_held_out_cases_nothing_is_logged_of_them(tmp_path: Path) -> None:
    logs = train_fold(make_task(tmp_path)).logs
    assert [(log.validation_loss, log.validation_dice) for log in logs] == [(None, None)] * 2
    assert (tmp_path / "progress.png").exists()


def test_nnunet_rate_falls_by_epoch_and_the_short_one_by_step(tmp_path: Path) -> None:
    rates = [log.learning_rate for log in train_fold(make_task(tmp_path / "0")).logs]
    assert rates == pytest.approx([1e-2, 1e-2 * 0.5**0.9])
    short = train_fold(make_task(tmp_path / "1", options={"schedule": "short"}))
    expected = [
        short.recipe.learning_rate
        * (1 - (done - short.recipe.warmup) / (1 - short.recipe.warmup)) ** short.recipe.power
        for done in (2 / 6, 5 / 6)
    ]
    assert [log.learning_rate for log in short.logs] == pytest.approx(expected)


def test_a_case_with_nan_is_named(tmp_path: Path) -> None:
    cases = make_cases()
    cases[1].image[:] = np.nan
    with pytest.raises(AutoliverError, match=r"^case_1: .*not finite") as caught:
        train_fold(make_task(tmp_path, train=cases, options={"epochs": 20}))
    assert "autoliver verify" in caught.value.hint


def huge(case: ArrayCase) -> ArrayCase:
    """Finite values whose squares are not."""
    return ArrayCase("huge", np.full_like(case.image, 3e38), case.label)


def test_a_batch_without_a_finite_loss_is_left_out_and_named(tmp_path: Path) -> None:
    task = make_task(
        tmp_path,
        train=[*make_cases(7), huge(make_case("", 0))],
        options={"iterations": 8, "epochs": 2, "augment": "none"},
    )
    done = train_fold(task)
    assert any("huge" in log.skipped for log in done.logs)
    assert all(log.train_loss is not None and math.isfinite(log.train_loss) for log in done.logs)
    assert all(bool(torch.isfinite(weights).all()) for weights in done.weights.values())


def test_many_batches_in_a_row_without_a_finite_loss_end_the_training(tmp_path: Path) -> None:
    train = [huge(make_case("", 0))]
    with pytest.raises(AutoliverError, match=r"not finite for 5 batches in a row.* huge\.") as end:
        train_fold(make_task(tmp_path, train=train, options={"augment": "none"}))
    assert "--fresh" in end.value.hint


def test_gradients_that_are_not_finite_do_not_reach_the_weights(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    train_fold(task, stop=stop_after(1))
    saved = load_training_state(task.files.resume)
    for name, weights in saved["network"].items():
        if weights.shape[0] == 3:  # the head: a finite loss whose gradients overflow when squared
            saved["network"][name] = weights * 1e25
    save_training_state(task.files.resume, saved)
    with pytest.raises(AutoliverError, match="gradients were not finite for 5 batches"):
        train_fold(task)


def test_a_time_budget_ends_the_training_with_the_rate_at_its_end(tmp_path: Path) -> None:
    few = train_fold(make_task(tmp_path / "few", options={"epochs": 9, "iterations": 1})).logs
    seconds = max(1.0, 40 * float(np.median([log.seconds for log in few])))  # on a busy machine
    task = make_task(
        tmp_path / "run",
        options={"epochs": 250_000, "iterations": 1, "hours": seconds / 3600, "schedule": "auto"},
    )
    done = train_fold(task)
    assert done.finished
    assert done.recipe.optimizer == "adamw"  # 250 000 steps were asked for, few can be afforded
    assert 0 < done.logs[-1].step < 20_000
    peak = done.recipe.learning_rate
    assert max(log.learning_rate for log in done.logs) > 0.6 * peak
    assert done.logs[-1].learning_rate < 0.4 * peak
    again = train_fold(task)
    assert again.finished
    assert again.logs == done.logs


def test_a_budget_that_is_not_used_up_changes_nothing_but_the_rate(tmp_path: Path) -> None:
    done = train_fold(make_task(tmp_path, options={"hours": 10.0}))
    assert [log.step for log in done.logs] == [3, 6]


def whole_slices(ignored: int | None) -> list[ArrayCase]:
    """One slice as large as a patch, so that every patch is the slice."""
    case = make_case("slice", 3, (1, 16, 16))
    case.label[case.label < 0] = 0
    if ignored is not None:
        case.label[0, 0, 4:12, 4:12] = ignored
    return [case]


def first_loss(folder: Path, labels: Labels, cases: list[ArrayCase]) -> float | None:
    options = {"epochs": 1, "iterations": 1, "augment": "none", "foreground": 0.0}
    task = make_task(folder, train=cases, labels=labels, options=options)
    return train_fold(task).logs[0].train_loss


def fresh_logits(folder: Path, labels: Labels, case: ArrayCase) -> torch.Tensor:
    spec = make_task(folder, labels=labels).configuration.network
    network = build_network(
        spec, deep_supervision=False, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        logits: torch.Tensor = network(torch.from_numpy(case.image[:, 0])[None])[0]
    return logits


def soft_dice(probability: torch.Tensor, wanted: torch.Tensor) -> float:
    dims = (1, 2)
    overlap = 2 * (probability * wanted).sum(dims)
    return float((overlap / (probability.sum(dims) + wanted.sum(dims))).mean())


@pytest.mark.parametrize("value", [3, 9])
def test_ignored_voxels_do_not_count(value: int, tmp_path: Path) -> None:
    labels = Labels(values=LABELS.values, ignore=value)
    (case,) = whole_slices(value)
    logits = fresh_logits(tmp_path, labels, case)
    target = torch.from_numpy(case.label[0, 0].astype(np.int64))
    counted = target != value
    entropy = F.cross_entropy(logits[None], target[None], ignore_index=value)
    wanted = torch.stack([target == row for row in (1, 2)])
    dice = soft_dice(logits.softmax(0)[1:] * counted, wanted * counted)
    assert not counted.all()
    assert first_loss(tmp_path, labels, [case]) == pytest.approx(float(entropy) - dice, abs=1e-5)


def test_regions_are_trained_as_independent_unions(tmp_path: Path) -> None:
    (case,) = whole_slices(None)
    logits = fresh_logits(tmp_path, REGIONS, case)
    target = torch.from_numpy(case.label[0, 0])
    wanted = torch.stack([target > 0, target == 2]).float()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted)
    expected = float(entropy) - soft_dice(logits.sigmoid(), wanted)
    assert first_loss(tmp_path / "run", REGIONS, [case]) == pytest.approx(expected, abs=1e-5)
    log = train_fold(
        make_task(tmp_path / "3d", (6, 16, 16), labels=REGIONS, validation=make_cases(1))
    ).logs[-1]
    assert log.validation_dice is not None
    assert len(log.validation_dice) == 2


@pytest.mark.parametrize("patch", [(16, 16), (6, 16, 16)], ids=["2d", "3d"])
@pytest.mark.parametrize("augment", ["gin-ipa", "cross-modality"])
def test_changes_of_appearance_are_for_training_alone(
    augment: str, patch: tuple[int, ...], tmp_path: Path
) -> None:
    held_out = [make_case("held_out", 9)]
    options = {"epochs": 2, "iterations": 2, "lr": 1e-12}
    done = {
        kind: train_fold(
            make_task(
                tmp_path / kind, patch, validation=held_out, options={**options, "augment": kind}
            )
        )
        for kind in (augment, "default")
    }
    assert done[augment].mirror_axes == ()
    for one, other in zip(done[augment].logs, done["default"].logs, strict=True):
        assert one.train_loss is not None
        assert np.isfinite(one.train_loss)
        assert one.train_loss != other.train_loss
        # With weights that stay what they were, held-out patches have the same loss.
        assert one.validation_loss == pytest.approx(other.validation_loss, abs=1e-6)
        assert one.validation_dice == other.validation_dice


def test_views_that_disagree_cost_ten_times_their_divergence(tmp_path: Path) -> None:
    (case,) = whole_slices(None)
    logits = fresh_logits(tmp_path, LABELS, case)
    loop = _Loop(make_task(tmp_path / "run", train=[case], options={"augment": "gin-ipa"}))
    image = torch.from_numpy(case.image[:, 0])[None]
    target = torch.from_numpy(case.label[:, 0])[None]
    network = loop.state.network

    def loss_of(image: torch.Tensor) -> tuple[torch.Tensor, Tally]:
        batch = TrainingBatch(0, image, target, (case.facts,), seconds=0.0, waited=0.0)
        return loop.objective.loss(network(image), batch, ALONE)

    alone, counts = loss_of(image)
    same, same_counts = loss_of(image.repeat(3, 1, 1, 1))
    assert same.item() == pytest.approx(alone.item(), abs=1e-5)
    views = torch.cat([image, -image, 2 * image])
    loss, first_counts = loss_of(views)
    with torch.no_grad():
        p = network(views)[0].softmax(1)
    mean = p.mean(0, keepdim=True)
    divergence = (mean * (mean.log() - p.log())).mean()
    torch.testing.assert_close(p[0].log(), logits.log_softmax(0), rtol=1e-4, atol=1e-4)
    assert loss.item() == pytest.approx((alone + 10 * divergence).item(), abs=1e-5)
    assert sum(map(sum, counts.counts.values())) > 0
    assert counts == same_counts
    assert counts == first_counts
