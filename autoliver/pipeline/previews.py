"""Pictures of predicted label maps, for a glance at each case."""

import logging
from collections.abc import Sequence
from pathlib import Path

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError
from autoliver.evaluation.picture import shown_window
from autoliver.evaluation.preview import draw_preview
from autoliver.inference.predict import PredictJob
from autoliver.inference.record import Prediction, read_record, save_record
from autoliver.io.files import read_image, read_label
from autoliver.io.grids import refuse_other_grid
from autoliver.parallel import case_bar
from autoliver.system import in_words

_log = logging.getLogger(__name__)


def write_previews(jobs: Sequence[PredictJob], labels: Labels, record: Path) -> list[Path]:
    """Draws the label maps of finished cases, unless their pictures are newer.

    A case that cannot be drawn is named in a warning.

    Args:
        jobs: The cases.
        labels: The labels of the model.
        record: The record of the predictions, which takes the pictures as well.

    Returns:
        The pictures of all cases that have one.

    Raises:
        ArtifactError: The record is damaged.
        MachineError: A picture cannot be written.
    """
    finished = [job for job in jobs if job.finished]
    with in_words(record.parent, verb="read"):
        todo = [job for job in finished if not _is_current(job)]
    known = read_record(record)
    for job in case_bar("preview", len(todo))(todo):
        try:
            _draw(job, labels, known)
        except DatasetError as error:
            _log.warning("%s: no preview: %s", job.name, error.problem)
        else:
            if known is not None:
                known = known.with_further(job.output.name, job.preview)
    if todo and known is not None:
        save_record(record, known)
    return [job.preview for job in finished if job.preview.is_file()]


def _is_current(job: PredictJob) -> bool:
    """Whether a preview is newer than the label map, which may have been corrected."""
    made, drawn = (path.stat().st_mtime_ns if path.exists() else 0 for path in _pair(job))
    return drawn > made


def _pair(job: PredictJob) -> tuple[Path, Path]:
    return job.output, job.preview


def _draw(job: PredictJob, labels: Labels, record: Prediction | None) -> None:
    image, label = read_image(job.images), read_label(job.output)
    refuse_other_grid(label.geometry, image.geometry, what=str(job.output), of=str(job.images[0]))
    window = shown_window(image.array[0], is_ct=_is_ct(job, record))
    draw_preview(job.preview, image, label, labels=labels.foreground, title=job.name, window=window)


def _is_ct(job: PredictJob, record: Prediction | None) -> bool | None:
    """Whether a case is CT; None if the record does not say so."""
    used = None if record is None else record.modalities.get(job.output.name)
    return None if used is None or used.modality is None else used.modality == "CT"
