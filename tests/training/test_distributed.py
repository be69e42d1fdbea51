"""Two processes must do what one does. Run by torchrun, this file is what they do."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file, save_file

from autoliver.datasets.cases import Annotation, CaseFacts, Labels
from autoliver.errors import AutoliverError, OptionError
from autoliver.networks.device import own_device
from autoliver.networks.spec import UNetSpec
from autoliver.parallel import Limits
from autoliver.pipeline.data import plan_dataset, preprocess
from autoliver.planning.plan import Configuration, PlanOptions
from autoliver.planning.presets import preset_row
from autoliver.planning.topology import pool_topology
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.augment.batch import augmentation
from autoliver.training.distributed import ALONE, Group, join_group, launched
from autoliver.training.fold import FoldTask, patch_stream
from autoliver.training.loop import train_fold
from autoliver.training.objectives.segmentation import LossKind
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.replay import replayed_case
from autoliver.training.patches.stream import Patches
from autoliver.training.progress import read_progress
from autoliver.workspace import Workspace

NAMES = {"background": (0,), "liver": (1,), "tumour": (2,)}
REGIONS = {"background": (0,), "liver": (1, 2), "tumour": (2,)}
PLAIN, IGNORE = Labels(values=NAMES), Labels(values=NAMES, ignore=3)
UNIONS = Labels(values=REGIONS, regions_class_order=(1, 2))
# Patch, batch size, batch Dice, labels, loss. Batches of 3 are shared as 1 and 2.
SETTINGS: dict[str, tuple[tuple[int, ...], int, bool, Labels, LossKind]] = {
    "two": ((16, 16), 2, False, PLAIN, "dice-ce"),
    "three_batch_dice": ((6, 16, 16), 3, True, PLAIN, "dice-ce"),
    "three_ignore": ((16, 16), 3, False, IGNORE, "dice-ce"),
    "topk": ((16, 16), 2, False, PLAIN, "dice-topk"),
    "regions": ((16, 16), 3, True, UNIONS, "dice-focal"),
    "tversky": ((16, 16), 3, True, IGNORE, "focal-tversky"),
    "weights": ((16, 16), 3, False, IGNORE, "dice-ce"),
    "weights_topk": ((16, 16), 3, False, IGNORE, "dice-topk"),
    "partial": ((16, 16), 3, False, UNIONS, "dice-ce"),
    "partial_batch_dice": ((16, 16), 3, True, UNIONS, "dice-topk"),
    "regions_ignore": ((16, 16), 3, False, UNIONS.replace(ignore=3), "dice-topk"),
}
# What is annotated in the cases of the settings that are partial.
STATES: list[dict[str, Annotation]] = [{}, {"tumour": "none"}, {"liver": "pseudo"}, {}]
NAME = "Dataset001_Phantom"


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class ArrayCase:
    """A preprocessed case in memory."""

    name: str
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    annotated: dict[str, Annotation] = field(default_factory=dict)
    previous: None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def facts(self) -> CaseFacts:
        return CaseFacts(name=self.name, patient=self.name, annotated=self.annotated)

    @property
    def locations(self) -> dict[int, npt.NDArray[np.int32]]:
        found = {v: np.argwhere(self.label[0] == v).astype(np.int32) for v in (1, 2)}
        return found | {-1: np.argwhere(self.label[0] < 3).astype(np.int32)}


def make_case(number: int, *, ignored: bool) -> ArrayCase:
    """Stripes that are brighter the higher their label; in front of them nothing is annotated."""
    rng = np.random.default_rng(number)
    label = np.repeat(rng.integers(0, 3, (1, 6 + number, 11, 6)), 4, axis=3).astype(np.int16)
    label = np.repeat(label, 2, axis=2)
    image = (label + rng.normal(size=label.shape)).astype(np.float32)
    label[:, :, :9] = 3 if ignored else label[:, :, :9]
    return ArrayCase(f"case_{number}", image, label)


def make_task(setting: str, folder: Path, **changes: object) -> FoldTask:
    patch, batch_size, batch_dice, labels, loss = SETTINGS[setting]
    axes = len(patch)
    network = UNetSpec(
        in_channels=1,
        out_channels=labels.out_channels,
        features=(4, 6, 8),
        strides=((1,) * axes, (1, 2, 2)[-axes:], (1, 2, 2)[-axes:]),
        kernels=((3,) * axes,) * 3,
        blocks_encoder=(1, 1, 1),
        blocks_decoder=(1, 1),
    )
    configuration = Configuration(
        spacing_mm=(1.0,) * axes,
        median_shape=(20.0,) * axes,
        patch_shape=patch,
        batch_size=batch_size,
        batch_dice=batch_dice,
        normalization=("zscore",),
        mask_norm=(True,),
        network=network,
    )
    cases = [make_case(number, ignored=labels.ignore is not None) for number in range(4)]
    if setting.startswith("partial"):
        cases = [replace(case, annotated=s) for case, s in zip(cases, STATES, strict=True)]
        changes["options"] = {"sampler": "balanced"}
    options = {"epochs": 3, "iterations": 2, "schedule": "nnunet", "loss": loss}
    if setting.startswith("weights"):
        options["class_weights"] = (0.2, 1.0, 3.0)
    options |= changes.pop("options", {})  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    fields = {
        "configuration": configuration,
        "labels": labels,
        "train": cases[:3],
        "validation": cases[3:],
        "options": TrainingOptions(**options),  # type: ignore[arg-type]
        "folder": folder,
        "device": torch.device("cpu"),
        "title": "Toy fold 0",
    }
    return FoldTask(**fields | changes)  # type: ignore[arg-type]


def stop_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def train(task: FoldTask, stop: Callable[[], bool] = lambda: False) -> None:
    """Trains and writes the weights, as every process has them in the end."""
    done = train_fold(task, stop=stop)
    weights = {k: v.contiguous().numpy() for k, v in done.weights.items()}
    save_file(weights, task.folder / f"{task.group.rank}.safetensors")


def with_a_huge_case(folder: Path, value: float, **changes: object) -> FoldTask:
    """One case that makes a loss that is not finite."""
    task = make_task("two", folder, options={"augment": "none"}, **changes)
    huge = make_case(0, ignored=False)
    huge.name = "huge"
    huge.image[:] = value
    return make_task(
        "two", folder, options={"augment": "none"}, train=[*task.train, huge], **changes
    )


def thawing(folder: Path, group: Group = ALONE) -> FoldTask:
    """The encoder is frozen; its stages learn one after the other."""
    parts = {"freeze": "encoder", "unfreeze": "encoder.2@1,encoder@2", "encoder_factor": 0.5}
    options = {"pretrained": "Source", **parts}
    return make_task("three_batch_dice", folder, group=group, options=options)


def replaying(folder: Path, group: Group = ALONE) -> FoldTask:
    """Half of the patches are of another dataset, with voxels that do not count."""
    task = make_task("three_ignore", folder, group=group, options={"replay": "Other"})
    case = make_case(7, ignored=True)
    shown = replayed_case(case, {0: None, 1: 2, 2: 1, 3: None}, task.labels, name="other")
    return replace(task, replay=[shown] if shown else [])


def with_statistics(folder: Path, group: Group = ALONE) -> FoldTask:
    """A network whose norms keep running statistics, and which leaves blocks out at random."""
    task = make_task("two", folder, group=group, options={"ema": 0.9})
    topology = pool_topology((1.0, 1.0), task.configuration.patch_shape)
    row = preset_row("tiny", "omnia", "resnet18")
    network = row.network(topology, in_channels=1, out_channels=task.labels.out_channels)
    return replace(task, configuration=task.configuration.replace(network=network))


def whole_trainings(root: Path, group: Group) -> None:
    """All settings; half a one taken up, another to be taken up; a time budget; a bad case."""
    for setting in SETTINGS:
        train(make_task(setting, root / setting, group=group))
    train(with_a_huge_case(root / "huge", 3e38, group=group))
    train(thawing(root / "thawing", group))
    train(replaying(root / "replaying", group))
    train(make_task("two", root / "averaged", group=group, options={"ema": 0.9}))
    train(with_statistics(root / "statistics", group))
    train(with_statistics(root / "statistics_stopped", group), stop_after(3))
    train(with_statistics(root / "statistics_stopped", group))
    train(make_task("three_ignore", root / "begun_by_one", group=group))
    # Only one of them is asked to stop.
    stop = stop_after(3) if group.rank == 1 else lambda: False
    train(make_task("three_ignore", root / "begun_by_two", group=group), stop)
    options = {"epochs": 10_000, "iterations": 1, "hours": 0.5 / 3600, "schedule": "auto"}
    train(make_task("two", root / "budget", group=group, options=options))
    steep = make_task("two", root / "steep", group=group, options={"lr": 1e30})
    for task in (with_a_huge_case(root / "bad", np.nan, group=group), steep):
        with pytest.raises(AutoliverError) as caught:
            train(task)
        (task.folder / f"{group.rank}.txt").write_text(caught.value.problem)


def killed(root: Path, group: Group) -> None:
    """The second one is gone all of a sudden."""

    def stop() -> bool:
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train(make_task("two", root / "killed", group=group), stop)


def parted(root: Path, group: Group) -> None:
    """Works together once; `threads` is called when the group is gone."""
    assert group.any(group.rank == 1)
    assert group.gather([str(group.rank)]) == ["0", "1"]
    assert group.lead_does(lambda: root) == root


def threads() -> list[str]:
    """Names of the threads of this process, those of libraries included."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted((task / "comm").read_text().strip() for task in tasks)


def torchrun(*arguments: object) -> list[str]:
    torch_run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return [sys.executable, *torch_run, *map(str, arguments)]


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of two processes."""
    done = subprocess.run(torchrun(*arguments), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def assert_alike(folder: Path, other: Path) -> None:
    """Weights and logs of two trainings are equal but for rounding."""
    logs, others = (read_progress(path / "progress.jsonl") for path in (folder, other))
    assert len(logs) == len(others) == 3
    for one, two in zip(logs, others, strict=True):
        assert (one.step, one.learning_rate, one.skipped) == (
            two.step,
            two.learning_rate,
            two.skipped,
        )
        for name in ("train_loss", "validation_loss", "train_dice", "validation_dice"):
            # A voxel between two labels may fall either way.
            tolerance = {"atol": 2e-3} if name.endswith("dice") else {"rtol": 1e-4}
            values = [np.array(getattr(log, name), np.float64) for log in (one, two)]
            np.testing.assert_allclose(*values, **tolerance, err_msg=name)
    weights, others_weights = (load_file(path / "0.safetensors") for path in (folder, other))
    assert weights.keys() == others_weights.keys()
    for name, values in weights.items():
        # Biases in front of a normalisation have a gradient of nothing but rounding.
        atol = max(1e-4 * np.abs(values).max(), 1e-7)
        np.testing.assert_allclose(others_weights[name], values, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of all trainings."""
    root = tmp_path_factory.mktemp("together")
    train(make_task("three_ignore", root / "begun_by_one"), stop_after(3))
    code, _, errors = run(__file__, "whole_trainings", root)
    assert code == 0, errors
    assert "Warning" not in errors
    return root


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_train_as_one(setting: str, together: Path, tmp_path: Path) -> None:
    train(make_task(setting, tmp_path))
    assert_alike(tmp_path, together / setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_both_end_with_the_same_weights(setting: str, together: Path) -> None:
    files = [together / setting / f"{rank}.safetensors" for rank in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_both_replay_what_one_would(together: Path, tmp_path: Path) -> None:
    task = replaying(tmp_path)
    assert task.replay
    train(task)
    assert_alike(tmp_path, together / "replaying")


def test_both_keep_the_running_mean_that_one_would(together: Path, tmp_path: Path) -> None:
    train(make_task("two", tmp_path, options={"ema": 0.9}))
    assert_alike(tmp_path, together / "averaged")
    files = [together / "averaged" / f"{rank}.safetensors" for rank in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()
    last = load_file(together / "two" / "0.safetensors")
    mean = load_file(files[0])
    assert any(not np.array_equal(mean[name], last[name]) for name in last)


@pytest.mark.parametrize("other", ["statistics/1", "statistics_stopped/0", "statistics_stopped/1"])
def test_running_statistics_are_those_of_the_lead_in_both_and_go_on(
    other: str, together: Path
) -> None:
    one, again = (load_file(together / f"{name}.safetensors") for name in ("statistics/0", other))
    assert int(one["encoder.bn1.num_batches_tracked"]) == 6
    for name, values in one.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_parts_that_are_frozen_thaw_for_both(together: Path, tmp_path: Path) -> None:
    train(thawing(tmp_path))
    assert_alike(tmp_path, together / "thawing")
    files = [together / "thawing" / f"{rank}.safetensors" for rank in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_batches_without_a_finite_loss_are_left_out_by_both(together: Path, tmp_path: Path) -> None:
    train(with_a_huge_case(tmp_path, 3e38))
    assert_alike(tmp_path, together / "huge")
    skipped = [log.skipped for log in read_progress(tmp_path / "progress.jsonl")]
    assert any("huge" in names for names in skipped)


def test_one_begins_and_two_go_on_and_the_reverse(together: Path, tmp_path: Path) -> None:
    train(make_task("three_ignore", tmp_path))
    assert_alike(tmp_path, together / "begun_by_one")
    begun_by_two = make_task("three_ignore", together / "begun_by_two")
    assert len(read_progress(begun_by_two.files.progress)) == 1
    train(begun_by_two)
    assert_alike(tmp_path, begun_by_two.folder)


def test_a_case_that_one_finds_bad_stops_both(together: Path) -> None:
    for rank in (0, 1):
        told = (together / "bad" / f"{rank}.txt").read_text()
        assert told == "huge: its preprocessed image holds values that are not finite."


def test_a_training_that_diverges_ends_for_both(together: Path) -> None:
    problems = {(together / "steep" / f"{rank}.txt").read_text() for rank in range(2)}
    assert len(problems) == 1
    assert "epoch 1: the loss of held-out case_3 is not finite" in problems.pop()
    assert not (together / "steep/resume.pt").exists()


def test_a_time_budget_is_kept_by_one_clock(together: Path) -> None:
    logs = read_progress(together / "budget" / "progress.jsonl")
    assert 0 < logs[-1].step < 10_000
    files = [together / "budget" / f"{rank}.safetensors" for rank in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("cache", ["gpu", "ram", "disk"])
@pytest.mark.parametrize("augment", ["default", "inversion"])
@pytest.mark.parametrize("setting", ["two", "three_batch_dice"])
def test_the_parts_of_a_batch_make_the_batch(
    setting: str, augment: str, cache: CacheKind, tmp_path: Path
) -> None:
    def drawn(group: Group) -> list[tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]]:
        task = make_task(setting, tmp_path, group=group)
        spec = augmentation(task.configuration, augment, mirror=True)
        stream = patch_stream(task, task.train, spec, number=0)
        patches = Patches(stream, cache, task.device)
        shape = task.configuration.patch_shape
        batches = patches.batches(range(8), patch_shape=shape, spec=spec)
        return [(batch.image, batch.target, batch.cases) for batch in batches]

    parts = zip(*(drawn(Group(rank=rank, size=2)) for rank in (0, 1)), strict=True)
    for (image, target, cases), (first, second) in zip(drawn(ALONE), parts, strict=True):
        assert torch.equal(torch.cat([first[0], second[0]]), image)
        assert torch.equal(torch.cat([first[1], second[1]]), target)
        assert first[2] + second[2] == cases


@pytest.mark.parametrize(("size", "batch"), [(1, 5), (2, 3), (3, 8), (4, 4)])
def test_shares_cover_a_batch_and_differ_by_one_at_most(size: int, batch: int) -> None:
    parts = [Group(rank=rank, size=size).part(batch) for rank in range(size)]
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(batch))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_samples_are_refused() -> None:
    with pytest.raises(OptionError, match="3 processes cannot share batches of 2") as caught:
        Group(size=3).part(2)
    assert "--nproc-per-node" in caught.value.hint


def test_processes_of_a_machine_share_its_memory_and_cores() -> None:
    limits = Group(size=8, local_size=4).own_limits(Limits(workers=8, memory_gb=64.0))
    assert limits == Limits(workers=2, memory_gb=16.0)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == ALONE


@pytest.mark.parametrize("rank", [None, "first"])
def test_an_environment_that_contradicts_itself_is_told(
    rank: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(OptionError, match="not which this is") as caught:
        launched()
    assert "torchrun" in caught.value.hint


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_a_device_of_one_process_is_not_for_several(name: str) -> None:
    with pytest.raises(OptionError, match="take a GPU each, or the CPU"):
        own_device(name, 0)


@pytest.mark.gpu
def test_a_process_without_a_gpu_of_its_own_is_told() -> None:
    with pytest.raises(OptionError, match="has no GPU of its own"):
        own_device("auto", torch.cuda.device_count())


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 32, 32), spacing_mm=(9.0, 6.0, 6.0))
    folder = tmp_path_factory.mktemp("data")
    return write_phantom_dataset(folder, name=NAME, cases=5, seed=1, options=options)


def command(phantoms: Path, workspace: Path) -> tuple[str, ...]:
    options = ("--fold", "0", "--iterations", "2", "--schedule", "nnunet", "--augment", "none")
    cache = ("--cache", "disk", "--workers", "2")
    where = ("-w", str(workspace))
    return ("-m", "autoliver", "train", str(phantoms), "2d", *options, *cache, *where)


def told_errors(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("Error:")]


def test_the_command_stops_goes_on_and_ends_as_one_process(phantoms: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    preprocess(plan_dataset(Workspace(one), str(phantoms), PlanOptions(preset="tiny")), ["2d"])
    shutil.copytree(one, two)
    subprocess.run([sys.executable, *command(phantoms, one), "--epochs", "30"], check=True)
    stopped = subprocess.Popen(
        torchrun(*command(phantoms, two), "--epochs", "30"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    fold = two / NAME / "runs/2d/fold_0"
    deadline = time.monotonic() + 120
    while not read_progress(fold / "progress.jsonl"):
        assert time.monotonic() < deadline, "the training did not get going"
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    (told,) = told_errors(errors)
    assert "stopped by SIGTERM" in told
    assert errors.count("fold 0: begins on cpu") == 1
    assert not (fold / "model.json").exists()

    code, _, errors = run(*command(phantoms, two), "--epochs", "9")
    assert code != 0
    (told,) = told_errors(errors)
    assert "was started with --epochs 30" in told
    code, told, errors = run(*command(phantoms, two), "--json")
    assert code == 0, errors
    assert errors.count("predict") >= 1
    (result,) = map(json.loads, told.splitlines())
    assert [folds["fold"] for folds in result["folds"]] == [0]
    files = [{str(p.relative_to(root)) for p in root.rglob("*")} for root in (one, two)]
    assert files[0] == files[1]
    losses = [
        [log.train_loss for log in read_progress(w / NAME / "runs/2d/fold_0/progress.jsonl")]
        for w in (one, two)
    ]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-4, abs=1e-4)
    assert losses[0][:8] == pytest.approx(losses[1][:8], rel=1e-3, abs=1e-3)
    # From there on rounding grows.
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_no_thread_of_a_group_is_left_that_could_disturb_the_end(tmp_path: Path) -> None:
    code, _, errors = run(__file__, "parted", tmp_path)
    assert code == 0, errors
    for rank in (0, 1):
        assert "gloo" not in (tmp_path / f"{rank}.txt").read_text()


def test_a_process_that_is_killed_ends_the_other(tmp_path: Path) -> None:
    words = "AutoliverError: Another of the 2 processes was killed"
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        start = time.monotonic()
        code, _, errors = run(__file__, "killed", folder)
        assert code != 0
        assert time.monotonic() - start < 60
        # torchrun may notice it first, and end the other before it has said anything.
        if errors.count(words) == 1 or "SIGTERM" not in errors:
            break
    assert errors.count(words) == 1, errors


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join_group() as joined:
        globals()[sys.argv[1]](Path(sys.argv[2]), joined)
    if sys.argv[1] == "parted":
        (Path(sys.argv[2]) / f"{joined.rank}.txt").write_text("\n".join(threads()))
