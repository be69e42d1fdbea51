"""Values on disk: frozen structs as strict JSON, written atomically.

A `Record` is a frozen value. An `Artifact` is a record that is stored in its own file. The file
starts with `kind`, `schema`, `autoliver` (the version that wrote it) and `made_from` (name ->
digest of what it was made from), so that a stage can refuse inputs that do not belong together.
"""

import codecs
import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import re
import reprlib
import shutil
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import msgspec

from autoliver.errors import ArtifactError, AutoliverError
from autoliver.system import (
    exchange,
    in_words,
    is_running,
    open_file,
    read_whole,
    refuse_special,
    system_error,
)
from autoliver.values import another, shortened

A = TypeVar("A", bound="Artifact")
R = TypeVar("R", bound="Record")
S = TypeVar("S", bound=msgspec.Struct)
# A field that does not go with others, and what is wrong with it: "found X, expected Y".
Fault = tuple[str, str]

# Marks at the start of a text file, and where the first bytes are zero without one. UTF-32 comes
# first, since its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_ZEROS = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True): "utf-16-le",
    (True, False): "utf-16-be",
}
# How the fields of a result are shown: some entries of long ones, some characters of each.
_SHOWN = reprlib.Repr()
_SHOWN.maxtuple = _SHOWN.maxlist = _SHOWN.maxdict = 3
_SHOWN.maxstring = _SHOWN.maxother = 70
# errno values of file systems that have no fsync.
_WITHOUT_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# The names of what is not yet whole, and what they match.
_PARTIAL_NAME = ".{}.partial.{}"
PARTIAL = re.compile(
    r"\.[0-9a-f]{8}(?:-(?P<machine>[0-9a-f]{8})-(?P<process>[0-9a-f]+))?\.partial\..*"
)
# A folder that is about to be replaced, where the system cannot exchange two. It is whole, so that
# its name must not match that of what is not.
_ASIDE_NAME = ".{}.aside.{}"
# What a process of another machine has not touched for so long is taken for left.
_LEFT_SECONDS = 86_400.0
_RESTORE = "Restore it from a copy, or remove it and run the command that made it again."
# The folders in which this process has removed what dead ones have left, and what it is writing.
_swept: set[tuple[int, Path]] = set()
_written: set[str] = set()
_sweeping = threading.Lock()
# The last artefact of a kind that `save_growing` wrote, its path and the state of its file.
_grown: dict[type["Artifact"], tuple[Path, tuple[int, ...], "Artifact"]] = {}
# Characters at the end of a name that hold the ending of every type of file.
_ENDING = 16
# Spreadsheets run a cell that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@")


def brief(value: Any) -> str:
    """Returns a text for a record or dataclass that fits on a screen, for `__repr__`.

    Long fields are shortened, and empty ones are left out.
    """
    names = getattr(value, "__struct_fields__", None) or value.__dataclass_fields__
    fields = {name: getattr(value, name) for name in names if name != "made_from"}
    shown = [f"{n}={_SHOWN.repr(f)}" for n, f in fields.items() if not _is_empty(f)]
    return f"{type(value).__name__}({', '.join(shown)})"


def _is_empty(field: object) -> bool:
    return field is None or (isinstance(field, str | tuple | list | dict) and not field)


class Readable(Protocol):
    """A file on disk or a member of an archive; messages name it by its `str`."""

    def read_bytes(self) -> bytes:
        """Returns the content; raises FileNotFoundError if the file does not exist."""
        ...


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value with named fields that has a strict JSON form.

    Attributes:
        TAG_IS_DEFAULT: For a member of a tagged union: whether digests leave out its tag, just as
            they leave out fields that have their default value.
        NOT_COUNTED: Fields that are written to the file but left out of digests, both of this
            record and of artefacts that contain it.
    """

    TAG_IS_DEFAULT: ClassVar[bool] = False
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset()

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with values that are of the right types, each for itself.

        Values are compared with each other and with what they may be at all. An artefact is
        checked by this when it is loaded, before anything is done with it.
        """
        yield from ()


class Artifact(Record, frozen=True, kw_only=True):
    """A record that is stored in its own file.

    Attributes:
        KIND: The type of artefact, as written to the file.
        SCHEMA: The version of the file's format; files of other versions are refused.
        made_from: Name -> digest of each artefact that this one was computed from.
    """

    KIND: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    made_from: dict[str, str] = msgspec.field(default_factory=dict)

    __repr__ = brief

    def save(self, path: Path) -> None:
        """Writes the artefact as indented JSON, atomically."""
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Returns the content of the artefact's file."""
        head = {"kind": self.KIND, "schema": self.SCHEMA, "autoliver": version("autoliver")}
        fields = msgspec.to_builtins(self)
        body = {**head, "made_from": fields.pop("made_from"), **fields}
        return as_json(body)

    @classmethod
    def load(cls, path: Readable, *, mend: str = "", hint: str = "") -> Self:
        """Reads and checks an artefact.

        Args:
            path: The file.
            mend: The command that makes the file again, for the hint of an error; empty if there
                is none, so that a file on disk has to be restored.
            hint: What to do instead, in a sentence.

        Raises:
            ArtifactError: The file is missing, is not JSON, or has another kind or schema; or a
                field is missing, unknown or of the wrong type (the message names the field).
        """
        if mend:
            hint = f"Make it again with: {mend}"
        elif not hint and isinstance(path, Path):
            hint = _RESTORE
        raw = read_json(path, hint=hint)
        if not isinstance(raw, dict) or raw.get("kind") != cls.KIND:
            found = raw.get("kind") if isinstance(raw, dict) else type(raw).__name__
            raise ArtifactError(
                f"{path}: expected a file of kind '{cls.KIND}', found {_SHOWN.repr(found)}.",
                hint=hint,
            )
        schema = raw.get("schema")
        if schema != cls.SCHEMA:
            if isinstance(schema, int) and schema > cls.SCHEMA:
                hint = f"Update autoliver. {hint}".strip()
            by = f"schema {schema} by autoliver {raw.get('autoliver')}"
            raise ArtifactError(
                f"{path}: written in {shortened(by, _SHOWN.maxstring)}; this version reads schema "
                f"{cls.SCHEMA}.",
                hint=hint,
            )
        fields = {k: v for k, v in raw.items() if k not in ("kind", "schema", "autoliver")}
        return refuse_faults(to_record(fields, cls, where=str(path), hint=hint), path, hint=hint)

    def digest(self) -> str:
        """Returns a hash of the content, without `made_from`, as twelve hex digits.

        Fields that have their default value are left out, so that a field added by a later version
        does not change the digest. Fields that a record lists in `NOT_COUNTED` are left out as
        well.
        """
        # Converted as if written to a file and read again: an 8 in a float field becomes 8.0.
        same = msgspec.convert(msgspec.to_builtins(self), type(self))
        fields = _without_defaults(same)
        fields.pop("made_from", None)
        return digest(fields)


def save_growing(artifact: Artifact, path: Path) -> None:
    """Writes an artefact that is written again after each case, for `grown`."""
    with replacing(path) as beside:
        beside.write_bytes(artifact.to_bytes())
        state = _file_state(beside)
    _grown[type(artifact)] = (path, state, artifact)


def grown(kind: type[A], path: Path) -> A | None:
    """Returns an artefact that `save_growing` has written and nobody has replaced since.

    To read a long record again before each addition takes four times as long as to write it.

    Args:
        kind: The type of artefact.
        path: The file.

    Returns:
        The artefact; None if the file has to be read.
    """
    known = _grown.get(kind)
    if known is None or known[0] != path or not isinstance(known[2], kind):
        return None
    try:
        return known[2] if _file_state(path) == known[1] else None
    except FileNotFoundError:
        return None


def _file_state(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:  # an open one: NFS may keep what it told of others for a while
        state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _without_defaults(value: Any) -> Any:
    """Converts to a plain value; keeps only fields that count and differ from their defaults."""
    if isinstance(value, Record):
        pairs = ((field, getattr(value, field.name)) for field in _counted_fields(type(value)))
        counted = {f.name: _without_defaults(v) for f, v in pairs if not _is_default(f, v)}
        return {**_tag(value), **counted}
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_defaults(item) for item in value]
    return value


@functools.cache
def _counted_fields(kind: type[Record]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Returns the fields that count in digests; evaluating their annotations takes long."""
    return tuple(f for f in msgspec.structs.fields(kind) if f.name not in kind.NOT_COUNTED)


def _tag(value: msgspec.Struct) -> dict[str, Any]:
    """Returns the tag of a member of a union; empty if it has none or its tag is the default."""
    config = value.__struct_config__
    if config.tag_field is None or getattr(value, "TAG_IS_DEFAULT", False):
        return {}
    return {config.tag_field: config.tag}


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return bool(value == field.default)
    return field.default_factory is not msgspec.NODEFAULT and value == field.default_factory()


def to_record(fields: object, kind: type[R], *, where: str, hint: str = "") -> R:
    """Builds a record from plain JSON values.

    Args:
        fields: The values.
        kind: The type of record to build.
        where: The origin of the values, for the message.
        hint: The hint of an error; empty for no hint.

    Raises:
        ArtifactError: A field is missing, unknown or of the wrong type (the message names the
            field).
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        place = place.strip("`") or "$"
        raise ArtifactError(f"{where}: {place}: {what}.", hint=hint) from None
    except AutoliverError as error:  # from the checks of options that a record makes itself
        raise ArtifactError(f"{where}: {error.problem}", hint=hint or error.hint) from None


def refuse_faults(record: R, where: object, *, hint: str = "") -> R:
    """Refuses a record whose values do not go together, and returns any other.

    Args:
        record: The record.
        where: The origin of the values, for the message.
        hint: The hint of an error; empty for no hint.

    Raises:
        ArtifactError: The first of `Record.faults`.
    """
    for field, problem in record.faults():
        raise ArtifactError(f"{where}: {field}: {problem}.", hint=hint)
    return record


def within(place: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    """Yields the faults of a part of a record, named by where the part is."""
    return ((f"{place}.{field}", problem) for field, problem in faults)


def unfit(found: object, expected: str) -> str:
    """Returns what is wrong with a field: what was found there, shortened, and expected."""
    return f"found {_SHOWN.repr(found)}, expected {expected}"


def digest(value: object) -> str:
    """Returns a hash of a plain value as twelve hex digits; the order of keys does not matter."""
    text = msgspec.json.encode(msgspec.to_builtins(value), order="deterministic")
    return hashlib.sha256(text).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 checksum of a file's content as 64 hex digits."""
    with in_words(path, verb="read"), open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_chain(artifact: Artifact, made_from: Mapping[str, str], *, where: str, mend: str) -> None:
    """Refuses an artefact whose inputs have changed since it was made.

    Args:
        artifact: The artefact that is about to be used.
        made_from: Name -> current digest of each input to compare.
        where: The artefact's name, for the message.
        mend: The command that makes the artefact again.

    Raises:
        ArtifactError: An input has changed. The error names the first such input, with both
            digests.
    """
    for name, now in made_from.items():
        then = artifact.made_from.get(name)
        if then != now:
            raise ArtifactError(
                f"{where} was made from {another(name)} ({then or 'none'} then, {now} now).",
                hint=f"Make it again with: {mend}",
            )


def as_json(value: object) -> bytes:
    """Returns the content of a JSON file for people to read: one entry a line."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def read_json_by_hand(path: Path) -> Any:
    """Reads a JSON file that a person may have written.

    Raises:
        ArtifactError: As for `read_json`.
    """
    return read_json(path, twice="Keep one of them; only the last would count.")


def read_json(path: Readable, *, hint: str = "", twice: str = "") -> Any:
    """Reads the plain value of a JSON file.

    Args:
        path: The file.
        hint: The hint of an error; empty for no hint.
        twice: The hint if a key is there twice; empty for `hint`.

    Raises:
        ArtifactError: The file is missing, is not JSON in a Unicode encoding, is nested too deeply,
            or has a key twice in one object.
    """
    try:
        content = content_of(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file.", hint=hint) from None
    try:
        return json_value(content, where=str(path), hint=hint, twice=twice)
    except ArtifactError:
        byte = _not_utf8(content)
        if byte is not None:
            raise ArtifactError(
                f"{path}: its encoding is not UTF-8: {byte}.",
                hint="Open it in a text editor, check its letters, and save it as UTF-8.",
            ) from None
        raise


def json_value(content: bytes, *, where: str, hint: str = "", twice: str = "") -> Any:
    """Returns the plain value of JSON; all JSON that others may have written is read by it.

    Args:
        content: The JSON, in a Unicode encoding.
        where: The origin of the content, for the message.
        hint: The hint of an error; empty for no hint.
        twice: The hint if a key is there twice; empty for `hint`.

    Raises:
        ArtifactError: It is not JSON, is nested too deeply, or has a key twice in one object.
    """

    def once(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            name = next(name for name, count in Counter(names).items() if count > 1)
            raise ArtifactError(
                f"{where}: the key {_SHOWN.repr(name)} is there twice in one object.",
                hint=twice or hint,
            )

    try:
        text = _as_utf8(content)
        value = msgspec.json.decode(text)
        json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ArtifactError(f"{where}: nested too deeply to be read.", hint=hint) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ArtifactError(f"{where}: not valid JSON: {error}.", hint=hint) from None
    return value


def json_line(line: bytes, kind: type[S]) -> S | None:
    """Returns the value in a line of a log; None if it cannot be read, such as one cut short."""
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _not_utf8(content: bytes) -> str | None:
    """Where a JSON file in an encoding of single bytes is no UTF-8; None if it is no such file."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            msgspec.json.decode(content.decode("latin-1").encode())
            line = content.count(b"\n", 0, error.start) + 1
            return f"byte 0x{content[error.start]:02x} in line {line}, as Latin-1 has it"
    return None


def content_of(path: Readable) -> bytes:
    """Returns the content of a file, or of a member of an archive.

    Raises:
        FileNotFoundError: There is no such file.
        MachineError: The system refuses to read it; the error names the file.
    """
    return read_whole(path) if isinstance(path, Path) else path.read_bytes()


def _as_utf8(content: bytes) -> bytes:
    """The content of a text file as UTF-8 without a mark, as which editors may not have saved it.

    UTF-16 and UTF-32 are recognised by their mark, or by the zeros beside a first character that is
    ASCII, which it is in JSON.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding).encode()
    for zeros, encoding in _ZEROS.items():
        if tuple(not byte for byte in content[: len(zeros)]) == zeros:
            return content.decode(encoding).encode()
    return content


def sweep(folder: Path) -> None:
    """Removes what killed commands have left half written in a folder and the folders in it.

    Only for folders that one process at a time writes to: what another one writes is removed too.
    """
    for path in folder.rglob(".*"):
        if PARTIAL.fullmatch(path.name):
            _remove(path)


@contextlib.contextmanager
def replacing(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Replaces a file atomically, and a folder where the system can exchange two.

    The block writes to a temporary path in the same folder, which is moved to `path` when the block
    ends. If the block raises, what it wrote is removed and whatever was at `path` stays.

    Args:
        path: The file or folder.
        alone: Whether no other process can be replacing it (see `locks.only_writing`): then what
            one that was killed has left is removed first.

    Yields:
        The temporary path.

    Raises:
        MachineError: The system refuses to write, e.g. because the disk is full; or there is a
            device or a pipe at `path`.
    """
    # The file ending is kept, since image readers and writers choose the format by it, some of them
    # only in lower case; the rest is short, so that every name that fits a disk can be written.
    # Nothing before it may look like an ending: ITK writes x.nii.gz for x.nii.nii.gz.
    suffixes = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    ending = "".join(suffixes).lower()[-_ENDING:].removeprefix(".")
    token = digest(path.name)[:8] if alone else _token()
    beside = path.with_name(_PARTIAL_NAME.format(token, ending))
    aside = path.with_name(_ASIDE_NAME.format(token, ending))
    _written.add(beside.name)
    try:
        refuse_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_dead(path.parent)
        if alone:
            _remove(beside)
            _bring_back(aside, path)
        yield beside
        _flush(beside)
        if not (beside.is_dir() and path.is_dir()):
            beside.replace(path)
        elif not exchange(beside, path):
            path.replace(aside)
            beside.replace(path)
            _remove(aside)
    except OSError as error:
        told = system_error(error, _named(error, beside, path), verb="written")
        if told is None:
            raise
        raise told from error
    finally:
        # A disk that fails here as well must not hide the first error.
        with contextlib.suppress(OSError):
            _bring_back(aside, path)
        with contextlib.suppress(OSError):
            _remove(beside)
        _written.discard(beside.name)


@functools.cache
def machine_key() -> str:
    """What tells machines apart, whose names may be equal, and containers on one of them."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):  # they are there on Linux alone
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(Path("/proc/self/ns/pid").readlink().name)
    return digest(known)[:8]


def _token() -> str:
    """A name for what this process is about to write, from which others can tell that it died."""
    return f"{uuid.uuid4().hex[:8]}-{machine_key()}-{os.getpid():x}"


def _sweep_dead(folder: Path) -> None:
    """Removes what dead processes have left half written in a folder, once per process."""
    with _sweeping:
        key = (os.getpid(), folder)
        if key in _swept:
            return
        _swept.add(key)
        with contextlib.suppress(OSError):  # it may not be listed, or others do the same
            with os.scandir(folder) as found:
                names = [match[0] for entry in found if (match := PARTIAL.fullmatch(entry.name))]
            for name in names:
                if is_left(folder / name):
                    _remove(folder / name)


def remove_folder(path: Path) -> None:
    """Removes a folder; what a kill leaves of it has the name of what is not whole.

    Raises:
        OSError: The system refuses to remove it.
    """
    rest = path.with_name(_PARTIAL_NAME.format(_token(), "gone"))
    path.rename(rest)
    shutil.rmtree(rest)


def is_left(path: Path) -> bool:
    """Whether the process that was writing a file or folder is dead, as far as can be told here."""
    written = PARTIAL.fullmatch(path.name)
    if written is None or not written["process"]:
        return False
    own = (machine_key(), f"{os.getpid():x}")
    if (written["machine"], written["process"]) == own:  # or its number was that of an earlier one
        return path.name not in _written
    return has_ended(path, written["machine"], written["process"])


def has_ended(path: Path, machine: str, process: str) -> bool:
    """Whether the process that a file's name tells of has ended, as far as can be told here.

    Args:
        path: The file, which says when the process of another machine was last there.
        machine: The `machine_key` of the process.
        process: Its number, in hexadecimal digits.
    """
    if machine != machine_key():
        return time.time() - path.lstat().st_mtime > _LEFT_SECONDS
    return not is_running(int(process, 16))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _bring_back(aside: Path, path: Path) -> None:
    """Undoes the first half of an exchange in two steps whose process died between them."""
    if not os.path.lexists(aside):
        return
    if path.exists():
        _remove(aside)
    else:
        aside.replace(path)


def _named(error: OSError, beside: Path, path: Path) -> str | Path:
    """What an error in `replacing` is about: another file that it names, or the path itself."""
    named = error.filename if isinstance(error.filename, str) else ""
    return path if not named or named.startswith(str(beside)) else named


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically.

    Raises:
        MachineError: The system refuses to write, e.g. because the disk is full.
    """
    with replacing(path) as beside:
        beside.write_bytes(content)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Returns the content of a CSV file; every table is written by it.

    Args:
        rows: The cells, the head first. Texts are changed by `text_cell`, so that names that data
            brought run nowhere; numbers stay as they are, and None is an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([text_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def text_cell(text: str) -> str:
    """A text for a cell of a CSV file that no spreadsheet takes for a formula or for two rows."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _flush(path: Path) -> None:
    # Without this, a power cut can leave a file of the new name without content. The folder is not
    # flushed, which takes 2 to 8 ms (docs/RELIABILITY.md): the old file may come back, whole.
    if path.is_file():
        with path.open("rb") as file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in _WITHOUT_FSYNC:
                    raise
