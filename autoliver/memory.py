"""How much memory this process may use: the machine's, or what its control group leaves of it."""

import os
from collections.abc import Iterator
from pathlib import Path

GB = 2**30
# For this process and what else runs: never planned for by default.
_RESERVE_GB = 2.0
# Below it no stage works, so no less is assumed.
_LEAST_GB = 0.5

_CGROUPS = Path("/sys/fs/cgroup")
# Files of version 2 and 1: limit, use, and the line of memory.stat with cache that can be dropped.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_gb() -> float:
    """Memory that can still be taken: the least of the machine's and every control group's."""
    membership = Path("/proc/self/cgroup")
    groups = membership.read_text() if membership.exists() else ""
    return min([_machine_bytes(), *cgroup_bytes(groups, _CGROUPS)]) / GB


def default_memory_gb() -> float:
    """What stages plan with where --memory-gb is not given: what is free, less 2 GB."""
    return max(_LEAST_GB, free_gb() - _RESERVE_GB)


def cgroup_bytes(groups: str, root: Path) -> Iterator[int]:
    """Free bytes of every control group this process is in, parents included.

    Args:
        groups: The content of /proc/self/cgroup.
        root: Where control groups are mounted.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, _V2
        elif "memory" in controllers.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        group = Path(path.lstrip("/"))
        # In a container the path may be the host's and not be mounted; the top then is our group.
        for folder in (group, *group.parents):
            free = _group_bytes(top / folder, names)
            if free is not None:
                yield free


def _group_bytes(folder: Path, names: tuple[str, str, str]) -> int | None:
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
    return max(0, int(stated) - used + int(statistics.get(cache, 0)))


def _machine_bytes() -> int:
    table = Path("/proc/meminfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
