"""Errors that the user can fix.

AutoliverError
 +- DatasetError     images, labels, dataset.json
 +- ArtifactError    a file written by this package: missing, damaged, foreign or out of date
 +- OptionError      an option or a combination of options that is invalid
 |   +- WrongValue   an option whose value is invalid whatever the data: wrong usage
 +- ModelError       a model that is missing, damaged or does not fit the images
 +- MachineError     what the machine refuses: a full disk, a missing permission, a limit

Any other exception that leaves a command is a bug in this package and shows its traceback.
"""

import re

# A word that is longer than any path is one that data brought, such as a key; its ends are shown.
_LONGEST_WORD, _START, _END = 4200, 100, 50


class AutoliverError(Exception):
    """A problem that the user can fix, with a hint on how to fix it.

    Args:
        problem: What is wrong: where, what was found and what was expected, in one or two
            sentences.
        hint: What the user can do about it, as a command where possible; empty for no hint.

    Attributes:
        facts: What --json prints besides the problem and the hint.
        exit_code: The exit code of a command that ends with it.
    """

    exit_code = 1

    def __init__(self, problem: str, *, hint: str = "") -> None:
        if len(problem) > _LONGEST_WORD:
            problem = re.sub(r"\S+", _shown, problem)
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.facts: dict[str, object] = {}

    def __str__(self) -> str:
        return f"{self.problem}\n{self.hint}" if self.hint else self.problem

    def __reduce__(self) -> tuple[object, ...]:
        # Keeps the hint when the error is pickled and sent to another process.
        return _rebuild, (type(self), self.problem, self.hint)


class DatasetError(AutoliverError):
    """Images, labels or dataset.json are missing, damaged or inconsistent."""


class ArtifactError(AutoliverError):
    """A file that autoliver wrote is missing, damaged, foreign or out of date."""


class OptionError(AutoliverError):
    """An option, or a combination of options, is invalid."""


class WrongValue(OptionError):
    """The value of an option is invalid whatever the data: wrong usage of the command line."""

    exit_code = 2


class ModelError(AutoliverError):
    """A model is missing, damaged or does not fit the images."""


class MachineError(AutoliverError):
    """The machine refuses: a disk is full or fails, a permission is missing, a limit is reached."""


def _shown(found: re.Match[str]) -> str:
    word = found[0]
    return word if len(word) <= _LONGEST_WORD else f"{word[:_START]}...{word[-_END:]}"


class Taken(AutoliverError):
    """Another process does this work, or has what is needed for it."""


def _rebuild(kind: type[AutoliverError], problem: str, hint: str) -> AutoliverError:
    return kind(problem, hint=hint)
