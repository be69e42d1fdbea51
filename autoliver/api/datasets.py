"""Datasets: checked, planned, made of others."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from autoliver.arguments import (
    as_arguments,
    checked,
    dataset_name,
    name_of,
    path_of,
    paths_of,
    taken,
    workspace_at,
)
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

if TYPE_CHECKING:
    from autoliver.pipeline.adoption.adopt import Adopted
    from autoliver.pipeline.conversion.result import Converted
    from autoliver.pipeline.mending.mend import Repaired
    from autoliver.pipeline.pooling.pool import Pooled
    from autoliver.pipeline.pseudo.pseudolabel import Pseudolabelled
    from autoliver.planning.plan import Plan
    from autoliver.planning.verify import Verification
    from autoliver.shards import Sharded


@checked
def verify(
    dataset: str | Path, *, workspace: str | Path = WORKSPACE, **options: Any
) -> "Verification":
    """Checks a dataset's files, geometry, values and labels, like `autoliver verify`.

    Args:
        dataset: Folder, or name of a planned dataset.
        workspace: The workspace folder, which all results are written to.
        **options: workers and memory_gb.

    Returns:
        The findings; `.errors` are those because of which `plan` would refuse the dataset.

    Raises:
        AutoliverError: The dataset cannot be read at all.
    """
    with as_arguments():
        from autoliver.pipeline.data import verify_dataset

        machine = taken(options, {}, of=verify)["machine"]
        return verify_dataset(workspace_at(workspace), dataset_name(dataset), machine=machine)[2]


@checked
def mend(
    dataset: str | Path,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Repaired":
    """Writes a dataset with repaired copies of files with errors, like `autoliver verify --fix`.

    Args:
        dataset: Folder, or name of a planned dataset.
        output: Folder of the new dataset; it must be new.
        workspace: The workspace folder.
        **options: workers and memory_gb; `values`, what values in label files mean, such as
            ["7=0"]; `leave_out=True` leaves out the cases that cannot be repaired.

    Returns:
        What was repaired, file by file; its `folder` is None if there was no error.

    Raises:
        AutoliverError: The dataset cannot be read, or some of its errors cannot be repaired.
    """
    with as_arguments():
        from autoliver.pipeline.mending.mend import MendRequest
        from autoliver.pipeline.mending.mend import mend as mend_dataset

        given = taken(options, {n: n for n in ("values", "leave_out")}, of=mend)
        machine = given.pop("machine")
        return mend_dataset(
            *(workspace_at(workspace), dataset_name(dataset), path_of("output", output)),
            request=MendRequest(**given),
            machine=machine,
        )


@overload
def plan(
    dataset: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    shard: None = None,
    **options: Any,
) -> "Plan": ...


@overload
def plan(
    dataset: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    shard: str,
    **options: Any,
) -> "Sharded": ...


@checked
def plan(
    dataset: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    shard: str | None = None,
    **options: Any,
) -> "Plan | Sharded":
    """Inspects a dataset and decides spacing, patches and networks, like `autoliver plan`.

    Args:
        dataset: Folder, or name of a planned dataset.
        like: Dataset or model whose networks the plan takes over; None for networks of its own.
        workspace: The workspace folder, which all results are written to.
        fresh: Whether to discard the options of the previous plan.
        shard: The part of the cases to read, such as "3/8"; None to make the plan.
        **options: preset="tiny", arch="medformer", encoder="efficientnet_b0", z_strides="all",
            slices=3, vram (GB), spacing (z, y, x in mm), window (low, high in HU), batch_cap and
            keep_axes; modality ("CT", "MR" or "other") for a folder without dataset.json; with
            `like` only spacing, which may be a word such as "target" as well; workers and
            memory_gb. Options that are not given keep their value in the previous plan, or else
            take their default.

    Returns:
        The plan, which is also written to the workspace; or what the shard has done.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.data_shards import plan_shard
        from autoliver.pipeline.replan import PlanRequest, replan
        from autoliver.shards import Shard
        from autoliver.values import check_flag

        names = {
            **{name: name for name in ("preset", "arch", "encoder", "z_strides")},
            **{name: name for name in ("batch_cap", "keep_axes", "slices")},
            **{"vram": "vram_gb", "vram_gb": "vram_gb", "spacing": "spacing_mm"},
            **{"spacing_mm": "spacing_mm", "window": "window_hu", "window_hu": "window_hu"},
            **{"like_spacing": "spacing", "modality": "modality"},
        }
        given = taken(options, names, of=plan)
        machine = given.pop("machine")
        if like is not None and isinstance(given.get("spacing_mm"), str):
            given["spacing"] = given.pop("spacing_mm")
        modality = given.pop("modality", None)
        source = None if like is None else name_of("--like", like)
        check_flag("--fresh", fresh)
        request = PlanRequest(
            changes=given,
            modality=modality,
            like=source,
            fresh=fresh,
            shard=None if shard is None else Shard.of(shard),
            machine=machine,
        )
        if request.shard is not None:
            place = workspace_at(workspace)
            return plan_shard(place, dataset_name(dataset), request, request.shard)
        return replan(workspace_at(workspace), dataset_name(dataset), request).planned.plan


@checked
def convert(
    kind: str,
    source: str | Path,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Converted":
    """Makes a dataset of data in another form by reference, like `autoliver convert`.

    Args:
        kind: What the data are, such as "camus" or "lld-mmri"; docs/convert.md lists the kinds.
        source: Folder of the data as they were published; of a dataset for "lesion-classes".
        output: Folder of the new dataset; it must be new.
        workspace: The workspace, for the next command, and in which `like` is looked up.
        **options: workers and memory_gb; rater; part; for "lesion-classes" the CSV file of
            `classes`, and `label`; for "dicom" and "dicom-seg" the folder of `labels`, and `series`
            (2 or "venous", or several); for "dicom-seg" also `like` and `seg_type`.

    Returns:
        The new dataset, with the number of its cases and the names of those without a label map.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.conversion.convert import ConvertRequest
        from autoliver.pipeline.conversion.convert import convert as make_dataset

        names = ("rater", "part", "classes", "label", "labels", "series", "like", "seg_type")
        given = taken(options, {name: name for name in names}, of=convert)
        machine = given.pop("machine")
        for name in ("classes", "labels"):
            if given.get(name) is not None:
                given[name] = path_of(name, given[name])
        if given.get("like") is not None:
            given["like"] = name_of("--like", given["like"])
        request = ConvertRequest(**given)
        folder, place = path_of("source", source), path_of("output", output)
        return make_dataset(
            *(workspace_at(workspace), kind, folder, place), request=request, machine=machine
        )


@checked
def adopt(
    images: str | Path | Sequence[str | Path],
    corrected: str | Path,
    output: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Adopted":
    """Makes a dataset of images and corrected predictions, like `autoliver adopt`.

    Args:
        images: Folder of images as for `predict`; or several.
        corrected: Folder of the corrected label maps.
        output: Folder of the new dataset; it must be new.
        like: Model or dataset that names labels and channels; None for the model that the
            predict.json beside the label maps names.
        workspace: Folder in which models and datasets are looked up.
        **options: modality ("CT", "MR" or "other"), link, workers and memory_gb.

    Returns:
        The new dataset, where each case comes from, and which images were left out.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.adoption.adopt import AdoptRequest
        from autoliver.pipeline.adoption.adopt import adopt as adopt_cases

        given = taken(options, {"modality": "modality", "link": "link"}, of=adopt)
        source = None if like is None else name_of("--like", like)
        request = AdoptRequest(like=source, **given)
        return adopt_cases(
            workspace_at(workspace),
            paths_of("images", images),
            path_of("corrected", corrected),
            path_of("output", output),
            request,
        )


@checked
def pool(
    output: str | Path,
    add: Sequence[str],
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Pooled":
    """Makes one dataset of several by reference, like `autoliver pool`.

    Args:
        output: Folder of the new dataset; it must be new.
        add: The datasets, e.g. ["LiTS", "CHAOS:liver=real,tumour=absent"].
        workspace: Folder in which datasets are looked up.
        **options: inside (label -> the label that it lies in), drop_duplicates, overwrite, workers
            and memory_gb.

    Returns:
        The new dataset, with the labels and cases of each member.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.pooling.pool import PoolRequest
        from autoliver.pipeline.pooling.pool import pool as make_pool
        from autoliver.values import check_texts

        names = {name: name for name in ("inside", "drop_duplicates", "overwrite")}
        given = taken(options, names, of=pool)
        request = PoolRequest(add=check_texts("--add", add), **given)
        return make_pool(workspace_at(workspace), path_of("output", output), request)


@overload
def pseudolabel(
    dataset: str | Path,
    output: str | Path,
    *,
    model: str | Path,
    workspace: str | Path = WORKSPACE,
    shard: None = None,
    **options: Any,
) -> "Pseudolabelled": ...


@overload
def pseudolabel(
    dataset: str | Path,
    output: str | Path,
    *,
    model: str | Path,
    workspace: str | Path = WORKSPACE,
    shard: str,
    **options: Any,
) -> "Sharded": ...


@checked
def pseudolabel(
    dataset: str | Path,
    output: str | Path,
    *,
    model: str | Path,
    workspace: str | Path = WORKSPACE,
    shard: str | None = None,
    **options: Any,
) -> "Pseudolabelled | Sharded":
    """Labels the cases of a dataset with a model, like `autoliver pseudolabel`.

    Args:
        dataset: Folder, or name of a planned dataset.
        output: Folder of the new dataset; it must be new.
        model: Name or path of the model.
        workspace: Folder in which the dataset and the model are looked up.
        shard: The part of the cases to label, such as "3/8"; None to make the dataset.
        **options: labels ("liver" or several), modality, folds, min_confidence, volume (low, high
            in ml), max_outside, band (low, high; None for none), largest, overwrite, device,
            workers and memory_gb.

    Returns:
        The new dataset, and the quality of the labels case by case; or what the shard has done.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.pseudo.pseudolabel import pseudolabel as label_cases
        from autoliver.pipeline.pseudo.request import PseudolabelRequest
        from autoliver.shards import Shard
        from autoliver.values import check_texts

        names = {name: name for name in ("labels", "folds", "band", "largest", "overwrite")}
        names["modality"] = "modality"
        names |= {"min_confidence": "least_confidence", "volume": "volume_ml"}
        names |= {"max_outside": "most_outside"}
        given = taken(options, names, of=pseudolabel, machine=("device",))
        if "labels" in given:
            given["labels"] = check_texts("--label", given["labels"])
        part = None if shard is None else Shard.of(shard)
        request = PseudolabelRequest(**given, shard=part)
        return label_cases(
            workspace_at(workspace),
            dataset_name(dataset),
            name_of("--model", model),
            path_of("output", output),
            request,
        )
