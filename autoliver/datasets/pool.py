"""pool.json: from which datasets a pool was made, and whether their files are still the same."""

from pathlib import Path
from typing import ClassVar

from autoliver.artifacts import Artifact, Record, file_sha256
from autoliver.commands import command
from autoliver.errors import DatasetError

POOL_FILE = "pool.json"


class PooledFile(Record, frozen=True, kw_only=True):
    """A file of a member.

    Attributes:
        path: Absolute path.
        size: Size in bytes.
        mtime_ns: Time of its last modification, in nanoseconds.
        sha256: SHA-256 of its content.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "PooledFile":
        """Returns the state of a file."""
        state = path.stat()
        return cls(
            path=str(path),
            size=state.st_size,
            mtime_ns=state.st_mtime_ns,
            sha256=file_sha256(path),
        )

    def problem(self) -> str:
        """Says in words why this is not the file any more; "" if it is."""
        path = Path(self.path)
        if not path.is_file():
            return "is not there any more"
        state = path.stat()
        if (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns):
            return ""
        same = state.st_size == self.size and file_sha256(path) == self.sha256
        return "" if same else "has changed"


class PooledCase(Record, frozen=True, kw_only=True):
    """Where a case of a pool comes from.

    Attributes:
        name: The case in the pool.
        member: Name of the dataset.
        case: The case there.
        images: Its images.
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

    def again(self, folder: Path) -> str:
        """The command that makes the pool anew."""
        adds = [part for each in self.added for part in ("--add", each)]
        dropping = ["--drop-duplicates"] if self.dropped else []
        return command("pool", str(folder), options=[*adds, *dropping, "--overwrite"])


def check_members(folder: Path) -> None:
    """Refuses a pool with members whose files were moved or changed since it was made.

    Args:
        folder: The folder of any dataset.

    Raises:
        DatasetError: There are such files; the error names the first one.
        ArtifactError: pool.json is damaged.
    """
    path = folder / POOL_FILE
    if not path.exists():
        return
    pool = Pool.load(path)
    bad = [
        (case, file, problem)
        for case in pool.cases
        for file in (*case.images, case.label)
        if (problem := file.problem())
    ]
    if bad:
        case, file, problem = bad[0]
        more = f" ({len(bad)} files in all)" if len(bad) > 1 else ""
        raise DatasetError(
            f"{folder}: {case.member}, of which this pool was made, is not the same any more: "
            f"{file.path} {problem}{more}.",
            hint=f"Put the files back, or make the pool anew: {pool.again(folder)}",
        )
