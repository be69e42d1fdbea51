"""Commands that messages tell the user to type: quoted, and for the workspace in use."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

# The workspace that commands use unless another one is named.
DEFAULT_WORKSPACE = Path("autoliver-workspace")
# Stands for the dataset in messages that are written where it is not known (see `completed`).
DATASET = "DATASET"
_INCOMPLETE = re.compile(rf"\bautoliver ([a-z]+) {DATASET}\b")


def command(
    name: str, *arguments: str, options: Sequence[str] = (), workspace: Path | None = None
) -> str:
    """Returns a command as it can be pasted into a shell.

    Where a message goes on after it, a space or a quotation mark must stand between, since a
    full stop would be pasted as well.

    Args:
        name: The command.
        arguments: Its arguments without options. Placeholders such as DATASET stay as they are.
        options: Its options with their values.
        workspace: The workspace that the command is about; it is named unless it is the default.
            None if the command needs none.
    """
    named = workspace is not None and workspace.resolve() != DEFAULT_WORKSPACE.resolve()
    options = [*options, *(["-w", str(workspace)] if named else [])]
    # What follows "--" is no option, even if it begins with a dash.
    dashed = any(argument.startswith("-") for argument in arguments)
    words = [*options, "--", *arguments] if dashed else [*arguments, *options]
    return shlex.join(["autoliver", name, *words])


def completed(text: str, *, dataset: str | None, workspace: Path | None) -> str:
    """Returns a message with the dataset and the workspace in the commands that lack them.

    Such are the commands `autoliver NAME DATASET ...`, as they stand in messages of modules that
    know of neither.

    Args:
        text: The message.
        dataset: The dataset as the user named it; "" if it need not be named, None if it is not
            known.
        workspace: The workspace.
    """
    known = dataset is not None and not dataset.startswith("-")
    arguments = [dataset] if dataset and known else [] if known else [DATASET]
    return _INCOMPLETE.sub(lambda found: command(found[1], *arguments, workspace=workspace), text)


def remove(path: Path) -> str:
    """Returns the command that removes a file or a folder."""
    where = f"./{path}" if str(path).startswith("-") else str(path)
    return shlex.join(["rm", *(["-r"] if path.is_dir() else []), where])
