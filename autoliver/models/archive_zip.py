"""Reads the zip file of an exported model safely and checks its content.

No entry may be compressed, so none can be larger than the file itself. A path inside the zip is
used as a path on disk only after it was checked.
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
from autoliver.system import in_words, raise_refusal

MANIFEST_FILE = "manifest.json"
AGAIN = "Copy it again from its source, or export it again: autoliver export MODEL FILE"

_ZIP_MAGIC = b"PK\x03\x04"
_NAME_AT = 30  # offset in bytes of the name of a zip's first entry
_MAX_JSON_BYTES = 64 * 2**20
_UTF8_NAME = 0x800
_DAMAGED = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error)


class Entry(Record, frozen=True, kw_only=True):
    """A file in an archive, as the manifest records it.

    Attributes:
        name: The file's path inside the archive.
        size: Size in bytes.
        sha256: SHA-256 of the content.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    """An entry of a zip whose content is not compared with a manifest.

    Attributes:
        file: The zip.
        name: The entry's path inside.
    """

    file: Path
    name: str

    def __str__(self) -> str:
        """Returns the name used in messages."""
        return f"{self.file}/{self.name}"

    def read_bytes(self) -> bytes:
        """Reads the content.

        Raises:
            FileNotFoundError: The zip has no such entry.
            ModelError: The zip is damaged.
        """
        try:
            with zipfile.ZipFile(self.file) as archive:
                return archive.read(self.name)
        except KeyError:
            raise FileNotFoundError(str(self)) from None
        except _DAMAGED as error:
            raise_refusal(self.file, error)
            raise ModelError(f"{self}: damaged: {error}.", hint=AGAIN) from None


@dataclass(frozen=True)
class ArchivePlace:
    """A file or folder in an archive; content that is read is compared with the manifest.

    Attributes:
        file: The archive.
        at: The path inside; "" for the archive itself.
        entries: The manifest's entries by name.
    """

    file: Path
    at: str
    entries: Mapping[str, Entry] = field(repr=False, compare=False)

    def __str__(self) -> str:
        """Returns the name used in messages."""
        return f"{self.file}/{self.at}"

    def __truediv__(self, name: str, /) -> "ArchivePlace":
        """Returns the file or folder of this name inside it."""
        return ArchivePlace(self.file, f"{self.at}/{name}" if self.at else name, self.entries)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.at.rpartition("/")[2]

    @property
    def parent(self) -> "ArchivePlace":
        """The folder that contains it."""
        return ArchivePlace(self.file, self.at.rpartition("/")[0], self.entries)

    def read_bytes(self) -> bytes:
        """Reads the content and checks it.

        Raises:
            FileNotFoundError: The manifest lists no such file.
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
    """Whether a file starts like a model that autoliver exported; the rest is not checked."""
    if not path.is_file():
        return False
    with in_words(path, verb="read"), path.open("rb") as file:
        head = file.read(_NAME_AT + len(MANIFEST_FILE))
    return head.startswith(_ZIP_MAGIC) and head[_NAME_AT:] == MANIFEST_FILE.encode()


def read_directory(file: Path) -> dict[str, int]:
    """Lists the entries of a zip after checking that each can be read safely.

    Args:
        file: The zip.

    Returns:
        Name of the entry -> size in bytes.

    Raises:
        ModelError: The file is missing, damaged or not written by autoliver, or an entry is unsafe.
    """
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file.", hint="Check the path.")
    if not is_archive(file):
        is_zip = zipfile.is_zipfile(file)
        raise ModelError(
            f"{file}: {'a zip, but ' if is_zip else ''}not a model that autoliver exported.",
            hint="Pass the unchanged file that `autoliver export` wrote. To import a model of "
            "another tool: autoliver import FILE",
        )
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except _DAMAGED as error:
        raise_refusal(file, error)
        raise ModelError(f"{file}: cut short or damaged.", hint=AGAIN) from None
    seen: set[str] = set()
    for info in infos:
        problem = _problem(info)
        name = info.filename.casefold()  # some file systems do not tell "Runs" from "runs"
        if not problem and name in seen:
            problem = "occurs twice"
        if problem:
            raise ModelError(f"{file}: the entry {info.orig_filename!r} {problem}.", hint=AGAIN)
        seen.add(name)
    # Overlapping entries would let a small zip unpack to a large size without compression.
    size = file.stat().st_size
    ends = [info.header_offset + info.file_size for info in infos if info.header_offset >= 0]
    if len(ends) < len(infos) or max(ends) > size or sum(i.file_size for i in infos) > size:
        raise ModelError(f"{file}: its entries state more bytes than it has.", hint=AGAIN)
    return {info.filename: info.file_size for info in infos}


def _problem(info: zipfile.ZipInfo) -> str:
    """Describes why an entry cannot come from an export of autoliver; "" if it can."""
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
    """Makes the manifest's record of a file."""
    return Entry(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def entry_info(name: str) -> zipfile.ZipInfo:
    """Makes the zip entry under which a file is stored."""
    info = zipfile.ZipInfo(name)  # the date defaults to 1980, so that the bytes do not vary
    info.external_attr = 0o644 << 16
    return info
