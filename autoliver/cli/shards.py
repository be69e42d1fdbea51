"""Options and output of commands with --shard: what a shard does, and what it prints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.cli.help import typed
from autoliver.cli.output import emit
from autoliver.errors import OptionError

if TYPE_CHECKING:
    from autoliver.shards import Shard, Sharded


def shard_of(text: str | None, *, dask: str | None, workspace: Path) -> "Shard | None":
    """The part of the cases that --shard names; None for all of them.

    With --dask the workers of a cluster first do all shards.

    Raises:
        OptionError: Both are given, or --shard names no part.
        AutoliverError: As for `spread`.
    """
    from autoliver.shards import Shard

    if dask is None:
        return None if text is None else Shard.of(text)
    if text is not None:
        raise OptionError(
            f"--shard {text} and --dask {dask} exclude each other.",
            hint="With --dask the workers of the cluster do all shards.",
        )
    from autoliver.cli.cluster import spread

    spread(dask, workspace)
    return None


def emit_shard(
    done: "Sharded",
    text: str = "",
    facts: Mapping[str, object] | None = None,
    *,
    as_json: bool,
) -> None:
    """Prints what a shard has done on stdout.

    Args:
        done: The shard.
        text: What the command prints besides; empty for nothing. The last line names the command
            that makes the whole.
        facts: What the JSON object holds besides; None for nothing.
        as_json: Whether to print one JSON object instead.
    """
    following = typed("--shard")
    line = f"{done} When all {done.shard.count} have ended: {following}"
    result = {**(facts or {}), **done.facts, "next": following}
    emit(result, "\n".join(filter(None, [text, line])), as_json=as_json)
