"""pool.json: from which datasets a pool was made, and whether their files are still the same."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from autoliver.artifacts import Artifact, Fault, Record, unfit
from autoliver.commands import command
from autoliver.errors import DatasetError
from autoliver.values import name_problem

POOL_FILE = "pool.json"


class PooledFile(Record, frozen=True, kw_only=True):
    """A file of a member.

    Attributes:
        path: Absolute path.
        hash: Hash of its content, in hex digits (`contents.FileState`).
    """

    path: str
    hash: str


class PooledCase(Record, frozen=True, kw_only=True):
    """Where a case of a pool comes from.

    Attributes:
        name: The case in the pool.
        member: Name of the dataset.
        case: The case there.
        images: The files of its images.
        label: Its label map there, whose values may differ from the pool's.
    """

    name: str
    member: str
    case: str
    images: tuple[PooledFile, ...]
    label: PooledFile


class Pool(Artifact, frozen=True, kw_only=True):
    """How a pool was made.

    Attributes:
        added: The values of `--add`, in order.
        members: Name of each dataset -> its folder.
        dropped: Cases that were left out, since another member has the same image: "A/x = B/y".
        cases: The cases, sorted by name.
    """

    KIND: ClassVar[str] = "pool"

    added: tuple[str, ...]
    members: dict[str, str]
    dropped: tuple[str, ...] = ()
    cases: tuple[PooledCase, ...]

    def faults(self) -> Iterator[Fault]:
        """Yields cases that repeat, are of no member or have a name that is no file's."""
        seen: set[str] = set()
        for number, case in enumerate(self.cases):
            expected = name_problem(case.name) or ("another name" if case.name in seen else "")
            if expected:
                yield f"cases[{number}].name", unfit(case.name, expected)
            if case.member not in self.members:
                yield f"cases[{number}].member", unfit(case.member, "one of the members")
            seen.add(case.name)

    @property
    def files(self) -> Iterator[tuple[PooledCase, PooledFile]]:
        """All files of the members, with their cases."""
        return ((case, file) for case in self.cases for file in (*case.images, case.label))

    def again(self, folder: Path) -> str:
        """The command that makes the pool anew."""
        adds = [part for each in self.added for part in ("--add", each)]
        dropping = ["--drop-duplicates"] if self.dropped else []
        return command("pool", str(folder), options=[*adds, *dropping, "--overwrite"])


def read_pool(folder: Path) -> Pool | None:
    """Reads how the dataset in a folder was pooled; None if it is no pool.

    Raises:
        ArtifactError: pool.json is damaged.
    """
    path = folder / POOL_FILE
    return Pool.load(path) if path.exists() else None


def check_members(folder: Path, pool: Pool) -> None:
    """Refuses a pool with members whose files are not there any more.

    Args:
        folder: The pool's folder.
        pool: How it was made.

    Raises:
        DatasetError: Files are missing; the error names the first one.
    """
    missing = [(case, file) for case, file in pool.files if not Path(file.path).is_file()]
    refuse_members(folder, pool, missing, "is not there any more")


def refuse_members(
    folder: Path, pool: Pool, bad: Sequence[tuple[PooledCase, PooledFile]], what: str
) -> None:
    """Refuses a pool with files of members that are not as they were.

    Args:
        folder: The pool's folder.
        pool: How it was made.
        bad: These files with their cases; nothing is refused if there are none.
        what: What is wrong with them, in words.

    Raises:
        DatasetError: There are such files.
    """
    if bad:
        case, file = bad[0]
        more = f" ({len(bad)} files in all)" if len(bad) > 1 else ""
        raise DatasetError(
            f"{folder}: {case.member}, of which this pool was made, is not the same any more: "
            f"{file.path} {what}{more}.",
            hint=f"Put the files back, or make the pool anew: {pool.again(folder.absolute())}\n"
            "If the dataset was moved, give its new place there.",
        )
