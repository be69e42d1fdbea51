"""Models as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.arguments import (
    as_arguments,
    checked,
    name_of,
    path_of,
    taken,
    workspace_at,
)
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

if TYPE_CHECKING:
    from autoliver.pipeline.models import Moved


@checked
def export(
    model: str | Path,
    target: str | Path,
    *,
    folds: "Sequence[int | str] | int | str | None" = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Moved":
    """Writes a trained model to one file, like `autoliver export`.

    Args:
        model: Name, folder or exported file of the model.
        target: The file to write; for the format of nnU-Net, the folder nnUNet_results.
        folds: "0,2", "all" or numbers; None for all finished or selected folds.
        workspace: Folder in which the model is looked up.
        **options: format ("autoliver" or "nnunet"), with_case_names and overwrite.

    Returns:
        The name the model will have once imported, the file, and a description of the model.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.datasets.folds import folds_text
        from autoliver.pipeline.models import ExportRequest, export_model

        names = {name: name for name in ("format", "case_names", "overwrite")}
        names["with_case_names"] = "case_names"
        given = taken(options, names, of=export, machine=None)
        request = ExportRequest(folds=folds_text(folds), **given)
        name, file = name_of("model", model), path_of("target", target)
        return export_model(workspace_at(workspace), name, file, request)


@checked
def import_model(
    source: str | Path, *, workspace: str | Path = WORKSPACE, **options: Any
) -> "Moved":
    """Imports an exported model, or one of nnU-Net, into the workspace, like `autoliver import`.

    Args:
        source: A file written by `export`, or a model written by nnU-Net.
        workspace: Folder that the model is imported into.
        **options: name, overwrite and trust (run the code that a checkpoint of nnU-Net may
            contain).

    Returns:
        The name the model has now, its folder, and a description of the model.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.models import ImportRequest
        from autoliver.pipeline.models import import_model as put

        names = {name: name for name in ("name", "overwrite", "trust")}
        request = ImportRequest(**taken(options, names, of=import_model, machine=None))
        return put(workspace_at(workspace), path_of("source", source), request)
