"""Values on disk: strict JSON of frozen structs, written whole or not at all.

A `Record` is a frozen value. An `Artifact` is a record with a file of its own: the file starts with
`kind`, `schema`, `autoliver` (the version that wrote it) and `made_from` (name -> digest of what it
was made from), so that a stage can refuse inputs that do not belong together.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import msgspec

from autoliver.errors import ArtifactError, AutoliverError

R = TypeVar("R", bound="Record")

# errno values that mean the user's disk, not our code: full, over quota, read-only, not permitted,
# or a file where a folder should be
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST),
}


class Readable(Protocol):
    """A file: a path on disk, or a place in an archive. Its `str` names it in messages."""

    def read_bytes(self) -> bytes:
        """The content; FileNotFoundError where there is none."""
        ...


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value with named fields that has a strict JSON form.

    Attributes:
        TAG_IS_DEFAULT: Of a member of a tagged union: whether digests leave its tag out, as they
            leave out fields at their default.
        NOT_COUNTED: Fields that are written to the file but leave the digest of an artefact as it
            is, wherever in it the record stands.
    """

    TAG_IS_DEFAULT: ClassVar[bool] = False
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset()

    def replace(self, **changes: Any) -> Self:
        """This value with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Artifact(Record, frozen=True, kw_only=True):
    """A record with a file of its own.

    Attributes:
        made_from: Name -> digest of each artefact this one was computed from.
    """

    KIND: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    made_from: dict[str, str] = msgspec.field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the artefact as indented JSON, atomically."""
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of its file."""
        head = {"kind": self.KIND, "schema": self.SCHEMA, "autoliver": version("autoliver")}
        fields = msgspec.to_builtins(self)
        body = {**head, "made_from": fields.pop("made_from"), **fields}
        return msgspec.json.format(msgspec.json.encode(body), indent=1) + b"\n"

    @classmethod
    def load(cls, path: Readable, *, mend: str = "") -> Self:
        """Reads and checks an artefact.

        Args:
            path: The file.
            mend: The command that makes the file anew, for the hint of an error.

        Raises:
            ArtifactError: The file is missing, not JSON, of another kind or schema, or a field is
                missing, unknown or of the wrong type (the message names the field).
        """
        hint = f"Make it again with: {mend}" if mend else ""
        raw = read_json(path, hint=hint)
        if not isinstance(raw, dict) or raw.get("kind") != cls.KIND:
            found = raw.get("kind") if isinstance(raw, dict) else type(raw).__name__
            raise ArtifactError(
                f"{path}: expected a file of kind '{cls.KIND}', found {found!r}.", hint=hint
            )
        schema = raw.get("schema")
        if schema != cls.SCHEMA:
            if isinstance(schema, int) and schema > cls.SCHEMA:
                hint = f"Update autoliver. {hint}".strip()
            raise ArtifactError(
                f"{path}: written in schema {schema} by autoliver "
                f"{raw.get('autoliver')}; this version reads schema {cls.SCHEMA}.",
                hint=hint,
            )
        fields = {k: v for k, v in raw.items() if k not in ("kind", "schema", "autoliver")}
        return to_record(fields, cls, where=str(path), hint=hint)

    def digest(self) -> str:
        """Twelve hex digits of the content, whatever it was made from.

        A field at its default does not count: one that a later version adds changes nothing. Nor
        does a field that its record names in `NOT_COUNTED`.
        """
        # There and back first, as through a file: 8 in a field for a float becomes 8.0.
        same = msgspec.convert(msgspec.to_builtins(self), type(self))
        fields = _without_defaults(same)
        fields.pop("made_from", None)
        return digest(fields)


def _without_defaults(value: Any) -> Any:
    """A plain value, of each record only what counts and differs from its defaults."""
    if isinstance(value, Record):
        fields = [f for f in msgspec.structs.fields(value) if f.name not in value.NOT_COUNTED]
        pairs = ((field, getattr(value, field.name)) for field in fields)
        counted = {f.name: _without_defaults(v) for f, v in pairs if not _is_default(f, v)}
        return {**_tag(value), **counted}
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_defaults(item) for item in value]
    return value


def _tag(value: msgspec.Struct) -> dict[str, Any]:
    """What tells a member of a union apart from the others, unless it is the default one."""
    config = value.__struct_config__
    if config.tag_field is None or getattr(value, "TAG_IS_DEFAULT", False):
        return {}
    return {config.tag_field: config.tag}


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return bool(value == field.default)
    return field.default_factory is not msgspec.NODEFAULT and value == field.default_factory()


def to_record(fields: object, kind: type[R], *, where: str, hint: str = "") -> R:
    """Builds a record from plain JSON values, naming the field that does not fit.

    Raises:
        ArtifactError: As `Artifact.load`.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        place = place.strip("`") or "$"
        raise ArtifactError(f"{where}: {place}: {what}.", hint=hint) from None


def digest(value: object) -> str:
    """Twelve hex digits that identify a plain value, whatever the order of its keys."""
    text = msgspec.json.encode(msgspec.to_builtins(value), order="deterministic")
    return hashlib.sha256(text).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """The checksum of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_chain(artifact: Artifact, made_from: Mapping[str, str], *, where: str, mend: str) -> None:
    """Refuses an artefact that was made from something else than what is there now.

    Args:
        artifact: The artefact about to be used.
        made_from: Name -> digest of what there is now.
        where: The artefact's name for the message.
        mend: The command that makes the artefact again.

    Raises:
        ArtifactError: Naming the first input that changed, with both digests.
    """
    for name, now in made_from.items():
        then = artifact.made_from.get(name)
        if then != now:
            raise ArtifactError(
                f"{where} was made from another {name} ({then or 'none'} then, {now} now).",
                hint=f"Make it again with: {mend}",
            )


def read_json(path: Readable, *, hint: str = "") -> Any:
    """The plain value of a JSON file.

    Raises:
        ArtifactError: The file is missing or not JSON.
    """
    try:
        return msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file.", hint=hint) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}.", hint=hint) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; moved into place when the block ends.

    If the block raises, what was written is removed and whatever was at `path` stays.

    Raises:
        AutoliverError: The disk is full, read-only or not ours to write.
    """
    # The ending stays, since readers and writers of images go by it.
    beside = path.with_name(f".{uuid.uuid4().hex[:8]}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _flush(beside)
        if beside.is_dir() and path.is_dir():
            shutil.rmtree(path)
        beside.replace(path)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise disk_error(path, error) from error
        raise
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        AutoliverError: As `replacing`.
    """
    with replacing(path) as beside:
        beside.write_bytes(content)


def disk_error(path: Path, error: OSError) -> AutoliverError:
    """The user's view of a write that the disk refused."""
    hint = "Check the folder's permissions, or choose another one with --workspace."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = (
            "Free some space, or choose another disk with --workspace; "
            "then run the same command again: finished work is kept."
        )
    return AutoliverError(f"{path}: cannot be written: {error.strerror}.", hint=hint)


def _flush(path: Path) -> None:
    # Without it a power cut can leave the new name with no content.
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
