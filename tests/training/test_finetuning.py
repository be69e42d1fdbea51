"""Trainings that begin with given weights, parts of which may stay as they are."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.errors import ModelError, OptionError
from autoliver.networks.build import build_network, build_without_weights
from autoliver.networks.checkpoint import load_training_state
from autoliver.networks.spec import NetworkSpec, ResidualUNetSpec, UNetSpec
from autoliver.planning.names import Architecture, EncoderName
from autoliver.planning.plan import Configuration
from autoliver.planning.presets import preset_row
from autoliver.training.fold import FoldTask, TrainedFold, open_patches
from autoliver.training.freezing import freezing, set_modes
from autoliver.training.loop import train_fold
from autoliver.training.objectives.choice import make_objective
from autoliver.training.objectives.objective import Tally
from autoliver.training.options import TrainingOptions
from autoliver.training.recipes import RECIPES, Recipe
from autoliver.training.state import EpochSums, TrainingState, new_state
from autoliver.training.step import Stepper

SPEC = ResidualUNetSpec(
    in_channels=1,
    out_channels=2,
    features=(4, 6, 8),
    strides=((1, 1), (2, 2), (2, 2)),
    kernels=((3, 3),) * 3,
    blocks_encoder=(1, 1, 1),
    blocks_decoder=(1, 1),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class ArrayCase:
    """A preprocessed case in memory: a bright square."""

    name: str
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    previous: None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def facts(self) -> CaseFacts:
        return CaseFacts.named(self.name)

    @property
    def locations(self) -> dict[int, npt.NDArray[np.int32]]:
        return {1: np.argwhere(self.label[0] == 1).astype(np.int32)}


def make_case(number: int) -> ArrayCase:
    rng = np.random.default_rng(number)
    label = np.zeros((1, 3, 20, 20), np.int16)
    y, x = rng.integers(0, 12, 2)
    label[:, :, y : y + 8, x : x + 8] = 1
    image = (label + rng.normal(size=label.shape) * 0.3).astype(np.float32)
    return ArrayCase(f"case_{number}", image, label)


def start_weights() -> dict[str, Tensor]:
    """Other weights than a training of seed 0 would draw; no bias and no scale is 0."""
    generator = torch.Generator().manual_seed(99)
    network = build_network(SPEC, deep_supervision=True, generator=generator)
    return {
        name: weights + 0.01 * torch.randn(weights.shape, generator=generator)
        for name, weights in network.state_dict().items()
    }


def make_task(folder: Path, **options: object) -> FoldTask:
    """A training on three cases, from `start_weights`."""
    configuration = Configuration(
        spacing_mm=(1.0, 1.0),
        median_shape=(20.0, 20.0),
        patch_shape=(16, 16),
        batch_size=2,
        batch_dice=False,
        normalization=("zscore",),
        mask_norm=(False,),
        network=SPEC,
    )
    given = {"epochs": 2, "iterations": 2, "schedule": "finetune", "pretrained": "Source"}
    given |= {"augment": "none"} | options
    return FoldTask(
        configuration=configuration,
        labels=Labels(values={"background": (0,), "liver": (1,)}),
        train=[make_case(number) for number in range(3)],
        validation=[make_case(9)],
        options=TrainingOptions(**given),  # type: ignore[arg-type]
        folder=folder,
        device=torch.device("cpu"),
        title="Toy 2d fold 0",
        start=start_weights(),
    )


def stop_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def run(folder: Path, *, steps: int = 1_000_000, **options: object) -> TrainedFold:
    return train_fold(make_task(folder, **options), stop=stop_after(steps))


def moved(weights: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> set[str]:
    """The parts of a network of which any weight is no longer what it was, to the bit."""
    names = (name for name in before if not torch.equal(weights[name], before[name]))
    return {name.split(".")[0] if "stem" in name else name[: name.index(".") + 2] for name in names}


@pytest.mark.parametrize("schedule", ["auto", "finetune", "adamw", "short", "omnia"])
def test_no_epochs_give_the_weights_to_start_with(schedule: str, tmp_path: Path) -> None:
    for hours in (None, 1.0):
        done = run(tmp_path / str(hours), epochs=0, schedule=schedule, hours=hours)
        assert_same(done.weights, start_weights())
        assert done.finished
        assert done.logs == ()
        assert not (tmp_path / str(hours) / "progress.png").exists()
        assert_same(run(tmp_path / str(hours), epochs=0, schedule=schedule).weights, done.weights)


def test_no_epochs_can_be_extended(tmp_path: Path) -> None:
    run(tmp_path, epochs=0, schedule="short")
    longer = run(tmp_path, epochs=0, schedule="short", extensions=(3,))
    # The warm-up is over: the rate starts at its peak, and falls by step.
    peak = 6e-3 * 0.3
    expected = [peak * (1 - step / 6) ** 0.9 for step in (1, 3, 5)]
    assert [log.learning_rate for log in longer.logs] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["finetune", "short"])
def test_network_and_running_mean_begin_with_the_weights(schedule: str, tmp_path: Path) -> None:
    task = make_task(tmp_path, schedule=schedule, lr=1e-12)
    train_fold(task, stop=stop_after(1))
    saved = load_training_state(task.files.resume)
    for network in (saved["network"], saved["averaged"]):
        for name, weights in (network or {}).items():
            assert torch.allclose(weights, start_weights()[name], atol=1e-9), name
    assert (saved["averaged"] is None) == (schedule == "finetune")
    assert_same(dict(task.start or {}), start_weights())


def test_a_saved_state_wins_over_the_weights_to_start_with(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    task = make_task(tmp_path / "broken")
    train_fold(task, stop=stop_after(3))
    assert_same(train_fold(task).weights, whole.weights)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    assert task.start is not None
    weights = dict(task.start)
    del weights["stem.conv.weight"]
    with pytest.raises(
        ModelError, match=r"The weights to start with: .*stem\.conv\.weight is missing"
    ):
        train_fold(dataclasses.replace(task, start=weights))


ENCODER = {"stem", "encoder.0", "encoder.1", "encoder.2"}
DECODER = {"up.0", "up.1", "decoder.0", "decoder.1"}
LEARNING = ENCODER | DECODER | {"heads.0"}  # the lowest head has no share in the loss


@pytest.mark.parametrize(
    ("freeze", "frozen", "schedule"),
    [
        (None, set(), "finetune"),
        ("encoder", ENCODER, "short"),
        ("encoder:2", {"stem", "encoder.0", "encoder.1"}, "finetune"),
        ("encoder:1", {"stem", "encoder.0"}, "adamw"),
        ("encoder.2", {"encoder.2"}, "short"),
        ("decoder", DECODER, "finetune"),
        ("encoder, decoder.0", ENCODER | {"up.0", "decoder.0"}, "short"),
        ("encoder,decoder", ENCODER | DECODER, "adamw"),
    ],
)
def test_frozen_parts_stay_as_they_are_to_the_bit_and_others_move(
    freeze: str | None, frozen: set[str], schedule: str, tmp_path: Path
) -> None:
    task = make_task(tmp_path, freeze=freeze, schedule=schedule)
    done = train_fold(task, stop=stop_after(3))
    assert moved(done.weights, start_weights()) == LEARNING - frozen
    saved = load_training_state(task.files.resume)
    assert moved(saved["network"], start_weights()) == LEARNING - frozen


@pytest.mark.parametrize("name", ["nnunet", "finetune", "short", "adamw", "omnia"])
def test_neither_momentum_nor_decay_nor_old_gradients_move_what_is_frozen(name: str) -> None:
    options = TrainingOptions(pretrained="Source", freeze="encoder:2")
    state = fresh_state(options, RECIPES[name].replace(weight_decay=0.5))
    for seed in range(2):  # nothing is frozen yet: all gather momentum
        take_step(state, seed)
    before = {n: w.clone() for n, w in state.network.state_dict().items()}
    buffers = len(state.optimizer.state)
    assert freezing(options, SPEC).apply(state.network, 0)
    assert not freezing(options, SPEC).apply(state.network, 0)
    state.optimizer.step()  # the gradients of the step before are still there
    take_step(state, 2)
    found = moved(state.network.state_dict(), before)
    assert found == LEARNING - {"stem", "encoder.0", "encoder.1"}
    assert len(state.optimizer.state) == buffers


def fresh_state(
    options: TrainingOptions, recipe: Recipe, *, spec: NetworkSpec | None = None
) -> TrainingState:
    return new_state(
        spec or SPEC,
        recipe,
        options=options,
        device=torch.device("cpu"),
        sums=EpochSums(tally=Tally.empty({"true_positive": 1})),
        start=start_weights() if spec is None else None,
    )


def take_step(state: TrainingState, seed: int) -> None:
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    state.optimizer.zero_grad(set_to_none=True)
    sum(logits.square().mean() for logits in state.network(image)[:-1]).backward()
    state.optimizer.step()


@pytest.mark.parametrize("schedule", ["short", "finetune"])
def test_parts_thaw_at_the_first_step_of_their_epoch(schedule: str, tmp_path: Path) -> None:
    task = make_task(
        tmp_path,
        epochs=3,
        schedule=schedule,
        freeze="encoder,decoder.0",
        unfreeze="encoder.2@1, encoder@2",
    )
    weights, learning = start_weights(), []
    for _ in range(6):  # one step at a time, taken up again each time
        now = train_fold(task, stop=stop_after(1)).weights
        learning.append(moved(now, weights))
        weights = now
    first = LEARNING - ENCODER - {"up.0", "decoder.0"}
    then, at_last = first | {"encoder.2"}, first | ENCODER
    assert learning == [first, first, then, then, at_last, at_last]
    (tmp_path / "whole").mkdir()
    whole = train_fold(dataclasses.replace(task, folder=tmp_path / "whole"))
    assert_same(whole.weights, weights)


def test_an_extension_goes_on_thawing(tmp_path: Path) -> None:
    given = {"freeze": "encoder", "unfreeze": "encoder.2@3", "extensions": (2,)}
    done = run(tmp_path, **given)
    assert moved(done.weights, start_weights()) == (LEARNING - ENCODER) | {"encoder.2"}


@pytest.mark.parametrize("schedule", ["finetune", "adamw"])
def test_the_encoder_moves_by_its_factor(schedule: str, tmp_path: Path) -> None:
    start = start_weights()
    steps = []
    for factor in (1.0, 0.25):
        options = {"encoder_factor": factor, "schedule": schedule, "lr": 10.0}
        done = run(tmp_path / str(factor), steps=1, epochs=1, iterations=1, **options)
        steps.append({n: w.double() - start[n].double() for n, w in done.weights.items()})
        assert done.logs[0].learning_rate == 10.0
    whole, part = steps
    for name, step in whole.items():
        share = 0.25 if name.startswith(("stem", "encoder")) else 1.0
        assert torch.allclose(part[name], share * step, rtol=1e-6, atol=1e-6), name
    assert float(whole["encoder.1.0.first.conv.weight"].abs().max()) > 1e-2


def test_rates_of_the_groups_are_taken_up_again(tmp_path: Path) -> None:
    options = {"encoder_factor": 0.25, "freeze": "encoder", "unfreeze": "encoder@1"}
    whole = run(tmp_path / "whole", **options)
    for steps in (1, 2):
        assert not run(tmp_path / "broken", steps=steps, **options).finished
    assert_same(run(tmp_path / "broken", **options).weights, whole.weights)


# Depth from the output, by hand: three levels, of which the lowest has no decoder.
DEPTHS = {
    **{"heads": 0, "decoder.0": 1, "up.0": 1, "decoder.1": 2, "up.1": 2},
    **{"encoder.2": 3, "encoder.1": 4, "encoder.0": 5, "stem": 5},
}


@pytest.mark.parametrize("spec", [UNetSpec(**msgspec.structs.asdict(SPEC)), SPEC])
@pytest.mark.parametrize("factor", [1.0, 0.5, 4.0])
def test_rates_decay_with_the_depth_from_the_output(spec: NetworkSpec, factor: float) -> None:
    options = TrainingOptions(layer_decay=0.5, encoder_factor=factor)
    state = fresh_state(options, RECIPES["omnia"], spec=spec)
    names = {id(p): name for name, p in state.network.named_parameters()}
    found = {
        names[id(p)]: group["factor"]
        for group in state.optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == set(names.values())
    assert state.optimizer.param_groups[0]["factor"] == 1.0  # its rate is logged
    for name, rate in found.items():
        (depth,) = {depth for part, depth in DEPTHS.items() if name.startswith(f"{part}.")}
        encoder = factor if name.startswith(("stem", "encoder")) else 1.0
        assert rate == encoder * 0.5**depth, name


def test_every_group_moves_by_its_rate(tmp_path: Path) -> None:
    start = start_weights()
    steps = []
    for decay in (1.0, 0.5):
        options = {"layer_decay": decay, "schedule": "finetune", "lr": 10.0}
        done = run(tmp_path / str(decay), steps=1, epochs=1, iterations=1, **options)
        steps.append({n: w.double() - start[n].double() for n, w in done.weights.items()})
    whole, part = steps
    for name, step in whole.items():
        depth = max(d for p, d in DEPTHS.items() if name.startswith(f"{p}."))
        assert torch.allclose(part[name], 0.5**depth * step, rtol=1e-5, atol=1e-6), name
    assert float(whole["encoder.1.0.first.conv.weight"].abs().max()) > 1e-2


@pytest.mark.parametrize("schedule", ["finetune", "omnia"])
def test_a_decay_goes_with_parts_that_thaw_and_is_taken_up_again(
    schedule: str, tmp_path: Path
) -> None:
    options = {"layer_decay": 0.7, "freeze": "encoder", "unfreeze": "encoder.2@1"}
    options |= {"schedule": schedule, "epochs": 3}
    whole = run(tmp_path / "whole", **options)
    assert moved(whole.weights, start_weights()) == (LEARNING - ENCODER) | {"encoder.2"}
    for steps in (1, 2, 2):
        assert not run(tmp_path / "broken", steps=steps, **options).finished
    assert_same(run(tmp_path / "broken", **options).weights, whole.weights)


TABLE: tuple[tuple[Architecture, EncoderName | None, str, str], ...] = (
    ("unet", None, "encoder,decoder.1", "encoder.1@1"),
    ("medformer", None, "encoder:3,fusion", "encoder.0@1"),
    ("unet", "resnet18", "front,encoder,decoder", "encoder.4@1"),
    ("omnia", "efficientnet_b0", "encoder:3,decoder.4", "decoder@1"),
    ("dsnet", "efficientnet_lite0", "stack,encoder", "stack.4@1"),
)


def parents(name: str) -> list[str]:
    """The names of the modules around a module."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words))]


@pytest.mark.parametrize(("arch", "encoder", "freeze", "unfreeze"), TABLE)
def test_still_is_what_lies_in_modules_whose_weights_are_all_frozen(
    arch: Architecture, encoder: EncoderName | None, freeze: str, unfreeze: str
) -> None:
    row = preset_row("tiny", arch, encoder)
    topology = row.topology((1.0,) * 3, (16, 32, 32))
    spec = row.network(topology, in_channels=1, out_channels=2)
    options = TrainingOptions(pretrained="Source", freeze=freeze, unfreeze=unfreeze)
    frozen = freezing(options, spec)
    network = build_without_weights(spec, deep_supervision=True)
    weights = {id(value): name for name, value in network.state_dict(keep_vars=True).items()}
    held = {
        module: {weights[id(value)] for value in module.state_dict(keep_vars=True).values()}
        for module in network.modules()
    }
    counts = []
    for epoch in (0, 1):
        network.eval()
        still = frozen.still(network, epoch)
        set_modes(network, still)
        learning = {name for name in weights.values() if frozen.trainable(name, epoch)}
        for name, module in network.named_modules():
            within = [module, *(network.get_submodule(each) for each in parents(name))]
            kept = [names and not names & learning for names in map(held.__getitem__, within)]
            assert module.training != any(kept), name
        counts.append(sum(not module.training for module in network.modules()))
        # None of them lies in another.
        assert len({id(m) for each in still for m in each.modules()}) == counts[-1]
    assert 0 < counts[1] < counts[0]


def test_steps_do_not_look_for_what_is_frozen(tmp_path: Path) -> None:
    task = make_task(tmp_path, freeze="encoder", unfreeze="encoder.2@1", iterations=3)
    objective = make_objective(task.labels, task.configuration, task.options)
    patches = open_patches(task)[0]
    state = fresh_state(task.options, RECIPES["finetune"])
    stepper = Stepper(task, objective, patches, state)
    listed, seen = [0], []
    for module in state.network.modules():
        module.register_state_dict_post_hook(lambda *_: listed.__setitem__(0, listed[0] + 1))
    for batch in patches.batches(range(6), patch_shape=(16, 16), spec=None):
        listed[0] = 0
        stepper.take(batch)
        seen.append(listed[0] > 0)
    assert seen == [False, False, False, True, False, False]
    assert state.network.get_submodule("encoder.2").training
    assert not state.network.get_submodule("encoder.1").training


def test_without_a_factor_there_is_one_group_as_ever() -> None:
    states = [
        fresh_state(TrainingOptions(encoder_factor=factor), RECIPES["nnunet"])
        for factor in (1.0, 0.5)
    ]
    groups = [state.optimizer.param_groups for state in states]
    assert [len(group) for group in groups] == [1, 2]
    assert "factor" not in groups[0][0]
    assert len(groups[1][0]["params"]) + len(groups[1][1]["params"]) == len(groups[0][0]["params"])


@pytest.mark.parametrize("spec", [UNetSpec(**msgspec.structs.asdict(SPEC)), SPEC])
def test_every_parameter_but_those_of_heads_belongs_to_a_part(spec: NetworkSpec) -> None:
    options = TrainingOptions(pretrained="Source", freeze="encoder,decoder")
    frozen = freezing(options, spec)
    network = build_network(spec, deep_supervision=True)
    learn = {n for n, _ in network.named_parameters() if frozen.trainable(n, 10**6)}
    assert learn == {n for n, _ in network.named_parameters() if n.startswith("heads.")}


@pytest.mark.parametrize(
    ("freeze", "unfreeze", "problem", "hint"),
    [
        ("encoder:4", None, "no part 'encoder:4': its encoder has 3 stages", "encoder:2"),
        ("encoder:0", None, "no part 'encoder:0'", "encoder:2"),
        ("encoder.3", None, "its decoder 2, decoder.0", "encoder.2"),
        ("decoder.2", None, "no part 'decoder.2'", "encoder or decoder"),
        ("heads", None, "heads always learn", "encoder or decoder"),
        ("", None, "no part ''", "encoder or decoder"),
        ("encoder", "encoder.1", "'encoder.1' is not a part with an epoch", "encoder.4@20"),
        ("encoder", "encoder.1@-2", "'encoder.1@-2' is not a part with an epoch", "encoder.4@20"),
        ("encoder", "enc.1@2", "no part 'enc.1'", "encoder or decoder"),
        ("encoder:2", "encoder.2@1", "encoder.2 is not frozen", "--freeze encoder:2,encoder.2"),
        (None, "encoder@1", "encoder is not frozen", "--freeze encoder"),
        (
            "encoder",
            "encoder@9",
            "before epoch 9; its epochs are numbered from 0 to 7",
            "stays frozen",
        ),
    ],
)
def test_parts_that_cannot_be_meant_are_refused(
    freeze: str | None, unfreeze: str | None, problem: str, hint: str
) -> None:
    options = TrainingOptions(epochs=8, pretrained="Source", freeze=freeze, unfreeze=unfreeze)
    with pytest.raises(OptionError) as caught:
        freezing(options, SPEC)
    given = f"--unfreeze {unfreeze}" if unfreeze else f"--freeze {freeze}"
    assert caught.value.problem.startswith(given + ": ")
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_of_two_epochs_the_earlier_one_counts() -> None:
    options = TrainingOptions(
        pretrained="Source", freeze="encoder:2", unfreeze="encoder@40,encoder.1@20"
    )
    assert freezing(options, SPEC).until == {("encoder", 0): 40, ("encoder", 1): 20}
