"""A shard of `synthesize apply`: it translates and judges its cases, for a dataset made later."""

import shutil
from collections import deque
from pathlib import Path

from autoliver.artifacts import replacing
from autoliver.datasets.cases import Case
from autoliver.parallel import case_bar
from autoliver.pipeline.conversion.result import check_output
from autoliver.pipeline.folder import predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.translation.apply import (
    ApplyRequest,
    common_labels,
    fidelity_in,
    generator_of,
    judge_of,
    judged_files,
    translate_case,
    unchanged_source,
)
from autoliver.pipeline.translation.kept import AppliedCase, applied_cases
from autoliver.pipeline.translation.synthesizer import find_synthesizer
from autoliver.shards import Shard, Sharded
from autoliver.workspace import Workspace


def apply_shard(
    workspace: Workspace, name: str, output: Path, request: ApplyRequest, shard: Shard
) -> Sharded:
    """Translates and judges some cases; they are kept in the workspace until `apply` is called.

    Args:
        workspace: The workspace.
        name: Name of the translation.
        output: Folder of the new dataset, which is not made yet.
        request: As for `apply`.
        shard: The part of the cases.

    Raises:
        ModelError: There is no such translation, or it is not finished.
        OptionError: The output exists already, or no model can judge the images.
        AutoliverError: Another process does the same.
    """
    folder, info = find_synthesizer(workspace, name)
    output = output.absolute()
    judge = judge_of(folder, info, request)
    dataset = unchanged_source(workspace, info, request)
    for place in (Path(dataset.folder), workspace.root):
        check_output(place, output)
    pairs = common_labels(workspace, judge, info)
    kept = applied_cases(workspace, info, folder, judge, output)
    cases = shard.part(dataset.labelled, lambda case: case.name)
    names = tuple(case.name for case in cases)
    if not cases:
        return Sharded(shard=shard, cases=(), new=0, of=len(dataset.labelled))
    hint = f"Learn it again with: {info.again(workspace, fresh=True)}"
    network = generator_of(folder, info, request.machine, hint=hint)
    translated, applied = kept.translated, kept.applied

    def image_of(case: Case) -> int:
        return translate_case(network, info, case, kept.image(case.name))

    def judged(case: Case) -> AppliedCase:
        own = predicted / f"{case.name}.nii.gz"
        files = judged_files(case, kept.image(case.name), own, axes[case.name])
        fidelity = fidelity_in(case.name, files, pairs, info)
        with replacing(kept.found(case.name)) as beside:
            shutil.copyfile(own, beside)
        return AppliedCase(axis=axes[case.name], fidelity=fidelity)

    with kept.shards.doing(shard):
        bar = case_bar("translate", len(cases))
        axes = dict(zip(names, bar(translated.map(image_of, cases)), strict=True))
        done = applied.finished(judged, cases)
        images = [kept.image(name) for name in names if name not in done]
        predicted = kept.shards.path / f"judged-{shard.number}-of-{shard.count}"
        if images:
            how = PredictRequest(modality=None, machine=request.machine)
            predict_folder(workspace, images, predicted, how, models=(judge,))
        deque(applied.map(judged, cases), maxlen=0)
    return Sharded(shard=shard, cases=names, new=len(applied.new), of=len(dataset.labelled))
