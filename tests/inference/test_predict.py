import dataclasses
import shutil

import numpy as np
import pytest
import torch

from autoliver.errors import AutoliverError, DatasetError
from autoliver.inference.clean import clean
from autoliver.inference.ensemble import mean_probabilities
from autoliver.inference.model import load_model
from autoliver.inference.outputs import PredictOptions, PreparedCase, outputs
from autoliver.inference.predict import PredictJob, make_jobs, predict_jobs, predict_volume
from autoliver.inference.window import Scan, sliding_window, windows_of
from autoliver.io.files import read_image, read_label, write_image
from autoliver.io.volume import Geometry, Volume
from autoliver.models.files import FoldModel, MemberFiles, ModelFiles
from autoliver.models.selection import CleaningRule
from autoliver.preprocessing.case import backward_logits, forward

torch.set_num_threads(1)
CPU = torch.device("cpu")
PLAIN = PredictOptions(mirror=False)


def make_image(shape=(9, 14, 12), channels=1, spacing_mm=(3.0, 1.5, 1.7)):
    rng = np.random.default_rng(0)
    array = rng.gamma(4.0, 25.0, (channels, *shape)).astype(np.float32)
    return Volume(array=array, geometry=Geometry(shape_zyx=shape, spacing_mm=spacing_mm))


def load(*folders, name="Toy/3d_fullres"):
    files = ModelFiles(name=name, members=(MemberFiles(folds=folders),))
    return load_model(files, device=CPU)


def predicted(model, image=None, options=PLAIN):
    return predict_volume(model, image or make_image(), options, name="case_1")


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_labels_lie_on_the_image_s_own_grid(save, configuration):
    image = make_image()
    labels = predicted(load(save("fold_0", configuration=configuration)), image)
    assert labels.shape == image.geometry.shape_zyx
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert len(np.unique(labels)) > 1


def test_two_equal_folds_predict_as_one(save):
    one, same, other = save("fold_0"), save("fold_1"), save("fold_2", seed=8)
    alone = predicted(load(one))
    assert np.array_equal(predicted(load(one, same)), alone)
    assert not np.array_equal(predicted(load(one, other)), alone)


def test_mirroring_makes_the_prediction_of_a_flipped_image_the_flipped_prediction(save):
    model = load(save("fold_0", mirror_axes=(0, 1, 2)))
    image = make_image((8, 16, 16), spacing_mm=(2.0, 2.0, 2.0))
    flipped = dataclasses.replace(image, array=np.ascontiguousarray(image.array[..., ::-1]))
    both = PredictOptions(mirror=True)
    assert (
        np.mean(predicted(model, image, both) != predicted(model, flipped, both)[..., ::-1]) < 0.01
    )
    assert np.mean(predicted(model, image) != predicted(model, flipped)[..., ::-1]) > 0.01


def test_only_axes_seen_flipped_by_every_fold_are_flipped(save):
    flips, never = save("fold_0", mirror_axes=(0, 2)), save("fold_1", mirror_axes=())
    assert load(flips).members[0].mirror_axes == (0, 2)
    assert load(flips, never).members[0].mirror_axes == ()
    image = make_image((8, 16, 16), spacing_mm=(2.0, 2.0, 2.0))
    both = PredictOptions(mirror=True)
    assert np.array_equal(predicted(load(never), image, both), predicted(load(never), image))
    assert not np.array_equal(predicted(load(flips), image, both), predicted(load(flips), image))


def test_windows_are_announced_and_counted(save):
    seen = []

    def on_windows(name, windows):
        seen.append((name, windows))
        return lambda: seen.append("tick")

    image = make_image((8, 20, 20), spacing_mm=(2.0, 2.0, 2.0))
    predict_volume(load(save("fold_0")), image, PLAIN, name="case_1", on_windows=on_windows)
    windows = len(windows_of((8, 20, 20), (8, 8, 8), 0.5))
    assert seen == [("case_1", windows), *["tick"] * windows]


def test_files_are_written_beside_nothing_else_and_read_back(save, tmp_path):
    image = make_image()
    path, output = tmp_path / "in/case_1_0000.nrrd", tmp_path / "out"
    write_image(path, image.array, image.geometry)
    model = load(save("fold_0"))
    (job,) = make_jobs({"case_1": [path]}, output)
    assert not job.finished
    predict_jobs(model, [job], PLAIN)
    assert job.finished
    assert [p.name for p in output.iterdir()] == ["case_1.nrrd"]
    label = read_label(job.output)
    assert np.array_equal(label.array[0], predicted(model, image))
    assert label.geometry.spacing_mm == pytest.approx(image.geometry.spacing_mm)


def test_a_case_that_fails_leaves_no_file(save, tmp_path):
    image = make_image(channels=2)
    paths = [tmp_path / f"in/case_1_000{channel}.nii.gz" for channel in range(2)]
    for path, channel in zip(paths, image.array, strict=True):
        write_image(path, channel[None], image.geometry)
    with pytest.raises(DatasetError, match="found 2 channels"):
        predict_jobs(load(save("fold_0")), make_jobs({"case_1": paths}, tmp_path / "out"), PLAIN)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["1", "a", "case", "o", "image", "in"])
@pytest.mark.parametrize("overlap", [False, True])
def test_an_error_begins_with_the_case_s_name_once(save, tmp_path, name, overlap):
    model = load(save("fold_0"))
    cut = tmp_path / f"in/{name}_0000.nii.gz"
    image = make_image()
    write_image(cut, image.array, image.geometry)
    cut.write_bytes(cut.read_bytes()[:-40])
    job = PredictJob(name=name, images=(cut,), output=tmp_path / f"out/{name}.nii.gz")
    with pytest.raises(DatasetError) as caught:
        predict_jobs(model, [job], PredictOptions(mirror=False, overlap=overlap))
    assert caught.value.problem.startswith(f"{name}: {cut}: cannot be read")
    two = np.concatenate([image.array, image.array])
    with pytest.raises(DatasetError) as caught:
        predict_volume(model, Volume(array=two, geometry=image.geometry), PLAIN, name=name)
    assert caught.value.problem.startswith(f"{name}: found 2 channels")


def test_an_error_about_a_case_without_a_name_stays_as_it_is(save, tmp_path):
    cut = tmp_path / "in/x.nii.gz"
    cut.parent.mkdir()
    cut.write_bytes(b"")
    job = PredictJob(name="", images=(cut,), output=tmp_path / "out/x.nii.gz")
    with pytest.raises(DatasetError) as caught:
        predict_jobs(load(save("fold_0")), [job], PLAIN)
    assert caught.value.problem.startswith(f"{cut}: ")


def test_a_label_map_must_not_replace_an_image(tmp_path):
    cases = {"a": [tmp_path / "a_0000.nii.gz"], "b": [tmp_path / "b.nii.gz"]}
    with pytest.raises(AutoliverError, match=r"^b: .*would overwrite the image") as caught:
        make_jobs(cases, tmp_path / "sub/..")
    assert "-o" in caught.value.hint
    jobs = make_jobs(cases, tmp_path / "sub")
    assert [job.output.name for job in jobs] == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    ("modality", "change", "words", "hint"),
    [
        ("MR", lambda a: np.concatenate([a, a]), r"found 2 channels.*expects 1: T1", "CASE_0001"),
        ("MR", lambda a: np.where(a > 100, np.nan, a), "NaN or infinite", "leave out"),
        ("MR", lambda a: np.where(a > 100, -np.inf, a), "NaN or infinite", "leave out"),
        ("MR", lambda a: a - 1000, r"looks like CT \(lowest value -9", "for CT with -m"),
        ("CT", lambda a: a, r"looks like MR \(no negative values", "for MR with -m"),
    ],
    ids=["channels", "nan", "inf", "ct", "mr"],
)
def test_an_image_that_does_not_fit_is_refused(save, modality, change, words, hint):
    model = load(save("fold_0", modality=modality))
    image = make_image()
    wrong = Volume(array=change(image.array).astype(np.float32), geometry=image.geometry)
    with pytest.raises(DatasetError, match=f"^case_7: .*{words}") as caught:
        predict_volume(model, wrong, PLAIN, name="case_7")
    assert hint in caught.value.hint


def test_images_that_fit_pass(save):
    image = make_image()
    predicted(load(save("fold_0")), image)
    ct = dataclasses.replace(image, array=image.array - 1000)
    predicted(load(save("fold_1", modality="CT")), ct)
    for fitting in (image, ct):
        predicted(load(save("fold_2", modality="other")), fitting)


def test_members_with_plans_of_their_own_are_averaged(save):
    image = make_image()
    first, second = save("fold_0", configuration="2d"), save("fold_0", seed=5)
    files = ModelFiles(
        name="both", members=(MemberFiles(folds=(first,)), MemberFiles(folds=(second,)))
    )
    both = load_model(files, device=CPU)
    means = np.zeros((3, *image.geometry.shape_zyx))
    for folder in (first, second):
        model = load(folder)
        case = PreparedCase.of(model, image, "case_1")
        means += mean_probabilities(outputs(model, case, PLAIN), labels=model.plan.labels) / 2
    result = predicted(both, image)
    assert np.mean(result != means.argmax(axis=0)) < 1e-3
    alone = predicted(load(first), image)
    assert np.mean(result != alone) > 0.01


def test_cleaning_rules_are_applied(save):
    image = make_image()
    part = MemberFiles(folds=(save("fold_0", seed=8),))
    rough = predicted(load(*part.folds), image)
    volume_ml = (rough == 1).sum() * 3.0 * 1.5 * 1.7 / 1000
    assert volume_ml > 0
    for least_ml, expected in ((volume_ml * 2, np.where(rough == 1, 0, rough)), (0.0, rough)):
        rule = CleaningRule(labels=("liver",), keep="least", least_ml=least_ml)
        model = load_model(ModelFiles(name="clean", members=(part,), cleaning=(rule,)), device=CPU)
        np.testing.assert_array_equal(predicted(model, image), expected)


LARGEST = CleaningRule(labels=("liver", "tumour"), keep="largest", by_faces=True)


@pytest.mark.parametrize("rules", [(), (LARGEST,)])
def test_a_cascade_sees_the_label_map_of_its_first_stage(save, plan, rules):
    low = save("fold_0", seed=2)
    shutil.move(low.parent, low.parents[1] / "3d_lowres")
    low = low.parents[1] / "3d_lowres/fold_0"
    info = FoldModel.load(low / "model.json")
    info.replace(next_stage_cleaning=rules).save(low / "model.json")
    full = plan.configurations["3d_fullres"]
    spec = full.network.replace(in_channels=3)
    cascade = full.replace(previous_stage="3d_lowres", spacing_mm=(1.5,) * 3, network=spec)
    folder = save("fold_0", seed=3, configurations={"3d_fullres": cascade})
    files = ModelFiles(name="c", members=(MemberFiles(folds=(folder,), previous=(low,)),))
    model = load_model(files, device=CPU)
    image = make_image()

    result = predicted(model, image)

    rough = predicted(load(low), image)
    first = clean(rough, rules, values=plan.labels.values, spacing_mm=image.geometry.spacing_mm)
    assert len(np.unique(first)) > 1
    assert np.array_equal(first, rough) == (not rules)
    member = model.members[0]
    label = dataclasses.replace(image, array=first[None])
    case = forward(image, label, plan=member.plan, configuration=cascade, name="case_1")
    further = np.stack([case.label[0] == 1, case.label[0] == 2])
    channels = torch.from_numpy(np.concatenate([case.image, further.astype(np.float32)]))
    with torch.inference_mode():
        logits = sliding_window(channels, member.networks, Scan(patch_shape=cascade.patch_shape))
    expected = backward_logits(logits.numpy(), case.properties, labels=plan.labels)
    np.testing.assert_array_equal(result, expected)


def test_probabilities_and_uncertainty_are_written_on_request(save, tmp_path):
    image = make_image()
    path = tmp_path / "in/a_0000.nii.gz"
    write_image(path, image.array, image.geometry)
    model = load(save("fold_0"), save("fold_1", seed=8))
    plain = make_jobs({"a": [path]}, tmp_path / "plain")
    predict_jobs(model, plain, PLAIN)
    jobs = make_jobs({"a": [path]}, tmp_path / "out")
    predict_jobs(model, jobs, PLAIN.replace(probabilities=True, uncertainty=True))
    names = ["a.nii.gz", "a.npz", "a_uncertainty.nii.gz"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    labels = read_label(jobs[0].output).array[0]
    np.testing.assert_array_equal(labels, read_label(plain[0].output).array[0])
    with np.load(tmp_path / "out/a.npz") as file:
        values = file["probabilities"]
    assert np.mean(values.argmax(axis=0) != labels) < 1e-3
    entropy = read_image([tmp_path / "out/a_uncertainty.nii.gz"]).array
    assert 0 < entropy.min() < entropy.max() <= 1 + 1e-6
