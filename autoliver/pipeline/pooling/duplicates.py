"""Images that several members of a pool hold, whatever their files are called and packed like."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from autoliver.datasets.cases import Case
from autoliver.io.files import read_header, read_image
from autoliver.io.orientation import reorientation_to
from autoliver.machine import Machine
from autoliver.needs import read_need
from autoliver.parallel import case_bar


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A case of a member.

    Attributes:
        member: Name of the dataset.
        case: The case.
    """

    member: str
    case: Case

    def __str__(self) -> str:
        return f"{self.member}/{self.case.name}"


def find_duplicates(cases: Sequence[Placed], machine: Machine) -> list[tuple[Placed, Placed]]:
    """Finds images that two members share, by their voxels.

    The order of axes, the type and the packing of a file do not matter. Only images of a size that
    two members have are read.

    Returns:
        Pairs of a case and the same case of an earlier member.

    Raises:
        DatasetError: An image cannot be read.
    """
    groups: dict[tuple[int, ...], list[Placed]] = {}
    for placed in cases:
        shape = read_header(placed.case.images[0]).geometry.shape_zyx
        groups.setdefault(tuple(sorted(shape)), []).append(placed)
    shared = [p for group in groups.values() if len({q.member for q in group}) > 1 for p in group]
    pool = machine.pool("compare", need=read_need, light=True)
    hashes = pool.map(image_hash, [placed.case for placed in shared])
    first: dict[str, Placed] = {}
    found = []
    for placed, each in zip(shared, case_bar("compare", len(shared))(hashes), strict=True):
        known = first.setdefault(each, placed)
        if known.member != placed.member:
            found.append((placed, known))
    order = {id(placed): index for index, placed in enumerate(cases)}
    return sorted(found, key=lambda pair: order[id(pair[0])])


def image_hash(case: Case) -> str:
    """Returns a hash of a case's voxels, with axes in one anatomical order where that is known."""
    image = read_image([Path(path) for path in case.images])
    codes = "LPS" if image.oriented else ""
    array = reorientation_to(image.geometry, codes).array(image.array)
    found = blake2b(repr(array.shape).encode(), digest_size=20)
    found.update(np.ascontiguousarray(array, dtype="<f4").data)
    return found.hexdigest()
