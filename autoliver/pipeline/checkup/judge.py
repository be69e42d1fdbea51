"""Judges what was measured of a machine: what is well, worth changing, or will fail."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autoliver.pipeline.checkup.findings import Finding, Level
from autoliver.pipeline.checkup.surroundings import Surroundings, numbers
from autoliver.values import counted

# Below this, no network of a preset but `tiny` trains (docs/RESULTS.md), and none at all.
_LITTLE_GB, _LEAST_GB = 6.0, 1.0
_LITTLE_GPU_GB = 4.0
# NCCL of several GPUs, and semaphores of any worker process.
_SHM_OF_GPUS_GB, _LEAST_SHM_GB = 1.0, 0.01
_FEW_FILES = 256
_BUSY = 0.75  # of all cores
_LITTLE_DISK_GB = 1.0
_SLOW_DISK_MB_S = 30.0
_NETWORKS = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "lustre", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "virtiofs", "fuse.rclone"),
)
# Major version of CUDA -> the first driver that runs it (NVIDIA, "CUDA Compatibility", table of
# minor version compatibility), and the build of torch for it.
_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
_BUILDS = {13: "cu130", 12: "cu126"}
_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bad:
    """Versions that are known to hurt.

    Attributes:
        library: The library.
        since: The first such version.
        before: The first version that is well again.
        needs: What else must hold.
        level: How bad it is.
        why: What happens.
    """

    library: str
    since: str
    before: str
    level: Level
    why: str
    needs: Callable[[Surroundings], bool] = lambda _: True


_KNOWN_BAD = (
    # github.com/pytorch/pytorch/issues/166122; github.com/MIC-DKFZ/nnUNet/issues/3002
    _Bad(
        library="torch",
        since="2.9",
        before="2.10",
        level="worth changing",
        why="3D convolutions in half precision are about four times slower on GPUs, and take more "
        "memory",
        needs=lambda here: here.torch.cuda is not None,
    ),
    # github.com/pytorch/pytorch/issues/132179
    _Bad(
        library="torch",
        since="0",
        before="2.3",
        level="will fail",
        why="this torch cannot exchange arrays with numpy 2",
        needs=lambda here: numbers(here.versions.get("numpy", "")) >= (2,),
    ),
    # github.com/MIC-DKFZ/nnDetection/issues/24, github.com/MIC-DKFZ/HD-BET/issues/35
    _Bad(
        library="SimpleITK",
        since="2.1",
        before="2.2.1",
        level="worth changing",
        why="it refuses some NIfTI files whose directions are orthonormal within rounding",
    ),
)


def judge(here: Surroundings, *, device: str = "auto") -> list[Finding]:
    """Judges a machine.

    Args:
        here: What was measured.
        device: The device that is trained on, by its name; only this one can fail.

    Returns:
        One finding for each matter, and one more for each library that is known to hurt.
    """
    return [
        _device(here),
        *_gpus(here, device),
        _memory(here),
        _cores(here),
        _threads(here),
        _shm(here),
        _files(here),
        _disk(here),
        *_libraries(here),
    ]


def _device(here: Surroundings) -> Finding:
    torch, topic = here.torch, "device"
    of = f"CUDA {torch.cuda}" if torch.cuda else "ROCm" if torch.gpus else "CPU build"
    build = f"torch {torch.version} ({of})"
    if torch.gpus:
        return Finding(topic=topic, found=f"{counted(len(torch.gpus), 'GPU')}, {build}")
    if torch.mps:
        return Finding(topic=topic, found=f"Apple GPU, {build}")
    if here.nvidia is None:
        return Finding(
            topic=topic,
            found=f"CPU, {build}",
            level="worth changing",
            why="there is no GPU, and networks in 3D train for days or weeks without one",
            todo="use a machine with a GPU, or 2d and a small network: autoliver plan DATASET "
            "--preset tiny",
        )
    driver = f"NVIDIA driver {here.nvidia or 'of unknown version'}"
    if torch.cuda is None:
        return Finding(
            topic=topic,
            found=f"{driver}, but {build}",
            level="worth changing",
            why="there is a GPU that this build of torch cannot use",
            todo=_install(here.nvidia),
        )
    least = _DRIVERS.get(numbers(torch.cuda)[0], "")
    old = bool(here.nvidia and least) and numbers(here.nvidia) < numbers(least)
    return Finding(
        topic=topic,
        found=f"{driver}, {build}, and no GPU that it can use",
        level="worth changing",
        why=f"CUDA {torch.cuda} needs driver {least} or newer"
        if old
        else "the GPU is hidden from this process or its driver does not work",
        todo=f"update the driver, or {_install(here.nvidia)}"
        if old
        else "check with nvidia-smi, and CUDA_VISIBLE_DEVICES; a container needs --gpus all",
    )


def _install(driver: str) -> str:
    """The command that installs a build of torch that a driver can run."""
    fitting = [
        build
        for major, build in _BUILDS.items()
        if not driver or numbers(driver) >= numbers(_DRIVERS[major])
    ]
    if not fitting:
        return f"update the driver to {_DRIVERS[12]} or newer"
    # Without a known driver, the build that runs with more of them.
    build = fitting[0] if driver else fitting[-1]
    return f"pip install --force-reinstall torch --index-url {_INDEX}/{build}"


def _gpus(here: Surroundings, device: str) -> Iterator[Finding]:
    asked = None if device == "cpu" else int(device.partition(":")[2] or 0)
    for number, gpu in enumerate(here.torch.gpus):
        major, minor = gpu.capability
        found = (
            f"{gpu.name}, {gpu.free_gb:.1f} of {gpu.total_gb:.1f} GB free, compute capability "
            f"{major}.{minor}"
        )
        topic = f"GPU {number}"
        failing: Level = "will fail" if number == asked else "worth changing"
        if gpu.problem:
            yield Finding(
                topic=topic,
                found=f"{gpu.name}: {gpu.problem}",
                level=failing,
                why="it cannot be used now",
                todo="see what else runs there (nvidia-smi), restart it, or use --device cpu",
            )
        elif not _has_code(here.torch.kinds, gpu.capability):
            yield Finding(
                topic=topic,
                found=found,
                level=failing,
                why=f"torch {here.torch.version} holds no code for it "
                f"({', '.join(here.torch.kinds)})",
                todo=f"{_install(here.nvidia or '')} (or an older torch for an old GPU), or use "
                "--device cpu",
            )
        elif gpu.free_gb < _LITTLE_GPU_GB:
            yield Finding(
                topic=topic,
                found=found,
                level="worth changing",
                why="plans are made for 8 GB unless they are told otherwise",
                todo=f"end what else runs there (nvidia-smi), or autoliver plan DATASET --vram "
                f"{max(1, math.floor(gpu.free_gb))}",
            )
        else:
            yield Finding(topic=topic, found=found)


def _has_code(kinds: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether one of the architectures runs on a GPU: the same major number, or PTX of a lower."""
    if not kinds:
        return True
    for kind in kinds:
        name, _, digits = kind.partition("_")
        if not digits[:-1].isdigit() or not digits[-1].isdigit():
            continue
        of = (int(digits[:-1]), int(digits[-1]))
        if of <= capability and (name == "compute" or of[0] == capability[0]):
            return True
    return any(kind.startswith("gfx") for kind in kinds)  # AMD's


def _memory(here: Surroundings) -> Finding:
    limit = "" if here.limit_gb is None else f" (limited to {here.limit_gb:.1f} GB here)"
    found = f"{here.free_gb:.1f} of {here.total_gb:.1f} GB free{limit}"
    if here.free_gb >= _LITTLE_GB:
        return Finding(topic="memory", found=found)
    least = here.free_gb < _LEAST_GB
    return Finding(
        topic="memory",
        found=found,
        level="will fail" if least else "worth changing",
        why="torch alone takes half a GB"
        if least
        else "few cases are handled at a time, and large ones not at all",
        todo="raise the container's limit or ask the scheduler for more"
        if here.limit_gb is not None
        else "close other programs, or use a machine with more memory",
    )


def _cores(here: Surroundings) -> Finding:
    found = counted(here.cores, "core")
    if here.quota is not None and here.quota < here.cores:
        workers = max(1, math.floor(here.quota))
        return Finding(
            topic="cores",
            found=f"{found}, of whose time {here.quota:g} may be used",
            level="worth changing",
            why="processes and threads for all cores are held up by the control group's quota",
            todo=f"give --workers {workers}, and set OMP_NUM_THREADS={workers}",
        )
    if _is_busy(here):
        return Finding(
            topic="cores",
            found=f"{found}; programs want {here.load or 0.0:.1f} of them",
            level="worth changing",
            why="other work takes part of the machine, and threads that wait for each other "
            "suffer most: times below are too long for a free machine",
            todo="wait for it"
            + ("" if here.torch.threads == 1 else ", or train with OMP_NUM_THREADS=1"),
        )
    return Finding(topic="cores", found=found)


def _is_busy(here: Surroundings) -> bool:
    return here.load is not None and here.load > _BUSY * here.cores


def _threads(here: Surroundings) -> Finding:
    threads, room = here.torch.threads, min(here.cores, math.ceil(here.quota or here.cores))
    found = f"{counted(threads, 'thread')} for each operation"
    if threads > room:
        return Finding(
            topic="threads",
            found=found,
            level="worth changing",
            why=f"more threads than {counted(room, 'core')} wait for each other",
            todo=f"set OMP_NUM_THREADS={room}, and MKL_NUM_THREADS if you have set it",
        )
    if threads < room and not (here.torch.gpus or here.torch.mps or _is_busy(here)):
        return Finding(
            topic="threads",
            found=f"{found}, {counted(room, 'core')}",
            level="worth changing",
            why="trainings on the CPU leave cores idle",
            todo=f"set OMP_NUM_THREADS={room}, or unset it and MKL_NUM_THREADS; or train "
            f"folds side by side with --jobs {room}",
        )
    return Finding(topic="threads", found=found)


def _shm(here: Surroundings) -> Finding:
    size, several = here.shm_gb, len(here.torch.gpus) > 1
    found = "cannot be written to" if size is None else f"{size:.2g} GB"
    topic = "/dev/shm"
    if size is None or size < _LEAST_SHM_GB:
        return Finding(
            topic=topic,
            found=found,
            level="worth changing",
            why="worker processes need it; without, stages over cases use one process",
            todo="mount it: docker run --shm-size 1g, or --ipc=host",
        )
    if several and size < _SHM_OF_GPUS_GB:
        return Finding(
            topic=topic,
            found=found,
            level="worth changing",
            why="trainings of one fold on several GPUs exchange data through it",
            todo="docker run --shm-size 8g, or --ipc=host",
        )
    return Finding(topic=topic, found=found)


def _files(here: Surroundings) -> Finding:
    limit = here.open_files
    if limit is None:
        return Finding(topic="open files", found="no limit")
    if limit >= _FEW_FILES:
        return Finding(topic="open files", found=f"at most {limit}")
    return Finding(
        topic="open files",
        found=f"at most {limit}",
        level="worth changing",
        why="worker processes and their pipes may exceed it",
        todo="ulimit -n 4096, or give --workers 1",
    )


def _disk(here: Surroundings) -> Finding:
    disk = here.disk
    network = disk.kind in _NETWORKS
    what = f"{disk.kind}, a network share" if network else disk.kind or "of unknown type"
    found = f"{disk.folder}: {disk.free_gb:.1f} GB free, {what}"
    if disk.read_mb_s is not None and disk.write_mb_s is not None:
        found += f", reads {disk.read_mb_s:.0f} and writes {disk.write_mb_s:.0f} MB/s"
    elsewhere = "choose another disk with --workspace"
    level: Level = "ok"
    why = todo = ""
    if not disk.writable:
        level, why, todo = "will fail", "nothing can be written there", elsewhere
    elif disk.free_gb < _LITTLE_DISK_GB:
        level, why, todo = "will fail", "preprocessed cases take more", f"free some, or {elsewhere}"
    elif disk.read_mb_s is not None and disk.read_mb_s < _SLOW_DISK_MB_S:
        level, why = "worth changing", "reading cases and patches takes longer than learning"
        todo = f"{elsewhere}, or keep the cases in memory: --cache ram"
    elif network:
        level, why = "worth changing", "small reads and locks over a network are slow"
        todo = "a local disk for the workspace is better; else --cache ram"
    return Finding(topic="workspace", found=found, level=level, why=why, todo=todo)


def _libraries(here: Surroundings) -> Iterator[Finding]:
    bad = [each for each in _KNOWN_BAD if _is_installed(each, here)]
    for each in bad:
        installed = here.versions[each.library]
        yield Finding(
            topic="libraries",
            found=f"{each.library} {installed}",
            level=each.level,
            why=each.why,
            todo=f"pip install --upgrade '{each.library}>={each.before}'",
        )
    if here.lacking:
        yield Finding(
            topic="libraries",
            found="; ".join(here.lacking),
            level="will fail",
            why="older than what this version was made for, or missing",
            todo="pip install --upgrade autoliver",
        )
    elif not bad:
        shown = ("numpy", "SimpleITK", "blosc2", "batchgenerators")
        known = [f"{name} {here.versions[name]}" for name in shown if name in here.versions]
        yield Finding(
            topic="libraries",
            found=", ".join([f"Python {here.python}", *known]),
        )


def _is_installed(bad: _Bad, here: Surroundings) -> bool:
    installed = numbers(here.versions.get(bad.library, ""))
    known = bool(installed) and numbers(bad.since) <= installed < numbers(bad.before)
    return known and bad.needs(here)
