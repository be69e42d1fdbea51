"""Stores preprocessed cases on disk: compressed, readable patch by patch, each complete or absent.

A case is `<case>.image.b2nd`, `<case>.label.b2nd`, `<case>.npz` (locations) and `<case>.json`,
which is written last and records the sizes of the others. A case without it, or with a file of
another size, is unfinished.
"""

import contextlib
import io
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Artifact, check_chain, digest, write_bytes
from autoliver.commands import command, remove
from autoliver.datasets.cases import CaseFacts, Labels, unknown_values
from autoliver.errors import ArtifactError, DatasetError
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Plan
from autoliver.preprocessing.case import CaseProperties, Preprocessed
from autoliver.system import entries, raise_refusal, read_whole

T = TypeVar("T", bound=np.generic)
Locations = dict[int, npt.NDArray[np.int32]]

# To be raised when preprocessing gives other values for the same settings, so that stores written
# before are not used any more.
SCHEMA = 1

# Every file's name says what it is, so that no name of a case makes it look like another's.
_IMAGE, _LABEL = ".image.b2nd", ".label.b2nd"
_STORE_FILE = "store.json"
# 64 KB of float32: of 64 to 256 KB this reads patches fastest, at the same compression.
_BLOCK_VOXELS = 1 << 14
# Every chunk, however small, costs some 30 bytes and a search.
_LEAST_SIDE = 16


class StoreInfo(Artifact, frozen=True, kw_only=True):
    """The description of a store, in its `store.json`.

    Attributes:
        dataset: The dataset's name, for messages.
    """

    KIND: ClassVar[str] = "store"

    dataset: str


class CaseFile(Artifact, frozen=True, kw_only=True):
    """The JSON file of a stored case; it is written last, so it marks the case as finished.

    Attributes:
        properties: The case's properties.
        sizes: File name -> size in bytes, for the case's other files.
    """

    KIND: ClassVar[str] = "stored case"

    properties: CaseProperties
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True)
class StoredArray(Generic[T]):
    """An array on disk; reading a slice decompresses only the blocks that the slice touches.

    The file is opened for every slice (0.17 ms, against 1.6 ms to read 64^3 voxels). If files were
    held open, two per case, 500 cases would exceed the open-file limit of a process. It also makes
    the object picklable.

    Attributes:
        path: The file.
        shape: (c, z, y, x).
        dtype: Type of the values.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: "np.dtype[T]"

    def __getitem__(self, key: Any) -> npt.NDArray[T]:
        """Reads a part into memory; `[:]` reads the whole array.

        Raises:
            ArtifactError: The file is damaged.
        """
        array = _open(self.path)
        try:
            return np.asarray(array[key], dtype=self.dtype)
        except RuntimeError as error:
            raise _damaged(self.path, str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCase:
    """An opened case of the store; its arrays stay on disk.

    Attributes:
        image: (c, z, y, x), float32.
        label: (1, z, y, x), signed; None for a case without a label.
        previous: (1, z, y, x), the label map of a cascade's first stage; None without a cascade.
        properties: The case's properties.
        locations: Label value -> (n, 3) positions (z, y, x) on which patches can be centred.
        facts: What the dataset records about the case.
    """

    image: StoredArray[np.float32]
    label: StoredArray[np.signedinteger] | None
    previous: StoredArray[np.signedinteger] | None = None
    properties: CaseProperties
    locations: Locations
    facts: CaseFacts

    @property
    def name(self) -> str:
        """The case's name."""
        return self.properties.name

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing (z, y, x) of its arrays."""
        return self.properties.spacing_mm


def store_key(plan: Plan, name: ConfigurationName) -> str:
    """Returns the name of a configuration's store: a digest of all that shapes the stored data.

    Args:
        plan: The plan.
        name: The configuration's name.

    Returns:
        Twelve hex digits; equal for two plans with the same preprocessing, whatever else differs.
    """
    configuration = plan.configurations[name]
    schemes = configuration.normalization
    oriented = {"axis_codes": plan.axis_codes} if plan.axis_codes else {}
    late = {"normalize_last": True} if configuration.normalize_after_resampling else {}
    return digest(
        {
            "schema": SCHEMA,
            "transpose": plan.transpose_forward,
            "spacing_mm": configuration.spacing_mm,
            "normalization": schemes,
            "mask_norm": configuration.mask_norm,
            "intensities": [
                stats if scheme == "ct" else None
                for stats, scheme in zip(plan.intensities, schemes, strict=True)
            ],
            # Locations are drawn for each label value.
            "values": sorted(plan.labels.allowed),
            "ignore": plan.labels.ignore,
            **oriented,
            **late,
        }
    )


def open_store(folder: Path, *, key: str, dataset: str) -> StoreInfo:
    """Opens a store after checking that it has the given key; creates it if it does not exist.

    Args:
        folder: The store's folder.
        key: The expected `store_key`.
        dataset: The dataset's name.

    Returns:
        The store's description.

    Raises:
        ArtifactError: The store is damaged, or was made with other settings.
    """
    path = folder / _STORE_FILE
    chain = {"preprocessing": key}
    if not path.exists():
        StoreInfo(dataset=dataset, made_from=chain).save(path)
    # The command alone would fail on the same folder again.
    mend = f"{remove(folder)} && {_command(folder, dataset)}"
    info = StoreInfo.load(path, mend=mend)
    check_chain(info, chain, where=str(folder), mend=mend)
    return info


def write_case(
    folder: Path,
    case: Preprocessed,
    locations: Mapping[int, npt.NDArray[np.int32]],
    *,
    patch_shape: Sequence[int],
    files: str = "",
) -> None:
    """Adds a case to the store, or replaces it.

    Args:
        folder: The store's folder.
        case: The preprocessed case.
        locations: Label value -> (n, 3) positions (z, y, x).
        patch_shape: 2 or 3 values: the patch read at a time; sets the size of the blocks.
        files: State of the files that the case was made from (`Case.files`).

    Raises:
        DatasetError: The case has a name that the store uses itself.
        AutoliverError: The disk is full, read-only or not writable for this user.
    """
    name = case.properties.name
    final = _case_file(folder, name)
    if final.name == _STORE_FILE:
        raise DatasetError(
            f"{name}: a case cannot have this name.", hint="Rename its image and label files."
        )
    makers: dict[str, Callable[[], bytes]] = {
        f"{name}{_IMAGE}": lambda: compress(case.image, patch_shape),
        f"{name}.npz": lambda: _pack(locations),
    }
    label = case.label
    if label is not None:
        makers[f"{name}{_LABEL}"] = lambda: compress(label, patch_shape)
    final.unlink(missing_ok=True)
    sizes = {}
    for file, make in makers.items():  # one after the other, since each is held as a whole
        content = make()
        write_bytes(folder / file, content)
        sizes[file] = len(content)
    CaseFile(made_from={"files": files}, properties=case.properties, sizes=sizes).save(final)


def read_case(folder: Path, name: str, facts: CaseFacts | None = None) -> StoredCase:
    """Opens a case and reads its properties and locations, but not its arrays.

    Args:
        folder: The store's folder.
        name: The case's name.
        facts: What the dataset records about the case; None: its name alone.

    Raises:
        ArtifactError: The case is missing, unfinished or damaged.
    """
    file = CaseFile.load(_case_file(folder, name), mend=_mend(folder))
    _check_sizes(folder, file, name)
    label = f"{name}{_LABEL}"
    return StoredCase(
        image=open_array(folder / f"{name}{_IMAGE}"),
        label=open_array(folder / label) if label in file.sizes else None,
        properties=file.properties,
        locations=_unpack(folder / f"{name}.npz"),
        facts=facts or CaseFacts.named(name),
    )


def known_places(case: StoredCase, labels: Labels) -> StoredCase:
    """Returns a case whose patches are not centred on values of labels that are unknown in it."""
    unknown = unknown_values(case.facts, labels)
    locations = {value: found for value, found in case.locations.items() if value not in unknown}
    return replace(case, locations=locations) if unknown else case


def only_places(case: StoredCase, values: Collection[int]) -> StoredCase:
    """Returns a case whose patches on foreground are centred on some label values alone."""
    return replace(case, locations={v: c for v, c in case.locations.items() if v in values})


def finished_cases(folder: Path) -> dict[str, str]:
    """Finds the complete cases of a store.

    Args:
        folder: The store's folder; it need not exist.

    Returns:
        Case name -> state of the files that the case was made from (`Case.files`).
    """
    names = {path.stem for path in entries(folder, "*.json") if path.name != _STORE_FILE}
    found = {name: _made_from(folder, name) for name in sorted(names)}
    return {name: files for name, files in found.items() if files is not None}


def is_finished(folder: Path, name: str, files: str) -> bool:
    """Whether a case of a store is complete, and was made from files in a state (`Case.files`)."""
    return _made_from(folder, name) == files


def _made_from(folder: Path, name: str) -> str | None:
    try:
        file = CaseFile.load(_case_file(folder, name))
        _check_sizes(folder, file, name)
    except ArtifactError:
        return None
    return file.made_from.get("files", "")


def _check_sizes(folder: Path, file: CaseFile, name: str) -> None:
    if f"{name}{_IMAGE}" not in file.sizes:
        raise ArtifactError(
            f"{_case_file(folder, name)}: written by an earlier version, under other file names.",
            hint=f"Make it again with: {_mend(folder)}",
        )
    # This also prevents a crash: reading a memory map of a truncated file ends the process.
    for part, size in file.sizes.items():
        path = folder / part
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise ArtifactError(
                f"{path}: this part of case {name} is cut short: {found} bytes, expected {size}.",
                hint=f"Make it again with: {_mend(folder)}",
            )


def _case_file(folder: Path, name: str) -> Path:
    # Not with_suffix: case names may contain dots.
    return folder / f"{name}.json"


def compress(array: npt.NDArray[np.generic], patch_shape: Sequence[int]) -> bytes:
    """Compresses an array into the content of a file that `open_array` reads patch by patch.

    Args:
        array: (c, z, y, x).
        patch_shape: 2 or 3 values: the patch read at a time.
    """
    import blosc2

    chunks, blocks = _partition(array.shape, patch_shape)
    # Chosen from LZ4, LZ4HC and Zstd with each filter: it reads as fast as any, writes ten times as
    # fast as LZ4HC, and at least halves both interpolated and integer intensities.
    settings = {
        "codec": blosc2.Codec.LZ4,
        "clevel": 5,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "nthreads": 1,
    }
    # Contiguous, since what is not is copied once more.
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=blocks,
        cparams=settings,
        contiguous=True,
    )
    content: bytes = packed.to_cframe()
    return content


def _partition(
    shape: tuple[int, ...], patch_shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chooses chunks of about the size of a patch, and blocks small enough for the cache."""
    patch = (1,) * (3 - len(patch_shape)) + tuple(max(_LEAST_SIDE, n) for n in patch_shape)
    block = [min(p, n) for p, n in zip(patch, shape[1:], strict=True)]
    while np.prod(block) > _BLOCK_VOXELS:
        longest = int(np.argmax(block))
        block[longest] = -(-block[longest] // 2)
    chunk = [min(-(-p // b) * b, n) for p, b, n in zip(patch, block, shape[1:], strict=True)]
    return (1, *chunk), (1, *block)


def open_array(path: Path) -> StoredArray[Any]:
    """Opens a file whose content `compress` made.

    Raises:
        ArtifactError: The file is damaged.
    """
    array = _open(path)
    try:
        return StoredArray(path, tuple(array.shape), array.dtype)
    except AttributeError as error:  # a blosc2 file without an array
        raise _damaged(path, str(error)) from error


def _open(path: Path) -> Any:
    import blosc2

    # Memory maps of blosc2 do not work on Windows.
    how = {} if sys.platform == "win32" else {"mmap_mode": "r"}
    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, **how)
    except (RuntimeError, ValueError, OSError) as error:
        if not path.exists():
            raise _damaged(path, str(error)) from error
        raise_refusal(path, error)
        if how:  # some file systems have no memory maps
            with contextlib.suppress(RuntimeError, ValueError, OSError):
                return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        raise _damaged(path, str(error)) from error


def _pack(locations: Mapping[int, npt.NDArray[np.int32]]) -> bytes:
    # Compressing would take a quarter of the preprocessing time; narrow types are as small.
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        str(value): places.astype(np.min_scalar_type(places.max(initial=0)))
        for value, places in locations.items()
    }
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(path: Path) -> Locations:
    try:
        with np.load(io.BytesIO(read_whole(path))) as arrays:
            return {int(value): arrays[value].astype(np.int32) for value in arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> ArtifactError:
    case = path.name.removesuffix(_IMAGE).removesuffix(_LABEL).removesuffix(".npz")
    return ArtifactError(
        f"{path}: case {case} is damaged: {what or 'unreadable'}.",
        hint=f"Make it again with: {remove(path)} && {_mend(path.parent)}",
    )


def _mend(folder: Path) -> str:
    try:
        return _command(folder, StoreInfo.load(folder / _STORE_FILE).dataset)
    except ArtifactError:
        return _command(folder, "DATASET")


def _command(folder: Path, dataset: str) -> str:
    place = folder.absolute()
    in_workspace = place.parent.name == "store"
    return command("preprocess", dataset, workspace=place.parents[2] if in_workspace else None)
