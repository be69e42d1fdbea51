"""What networks answer about themselves, and their form in files."""

import msgspec
import pytest

from autoliver.artifacts import digest
from autoliver.errors import ArtifactError
from autoliver.networks.build import build_network
from autoliver.networks.contract import PartGroup, WeightRole
from autoliver.networks.spec import NetworkSpec, ResidualUNetSpec, UNetSpec, read_spec
from autoliver.planning.plan import Plan
from autoliver.transfer.follow import like_digest

FIELDS = {
    "in_channels": 1,
    "out_channels": 3,
    "features": [4, 8, 16],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "blocks_encoder": [2, 2, 2],
    "blocks_decoder": [1, 2],
}
MEMBERS = {"unet": UNetSpec, "resenc": ResidualUNetSpec}


def spec_of(kind: str) -> NetworkSpec:
    return read_spec({"kind": kind, **FIELDS}, where="here")


def plan_of(kind: str) -> Plan:
    stats = {"mean": 99, "median": 101, "std": 39, "min": -500, "max": 900}
    configuration = {
        "spacing_mm": [2.5, 0.8, 0.8],
        "median_shape": [40, 200, 220],
        "patch_shape": [16, 48, 40],
        "batch_size": 2,
        "batch_dice": False,
        "normalization": ["ct"],
        "mask_norm": [False],
        "network": {"kind": kind, **FIELDS},
    }
    fields = {
        "dataset": "Dataset900_Test",
        "preset": "default",
        "vram_gb": 8,
        "channel_names": ["CT"],
        "modality": "CT",
        "labels": {"values": {"background": [0], "liver": [1], "tumour": [2]}},
        "file_ending": ".nii.gz",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "intensities": [{**stats, "percentile_00_5": -17, "percentile_99_5": 201}],
        "configurations": {"3d_fullres": configuration},
    }
    return msgspec.convert(fields, Plan)


@pytest.mark.parametrize("kind", ["unet", "resenc"])
def test_the_form_in_files_is_that_of_version_0_1(kind):
    spec = spec_of(kind)
    assert type(spec) is MEMBERS[kind]
    assert spec.kind == kind
    assert msgspec.json.encode(spec) == msgspec.json.encode({"kind": kind, **FIELDS})
    configurations = msgspec.json.decode(plan_of(kind).to_bytes())["configurations"]
    assert configurations["3d_fullres"]["network"] == {"kind": kind, **FIELDS}


@pytest.mark.parametrize(
    ("kind", "of_plan", "of_like", "of_network"),
    # Computed by commit 29c8d4c, where one record held both kinds in a field with a default.
    [
        ("unet", "f3162106f1f5", "3ab8a0f000f7", "061f4e9aaf44"),
        ("resenc", "7a222293d95e", "8c9403b2cf63", "09ce0cd0933b"),
    ],
)
def test_digests_are_those_of_version_0_1(kind, of_plan, of_like, of_network):
    plan = plan_of(kind)
    assert plan.digest() == of_plan
    assert like_digest(plan, "3d_fullres") == of_like
    assert digest(spec_of(kind)) == of_network


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "vnet", **FIELDS}, r"here: \$\.kind: Invalid value 'vnet'"),
        (FIELDS, "here: .*missing required field `kind`"),
        ({"kind": "unet", **FIELDS, "depth": 3}, "here: .*unknown field `depth`"),
        ({"kind": "resenc", **FIELDS, "features": 3}, r"here: \$\.features: Expected"),
    ],
)
def test_what_is_no_network_is_refused(fields, problem):
    with pytest.raises(ArtifactError, match=problem):
        read_spec(fields, where="here")


@pytest.mark.parametrize("kind", ["unet", "resenc"])
def test_every_weight_has_a_role_that_fits_its_shape(kind):
    spec = spec_of(kind)
    state = build_network(spec, deep_supervision=True).state_dict()
    roles = {name: spec.role(name) for name in state}
    stages = {(group.name, stage) for group in spec.parts for stage in range(group.stages)}
    assert {role.part for role in roles.values() if not role.head} == stages
    first = state[spec.first_convolution]
    assert first.shape[:2] == (4, 1)
    assert next(iter(state)) == spec.first_convolution
    for name, role in roles.items():
        if role.head:
            assert len(state[name]) == spec.out_channels
        if role.concatenated:
            assert state[name].shape[1] == 2 * state[name].shape[0]
    # Two stages go up, each with a weight and a bias, and meet what comes across once.
    assert sum(role.transposed for role in roles.values()) == 4
    assert sum(role.concatenated for role in roles.values()) == spec.output_levels == 2
    assert [name for name in roles if roles[name].idle] == ["heads.1.weight", "heads.1.bias"]


def test_parts_of_a_network():
    assert spec_of("resenc").parts == (
        PartGroup(name="encoder", stages=3, first="with the stem", from_image=True),
        PartGroup(name="decoder", stages=2, first="full resolution"),
    )
    role = spec_of("resenc").role
    assert role("stem.norm.bias") == WeightRole(part=("encoder", 0))
    assert role("up.1.weight") == WeightRole(part=("decoder", 1), transposed=True)
    with pytest.raises(ValueError, match=r"body\.0\.weight is not a weight"):
        role("body.0.weight")


def test_a_head_alone_has_all_of_the_loss():
    spec = UNetSpec(
        in_channels=1,
        out_channels=2,
        features=(4, 8),
        strides=((1, 1), (2, 2)),
        kernels=((3, 3), (3, 3)),
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    assert spec.role("heads.0.weight") == WeightRole(head=True)


def test_networks_are_told_apart_by_their_type():
    plain, residual = spec_of("unet"), spec_of("resenc")
    assert plain != residual
    assert plain.unlike(plain.replace(features=(8, 8, 8))) == ""
    assert residual.unlike(plain) == (
        "The source's encoder is plain (default), the target's residual (M, L, XL): "
        "their weights do not correspond."
    )
    assert [spec.summary for spec in (plain, residual)] == ["unet 4-8-16", "resenc 4-8-16"]
