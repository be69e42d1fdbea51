import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError
from autoliver.inference.ensemble import mean_probabilities, uncertainty
from autoliver.inference.model import Member, Model
from autoliver.inference.outputs import PredictOptions, PreparedCase, outputs
from autoliver.inference.predict import Listener, make_jobs, predict_jobs, predict_volume
from autoliver.io.files import read_label, write_image
from autoliver.io.volume import Geometry, Volume
from autoliver.planning.plan import Average, Plan

OPTIONS = PredictOptions(mirror=False)
REGIONS = Labels(
    values={"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2)
)
SHAPE, SPACING = (30, 50, 44), (4.0, 2.0, 2.0)


class Bright(nn.Module):
    """Foreground where it is bright, more of it where it is brighter; counts its windows."""

    def __init__(self, threshold: float, rows: int) -> None:
        super().__init__()
        self.threshold, self.rows, self.windows = threshold, rows, 0

    def forward(self, image: Tensor) -> Tensor:
        self.windows += len(image)
        liver, tumour = image - self.threshold, 2 * (image - self.threshold) - 1.5
        rows = [torch.zeros_like(image), liver, tumour][-self.rows :]
        return torch.cat(rows, dim=1)


def make_member(
    plan: Plan, *, name: str = "fine", threshold: float = 2.0, spacing_mm: float = 2.0, **changes
) -> Member:
    own = plan.replace(**changes)
    configuration = own.configurations["3d_fullres"].replace(
        spacing_mm=(spacing_mm,) * 3, patch_shape=(16, 16, 12)
    )
    return Member(
        name=name,
        plan=own,
        configuration=configuration,
        mirror_axes=(),
        networks=(Bright(threshold, own.labels.out_channels),),
        device=torch.device("cpu"),
    )


def make_model(*members: Member, finder: Member | None = None) -> Model:
    return Model(name="fine", members=members, finder=finder)


@pytest.fixture
def image() -> Volume:
    """A bright ball in noise, with a brighter core."""
    rng = np.random.default_rng(0)
    array = rng.normal(100, 10, (1, *SHAPE))
    z, y, x = (np.arange(n) * mm for n, mm in zip(SHAPE, SPACING, strict=True))
    distance = np.sqrt((z[:, None, None] - 40) ** 2 + (y[:, None] - 30) ** 2 + (x - 60) ** 2)
    array += 100 * (distance < 16) + 150 * (distance < 6)
    geometry = Geometry(shape_zyx=SHAPE, spacing_mm=SPACING)
    return Volume(array=array.astype(np.float32), geometry=geometry)


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0)])
def test_near_the_finder_s_foreground_all_is_as_everywhere(
    plan: Plan, image: Volume, labels: Labels | None, axes: tuple[int, int, int]
) -> None:
    own = plan if labels is None else plan.replace(labels=labels)
    fine, coarse = make_member(own), make_member(plan, spacing_mm=6.0, transpose_forward=axes)
    whole = predict_volume(make_model(fine), image, OPTIONS, name="case_1")
    everywhere = fine.networks[0].windows
    near = predict_volume(make_model(fine, finder=coarse), image, OPTIONS, name="case_1")
    few = fine.networks[0].windows - everywhere
    assert 0 < few < 0.7 * everywhere
    assert coarse.networks[0].windows < 0.3 * everywhere
    assert set(np.unique(near)) == {0, 1, 2}
    assert np.array_equal(near, whole)


def test_what_the_finder_does_not_see_is_background(plan: Plan, image: Volume) -> None:
    image.array[0, 24:27, 40:44, 5:9] += 100
    fine = make_member(plan)
    finder = make_member(plan, spacing_mm=6.0, threshold=9.0)
    whole = predict_volume(make_model(fine), image, OPTIONS, name="case_1")
    near = predict_volume(make_model(fine, finder=finder), image, OPTIONS, name="case_1")
    assert (whole[24:27, 40:44, 5:9] > 0).any()
    # The finder sees the core of the ball, but not the cube.
    assert not near[24:27, 40:44, 5:9].any()
    assert (near[:20] == whole[:20]).all()


def test_without_foreground_all_windows_are_visited_and_it_is_said(
    plan: Plan, image: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    fine = make_member(plan)
    finder = make_member(plan, name="Coarse/3d_lowres", spacing_mm=6.0, threshold=99.0)
    whole = predict_volume(make_model(fine), image, OPTIONS, name="case_1")
    with caplog.at_level(logging.WARNING):
        result = predict_volume(make_model(fine, finder=finder), image, OPTIONS, name="case_1")
    assert np.array_equal(result, whole)
    assert "case_1: Coarse/3d_lowres found nothing" in caplog.text


def test_a_plan_may_average_probabilities(plan: Plan, image: Volume) -> None:
    """Folds that disagree in strength: the mean of logits is on the side of the surer one."""
    both = make_member(plan)
    configuration = both.configuration.replace(average="probabilities")
    networks = (Bright(2.0, 3), Bright(-1.0, 3))
    both = dataclasses.replace(both, configuration=configuration, networks=networks)
    case = PreparedCase.of(make_model(both), image, "case_1")
    options = PredictOptions(mirror=False, uncertainty=True)
    (found,) = outputs(make_model(both), case, options)
    on_grid = torch.from_numpy(case.prepared[0].image)[None]
    expected = sum(network(on_grid).softmax(1)[0] for network in networks) / 2
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    np.testing.assert_allclose(found.spread, found.logits, atol=1e-6)
    # On the image's grid the probabilities are resampled, alone and beside another member.
    values = mean_probabilities([found], labels=plan.labels)
    np.testing.assert_allclose(values.sum(axis=0), 1, atol=1e-4)
    predicted = predict_volume(make_model(both), image, OPTIONS, name="case_1")
    assert np.mean(predicted != values.argmax(axis=0)) < 1e-3
    other = make_member(plan, spacing_mm=2.5)
    (alone,) = outputs(
        make_model(other), PreparedCase.of(make_model(other), image, "case_1"), OPTIONS
    )
    mixed = mean_probabilities([found, alone], labels=plan.labels)
    own = mean_probabilities([alone], labels=plan.labels)
    np.testing.assert_allclose(mixed, (values + own) / 2, atol=1e-5)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("labels", [None, REGIONS], ids=["classes", "regions"])
def test_probabilities_and_uncertainty_of_a_region(
    plan: Plan, image: Volume, labels: Labels | None, average: Average
) -> None:
    if labels is not None and average == "probabilities":
        pytest.skip("regions are averaged as logits")
    own = plan if labels is None else plan.replace(labels=labels)
    one, other = make_member(own), make_member(own, spacing_mm=2.5)
    configuration = one.configuration.replace(average=average)
    one = dataclasses.replace(one, configuration=configuration)
    model = make_model(one, other, finder=make_member(plan, spacing_mm=6.0))
    options = PredictOptions(mirror=False, uncertainty=True)
    near = outputs(model, PreparedCase.of(model, image, "case_1"), options)
    assert all(out.logits[0].size < 0.7 * np.prod(out.properties.shape_zyx) for out in near)
    everywhere = dataclasses.replace(model, finder=None)
    whole = outputs(everywhere, PreparedCase.of(everywhere, image, "case_1"), options)
    a, b = (mean_probabilities(found, labels=own.labels) for found in (near, whole))
    ball = predict_volume(everywhere, image, OPTIONS, name="case_1") > 0
    np.testing.assert_allclose(a[:, ball], b[:, ball], atol=1e-5)
    assert np.array_equal(predict_volume(model, image, OPTIONS, name="case_1") > 0, ball)
    far = np.zeros(SHAPE, dtype=bool)
    far[-4:] = True
    assert a[1:, far].max() < 1e-6
    assert uncertainty(near, labels=own.labels)[far].max() < 1e-4
    assert uncertainty(whole, labels=own.labels)[far].max() > 0.1


def test_files_are_predicted_near_the_foreground_alone(
    plan: Plan, image: Volume, tmp_path: Path
) -> None:
    path = tmp_path / "in/case_1_0000.nii.gz"
    write_image(path, image.array, image.geometry)
    fine = make_member(plan)
    seen: list[int] = []

    def on_windows(_: str, windows: int):
        seen.append(windows)
        return lambda: None

    (job,) = make_jobs({"case_1": [path]}, tmp_path / "out")
    model = make_model(fine, finder=make_member(plan, spacing_mm=6.0))
    predict_jobs(model, [job], OPTIONS, listener=Listener(on_windows=on_windows))
    assert seen == [model.finder.networks[0].windows, fine.networks[0].windows]
    label = read_label(job.output).array[0]
    assert np.array_equal(label, predict_volume(make_model(fine), image, OPTIONS, name="a"))


def test_a_finder_must_fit_the_image(plan: Plan, image: Volume) -> None:
    finder = make_member(plan, name="CT/3d_lowres", modality="CT")
    with pytest.raises(DatasetError, match="CT/3d_lowres"):
        predict_volume(make_model(make_member(plan), finder=finder), image, OPTIONS, name="case_1")
