"""adopted.json: where each file of an adopted dataset comes from, and whether it was corrected."""

from typing import ClassVar

from autoliver.artifacts import Artifact, Record
from autoliver.planning.names import ModalityName

ADOPTED_FILE = "adopted.json"


class AdoptedFile(Record, frozen=True, kw_only=True):
    """A file of an adopted dataset, and the file that it was made from.

    Attributes:
        name: Path in the dataset's folder, with "/".
        source: Absolute path of the file that it was copied from, is a link to, or was made from.
        sha256: SHA-256 of that file.
        rewritten: Why it is not a copy of that file, byte by byte; empty if it is.
    """

    name: str
    source: str
    sha256: str
    rewritten: str = ""


class AdoptedCase(Record, frozen=True, kw_only=True):
    """Where a case comes from.

    Attributes:
        name: The case.
        images: The files of its image, those of voxels beside headers included.
        label: Its label map.
        corrected: Whether the label map differs from what the model predicted; None if that is not
            known.
    """

    name: str
    images: tuple[AdoptedFile, ...]
    label: AdoptedFile
    corrected: bool | None = None


class Adoption(Artifact, frozen=True, kw_only=True):
    """Where a dataset of corrected predictions comes from: adopted.json in its folder.

    Attributes:
        date: When it was written, with the time zone (ISO 8601).
        labels_from: The model or dataset that says what labels and channels mean.
        model: The model that predicted the label maps before they were corrected; None if that is
            not known.
        weights_sha256: SHA-256 of the weights of each of its networks.
        modality: What the images are.
        why: Why they are taken for it.
        linked: Whether the images are links.
        cases: The cases, sorted by name.
    """

    KIND: ClassVar[str] = "adopted"

    date: str
    labels_from: str
    model: str | None = None
    weights_sha256: tuple[str, ...] = ()
    modality: ModalityName
    why: str
    linked: bool
    cases: tuple[AdoptedCase, ...]
