"""How much memory this process may use, given the machine and the limits of its control groups."""

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from autoliver.errors import DatasetError

GB = 2**30
# Left free by default, for this process and other programs.
_RESERVE_GB = 2.0
# No stage works with less, so at least this much is assumed.
_LEAST_GB = 0.5

_TOO_LARGE = (
    "Use a machine with more memory, leave the case out, or correct its spacing if that is wrong "
    "(autoliver verify)."
)
# PyTorch says of the machine's memory "DefaultCPUAllocator: not enough memory" or "can't allocate
# memory", in an error of the same type as that of an accelerator.
_MACHINE_IS_FULL = ("allocate memory", "not enough memory", "unable to allocate")
# CUDA and Apple's GPUs; cuDNN and cuBLAS by the name of their status. cuDNN finds no engine where
# none can have the memory that it works in.
_ACCELERATOR_IS_FULL = ("out of memory", "alloc_failed", "unable to find an engine")

# Where the system's own files are; tests have some of their own.
ROOT = Path("/")
_CGROUPS = "sys/fs/cgroup"
# Files of cgroup versions 2 and 1: the limit, the usage, and the line of memory.stat that counts
# the cache that can be dropped.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_gb(root: Path = ROOT) -> float:
    """Returns the memory that is free in GB: the minimum over the machine and control groups."""
    free = cgroup_bytes(own_groups(root), root / _CGROUPS)
    return min([_machine_bytes(root, "MemAvailable"), *free]) / GB


def total_gb(root: Path = ROOT) -> float:
    """Returns the memory of the machine in GB, whatever is free of it."""
    return _machine_bytes(root, "MemTotal") / GB


def limit_gb(root: Path = ROOT) -> float | None:
    """Returns the lowest limit of the control groups in GB; None if none is below the machine's."""
    limits = [stated for stated, _ in _groups(own_groups(root), root / _CGROUPS)]
    least = min(limits, default=math.inf) / GB
    return least if least < total_gb(root) else None


def own_groups(root: Path = ROOT) -> str:
    """Returns the content of /proc/self/cgroup; empty where there is no such file."""
    membership = root / "proc/self/cgroup"
    return membership.read_text() if membership.exists() else ""


def default_memory_gb() -> float:
    """Returns the memory in GB that stages use without --memory-gb: the free memory minus 2 GB."""
    return max(_LEAST_GB, free_gb() - _RESERVE_GB)


def check_room(needed_gb: float, *, case: str, what: str) -> None:
    """Refuses a case that would not fit into the memory that is free now.

    Args:
        needed_gb: What it takes at the least.
        case: Its name.
        what: What takes the memory, for the message: "resampled it has 9000x9000x9000 voxels".

    Raises:
        DatasetError: Naming the case and the numbers.
    """
    free = free_gb()
    if needed_gb > free:
        raise DatasetError(
            f"{case}: {what}, which takes {needed_gb:.1f} GB of memory; {free:.1f} GB are free.",
            hint=_TOO_LARGE,
        )


def out_of_memory(error: BaseException) -> Literal["machine", "accelerator"] | None:
    """Tells which memory an error says is full; None if it says something else."""
    if isinstance(error, MemoryError):
        return "machine"
    if isinstance(error, OSError):
        return "machine" if error.errno == errno.ENOMEM else None
    # By its name, as torch is not to be imported for it.
    if type(error).__name__ == "OutOfMemoryError":
        return "accelerator"
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).casefold()
    if any(sign in text for sign in _ACCELERATOR_IS_FULL):
        return "accelerator"
    return "machine" if any(sign in text for sign in _MACHINE_IS_FULL) else None


@contextlib.contextmanager
def running_out(case: str) -> Iterator[None]:
    """Replaces errors of the block that memory cannot be had by one that names the case.

    Raises:
        DatasetError: Memory ran out, of the machine or of its accelerator.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if out_of_memory(error) is None:
            raise
        raise DatasetError(
            f"{case}: there is not enough memory for it ({free_gb():.1f} GB are free).",
            hint=_TOO_LARGE,
        ) from error


def cgroup_bytes(groups: str, root: Path) -> Iterator[int]:
    """Yields the free bytes of every control group of this process, parent groups included.

    Args:
        groups: The content of /proc/self/cgroup.
        root: The folder where control groups are mounted.
    """
    for stated, taken in _groups(groups, root):
        yield max(0, stated - taken)


def _groups(groups: str, root: Path) -> Iterator[tuple[int, int]]:
    """Yields the limit of every control group that has one, and what it cannot give back of it."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, _V2
        elif "memory" in controllers.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        group = Path(path.lstrip("/"))
        # In a container, the path may be that of the host, which is not mounted. The top folder is
        # then the group of this process.
        for folder in (group, *group.parents):
            found = _group_bytes(top / folder, names)
            if found is not None:
                yield found


def _group_bytes(folder: Path, names: tuple[str, str, str]) -> tuple[int, int] | None:
    limit, use, cache = names
    try:
        stated = (folder / limit).read_text().strip()
        if stated == "max":
            return None
        used = int((folder / use).read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
    except OSError:
        return None
    return int(stated), used - int(statistics.get(cache, 0))


def _machine_bytes(root: Path, entry: str) -> int:
    table = root / "proc/meminfo"
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
