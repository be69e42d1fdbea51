"""What differs between two plans, decision by decision."""

import pytest

from autoliver.cli.output import table
from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.planning.changes import Change, decisions, plan_changes
from autoliver.planning.plan import (
    CaseFingerprint,
    Fingerprint,
    IntensityStats,
    LikeOptions,
    Plan,
    PlanOptions,
)
from autoliver.planning.planner import make_plan

STATS = IntensityStats(
    mean=99.0,
    median=101.0,
    std=39.0,
    min=-500.0,
    max=900.0,
    percentile_00_5=-17,
    percentile_99_5=201,
)


def plan_of(shape=(482, 512, 512), **options) -> Plan:
    case = Case(name="a", images=("a",), label="a", patient="a")
    dataset = Dataset(
        name="Dataset900_Test",
        folder="f",
        channel_names=("CT", "MRI"),
        labels=Labels(values={"background": (0,), "liver": (1,)}),
        cases=(case,),
    )
    grid = CaseFingerprint(
        name="a", spacing_mm=(1.0, 0.77, 0.77), shape=shape, shape_after_crop=shape
    )
    fingerprint = Fingerprint(
        cases=(grid,) * 20, median_relative_size_after_cropping=0.9, intensities=(STATS, STATS)
    )
    return make_plan(dataset, fingerprint, PlanOptions(**options))


def changed(before: Plan, now: Plan) -> dict[tuple[str, str], tuple[str, str]]:
    return {(c.configuration, c.decision): (c.before, c.now) for c in plan_changes(before, now)}


def test_equal_plans_differ_in_nothing():
    assert plan_changes(plan_of(), plan_of()) == ()
    assert plan_changes(plan_of(), plan_of(vram_gb=8.0)) == ()  # asked otherwise, the same decided
    assert plan_changes(plan_of(), plan_of().replace(made_from={})) == ()


def test_a_window_is_one_change():
    assert plan_changes(plan_of(), plan_of(window_hu=(-150.0, 250.0))) == (
        Change(
            configuration="", decision="CT window", before="CT -17 to 201", now="CT -150 to 250"
        ),
    )


def test_another_preset_is_shown_per_configuration():
    found = changed(plan_of(), plan_of(preset="tiny"))
    assert found[("", "preset")] == ("default", "tiny")
    names = ("2d", "3d_lowres", "3d_fullres", "3d_cascade")
    assert {where for where, what in found if what == "network"} == set(names)
    before, now = found[("3d_fullres", "network")]
    assert (before[:12], now[:10]) == ("unet 32-64-1", "unet 8-16-")
    assert found[("2d", "batch")][1] == "4"
    assert {what for _, what in found} == {"preset", "network", "batch"}


def test_configurations_that_come_and_go_are_shown():
    large, small = plan_of(), plan_of(shape=(36, 50, 35))
    for name in ("3d_lowres", "3d_cascade"):
        assert changed(large, small)[(name, "configuration")] == ("planned", "")
        assert changed(small, large)[(name, "configuration")] == ("", "planned")
        assert not any(
            what != "configuration" for where, what in changed(large, small) if where == name
        )


def test_a_difference_too_small_to_be_shown_is_shown_exactly():
    before = plan_of(spacing_mm=(1.0, 0.7421875, 0.7421875))
    now = plan_of(spacing_mm=(1.0, 0.7421876, 0.7421875))
    assert changed(before, now)[("2d", "spacing")] == (
        "[0.7421875, 0.7421875]",
        "[0.7421876, 0.7421875]",
    )
    network = before.configurations["2d"].network
    kernels = ((1, 1), *network.kernels[1:])
    decided = before.configurations["2d"].replace(network=network.replace(kernels=kernels))
    other = before.replace(configurations={**before.configurations, "2d": decided})
    old, new = changed(before, other)[("2d", "network")]
    assert (old[:15], new[:15]) == ("kernels [[3, 3]", "kernels [[1, 1]")


@pytest.mark.parametrize(
    ("mm", "shown"),
    [
        (0.74218, ("[0.74219, 0.74219]", "[0.74218, 0.74219]")),
        (0.7421875, ("[0.74218751, 0.74218751]", "[0.7421875, 0.74218751]")),
        (
            0.7421875123456,
            ("[0.7421875123457, 0.7421875123457]", "[0.7421875123456, 0.7421875123457]"),
        ),
    ],
)
def test_numbers_are_rounded_as_far_as_the_difference_is_still_seen(mm, shown):
    other = 0.7421875123456789
    before = plan_of(spacing_mm=(1.0, other, other))
    old, new = changed(before, plan_of(spacing_mm=(1.0, mm, other)))[("2d", "spacing")]
    assert (old, new) == shown


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_changes_keeps_to_the_width(width):
    before = plan_of(spacing_mm=(1.0, 0.7421875123456789, 0.7421875123456789))
    stats = STATS.replace(std=38.123456789123456, median=101.00000000000001)
    now = plan_of(spacing_mm=(1.0, 0.7421875123456781, 0.7421875123456782))
    now = now.replace(intensities=(stats, stats))
    rows = [
        (c.configuration, c.decision, f"{c.before} -> {c.now}") for c in plan_changes(before, now)
    ]
    lines = table(("changed", "decision", "before -> now"), rows, wrap=width).splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(line[36:] for line in lines)
    assert "39" in shown and "38.12" in shown and "38.1234" not in shown  # noqa: PT018


@pytest.mark.parametrize("name", Plan.__struct_fields__)
def test_no_decision_of_a_plan_is_left_out(name):
    plan = plan_of()
    other = {
        "preset": "XL",
        "arch": "medformer",
        "encoder": "resnet18",
        "z_strides": "all",
        "vram_gb": 9.0,
        "channel_names": ("CT", "T2"),
        "modality": "MR",
        "labels": Labels(values={"background": (0,), "liver": (2,)}),
        "file_ending": ".mha",
        "axis_codes": "RAS",
        "transpose_forward": (1, 0, 2),
        "transpose_backward": (1, 0, 2),
        "intensities": (STATS, STATS.replace(std=38.0)),
        "source_intensities": (STATS,),
        "like": LikeOptions(),
        "mixed": True,
        "reasons": {"like": "Because."},
        "configurations": {"2d": plan.configurations["2d"]},
    }
    if name in (
        "made_from",
        "dataset",
        "asked",
        "seen",
        "seen_axes",
        "transpose_backward",
        "codes",
    ):
        return  # no decisions, or another plan's, or known from another field
    assert plan_changes(plan, plan.replace(**{name: other[name]})), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spacing_mm", (1.0, 2.0)),
        ("median_shape", (10.0, 11.0)),
        ("patch_shape", (8, 16)),
        ("batch_size", 3),
        ("batch_dice", False),
        ("normalization", ("zscore", "zscore")),
        ("mask_norm", (True, False)),
        ("previous_stage", "3d_lowres"),
        ("normalize_after_resampling", True),
        ("average", "probabilities"),
        ("slices", 3),
        ("reasons", {"patch": "Because."}),
    ],
)
def test_no_decision_of_a_configuration_is_left_out(name, value):
    plan = plan_of()
    decided = plan.configurations["2d"].replace(**{name: value})
    now = plan.replace(configurations={**plan.configurations, "2d": decided})
    found = plan_changes(plan, now)
    assert found
    if name != "reasons":
        assert "2d" in {change.configuration for change in found}
    assert set(type(decided).__struct_fields__) == {
        *("spacing_mm", "median_shape", "patch_shape", "batch_size", "batch_dice"),
        *("normalization", "mask_norm", "previous_stage", "reasons", "network"),
        *("normalize_after_resampling", "average", "slices"),
    }


def test_the_table_of_a_plan_has_a_reason_for_each_decision():
    for configuration in plan_of().configurations.values():
        shown = [d for d in decisions(configuration) if d.text and d.reason]
        assert {d.reason for d in shown} == set(configuration.reasons)
