"""What the machine, its container and the installed libraries are, measured without judging it."""

import contextlib
import os
import platform
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from autoliver.memory import GB, ROOT, free_gb, limit_gb, own_groups, total_gb
from autoliver.parallel import cores
from autoliver.values import first_few

_DISK_BYTES = 1 << 25  # of the file that is written and read to time the disk
_BLOCK = bytes(1 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that torch can see.

    Attributes:
        name: Its name.
        capability: Its compute capability; (0, 0) for none.
        free_gb: Memory that is free.
        total_gb: Its memory.
        problem: Why it cannot be used; empty if it can.
    """

    name: str
    capability: tuple[int, int]
    free_gb: float
    total_gb: float
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    """The build of torch, and what it can use.

    Attributes:
        version: Its version.
        cuda: The version of CUDA that it was built with; None for a build for CPUs.
        kinds: The GPU architectures that it holds code for, such as "sm_80".
        threads: Threads of an operation on the CPU.
        gpus: The GPUs that it can use.
        mps: Whether it can use Apple's GPU.
    """

    version: str
    cuda: str | None
    kinds: tuple[str, ...]
    threads: int
    gpus: tuple[Gpu, ...]
    mps: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """The disk that a folder is on, or would be.

    Attributes:
        folder: The folder, or the nearest one above it that exists.
        free_gb: What may be written.
        kind: The type of the file system; empty if unknown.
        writable: Whether a file could be written there.
        write_mb_s: Speed of writing; None if it was not timed.
        read_mb_s: Speed of reading what is not in memory; None if it was not timed.
    """

    folder: Path
    free_gb: float
    kind: str
    writable: bool
    write_mb_s: float | None = None
    read_mb_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """The machine as this process may use it.

    Attributes:
        python: Version of Python.
        torch: The build of torch.
        nvidia: Version of NVIDIA's driver; None if there is no such GPU, "" if it is unknown.
        cores: Cores that this process may run on.
        quota: Cores' worth of time that the control groups allow; None for no limit.
        load: Cores that all programs kept busy during the last minute; None if unknown.
        total_gb: Memory of the machine.
        limit_gb: Limit of the control groups; None for no limit.
        free_gb: Memory that is free, of both.
        shm_gb: Size of /dev/shm; None if there is none that can be written to.
        open_files: Files that this process may have open; None for no limit.
        disk: The disk of the workspace.
        versions: Installed library -> version, of those that this package needs.
        lacking: What is installed in an older version than this package needs, or not at all.
    """

    python: str
    torch: Torch
    nvidia: str | None
    cores: int
    quota: float | None
    load: float | None
    total_gb: float
    limit_gb: float | None
    free_gb: float
    shm_gb: float | None
    open_files: int | None
    disk: Disk
    versions: dict[str, str]
    lacking: tuple[str, ...]


def look_around(workspace: Path, *, time_disk: bool, root: Path = ROOT) -> Surroundings:
    """Measures the machine.

    Args:
        workspace: The workspace's folder, which need not exist.
        time_disk: Whether to write and read a file there; it is removed again.
        root: Where the system's own files are.
    """
    versions, lacking = _libraries()
    return Surroundings(
        python=platform.python_version(),
        torch=look_at_torch(),
        nvidia=nvidia_driver(root),
        cores=cores(),
        quota=quota_cores(root),
        load=_load(root),
        total_gb=total_gb(root),
        limit_gb=limit_gb(root),
        free_gb=free_gb(root),
        shm_gb=_shm_gb(root / "dev/shm"),
        open_files=_open_files(),
        disk=look_at_disk(workspace, timed=time_disk, root=root),
        versions=versions,
        lacking=lacking,
    )


def look_at_torch() -> Torch:
    """Returns the build of torch and what it can use."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total, problem = 0, 0, ""
            try:
                free, total = torch.cuda.mem_get_info(number)
            except RuntimeError as error:  # another process has it alone, or it is broken
                problem = str(error).splitlines()[0]
            gpu = Gpu(
                name=torch.cuda.get_device_name(number),
                capability=torch.cuda.get_device_capability(number),
                free_gb=free / GB,
                total_gb=total / GB,
                problem=problem,
            )
            gpus.append(gpu)
    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda,
        kinds=tuple(torch.cuda.get_arch_list()) if gpus else (),
        threads=torch.get_num_threads(),
        gpus=tuple(gpus),
        mps=torch.backends.mps.is_available(),
    )


def nvidia_driver(root: Path = ROOT) -> str | None:
    """Returns the version of NVIDIA's driver; None if there is none, "" if it does not tell."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return "" if (root / "dev/nvidia0").exists() or (root / "dev/dxg").exists() else None
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else ""


def quota_cores(root: Path = ROOT) -> float | None:
    """Returns how many cores' worth of time the control groups allow; None for no limit.

    Args:
        root: Where the system's own files are.
    """
    quotas = []
    for line in own_groups(root).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            quotas.append(_quota(top / folder, first=not controllers))
    known = [quota for quota in quotas if quota is not None]
    return min(known, default=None)


def _quota(folder: Path, *, first: bool) -> float | None:
    """The quota of a control group of version 2, or else of version 1, in cores."""
    try:
        if first:
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        found = float(limit) / float(period)
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return found if found > 0 else None


def _load(root: Path) -> float | None:
    try:
        return float((root / "proc/loadavg").read_text().split()[0])
    except (OSError, ValueError):
        return None


def _shm_gb(path: Path) -> float | None:
    return shutil.disk_usage(path).total / GB if os.access(path, os.W_OK) else None


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def look_at_disk(folder: Path, *, timed: bool, root: Path = ROOT) -> Disk:
    """Measures the disk of a folder, which need not exist.

    Args:
        folder: The folder.
        timed: Whether to write and read a file there.
        root: Where the system's own files are.
    """
    path = folder.absolute()
    at = next(each for each in (path, *path.parents) if each.is_dir())
    speeds: tuple[float | None, float | None] = (None, None)
    try:
        with tempfile.TemporaryFile(dir=at) as file:
            if timed:
                speeds = _speeds(file.fileno())
        writable = True
    except OSError:
        writable = False
    return Disk(
        folder=at,
        free_gb=shutil.disk_usage(at).free / GB,
        kind=file_system(at.resolve(), root),
        writable=writable,
        write_mb_s=speeds[0],
        read_mb_s=speeds[1],
    )


def file_system(folder: Path, root: Path = ROOT) -> str:
    """Returns the type of the file system that a folder is on, such as "ext4"; "" if unknown.

    Args:
        folder: An absolute path without links.
        root: Where the system's own files are.
    """
    try:
        lines = (root / "proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    kinds = {}
    for line in lines:
        _, at, kind, *_ = line.split(" ")
        kinds[Path(re.sub(r"\\([0-7]{3})", lambda c: chr(int(c[1], 8)), at))] = kind
    return next((kinds[each] for each in (folder, *folder.parents) if each in kinds), "")


def _speeds(file: int) -> tuple[float, float | None]:
    """Times writing to an open file and reading it again, in MB per second."""
    begun = time.monotonic()
    for _ in range(_DISK_BYTES // len(_BLOCK)):
        os.write(file, _BLOCK)
    os.fsync(file)
    written = time.monotonic() - begun
    if not hasattr(os, "posix_fadvise"):  # it would be read from memory
        return _DISK_BYTES / 1e6 / written, None
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(file, 0, os.SEEK_SET)
    begun = time.monotonic()
    while os.read(file, len(_BLOCK)):
        pass
    return _DISK_BYTES / 1e6 / written, _DISK_BYTES / 1e6 / (time.monotonic() - begun)


def _libraries() -> tuple[dict[str, str], tuple[str, ...]]:
    """The installed versions of what this package needs, and what is older or missing."""
    versions, lacking = {}, []
    with contextlib.suppress(PackageNotFoundError):
        for line in requires("autoliver") or ():
            name, least = needed(line)
            if not least:  # of an extra
                continue
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                lacking.append(f"{name} (missing, needed: {least})")
                continue
            if numbers(versions[name]) < numbers(least):
                lacking.append(f"{name} {versions[name]} (needed: {least})")
    return versions, (first_few(lacking, 6),) if lacking else ()


def needed(requirement: str) -> tuple[str, str]:
    """Returns the name of a requirement and its oldest version; "" for one of an extra.

    Args:
        requirement: As in the metadata of a package: "torch!=2.9.*,>=2.6".
    """
    text = requirement.split("#")[0].strip()
    found = re.fullmatch(r"([\w.-]+?)\s*((?:[<>!=~]=?\s*[\d.*]+,?\s*)+)", text)
    least = re.search(r">=\s*([\d.]+)", found[2]) if found else None
    return (found[1], least[1]) if found and least else ("", "")


def numbers(text: str) -> tuple[int, ...]:
    """Returns the numbers at the start of a version, without zeros at the end."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)
