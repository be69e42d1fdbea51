"""The command that learns a translation, as messages name it."""

from collections.abc import Sequence
from pathlib import Path

from autoliver.commands import command
from autoliver.synthesis.translation.options import TranslationOptions, option_of


def fit_command(
    ends: tuple[str, str],
    name: str,
    options: TranslationOptions,
    *,
    more: Sequence[str] = (),
    workspace: Path,
) -> str:
    """Returns the command that learns a translation with the same data and options.

    Args:
        ends: Name or path of the source and of the target.
        name: Name of the translation.
        options: How it is learnt; what is a default is left out.
        more: Further words.
        workspace: The workspace.
    """
    words = ["--from", ends[0], "--to", ends[1], "-o", name]
    usual = TranslationOptions(model=options.model).settled(options.patch)
    for field in options.__struct_fields__:
        value = getattr(options, field)
        if value is None:
            continue
        if field == "patch":
            words += ["--patch", *map(str, value)]
        elif field == "model" or value != getattr(usual, field):
            words += [option_of(field), str(value)]
    return command("synthesize", "fit", options=[*words, *more], workspace=workspace)
