"""What `doctor` finds: pretended machines, its arithmetic by hand, and a real look at this one."""

import dataclasses
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from commands import run
from typer.testing import CliRunner

from autoliver import memory
from autoliver.cli.main import app
from autoliver.pipeline.checkup.estimate import (
    Course,
    days,
    estimate,
    judge_batch,
    judge_disk,
    judge_time,
    number_of_windows,
    runs_gb,
)
from autoliver.pipeline.checkup.judge import judge
from autoliver.pipeline.checkup.probe import (
    STANDARD,
    STANDARD_LABELS,
    Timing,
    batches_of,
    extrapolated,
    time_training,
)
from autoliver.pipeline.checkup.surroundings import (
    Disk,
    Gpu,
    Surroundings,
    Torch,
    file_system,
    look_at_disk,
    needed,
    numbers,
    nvidia_driver,
    quota_cores,
)
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_CT"
TORCH = Torch(
    version="2.10.0+cu126",
    cuda="12.6",
    kinds=("sm_80", "sm_90", "compute_90"),
    threads=8,
    gpus=(Gpu(name="A100", capability=(8, 0), free_gb=39.0, total_gb=40.0),),
    mps=False,
)
CPU = {"cuda": None, "kinds": (), "gpus": (), "version": "2.10.0+cpu"}
GOOD = Surroundings(
    python="3.12.0",
    torch=TORCH,
    nvidia="550.54.15",
    cores=8,
    quota=None,
    load=0.5,
    total_gb=64.0,
    limit_gb=None,
    free_gb=60.0,
    shm_gb=32.0,
    open_files=1024,
    disk=Disk(folder=Path("/w"), free_gb=500.0, kind="ext4", writable=True),
    versions={"numpy": "2.1.0", "torch": "2.10.0", "SimpleITK": "2.5.0"},
    lacking=(),
)


def levels(here: Surroundings) -> dict[str, str]:
    return {f.topic: f.level for f in judge(here) if f.level != "ok"}


def but(**changes: Any) -> Surroundings:
    torch = {name: changes.pop(name) for name in list(changes) if hasattr(TORCH, name)}
    disk = {name[5:]: changes.pop(name) for name in list(changes) if name.startswith("disk_")}
    return dataclasses.replace(
        GOOD,
        torch=dataclasses.replace(TORCH, **torch),
        disk=dataclasses.replace(GOOD.disk, **disk),
        **changes,
    )


def gpu(**changes: Any) -> tuple[Gpu, ...]:
    return (dataclasses.replace(TORCH.gpus[0], **changes),)


def test_a_good_machine_is_well() -> None:
    assert levels(GOOD) == {}
    assert all(not f.why and not f.todo for f in judge(GOOD))


WORTH, FAIL = "worth changing", "will fail"


@pytest.mark.parametrize(
    ("device", "busy", "expected"),
    [
        ("auto", 0, FAIL),
        ("cuda", 0, FAIL),
        ("cuda:0", 0, FAIL),
        ("cpu", 0, WORTH),
        ("cuda:1", 0, WORTH),
        ("cuda:1", 1, FAIL),
        ("auto", 1, WORTH),
    ],
)
def test_only_the_gpu_that_is_asked_for_can_fail(device: str, busy: int, expected: str) -> None:
    gpus = [*gpu(), *gpu()]
    gpus[busy] = gpu(problem="busy")[0]
    found = judge(but(gpus=tuple(gpus)), device=device)
    assert {f.topic: f.level for f in found if f.level != "ok"} == {f"GPU {busy}": expected}


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (but(**CPU), {"device": WORTH}),
        (but(**CPU, nvidia=None), {"device": WORTH}),
        (but(gpus=()), {"device": WORTH}),
        (but(gpus=gpu(capability=(6, 1))), {"GPU 0": FAIL}),
        (but(gpus=gpu(capability=(8, 6))), {}),  # code for 8.0 runs on 8.6
        (but(gpus=gpu(capability=(12, 0))), {}),  # by PTX for 9.0
        (but(gpus=gpu(free_gb=1.5)), {"GPU 0": WORTH}),
        (but(gpus=gpu(problem="CUDA error: out of memory")), {"GPU 0": FAIL}),
        (but(gpus=gpu() + gpu(capability=(6, 1))), {"GPU 1": WORTH}),  # GPU 0 is taken
        (but(gpus=gpu(capability=(9, 0)), kinds=("gfx90a",), cuda=None), {}),
        (but(free_gb=4.0), {"memory": WORTH}),
        (but(free_gb=0.5), {"memory": FAIL}),
        (but(quota=2.0), {"cores": WORTH, "threads": WORTH}),
        (but(quota=2.0, threads=2), {"cores": WORTH}),
        (but(load=7.9), {"cores": WORTH}),
        (but(**CPU, nvidia=None, load=7.9, threads=1), {"device": WORTH, "cores": WORTH}),
        (but(threads=16), {"threads": WORTH}),
        (but(threads=1), {}),  # the work is the GPU's
        (but(**CPU, nvidia=None, threads=1), {"device": WORTH, "threads": WORTH}),
        (but(shm_gb=None), {"/dev/shm": WORTH}),
        (but(shm_gb=0.0625), {}),
        (but(shm_gb=0.0625, gpus=gpu() * 2), {"/dev/shm": WORTH}),
        (but(open_files=64), {"open files": WORTH}),
        (but(open_files=None), {}),
        (but(disk_free_gb=0.5), {"workspace": FAIL}),
        (but(disk_writable=False), {"workspace": FAIL}),
        (but(disk_kind="nfs4"), {"workspace": WORTH}),
        (but(disk_read_mb_s=5.0, disk_write_mb_s=99.0), {"workspace": WORTH}),
        (but(versions={"torch": "2.9.1"}), {"libraries": WORTH}),
        (but(versions={"torch": "2.9.1"}, **CPU), {"device": WORTH}),  # it is slow on GPUs alone
        (but(versions={"torch": "2.2.2", "numpy": "2.0.0"}), {"libraries": FAIL}),
        (but(versions={"torch": "2.2.2", "numpy": "1.26.4"}), {}),
        (but(versions={"SimpleITK": "2.2.0"}), {"libraries": WORTH}),
        (but(lacking=("numpy 1.0 (needed: 1.26)",)), {"libraries": FAIL}),
    ],
)
def test_what_is_worth_changing_and_what_fails(
    here: Surroundings, expected: dict[str, str]
) -> None:
    assert levels(here) == expected
    assert all(f.why and f.todo for f in judge(here) if f.level != "ok")


@pytest.mark.parametrize(
    ("here", "told"),
    [
        (but(**CPU), "whl/cu126"),
        (but(**CPU, nvidia="580.82.07"), "whl/cu130"),
        (but(**CPU, nvidia=""), "whl/cu126"),
        (but(**CPU, nvidia="470.82.01"), "update the driver to 525.60.13"),
        (but(gpus=(), nvidia="470.82.01"), "update the driver, or"),
        (but(gpus=()), "nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_cannot_use(here: Surroundings, told: str) -> None:
    assert told in judge(here)[0].todo


# --- pretended files of the system


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMORY = {"proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n"}
V2 = {
    **MEMORY,
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": f"{4 * 2**30}",
    "sys/fs/cgroup/job/memory.current": f"{3 * 2**30}",
    "sys/fs/cgroup/job/memory.stat": f"anon 1\ninactive_file {2**30}\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
}
V1 = {
    **MEMORY,
    "proc/self/cgroup": "4:memory:/docker/ab\n1:cpu,cpuacct:/docker/ab\n0::/\n",
    # In a container, the group's own folder is the top one.
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * 2**30}",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2**30}",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
FREE = {
    **V1,
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
}


@pytest.mark.parametrize(
    ("files", "free", "limit", "quota"),
    [
        (MEMORY, 6.0, None, None),
        (V2, 2.0, 4.0, 1.5),
        (V1, 1.0, 2.0, 4.0),
        (FREE, 6.0, None, None),
    ],
)
def test_memory_and_cores_by_control_groups(
    files: dict[str, str], free: float, limit: float | None, quota: float | None, tmp_path: Path
) -> None:
    root = write(tmp_path, files)
    assert memory.total_gb(root) == 8.0
    assert memory.free_gb(root) == free
    assert memory.limit_gb(root) == limit
    assert quota_cores(root) == quota


MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n"
    "GCC version: 12.2.0\n"
)


@pytest.mark.parametrize(
    ("files", "driver"),
    [
        ({"proc/driver/nvidia/version": MODULE}, "550.54.15"),
        ({"proc/driver/nvidia/version": OPEN}, "580.82.07"),
        ({"proc/driver/nvidia/version": "what?\n"}, ""),
        ({"dev/nvidia0": ""}, ""),
        ({}, None),
    ],
)
def test_the_version_of_the_driver(
    files: dict[str, str], driver: str | None, tmp_path: Path
) -> None:
    assert nvidia_driver(write(tmp_path, files)) == driver


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = (
        "/dev/a / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n/dev/b /data/my\\040disk xfs rw 0 0\n"
    )
    root = write(tmp_path, {"proc/self/mounts": mounts})
    for folder, kind in {
        "/home": "ext4",
        "/data/w/deep": "nfs4",
        "/data/my disk/w": "xfs",
        "/database": "ext4",
    }.items():
        assert file_system(Path(folder), root) == kind
    assert file_system(Path("/data"), tmp_path / "nowhere") == ""


def test_a_disk_is_timed_and_nothing_is_left(tmp_path: Path) -> None:
    disk = look_at_disk(tmp_path / "not" / "there", timed=True)
    assert (disk.folder, disk.writable) == (tmp_path, True)
    assert disk.write_mb_s
    assert disk.read_mb_s or not sys.platform.startswith("linux")
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_versions() -> None:
    assert numbers("2.10.0+cu126") == (2, 10)
    assert numbers("2.9") < numbers("2.9.1") < numbers("2.10")
    assert numbers("") == ()


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("torch!=2.9.*,>=2.6", ("torch", "2.6")),  # as setuptools writes it
        ("torch>=2.6,!=2.9.*", ("torch", "2.6")),
        ("acvl-utils>=0.2.3", ("acvl-utils", "0.2.3")),
        ('highdicom>=0.28; extra == "dev"', ("", "")),
    ],
)
def test_requirements_are_read_whatever_they_exclude(
    requirement: str, expected: tuple[str, str]
) -> None:
    assert needed(requirement) == expected


def test_the_torch_that_is_slow_on_gpus_is_excluded_and_told() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (torch,) = (d for d in project["project"]["dependencies"] if needed(d)[0] == "torch")
    assert torch.endswith("!=2.9.*")
    (finding,) = (f for f in judge(but(versions={"torch": "2.9.1"})) if f.topic == "libraries")
    assert "half precision" in finding.why
    assert finding.todo == "pip install --upgrade 'torch>=2.10'"


# --- arithmetic, by hand


def test_times_of_a_training() -> None:
    course = Course(
        iterations=250,
        held_out_steps=50,
        epochs=1000,
        folds=5,
        cases=[(64, 64, 64)] * 9 + [(64, 64, 128)],
        mirrored=True,
    )
    timing = Timing(train_s=2.0, held_out_s=0.5, scaled=1.0)
    found = estimate("3d_fullres", STANDARD, timing, course)
    assert found.epoch_s == 250 * 2.0 + 50 * 0.5
    # A patch takes 0.25 s, with its 8 flips 2 s; the last case has 1 + 2 windows of 64 voxels.
    assert found.case_s == pytest.approx((9 * 2.0 + 3 * 2.0) / 10)
    assert found.fold_s == pytest.approx(1000 * 525.0 + 2 * 2.4)
    assert found.all_s == pytest.approx(5 * found.fold_s)


def test_windows_lie_half_a_patch_apart() -> None:
    from autoliver.inference.window import windows_of

    for shape in ((30, 64, 64), (100, 65, 96), (64, 200, 97)):
        for patch in ((32, 64, 64), (64, 64)):
            assert number_of_windows(shape, patch) == len(windows_of(shape, patch, 0.5))


def test_sizes_of_runs() -> None:
    assert runs_gb(2**28, folds=2) == 2 * 5 * 1.0


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (judge_disk(1.0, 10.0), "ok"),
        (judge_disk(6.0, 10.0), WORTH),
        (judge_disk(11.0, 10.0), FAIL),
        (judge_batch("2d", 1.0, 10.0, dataset="D"), "ok"),
        (judge_batch("2d", 4.0, 10.0, dataset="D"), WORTH),
        (judge_batch("2d", 11.0, 10.0, dataset="D"), FAIL),
    ],
)
def test_room_on_disk_and_for_a_batch(found: Any, level: str) -> None:
    assert found.level == level


def test_a_batch_is_extrapolated_with_what_a_step_takes_anyway() -> None:
    small = Timing(train_s=1.0, held_out_s=0.2, scaled=1.0)
    large = Timing(train_s=2.0, held_out_s=0.5, scaled=1.0)
    # 1 s for 100 voxels and 2 s for 400: 1/300 s for each more.
    found = extrapolated([(100, small), (400, large)], 1000)
    assert found.train_s == pytest.approx(2.0 + 600 / 300)
    assert found.held_out_s == pytest.approx(0.5 + 600 * 0.3 / 300)
    assert found.scaled == 0.4
    assert extrapolated([(100, small)], 1000).train_s == 10.0
    assert extrapolated([(100, large), (400, small)], 1000).train_s == 1.0  # noise
    assert extrapolated([(100, small), (400, large)], 400).train_s == 2.0


def test_batches_become_smaller_until_two_voxels_are_left() -> None:
    sizes = [(each.batch_size, each.patch_shape) for each in batches_of(STANDARD)]
    assert sizes[:4] == [
        (2, (64, 64, 64)),
        (1, (64, 64, 64)),
        (1, (32, 64, 64)),
        (1, (32, 32, 64)),
    ]
    assert sizes[-1] == (1, (16, 16, 16))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40.0, "40 s"), (7200.0, "2.0 h"), (2.5 * 86400, "2.5 days"), (40 * 86400.0, "40 days")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert days(seconds) == words


def test_what_to_change_if_it_takes_days() -> None:
    course = Course(
        iterations=250, held_out_steps=50, epochs=1000, folds=5, cases=(), mirrored=False
    )
    slow = estimate("2d", STANDARD, Timing(train_s=1.0, held_out_s=0.1, scaled=1.0), course)
    told = judge_time(slow, small=False, dataset="LiTS")
    assert (told.level, "autoliver plan LiTS --preset tiny" in told.todo) == (WORTH, True)
    assert "--preset" not in judge_time(slow, small=True, dataset="LiTS").todo
    assert "--spacing" not in told.todo  # nothing is gained by it in 2D
    quick = estimate("2d", STANDARD, Timing(train_s=0.001, held_out_s=0.0, scaled=1.0), course)
    assert judge_time(quick, small=False, dataset="LiTS").level == "ok"


# --- a real look


def test_steps_are_timed_in_smaller_batches_where_time_is_short() -> None:
    import torch

    found = time_training(
        STANDARD,
        STANDARD_LABELS,
        channels=1,
        device=torch.device("cpu"),
        seconds=0.01,
        room_gb=8.0,
    )
    assert found is not None
    assert found.scaled == 1 / 64
    assert found.train_s > found.held_out_s > 0
    nothing = time_training(
        *(STANDARD, STANDARD_LABELS),
        channels=1,
        device=torch.device("cpu"),
        seconds=0.01,
        room_gb=1e-6,
    )
    assert nothing is None


def test_doctor_of_a_dataset(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path, name=NAME, cases=5, seed=1, options=options)
    work = tmp_path / "w"
    run("plan", tmp_path / NAME, "--preset", "tiny", "-w", work)
    before = sorted(work.rglob("*"))
    done = CliRunner().invoke(app, ["doctor", NAME, "-w", str(work), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == found["will_fail"]
    topics = [each["topic"] for each in found["findings"]]
    assert {"device", "memory", "room on disk", "2d", "2d, batch", "2d, memory"} <= {*topics}
    by_name = {each["configuration"]: each for each in found["estimates"]}
    assert by_name["2d"]["fold_s"] > by_name["2d"]["epoch_s"] > by_name["2d"]["step_s"] > 0
    assert by_name["2d"]["case_s"] > 0
    assert sorted(work.rglob("*")) == before
    shown = CliRunner().invoke(app, ["doctor", NAME, "-w", str(work), "--no-probe"]).stdout
    assert max(len(line) for line in shown.splitlines() if str(work) not in line) <= 80
    assert "5 folds" not in shown


def test_the_exit_code_says_that_something_will_fail(tmp_path: Path) -> None:
    from autoliver.cli.doctor import _show
    from autoliver.pipeline.checkup.findings import Checkup

    bad = Checkup(findings=tuple(judge(but(disk_writable=False))), estimates=())
    assert bad.will_fail
    assert _show(bad).endswith("1 will fail.")
    well = Checkup(findings=tuple(judge(GOOD)), estimates=())
    assert (well.will_fail, _show(well).endswith("All is well.")) == (False, True)
    file = tmp_path / "file"
    file.write_text("")
    done = CliRunner().invoke(app, ["doctor", "--no-probe", "-w", str(tmp_path), "--device", "tpu"])
    assert "--device tpu" in str(done.exception)
