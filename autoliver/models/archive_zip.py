"""The zip under an exported model: read so that nothing in it can do harm, and checked.

No entry is compressed, so none is larger than what is there; a path inside never becomes a path on
disk before it is known to be harmless.
"""

import hashlib
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoliver.artifacts import Record
from autoliver.errors import ModelError

MANIFEST_FILE = "manifest.json"
AGAIN = "Copy it again from where it came, or export it again: autoliver export MODEL FILE"

_ZIP_MAGIC = b"PK\x03\x04"
_NAME_AT = 30  # bytes into a zip, where the name of its first entry stands
_MAX_JSON_BYTES = 64 * 2**20
_UTF8_NAME = 0x800
_DAMAGED = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error)


class Entry(Record, frozen=True, kw_only=True):
    """A file in an archive.

    Attributes:
        name: Its path inside.
        size: In bytes.
        sha256: Of its content.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    """An entry of a zip as it is, not yet compared with a manifest."""

    file: Path
    name: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.file}/{self.name}"

    def read_bytes(self) -> bytes:
        """The content; FileNotFoundError where there is none."""
        try:
            with zipfile.ZipFile(self.file) as archive:
                return archive.read(self.name)
        except KeyError:
            raise FileNotFoundError(str(self)) from None
        except _DAMAGED as error:
            raise ModelError(f"{self}: damaged: {error}.", hint=AGAIN) from None


@dataclass(frozen=True)
class ArchivePlace:
    """A file or folder in an archive; what is read from it is compared with the manifest.

    Attributes:
        file: The archive.
        at: The path inside, "" for the archive itself.
        entries: What the manifest states.
    """

    file: Path
    at: str
    entries: Mapping[str, Entry] = field(repr=False, compare=False)

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.file}/{self.at}"

    def __truediv__(self, name: str, /) -> "ArchivePlace":
        """What has this name in it."""
        return ArchivePlace(self.file, f"{self.at}/{name}" if self.at else name, self.entries)

    @property
    def name(self) -> str:
        """Its last part."""
        return self.at.rpartition("/")[2]

    @property
    def parent(self) -> "ArchivePlace":
        """The folder it is in."""
        return ArchivePlace(self.file, self.at.rpartition("/")[0], self.entries)

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            FileNotFoundError: The manifest states no such file.
            ModelError: The content is damaged.
        """
        if self.at not in self.entries:
            raise FileNotFoundError(str(self))
        content = StoredFile(self.file, self.at).read_bytes()
        if entry_of(self.at, content) != self.entries[self.at]:
            raise ModelError(
                f"{self}: damaged: its checksum is not what {MANIFEST_FILE} states.", hint=AGAIN
            )
        return content


def is_archive(path: Path) -> bool:
    """Whether a file is, or begins as, a model that autoliver exported."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_NAME_AT + len(MANIFEST_FILE))
    return head.startswith(_ZIP_MAGIC) and head[_NAME_AT:] == MANIFEST_FILE.encode()


def read_directory(file: Path) -> dict[str, int]:
    """Name -> size of the entries of a zip that can be read without harm.

    Raises:
        ModelError: The file is missing, damaged or no archive of ours, or an entry is unsafe.
    """
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file.", hint="Check the path.")
    if not is_archive(file):
        is_zip = zipfile.is_zipfile(file)
        raise ModelError(
            f"{file}: {'a zip, but ' if is_zip else ''}not a model that autoliver exported.",
            hint="Pass the file as `autoliver export` wrote it. Models of other tools are brought "
            "in with: autoliver import FILE",
        )
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except _DAMAGED:
        raise ModelError(f"{file}: cut short or damaged.", hint=AGAIN) from None
    seen: set[str] = set()
    for info in infos:
        problem = _problem(info)
        name = info.filename.casefold()  # some file systems take "Runs" for "runs"
        if not problem and name in seen:
            problem = "is there twice"
        if problem:
            raise ModelError(f"{file}: the entry {info.orig_filename!r} {problem}.", hint=AGAIN)
        seen.add(name)
    # Entries that overlap are how a small zip becomes a large one without compression.
    size = file.stat().st_size
    ends = [info.header_offset + info.file_size for info in infos if info.header_offset >= 0]
    if len(ends) < len(infos) or max(ends) > size or sum(i.file_size for i in infos) > size:
        raise ModelError(f"{file}: its entries state more bytes than it has.", hint=AGAIN)
    return {info.filename: info.file_size for info in infos}


def _problem(info: zipfile.ZipInfo) -> str:
    """What makes an entry one that we did not write; "" if nothing does."""
    name = info.orig_filename
    if name.startswith("/") or ".." in name.split("/") or re.search(r"[\\:\x00-\x1f]", name):
        return "has a path that leads out of the archive's folder"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & ~_UTF8_NAME or info.compress_type != zipfile.ZIP_STORED:
        return "is compressed or encrypted"
    if name.endswith(".json") and info.file_size > _MAX_JSON_BYTES:
        return f"has {info.file_size} bytes"
    return ""


def entry_of(name: str, content: bytes) -> Entry:
    """What a manifest states of a file."""
    return Entry(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def entry_info(name: str) -> zipfile.ZipInfo:
    """How a file is stored."""
    info = zipfile.ZipInfo(name)  # its date is always 1980, so that the bytes do not vary
    info.external_attr = 0o644 << 16
    return info
