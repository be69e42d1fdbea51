"""What a command with --shard prints: what it has done, and the command that makes the whole."""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoliver.cli.help import given_words
from autoliver.cli.output import emit

if TYPE_CHECKING:
    from autoliver.shards import Sharded


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
    following = without_shard()
    line = f"{done} When all {done.shard.count} have ended: {following}"
    result = {**(facts or {}), **done.facts, "next": following}
    emit(result, "\n".join(filter(None, [text, line])), as_json=as_json)


def without_shard() -> str:
    """The command line that is being run, without --shard and its value, for a shell."""
    given = list(given_words.get())
    words: list[str] = []
    while given:
        word = given.pop(0)
        if word == "--":  # what follows are no options
            words += [word, *given]
            break
        if word == "--shard":
            given.pop(0)
        elif not word.startswith("--shard="):
            words.append(word)
    return shlex.join(["autoliver", *words])
