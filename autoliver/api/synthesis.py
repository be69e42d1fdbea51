"""Labelled images of another modality."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from autoliver.arguments import (
    as_arguments,
    checked,
    dataset_name,
    name_of,
    path_of,
    taken,
    workspace_at,
)
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

if TYPE_CHECKING:
    from autoliver.pipeline.translation.apply import Synthesized
    from autoliver.shards import Sharded


@checked
def synthesize_fit(
    source: str | Path,
    target: str | Path,
    name: str,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> Path:
    """Learns to make images of one dataset look like another's, like `autoliver synthesize fit`.

    Args:
        source: Folder, or name of a planned dataset, with labels.
        target: Folder, or name of a planned dataset, whose images are imitated; or a folder of
            images without labels.
        name: Name of the translation.
        workspace: The workspace folder.
        **options: model, held_out (names of cases), modality, spacing (z, y, x, in mm), epochs,
            iterations, decay_start, lr, batch_size, patch (y, x) or (z, y, x), features, blocks,
            pool, lambda_cyc, lambda_nce, lambda_seg, lambda_id, seed, fresh, device and memory_gb.

    Returns:
        The folder of the translation.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.translation.fit import FitRequest, fit
        from autoliver.synthesis.translation.options import WEIGHTS, TranslationOptions
        from autoliver.training.options import patch_sizes
        from autoliver.values import check_texts

        own = ("model", "epochs", "iterations", "decay_start", "lr", "batch_size", "patch")
        names = {each: each for each in (*own, "features", "blocks", "pool", "seed")}
        names |= {option.removeprefix("--").replace("-", "_"): f for f, option in WEIGHTS.items()}
        names |= {each: each for each in ("held_out", "modality", "fresh")}
        names["spacing"] = "spacing_mm"
        given = taken(options, names, of=synthesize_fit, machine=("device",))
        if given.get("patch") is not None:
            given["patch"] = patch_sizes(given["patch"])
        learnt = {
            key: given.pop(key) for key in TranslationOptions.__struct_fields__ if key in given
        }
        if "held_out" in given:
            given["held_out"] = check_texts("--held-out", given["held_out"])
        request = FitRequest(
            source=dataset_name(source),
            target=dataset_name(target),
            name=name_of("--name", name),
            options=TranslationOptions(**learnt),
            **given,
        )
        return fit(workspace_at(workspace), request).path


@overload
def synthesize_apply(
    name: str,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    shard: None = None,
    **options: Any,
) -> "Synthesized": ...


@overload
def synthesize_apply(
    name: str,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    shard: str,
    **options: Any,
) -> "Sharded": ...


@checked
def synthesize_apply(
    name: str,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    shard: str | None = None,
    **options: Any,
) -> "Synthesized | Sharded":
    """Makes a dataset of translated images with their labels, like `autoliver synthesize apply`.

    Args:
        name: Name of the translation.
        output: Folder of the new dataset; it must be new.
        workspace: The workspace folder.
        shard: The part of the cases to translate, such as "3/8"; None to make the dataset.
        **options: judge, qc_min_dice, device and memory_gb.

    Returns:
        The new dataset, and how well the labels of each case fit; or what the shard has done.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.translation.apply import ApplyRequest, apply
        from autoliver.pipeline.translation.apply_shard import apply_shard
        from autoliver.shards import Shard

        names = {"judge": "judge", "qc_min_dice": "min_dice"}
        given = taken(options, names, of=synthesize_apply, machine=("device",))
        part = None if shard is None else Shard.of(shard)
        place, folder = workspace_at(workspace), path_of("output", output)
        translation, request = name_of("name", name), ApplyRequest(**given, shard=part)
        if part is not None:
            return apply_shard(place, translation, folder, request, part)
        return apply(place, translation, folder, request)
