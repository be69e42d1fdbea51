"""Shards of `predict`: each has a record of its own, of which the whole command makes one."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from autoliver.errors import OptionError
from autoliver.inference.lesions.table import LesionFiles, LesionTable
from autoliver.inference.record import RECORD_FILE, Prediction, read_record
from autoliver.inference.shard_records import joined
from autoliver.locks import only_one, only_one_kind, remove_if_stale
from autoliver.pipeline.inputs import Failure, Sources
from autoliver.pipeline.targets import Targets, set_aside
from autoliver.shards import Shard, Sharded
from autoliver.system import entries

_MIXED = "what is predicted here has another model, other options or other shards, and is made"


def own_part(found: Sources, failures: list[Failure], shard: Shard) -> tuple[Sources, Sharded]:
    """Returns the part of the cases that is a shard's, and what it is about to do.

    Args:
        found: All cases.
        failures: Those that cannot be predicted; those of other shards are taken out.
        shard: The shard.
    """
    names = {*found.files, *found.series, *(failure.case for failure in failures)}
    part = Sharded(shard=shard, cases=tuple(shard.names(names)), new=0, of=len(names))
    own = set(part.cases)
    failures[:] = [failure for failure in failures if failure.case in own]
    files = {name: images for name, images in found.files.items() if name in own}
    series = {name: each for name, each in found.series.items() if name in own}
    return replace(found, files=files, series=series), part


def refuse_overwriting(shard: Shard | None, *, overwrite: bool) -> None:
    """Refuses to replace what is there by shards: none could tell what another one has replaced.

    Raises:
        OptionError: Both are asked for.
    """
    if shard is not None and overwrite:
        raise OptionError(
            f"--shard {shard} and --overwrite: what shards have finished would be replaced again.",
            hint="Choose a new folder, or remove what is to be replaced.",
        )


@contextlib.contextmanager
def claimed(targets: Targets, now: Prediction) -> Iterator[None]:
    """Holds the output for a prediction; equal shards may work beside each other.

    Without shards, the same model may predict other cases there at the same time.

    Raises:
        AutoliverError: Another process predicts there in another way, or does the same shard.
    """
    folder, shard, beside = targets.record.parent, targets.shard, targets.all_records
    if shard is None:
        with only_one_kind(folder, targets.record.name, now.way, _MIXED, beside=beside):
            for lock in entries(folder, ".shard-*.lock"):
                remove_if_stale(lock)
            yield
        return
    own = folder / f".shard-{shard.number}-of-{shard.count}.lock"
    kind = f"{now.way}of{shard.count}"
    with (
        only_one_kind(folder, RECORD_FILE, kind, _MIXED, beside=beside),
        only_one(own, f"shard {shard} is being predicted"),
    ):
        yield


def gather(targets: Targets, now: Prediction) -> None:
    """Makes one record, and one table of lesions, of those of shards, and removes these.

    What was predicted in another way than now is left out, since its label maps are replaced.

    Args:
        targets: All cases.
        now: The prediction that is about to begin.

    Raises:
        ArtifactError: A record or table is damaged.
        MachineError: The files cannot be written.
    """
    records = {path: read_record(path) for path in (targets.record, *targets.shards)}
    alike = {path: r for path, r in records.items() if r is not None and not r.differences(now)}
    if alike.keys() - {targets.record}:
        order = [job.output.name for job in targets.jobs]
        joined([now, *alike.values()], order).save(targets.record)
    whole = LesionFiles.beside(targets.record, RECORD_FILE)
    for path in targets.shards:
        part = LesionFiles.beside(path, RECORD_FILE)
        if path in alike and part.json.exists():
            set_aside(whole.foreign())
            whole.join(LesionTable.load(part.json))
        for file in (part.csv, part.json, path):
            file.unlink(missing_ok=True)


def arrange(targets: Targets) -> None:
    """Puts the label maps of a record that was gathered into the order of the cases."""
    record = read_record(targets.record)
    if record is not None:
        joined([record], [job.output.name for job in targets.jobs]).save(targets.record)
