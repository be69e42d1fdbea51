"""What translations learn from, on cases in memory: all models, in 2D and 3D, in half precision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_trainings import LABELS, ArrayCase
from torch import nn

from autoliver.datasets.cases import CaseFacts
from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import save_training_state
from autoliver.networks.translator import PatchDiscriminator, PatchHeads
from autoliver.planning.plan import Configuration
from autoliver.preprocessing.case import Preprocessed
from autoliver.synthesis.translation.apply import translate
from autoliver.synthesis.translation.domains import Domain, range_of
from autoliver.synthesis.translation.networks import generator_spec, make_networks, segmentor_spec
from autoliver.synthesis.translation.options import Range, TranslationOptions
from autoliver.synthesis.translation.state import Translation, TranslationTask
from autoliver.synthesis.translation.step import Learner, contrastive_loss
from autoliver.synthesis.translation.training import learn_translation

SMALL = {"features": 4, "blocks": 2, "batch_size": 2, "epochs": 2, "iterations": 2, "lr": 1e-3}
KINDS = [
    pytest.param({"model": "essnet"}, (24, 24), id="essnet"),
    pytest.param({"model": "cyclegan", "identity": 0.5}, (24, 24), id="cyclegan"),
    pytest.param({"model": "cut"}, (24, 24), id="cut"),
    pytest.param({"model": "cut", "segmentation": 1.0}, (24, 24), id="cut with a segmentor"),
    pytest.param({"model": "essnet"}, (4, 24, 24), id="essnet in 3D"),
    pytest.param({"model": "cut"}, (4, 24, 24), id="cut in 3D"),
]


def make_case(number: int, *, bright: float) -> ArrayCase:
    """Blobs that are brighter, or darker, the higher their label."""
    rng = np.random.default_rng(number)
    field = gaussian_filter(rng.normal(size=(6, 28, 32)), 2.0)
    label = np.digitize(field, np.quantile(field, [0.6, 0.85])).astype(np.int16)
    image = (bright * label + rng.normal(size=label.shape) * 0.2).astype(np.float32)
    return ArrayCase(CaseFacts.named(f"case_{number}"), image[None], label[None])


def make_task(folder: Path, patch: tuple[int, ...], **given: object) -> TranslationTask:
    options = TranslationOptions(**{**SMALL, **given}).settled(patch)
    spacing = (4.0, 1.0, 1.0)[-len(patch) :]
    sides = []
    for name, bright in (("a", 1.0), ("b", -2.0)):
        cases = tuple(make_case(len(name + str(n)) + n, bright=bright) for n in range(2))
        sides.append(Domain(cases=cases, labels=LABELS, range=range_of(cases, where=name)))
    return TranslationTask(
        title="toy",
        source=sides[0],
        target=sides[1],
        configuration=Configuration(
            spacing_mm=spacing,
            median_shape=tuple(map(float, patch)),
            patch_shape=patch,
            batch_size=2,
            batch_dice=False,
            normalization=("zscore",),
            mask_norm=(True,),
            network=segmentor_spec(options, LABELS.out_channels, spacing),
        ),
        options=options,
        device=torch.device("cpu"),
        cache="ram",
        folder=folder,
    )


def learnt(task: TranslationTask, *, stop_after: int | None = None) -> Translation:
    task.folder.mkdir(exist_ok=True)
    looks = iter(range(10**6))
    return learn_translation(task, stop=lambda: next(looks) == stop_after)


def weights(state: Translation) -> dict[str, np.ndarray]:
    return {name: w.numpy() for name, w in state.networks.state_dict().items()}


def assert_equal(one: Translation, other: Translation) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert [log.losses for log in one.logs] == [log.losses for log in other.logs]


@pytest.mark.parametrize(("given", "patch"), KINDS)
def test_a_seed_decides_and_a_stopped_training_goes_on(tmp_path, given, patch):
    task = make_task(tmp_path / "a", patch, **given)
    whole = learnt(task)
    assert whole.step == 4
    for each in ("there", *(["segmentor"] if task.options.segments else [])):
        before = make_networks(
            task.options, task.configuration.spacing_mm, task.configuration.network
        )
        moved = zip(before[each].parameters(), whole.networks[each].parameters(), strict=True)
        assert all((a - b).abs().max() > 0 for a, b in moved if a.ndim > 1)
    stopped = replace(task, folder=tmp_path / "b")
    assert learnt(stopped, stop_after=3).step == 3
    assert_equal(whole, learnt(stopped))
    other = make_task(tmp_path / "c", patch, **given, seed=1)
    assert not np.array_equal(*(next(iter(weights(s).values())) for s in (whole, learnt(other))))


@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("step", range(4))
def test_it_can_be_stopped_before_every_step(tmp_path, iterations, step):
    """Also where an epoch has one step only."""
    task = make_task(tmp_path / "a", (24, 24), iterations=iterations, epochs=4 // iterations)
    assert learnt(task, stop_after=step).step == step


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of switching oneDNN off
@pytest.mark.parametrize(("given", "patch"), KINDS)
def test_half_precision_gives_finite_losses_and_float32_weights(tmp_path, given, patch):
    task = make_task(tmp_path / "a", patch, **given)
    whole = learnt(task)
    half = Translation(replace(task, folder=tmp_path / "b", half=torch.bfloat16))
    kinds = set()
    for module in half.networks.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(lambda _, __, made: kinds.add(made.dtype))
    learner, losses = Learner(half), []
    # oneDNN leaves parts of the gradients of flat 3D kernels in bfloat16 unset (torch 2.13).
    with torch.backends.mkldnn.flags(enabled=False):
        for source, target in half.batches(range(4)):
            losses.append(learner.take(source, target))
    assert kinds == {torch.bfloat16}
    assert all(loss.dtype == torch.float32 for each in losses for loss in each.values())
    assert all(bool(loss.isfinite()) for each in losses for loss in each.values())
    assert {w.dtype for w in half.networks.parameters()} == {torch.float32}
    first = {name: float(np.mean([float(each[name]) for each in losses[:2]])) for name in losses[0]}
    assert first == pytest.approx(whole.logs[0].losses, rel=0.05)
    assert first != whole.logs[0].losses


def test_a_training_with_scaled_losses_goes_on_with_its_scale(tmp_path):
    """In float16, as on GPUs without bfloat16."""
    task = replace(make_task(tmp_path / "a", (24, 24), model="cut"), half=torch.float16)
    whole = learnt(task)
    scale = whole.scaler.get_scale()
    assert 1 <= scale <= 2**16
    assert {w.dtype for w in whole.networks.parameters()} == {torch.float32}
    half = replace(task, folder=tmp_path / "b")
    state = learnt(half, stop_after=3)
    state.scaler.update(4.0)
    save_training_state(half.resume, state.snapshot())
    assert Translation(half).scaler.get_scale() == 4.0
    assert Translation(half).step == 3


def test_a_state_of_other_networks_is_refused(tmp_path):
    task = make_task(tmp_path / "a", (24, 24), model="cut")
    learnt(task)
    other = replace(make_task(tmp_path / "a", (24, 24), model="cut", blocks=3))
    with pytest.raises(ModelError, match=r"resume\.pt: .*blocks\.2"):
        Translation(other)


def test_the_contrastive_loss_tells_places_apart():
    """Against the formula, place by place."""
    rng = np.random.default_rng(0)
    made, keys = rng.normal(size=(2, 3, 7, 5)) + 0.0
    made, keys = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (made, keys))
    expected = []
    for image in range(3):
        for place in range(7):
            alike = [np.exp(made[image, place] @ keys[image, other] / 0.07) for other in range(7)]
            expected.append(-np.log(alike[place] / sum(alike)))
    found = contrastive_loss(torch.from_numpy(made), torch.from_numpy(keys))
    assert float(found) == pytest.approx(np.mean(expected))
    same = torch.ones(1, 4, 1)
    assert float(contrastive_loss(same, same)) == pytest.approx(np.log(4))
    apart = torch.eye(4)[None]
    assert float(contrastive_loss(apart, apart)) < 1e-5


@pytest.mark.parametrize("blocks", [1, 2, 9])
@pytest.mark.parametrize("patch", [(24, 28), (8, 24, 28)])
def test_layers_that_are_compared_are_those_of_the_forward_pass(blocks, patch):
    options = TranslationOptions(features=4, blocks=blocks, patch=patch)
    spec = generator_spec(options, (5.0, 2.0, 2.0))
    network = build_network(spec, deep_supervision=False)
    seen = []
    for part in (*[d.conv for d in list(network.encoder)[1:]], *network.blocks):
        part.register_forward_hook(lambda _, __, made: seen.append(made))
    image = torch.randn(2, 1, *patch)
    network(image)
    expected = [image, seen[0], seen[1], seen[2], *([seen[2 + min(4, blocks - 1)]] * (blocks > 1))]
    found = network.features(image)
    assert len(found) == len(expected) == len(spec.compared_features)
    for one, other, channels in zip(found, expected, spec.compared_features, strict=True):
        torch.testing.assert_close(one, other)
        assert one.shape[1] == channels


def test_vectors_of_places_have_length_one():
    heads = PatchHeads([1, 8], width=16)
    found = heads([torch.randn(2, 10, 1), torch.randn(2, 6, 8)])
    assert [each.shape for each in found] == [(2, 10, 16), (2, 6, 16)]
    for each in found:
        torch.testing.assert_close(each.norm(dim=-1), torch.ones(each.shape[:2]))


def test_cut_has_half_of_the_networks():
    options = TranslationOptions(features=4, blocks=1)
    segmentor = segmentor_spec(options, 2)
    names = {
        model: set(make_networks(options.replace(model=model), (), segmentor))
        for model in ("essnet", "cyclegan", "cut")
    }
    cycle = {"there", "back", "judge of source", "judge of target"}
    assert names["cyclegan"] == cycle
    assert names["essnet"] == cycle | {"segmentor"}
    assert names["cut"] == {"there", "heads", "judge of target"}


@pytest.mark.parametrize(("given", "expected"), [({}, (0.0, 1.0, 0)), ({"pool": 7}, (0.0, 1.0, 7))])
def test_models_have_their_own_defaults(given, expected):
    cut = TranslationOptions(model="cut", **given).settled((24, 24))
    assert (cut.segmentation, cut.identity, cut.pool) == expected
    essnet = TranslationOptions(**given).settled((24, 24))
    assert (essnet.segmentation, essnet.identity, essnet.pool) == (1.0, 0.0, given.get("pool", 50))


@pytest.mark.parametrize(
    ("spacing", "strides"),
    [
        ((5.0, 2.0, 2.0), ((1, 2, 2), (2, 2, 2))),
        ((3.0, 2.0, 2.0), ((2, 2, 2), (2, 2, 2))),
    ],
)
def test_thick_slices_are_halved_later(spacing, strides):
    options = TranslationOptions(features=4, blocks=1, patch=(8, 24, 24))
    assert generator_spec(options, spacing).strides == strides
    judge = PatchDiscriminator(1, features=4, strides=(*strides, (1, 2, 2)))
    judged = judge(torch.randn(1, 1, 8, 24, 24))
    assert judged.shape == (1, 1, 8 // strides[0][0] // 2, 1, 1)


def test_neighbouring_slices_are_seen_in_3d():
    spec = generator_spec(TranslationOptions(features=4, blocks=1, patch=(8, 24, 24)), (5, 2, 2))
    network = build_network(spec, deep_supervision=False)
    image = torch.randn(1, 1, 8, 24, 24, requires_grad=True)
    for module in network.modules():  # an instance norm sees the whole image
        if isinstance(module, nn.InstanceNorm3d):
            module.forward = lambda x: x
    network(image)[0, 0, 4, 12, 12].backward()
    assert (image.grad[0, 0].abs().sum((1, 2)) > 0).sum() >= 5


class _Doubled(nn.Module):
    """Gives half of an image; notes the sizes that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(image.shape[2:]))
        return image / 2


@pytest.mark.parametrize("shape", [(9, 40, 30), (2, 40, 30), (3, 10, 7)])
def test_windows_in_3d_are_blended_on_the_whole_scan(shape):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    network = _Doubled()
    done = Preprocessed(image=image, label=None, properties=None)
    made = translate(network, done, Range(low=-8.0, high=8.0), patch=(4, 24, 24))
    np.testing.assert_allclose(made, image / 16, atol=1e-5)
    assert set(network.seen) == {(4, 24, 24)}


class _Corner(nn.Module):
    """Every window has its own level: that of its first voxel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :, :1, :1, :1].expand_as(image)


def test_windows_in_3d_pass_into_each_other():
    """Two levels of windows in z: in between it changes step by step, by a Gaussian weight."""
    image = np.zeros((1, 12, 24, 24), np.float32)
    image[:, 4:] = 1.0
    done = Preprocessed(image=image, label=None, properties=None)
    made = translate(_Corner(), done, Range(low=-1.0, high=1.0), patch=(8, 24, 24))
    course = made[0, :, 12, 12]
    assert course[0] == 0
    assert course[-1] == 1
    assert (np.diff(course) >= 0).all()
    assert np.abs(np.diff(course)).max() < 0.7
