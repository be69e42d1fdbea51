import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoliver.errors import DatasetError, ModelError, OptionError
from autoliver.inference.modality import decide_modality, seen_modality
from autoliver.inference.model import Member, Model, load_model
from autoliver.inference.outputs import PredictOptions
from autoliver.inference.predict import make_jobs, predict_jobs, predict_volume
from autoliver.io.files import read_image, read_label, write_image
from autoliver.io.volume import Geometry, Volume
from autoliver.models.archive import open_archive, write_archive
from autoliver.models.files import MODEL_FILE, MemberFiles, ModelFiles
from autoliver.planning.plan import Plan
from autoliver.preprocessing.case import forward
from autoliver.preprocessing.histogram import Histogram
from autoliver.training.augment.change import Change, apply_appearance

torch.set_num_threads(1)
CPU = torch.device("cpu")
SHAPE = (6, 10, 9)


def of_modality(plan: Plan, modality: str, *schemes: str, **stats: float) -> Plan:
    """The plan for images of a modality, one channel per scheme."""
    schemes = schemes or ({"CT": "ct", "MR": "zscore"}.get(modality, "zscore"),)
    own = {
        name: configuration.replace(normalization=schemes, mask_norm=(False,) * len(schemes))
        for name, configuration in plan.configurations.items()
    }
    return plan.replace(
        modality=modality,
        configurations=own,
        channel_names=tuple(f"channel {n}" for n in range(len(schemes))),
        intensities=(plan.intensities[0].replace(**stats),) * len(schemes),
    )


def make_image(low: float, high: float, *, share: float = 1.0, channels: int = 1) -> Volume:
    """Values from `low` to `high`, both included; all but a share of them are one value within."""
    rng = np.random.default_rng(0)
    array = rng.uniform(low, high, (channels, *SHAPE)).astype(np.float32)
    array[rng.random(array.shape) >= share] = max(low, high / 2)
    array.flat[:2] = low, high
    return Volume(array=array, geometry=Geometry(shape_zyx=SHAPE, spacing_mm=(2.0, 2.0, 2.0)))


MR, CT, CLIPPED = make_image(0, 1874), make_image(-1024, 1500), make_image(-125, 275)


@pytest.mark.parametrize(
    ("planned", "stats", "image", "expected", "words"),
    [
        ("CT", {}, MR, "MR", "no negative values, 0 to 1874"),
        ("MR", {"percentile_00_5": 40}, MR, "MR", "no negative values, 0 to 1874"),
        ("CT", {}, CT, "CT", "lowest value -1024"),
        ("MR", {"percentile_00_5": 40}, CT, "CT", "lowest value -1024"),
        ("MR", {"percentile_00_5": 40}, CLIPPED, "CT", "lowest value -125"),
        ("CT", {}, CLIPPED, "CT", "lowest value -125"),
        # Ringing, and images that were standardised before.
        ("MR", {"percentile_00_5": 40}, make_image(-60, 900, share=0.01), None, "not conclusive"),
        ("MR", {"percentile_00_5": -2}, make_image(-3, 8), None, "not conclusive"),
        ("CT", {}, make_image(-3, 8), None, "not conclusive"),
        # As the model's own training images.
        ("CT", {"mean": 1050}, MR, None, "like the CT it was trained on"),
        ("MR", {"percentile_00_5": -20}, CLIPPED, None, "like the MR it was trained on"),
        ("MR", {"percentile_00_5": -20}, CT, "CT", "lowest value -1024"),
        ("other", {}, CT, None, "does not depend on the modality"),
    ],
)
def test_values_below_zero_decide(plan, planned, stats, image, expected, words):
    own = of_modality(plan, planned, **stats)
    found, why = seen_modality(image.array, own, own.configurations["2d"])
    assert found == expected
    assert words in why


def test_channels_decide_that_are_normalised_as_the_modality_needs(plan):
    both = np.concatenate([CT.array, MR.array])
    for planned, schemes, image, expected in (
        ("CT", ("ct", "zscore"), both, "CT"),
        ("CT", ("ct", "zscore"), both[::-1], "MR"),
        ("CT", ("rescale01", "none"), both[::-1], None),
        ("MR", ("rescale01", "zscore"), both, "MR"),
        ("MR", ("zscore", "zscore"), both, "CT"),
    ):
        own = of_modality(plan, planned, *schemes, percentile_00_5=40)
        found, _ = seen_modality(image, own, own.configurations["2d"])
        assert found == expected, (planned, schemes)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("Dataset101_AbdomenCT", "CT"),
        ("Dataset102_AbdomenMR", "MR"),
        ("Dataset103_LiverTumourCT", "CT"),
        ("Dataset104_BrainMR4", "MR"),
        ("Dataset004_Hippocampus", "MR"),
    ],
)
def test_real_cases_are_told_apart_by_models_of_either_modality(shared, plan, dataset, expected):
    files = sorted((shared / "data" / dataset / "imagesTr").glob("*.nii.gz"))[:3]
    if not files:
        pytest.skip(f"needs {dataset}")
    for file in files:
        array = read_image([file]).array
        for planned in ("CT", "MR"):
            own = of_modality(plan, planned, percentile_00_5=0)
            found, why = seen_modality(array, own, own.configurations["2d"])
            assert found in (expected, None if planned == expected else expected), (file.name, why)


class Eyes(nn.Module):
    """Keeps what it sees, and finds foreground where it is above average."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image.clone())
        image = image[:, :1]
        return torch.cat([torch.zeros_like(image), image, image - 1][: self.rows], dim=1)


def make_member(plan: Plan, *, name: str = "Toy", further: int = 0, **changes: object) -> Member:
    configuration = plan.configurations["3d_fullres"].replace(patch_shape=SHAPE)
    network = configuration.network.replace(in_channels=len(plan.channel_names) + further)
    return Member(
        name=name,
        plan=plan,
        configuration=configuration.replace(network=network),
        mirror_axes=(),
        networks=(Eyes(3),),
        device=CPU,
        **changes,
    )


def predict(model: Model, image: Volume, **options: object) -> list[list[Tensor]]:
    """What the network of each part of a model sees."""
    for part in model.parts:
        part.networks[0].seen.clear()
    predict_volume(model, image, PredictOptions(mirror=False, **options), name="case_3")
    return [part.networks[0].seen for part in model.parts]


def standardised(array: np.ndarray) -> Tensor:
    wide = array.astype(np.float64)
    return torch.from_numpy((wide - wide.mean()) / wide.std())


@pytest.mark.parametrize("margin", [0, 1, 3], ids=["full", "crop over 75 %", "crop under 75 %"])
def test_mr_seen_by_a_plan_for_ct_is_what_a_plan_for_mr_makes_of_it(plan, margin):
    image = make_image(0, 1874)
    if margin:
        image.array[:, :, -margin:] = 0
    masked = margin == 3
    ct, mr = of_modality(plan, "CT"), of_modality(plan, "MR")
    like_planned = mr.configurations["3d_fullres"].replace(mask_norm=(masked,))
    expected = forward(image, None, plan=mr, configuration=like_planned, name="a")
    found = forward(
        image,
        None,
        plan=ct,
        configuration=ct.configurations["3d_fullres"],
        name="a",
        modality="MR",
    )
    assert np.array_equal(found.image, expected.image)
    assert found.properties == expected.properties


def test_inverted_ct_as_mr_is_what_training_makes_of_ct_by_inversion(plan):
    own = of_modality(plan, "CT", percentile_00_5=-150.0, percentile_99_5=250.0)
    member = make_member(own)
    ct = make_image(-150, 250)
    trained = torch.from_numpy(
        forward(ct, None, plan=own, configuration=member.configuration, name="a").image
    )[None]
    inside = torch.zeros(1, *SHAPE, dtype=torch.int16)
    apply_appearance(trained, inside, [Change(0, "inversion", 5, afresh=True)])
    inverted = Volume(array=3 * (1000 - ct.array), geometry=ct.geometry)
    ((seen,),) = predict(Model(name="Toy", members=(member,)), inverted, modality="MR")
    expected = -standardised(ct.array)
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trained[0].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("planned", ["CT", "MR"])
def test_a_case_of_another_modality_is_matched_if_asked(plan, planned):
    """The network sees the order of the case's values and the distribution of its training's."""
    histogram = Histogram(air=-3.0, quantiles=tuple(np.linspace(-1.0, 2.0, 129)))
    member = make_member(of_modality(plan, planned), cross_modal=True, histograms=(histogram,))
    model = Model(name="Toy", members=(member,))
    other = MR if planned == "CT" else make_image(-150, 250)
    ((seen,),) = predict(model, other, modality="MR" if planned == "CT" else "CT", match=True)
    values, given = seen[0].numpy().ravel(), other.array.ravel()
    body = values > -1.5
    assert 0.9 < body.mean() < 1.0
    assert (values[~body] == -3.0).all()
    assert given[~body].max() <= given[body].min()
    np.testing.assert_allclose(
        np.quantile(values[body], [0.1, 0.5, 0.9]), [-0.7, 0.5, 1.7], atol=0.02
    )
    assert (np.diff(values[body][np.argsort(given[body])]) >= -1e-6).all()
    # A case of the model's own modality is seen as ever.
    own = CT if planned == "CT" else MR
    for match in (True, False):
        ((seen,),) = predict(model, own, modality=planned, match=match)
        as_planned = forward(
            own, None, plan=member.plan, configuration=member.configuration, name="a"
        )
        assert np.array_equal(seen[0].numpy(), as_planned.image)


def test_matching_needs_to_know_the_training_images(plan):
    model = Model(name="Toy", members=(make_member(of_modality(plan, "CT"), cross_modal=True),))
    with pytest.raises(ModelError, match="--match: Toy does not say") as caught:
        predict(model, MR, modality="MR", match=True)
    assert "without --match" in caught.value.hint


@pytest.mark.parametrize("name", ["inversion", "gin", "bezier", "palette"])
def test_a_change_of_contrast_is_seen_in_prediction_as_training_showed_it(plan, name):
    """CT whose contrast a training has changed is what `predict --modality MR` makes of it."""
    own = of_modality(plan, "CT", percentile_00_5=-150.0, percentile_99_5=250.0)
    member = make_member(own)
    ct = make_image(-150, 250)
    shown = forward(ct, None, plan=own, configuration=member.configuration, name="a").image
    batch = torch.from_numpy(shown)[None]
    before = batch.clone()
    inside = torch.zeros(1, *SHAPE, dtype=torch.int16)
    apply_appearance(batch, inside, [Change(0, name, 5, afresh=True)])
    changed = batch.clone()
    assert float((changed - before).abs().mean()) > 0.1

    # The same contrast as a scanner of unknown scale would store it.
    stored = Volume(array=changed[0].numpy() * 137 + 2000, geometry=ct.geometry)
    ((seen,),) = predict(Model(name="Toy", members=(member,)), stored, modality="MR")
    torch.testing.assert_close(seen[0], changed[0], atol=1e-3, rtol=1e-3)
    assert abs(float(seen[0].mean())) < 1e-3
    assert float(seen[0].std()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("planned", "image", "choice"),
    [
        *(("CT", image, choice) for image in (CT, CLIPPED) for choice in ("auto", "CT", None)),
        *(("MR", MR, choice) for choice in ("auto", "MR", None)),
        # What a dataset's own cases are is known, whatever they look like.
        *(("CT", MR, None), ("MR", CT, None), ("other", CT, "auto")),
    ],
)
def test_images_of_the_planned_modality_are_seen_as_ever(plan, planned, image, choice, caplog):
    own = of_modality(plan, planned)
    member = make_member(own)
    ((seen,),) = predict(Model(name="Toy", members=(member,)), image, modality=choice)
    expected = forward(image, None, plan=own, configuration=member.configuration, name="a").image
    assert np.array_equal(seen[0].numpy(), expected)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_by_default_the_log_tells_how_it_was_decided(plan, caplog):
    model = Model(name="Toy", members=(make_member(of_modality(plan, "CT")),))
    with caplog.at_level(logging.INFO):
        predict(model, CT)
    assert "INFO" in caplog.text
    assert "case_3: looks like CT (lowest value -1024): normalised as planned." in caplog.text


@pytest.mark.parametrize("planned", ["CT", "MR"])
@pytest.mark.parametrize("value", [0.0, -1000.0, 40.0])
def test_an_empty_image_has_no_modality_and_is_warned_of(plan, planned, value, caplog):
    image = np.full((1, *SHAPE), value, np.float32)
    own = of_modality(plan, planned)
    model = Model(name="Toy", members=(make_member(own),))
    assert decide_modality(model, image, "auto", name="case_3").modality == planned
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"case_3: taken for {planned} (every voxel is {value:g}: an empty image has no modality): "
        "normalised as planned."
    )


def test_a_model_prepared_for_it_sees_mr_by_its_own_mean_and_deviation(plan, caplog):
    member = make_member(of_modality(plan, "CT"), cross_modal=True)
    ((seen,),) = predict(Model(name="Toy", members=(member,)), MR)
    torch.testing.assert_close(seen[0].double(), standardised(MR.array), atol=1e-5, rtol=1e-5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "case_3: looks like MR (no negative values, 0 to 1874): "
        "normalised by its own mean and standard deviation."
    )


def test_a_model_prepared_for_it_sees_the_soft_tissue_of_ct(plan, caplog):
    member = make_member(of_modality(plan, "MR", percentile_00_5=40), cross_modal=True)
    before = CT.array.copy()
    ((seen,),) = predict(Model(name="Toy", members=(member,)), CT)
    expected = standardised(np.clip(CT.array, -150, 250))
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert np.array_equal(CT.array, before)
    assert "looks like CT (lowest value -1024): clipped to -150 to 250 HU and" in caplog.text


def test_a_plan_that_follows_one_for_ct_sees_ct_as_there(plan):
    """Weights that come from CT have learnt it in that plan's window and scale."""
    source = of_modality(plan, "CT", mean=90, std=40, percentile_00_5=-20, percentile_99_5=200)
    own = of_modality(plan, "MR", percentile_00_5=40)
    own = own.replace(source_intensities=source.intensities)
    seen = [
        forward(CT, None, plan=p, configuration=p.configurations["2d"], name="a", modality="CT")
        for p in (own, source)
    ]
    assert np.array_equal(seen[0].image, seen[1].image)
    mr = forward(MR, None, plan=own, configuration=own.configurations["2d"], name="a")
    assert abs(float(mr.image.mean())) < 0.1


def test_only_channels_of_the_modality_are_normalised_anew(plan):
    own = of_modality(plan, "CT", "ct", "rescale01")
    image = make_image(0, 1874, channels=2)
    member = make_member(own, cross_modal=True)
    ((seen,),) = predict(Model(name="Toy", members=(member,)), image)
    expected = standardised(image.array[0])
    torch.testing.assert_close(seen[0, 0].double(), expected, atol=1e-5, rtol=1e-5)
    assert (seen[0, 1].min(), seen[0, 1].max()) == (0, 1)


@pytest.mark.parametrize(("planned", "image", "other"), [("CT", MR, "MR"), ("MR", CLIPPED, "CT")])
def test_what_a_model_was_not_prepared_for_is_refused_unless_asked_for(
    plan, planned, image, other, caplog
):
    own = of_modality(plan, planned, percentile_00_5=0)
    model = Model(name="Toy", members=(make_member(own, name="LiTS/2d"),))
    with pytest.raises(DatasetError) as caught:
        predict(model, image)
    problem = caught.value.problem
    assert problem.startswith(f"case_3: looks like {other} (")
    assert problem.endswith(f"), but LiTS/2d was trained on {planned}.")
    for words in (
        f"for {other} with -m",
        "--augment cross-modality",
        "--pretrained",
        f"--modality {other}",
    ):
        assert words in caught.value.hint
    assert "\n" not in caught.value.hint

    ((seen,),) = predict(model, image, modality=other)
    expected = standardised(np.clip(image.array, -150, 250) if other == "CT" else image.array)
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert not caplog.records


def test_a_modality_that_contradicts_the_image_is_taken_with_one_warning(plan, caplog):
    own = of_modality(plan, "CT")
    member = make_member(own)
    ((seen,),) = predict(Model(name="Toy", members=(member,)), MR, modality="CT")
    expected = forward(MR, None, plan=own, configuration=member.configuration, name="a").image
    assert np.array_equal(seen[0].numpy(), expected)
    (record,) = caplog.records
    assert record.getMessage() == (
        "case_3: looks like MR (no negative values, 0 to 1874), but CT was requested: "
        "normalised as planned."
    )


def test_a_model_of_no_modality_says_that_it_ignores_the_choice(plan, caplog):
    model = Model(name="Toy", members=(make_member(of_modality(plan, "other")),))
    assert decide_modality(model, CT.array, "auto", name="a").modality is None
    assert not caplog.records
    assert decide_modality(model, CT.array, "MR", name="a").modality is None
    assert "a: MR was requested, but Toy knows no modality" in caplog.text


def test_an_unknown_modality_is_refused():
    with pytest.raises(OptionError, match="modality is 'PET'; it must be one of auto, CT, MR"):
        PredictOptions(modality="PET")
    assert PredictOptions(modality="mr").modality == "MR"


@pytest.mark.parametrize("order", [1, -1])
def test_members_finder_and_first_stage_see_the_case_s_modality_each_by_its_plan(plan, order):
    ct, mr = of_modality(plan, "CT"), of_modality(plan, "MR", percentile_00_5=40)
    cascade = make_member(
        ct, further=2, cross_modal=True, previous=make_member(ct, cross_modal=True)
    )
    members = (make_member(mr, cross_modal=True), cascade)[::order]
    finder = make_member(ct, name="Finder", cross_modal=True)
    model = Model(name="Toy", members=members, finder=finder)
    for image in (MR, CT):
        planned = forward(
            image, None, plan=ct, configuration=ct.configurations["3d_fullres"], name="a"
        ).image
        clipped = standardised(np.clip(image.array, -150, 250))
        own = standardised(image.array)
        for part, seen in zip(model.parts, predict(model, image), strict=True):
            assert seen
            if image is MR:
                expected = own
            else:
                expected = clipped if part.plan is mr else torch.from_numpy(planned).double()
            for each in seen:
                torch.testing.assert_close(each[0, :1].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unprepared", ["member", "first stage", "finder"])
def test_every_part_of_a_model_must_be_prepared(plan, unprepared):
    ct, mr = of_modality(plan, "CT"), of_modality(plan, "MR")

    def make(part: str, **changes: object) -> Member:
        return make_member(ct, name=part, cross_modal=part != unprepared, **changes)

    cascade = make("member", further=2, previous=make("first stage"))
    model = Model(name="Toy", members=(make_member(mr), cascade), finder=make("finder"))
    with pytest.raises(DatasetError, match=f"but {unprepared} was trained on CT"):
        predict(model, MR)


@pytest.mark.parametrize(
    ("augments", "prepared"),
    [
        (("default",), False),
        (("none",), False),
        (("cross-modality",), True),
        (("gin", "bezier"), True),
        (("cross-modality", "default"), False),
    ],
)
def test_a_model_is_prepared_if_all_its_folds_are_in_a_file_as_well(
    save, tmp_path, augments, prepared
):
    folds = tuple(save(f"fold_{n}", augment=augment) for n, augment in enumerate(augments))
    files = ModelFiles(name="Toy", members=(MemberFiles(folds=folds),))
    assert load_model(files, device=CPU).members[0].cross_modal == prepared
    write_archive(tmp_path / "toy.autoliver", files)
    copied = open_archive(tmp_path / "toy.autoliver").files()
    assert load_model(copied, device=CPU).members[0].cross_modal == prepared


def test_models_of_before_are_not_prepared(save):
    folder = save("fold_0", augment="cross-modality")
    info = folder / MODEL_FILE
    fields = json.loads(info.read_text())
    del fields["augment"]
    info.write_text(json.dumps(fields))
    files = ModelFiles(name="Toy", members=(MemberFiles(folds=(folder,)),))
    assert not load_model(files, device=CPU).members[0].cross_modal


@pytest.mark.parametrize("overlap", [False, True])
def test_each_of_several_files_is_decided_for_itself(plan, tmp_path: Path, overlap, caplog):
    model = Model(name="Toy", members=(make_member(of_modality(plan, "CT"), cross_modal=True),))
    cases = {}
    for name, image in (("ct", CT), ("mr", MR)):
        cases[name] = [tmp_path / f"in/{name}.nii.gz"]
        write_image(cases[name][0], image.array, image.geometry)
    jobs = make_jobs(cases, tmp_path / "out")
    predict_jobs(model, jobs, PredictOptions(mirror=False, overlap=overlap))
    for job, image in zip(jobs, (CT, MR), strict=True):
        alone = predict_volume(model, image, PredictOptions(mirror=False), name="alone")
        assert np.array_equal(read_label(job.output).array[0], alone)
    assert "mr: looks like MR" in caplog.text
    assert "ct: looks like" not in caplog.text
