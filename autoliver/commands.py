"""Commands that messages tell the user to type: quoted, and for the workspace in use."""

import shlex
from pathlib import Path

# The workspace that commands use unless another one is named.
DEFAULT_WORKSPACE = Path("autoliver-workspace")


def command(*words: str, workspace: Path | None = None) -> str:
    """Returns a command as it can be pasted into a shell.

    Args:
        words: What follows `autoliver`. Placeholders such as DATASET stay as they are.
        workspace: The workspace that the command is about; it is named unless it is the default.
            None if the command needs none.
    """
    named = workspace is not None and workspace.resolve() != DEFAULT_WORKSPACE.resolve()
    return shlex.join(["autoliver", *words, *(["-w", str(workspace)] if named else [])])


def remove(path: Path) -> str:
    """Returns the command that removes a file or a folder."""
    return shlex.join(["rm", *(["-r"] if path.is_dir() else []), str(path)])
