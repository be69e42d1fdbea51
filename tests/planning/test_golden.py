"""Every decision of nnU-Net 2.8.1's plans for seven Decathlon tasks and three presets."""

import time
from pathlib import Path

import msgspec
import pytest

from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.planning.names import Preset
from autoliver.planning.plan import CaseFingerprint, Fingerprint, IntensityStats, PlanOptions
from autoliver.planning.planner import make_plan

ORACLE = Path(__file__).parents[3] / "shared/oracle/planner"
PRESETS: dict[str, Preset] = {
    "ConvolutionalEncoder": "default",
    "ResidualEncoderM": "M",
    "ResidualEncoderL": "L",
}
NORMALIZATIONS = {"CTNormalization": "ct", "ZScoreNormalization": "zscore"}
FILES = sorted(ORACLE.glob("*/plans_*.json"))


def read(path: Path):
    return msgspec.json.decode(path.read_bytes())


def dataset_and_fingerprint(folder: Path) -> tuple[Dataset, Fingerprint]:
    head = read(folder / "dataset.json")
    raw = read(folder / "dataset_fingerprint.json")
    names = [f"case_{i:04d}" for i in range(len(raw["spacings"]))]
    # The planner counts cases by the fingerprint; nnU-Net by this entry.
    assert head["numTraining"] == len(names)
    channels = head["channel_names"]
    properties = raw["foreground_intensity_properties_per_channel"]
    dataset = Dataset(
        name=folder.name,
        folder=str(folder),
        channel_names=tuple(channels[str(i)] for i in range(len(channels))),
        labels=Labels(values={name: (value,) for name, value in head["labels"].items()}),
        cases=tuple(Case(name=n, images=(n,), label=n, patient=n) for n in names),
    )
    cases = tuple(
        CaseFingerprint(
            name=name, spacing_mm=tuple(spacing), shape=tuple(shape), shape_after_crop=tuple(shape)
        )
        for name, spacing, shape in zip(
            names, raw["spacings"], raw["shapes_after_crop"], strict=True
        )
    )
    fingerprint = Fingerprint(
        cases=cases,
        median_relative_size_after_cropping=raw["median_relative_size_after_cropping"],
        intensities=tuple(
            msgspec.convert(properties[str(i)], IntensityStats) for i in range(len(channels))
        ),
    )
    return dataset, fingerprint


@pytest.mark.skipif(not FILES, reason=f"no plans under {ORACLE}")
@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name[7:]}-{f.stem[6:]}")
def test_plan_equals_nnunet(file):
    expected = read(file)
    preset = PRESETS[file.stem.removeprefix("plans_")]
    dataset, fingerprint = dataset_and_fingerprint(file.parent)
    options = PlanOptions(preset=preset, batch_cap=preset == "default")
    start = time.process_time()
    plan = make_plan(dataset, fingerprint, options)
    assert time.process_time() - start < 10  # it is some tenths
    assert list(plan.transpose_forward) == expected["transpose_forward"]
    assert list(plan.transpose_backward) == expected["transpose_backward"]
    configurations = expected["configurations"]
    if "3d_cascade_fullres" in configurations:
        fullres = configurations["3d_fullres"]
        configurations["3d_cascade"] = fullres | configurations.pop("3d_cascade_fullres")
    assert set(plan.configurations) == set(configurations)
    for name, theirs in configurations.items():
        check_configuration(plan.configurations[name], theirs)
    dropped = {"3d_lowres", "3d_fullres", "3d_cascade"} - set(plan.configurations)
    assert dropped <= set(plan.reasons)


def check_configuration(ours, theirs):
    assert ours.spacing_mm == pytest.approx(theirs["spacing"], rel=1e-12)
    assert list(ours.median_shape) == theirs["median_image_size_in_voxels"]
    assert list(ours.patch_shape) == theirs["patch_size"]
    assert ours.batch_size == theirs["batch_size"]
    assert ours.batch_dice == theirs["batch_dice"]
    assert list(ours.normalization) == [NORMALIZATIONS[n] for n in theirs["normalization_schemes"]]
    assert list(ours.mask_norm) == theirs["use_mask_for_norm"]
    assert ours.previous_stage == theirs.get("previous_stage")
    network = ours.network
    architecture = theirs["architecture"]
    residual = architecture["network_class_name"].endswith("ResidualEncoderUNet")
    assert network.kind == ("resenc" if residual else "unet")
    arguments = architecture["arch_kwargs"]
    assert len(network.features) == arguments["n_stages"]
    assert list(network.features) == arguments["features_per_stage"]
    assert [list(k) for k in network.kernels] == arguments["kernel_sizes"]
    assert [list(s) for s in network.strides] == arguments["strides"]
    blocks = arguments["n_blocks_per_stage" if residual else "n_conv_per_stage"]
    assert list(network.blocks_encoder) == blocks
    assert list(network.blocks_decoder) == arguments["n_conv_per_stage_decoder"]
    assert {"spacing", "patch", "batch", "topology", "normalization", "batch_dice"} <= set(
        ours.reasons
    )
