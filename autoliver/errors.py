"""The errors a user can mend.

AutoliverError
 +- DatasetError     images, labels, dataset.json
 +- ArtifactError    a file autoliver wrote: missing, damaged, foreign or out of date
 +- OptionError      an option or a combination of options that cannot work
 +- ModelError       a model that is missing, damaged or does not fit the images

Anything else that leaves a command is our bug and shows its traceback.
"""


class AutoliverError(Exception):
    """A problem the user can mend, and how.

    Args:
        problem: Where it is, what was found and what was expected, in one or two sentences.
        hint: What to do about it; a command where there is one.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\n{self.hint}" if self.hint else self.problem

    def __reduce__(self) -> tuple[object, ...]:
        # Keeps the hint when the error crosses a process boundary.
        return _rebuild, (type(self), self.problem, self.hint)


class DatasetError(AutoliverError):
    """Images, labels or dataset.json do not hold what they should."""


class ArtifactError(AutoliverError):
    """A file that autoliver wrote is missing, damaged, foreign or out of date."""


class OptionError(AutoliverError):
    """An option, or a combination of options, that cannot work."""


class ModelError(AutoliverError):
    """A model is missing, damaged or does not fit the images."""


def _rebuild(kind: type[AutoliverError], problem: str, hint: str) -> AutoliverError:
    return kind(problem, hint=hint)
