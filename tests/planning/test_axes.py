"""What a plan makes of training cases whose axes are stored in one order or in several."""

import nibabel as nib
import numpy as np
import pytest

from autoliver.datasets.cases import Case, Dataset, Labels, read_dataset
from autoliver.io.orientation import reorientation
from autoliver.planning.changes import plan_changes
from autoliver.planning.fingerprint import make_fingerprint
from autoliver.planning.options import asked_of, option_words
from autoliver.planning.plan import CaseFingerprint, Fingerprint, IntensityStats, PlanOptions
from autoliver.planning.planner import make_plan
from autoliver.planning.verify import verify
from autoliver.transfer.follow import LikeOptions, plan_like

STATS = IntensityStats(
    mean=99.0,
    median=101.0,
    std=39.0,
    min=-500.0,
    max=900.0,
    percentile_00_5=-17,
    percentile_99_5=201,
)
LABELS = Labels(values={"background": (0,), "liver": (1,)})
# Of an LPS scan: thick slices, and two different sizes in plane.
SPACING, SHAPE = (3.0, 0.8, 0.9), (60, 320, 300)


def dataset_of():
    case = Case(name="a", images=("a",), label="a", patient="a", modality="CT")
    return Dataset(
        name="Dataset9_T", folder="f", channel_names=("CT",), labels=LABELS, cases=(case,)
    )


def fingerprint_of(orders):
    cases = []
    for index, order in enumerate(orders):
        turn = reorientation("LPS", order)
        shape = turn.values(SHAPE)
        cases.append(
            CaseFingerprint(
                name=f"{index:03d}",
                spacing_mm=turn.values(SPACING),
                shape=shape,
                shape_after_crop=shape,
                axis_codes=order,
            )
        )
    return Fingerprint(
        cases=tuple(cases), median_relative_size_after_cropping=0.9, intensities=(STATS,)
    )


def planned(orders, **options):
    return make_plan(dataset_of(), fingerprint_of(orders), PlanOptions(**options))


@pytest.mark.parametrize("order", ["LPS", "RAS", "PSR", "SPL"])
def test_one_order_is_kept_with_the_decisions_of_nnunet(order):
    plan, without = planned([order] * 4), planned([order] * 4, keep_axes=True)
    assert plan.axis_codes == order
    assert without.axis_codes == ""
    assert plan.configurations == without.configurations
    assert plan.transpose_forward == without.transpose_forward
    assert "axes" not in plan.reasons


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        (["LPS", "LPS", "PSR"], "LPS"),
        (["PSR", "LPS"], "LPS"),
        (["RAS", "PSR", "PSR"], "PSR"),
        (["", "RAS", "RAS"], "RAS"),
    ],
)
def test_a_mixed_set_is_brought_to_one_order(orders, expected):
    plan = planned(orders)
    uniform = planned([expected] * len(orders))
    assert plan.axis_codes == expected
    if all(orders):
        assert plan.configurations == uniform.configurations
        assert plan.transpose_forward == uniform.transpose_forward
        assert all(order in plan.reasons["axes"] for order in orders)


def test_axes_are_kept_as_asked_for():
    plan = planned(["LPS", "PSR"], keep_axes=True)
    assert plan.axis_codes == ""
    assert plan.seen_axes == ("LPS", "PSR")
    assert "as asked for" in plan.reasons["axes"]
    assert option_words(asked_of(plan)) == ("--keep-axes",)
    changed = {change.decision for change in plan_changes(planned(["LPS", "PSR"]), plan)}
    assert "axes in the patient" in changed


def test_unknown_orders_give_a_plan_as_before():
    plan, kept = planned(["", ""]), planned(["", ""], keep_axes=True)
    assert plan.axis_codes == ""
    assert plan.digest() == kept.digest()


def test_a_plan_like_another_takes_its_order():
    source, own = planned(["LPS"] * 3), planned(["PSR"] * 3)
    assert own.transpose_forward != source.transpose_forward
    made = plan_like(own, source, LikeOptions(spacing="target"))
    assert made.axis_codes == "LPS"
    assert made.transpose_forward == source.transpose_forward
    for name, configuration in source.configurations.items():
        assert made.configurations[name].spacing_mm == pytest.approx(configuration.spacing_mm)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "Dataset001_Mixed"
    rng = np.random.default_rng(0)
    for index, order in enumerate(["LPS", "RAS", "LPS"]):
        image = rng.integers(1, 200, (8, 9, 10)).astype(np.int16)
        label = (image > 100).astype(np.uint8)
        target = nib.orientations.axcodes2ornt(order)
        turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
        for array, part in ((image, f"imagesTr/c{index}_0000"), (label, f"labelsTr/c{index}")):
            path = root / f"{part}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1])).as_reoriented(turn), path)
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, '
        '"numTraining": 3, "file_ending": ".nii.gz"}'
    )
    return root


def test_fingerprint_and_verify_see_the_orders(folder):
    dataset = read_dataset(folder)
    fingerprint = make_fingerprint(dataset)
    assert [case.axis_codes for case in fingerprint.cases] == ["LPS", "RAS", "LPS"]
    found = [finding for finding in verify(dataset).findings if finding.code == "axes"]
    assert len(found) == 1
    assert found[0].severity == "warning"
    assert "LPS (2, e.g. c0)" in found[0].problem
    assert "RAS (1, e.g. c1)" in found[0].problem
