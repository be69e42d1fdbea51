"""fixes.json: what was repaired in a dataset, file by file."""

from typing import ClassVar

from autoliver.artifacts import Artifact, Record

FIXES_FILE = "fixes.json"


class Fix(Record, frozen=True, kw_only=True):
    """A file that was repaired.

    Attributes:
        case: The case.
        file: The repaired file, relative to the folder of the new dataset.
        source: The file with the error.
        done: What was done, in words.
        picture: Picture of the slice that changed most, relative to the same folder.
    """

    case: str
    file: str
    source: str
    done: str
    picture: str


class Fixes(Artifact, frozen=True, kw_only=True):
    """What `verify --fix` did.

    Attributes:
        fixes: The repaired files, by case.
        left_out: Case that was left out -> why it could not be repaired.
    """

    KIND: ClassVar[str] = "fixes"

    fixes: tuple[Fix, ...]
    left_out: dict[str, str]
