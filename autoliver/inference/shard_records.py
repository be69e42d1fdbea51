"""Records of shards of `predict`: hidden files beside the label maps, joined in the end.

No two shards write to one file. So they do not lose what another one has noted, even on a disk
that has no locks.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from autoliver.inference.record import RECORD_FILE, Prediction, UsedNetwork
from autoliver.shards import Shard
from autoliver.system import entries

_RECORDS = re.compile(rf"\.shard-\d+-of-\d+_{re.escape(RECORD_FILE)}")
_OF_LABEL_MAPS = ("inputs", "voxels", "written", "modalities", "regions")


def record_of(folder: Path, shard: Shard | None) -> Path:
    """Returns the record of a folder of label maps, or that of a shard there."""
    start = "" if shard is None else f".shard-{shard.number}-of-{shard.count}_"
    return folder / f"{start}{RECORD_FILE}"


def records_of_shards(folder: Path) -> list[Path]:
    """Returns the records that shards have left in a folder."""
    return [path for path in entries(folder, ".shard-*") if _RECORDS.fullmatch(path.name)]


def joined(records: Sequence[Prediction], order: Sequence[str]) -> Prediction:
    """Returns one record of several that were made in the same way; later ones count more.

    Args:
        records: At least one record.
        order: File names of label maps in the order in which they are to be named; others come
            before them.
    """
    named = dict.fromkeys(name for each in records for name in each.label_maps)
    own = set(order)
    names = [*(n for n in named if n not in own), *(n for n in order if n in named)]
    known = {f: [getattr(each, f) for each in records] for f in _OF_LABEL_MAPS}
    found = {
        f: {name: at for part in each for name, at in part.items()} for f, each in known.items()
    }
    return records[0].replace(
        networks=tuple(map(_used, zip(*(each.networks for each in records), strict=True))),
        label_maps=tuple(names),
        **{f: {name: at[name] for name in names if name in at} for f, at in found.items()},
    )


def _used(same: Sequence[UsedNetwork]) -> UsedNetwork:
    """A network with all the ways in which it was computed."""
    ways: dict[str, tuple[str, ...]] = {}
    for each in same:
        for device, used in each.ways.items():
            ways[device] = tuple(dict.fromkeys([*ways.get(device, ()), *used]))
    return same[0].replace(ways=ways)
