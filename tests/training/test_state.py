from pathlib import Path

import pytest
import torch

from autoliver.errors import ArtifactError, ModelError
from autoliver.networks.checkpoint import load_training_state, save_training_state
from autoliver.networks.spec import UNetSpec
from autoliver.training.objectives.objective import Tally
from autoliver.training.options import TrainingOptions
from autoliver.training.recipes import Recipe
from autoliver.training.state import (
    EpochSums,
    TrainingState,
    memory_format,
    new_state,
    saved_recipe,
)

CPU = torch.device("cpu")
SPEC = UNetSpec(
    in_channels=1,
    out_channels=2,
    features=(2, 4),
    strides=((1, 1), (2, 2)),
    kernels=((3, 3), (3, 3)),
    blocks_encoder=(1, 1),
    blocks_decoder=(1,),
)
SGD = Recipe(optimizer="sgd", learning_rate=0.01, weight_decay=3e-5)
ADAMW = Recipe(optimizer="adamw", learning_rate=0.003, weight_decay=0.01, average=0.9)
NADAM = Recipe(optimizer="nadam", learning_rate=0.003, weight_decay=0.01, epoch_factor=0.95)


def make_state(recipe: Recipe, *, spec: UNetSpec = SPEC, seed: int = 0) -> TrainingState:
    sums = EpochSums(tally=Tally.empty({"right": 1, "wrong": 2}))
    return new_state(spec, recipe, options=TrainingOptions(seed=seed), device=CPU, sums=sums)


def take_step(state: TrainingState, seed: int) -> None:
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    state.optimizer.zero_grad()
    state.network(image)[0].square().mean().backward()
    state.optimizer.step()
    state.update_average()
    state.step += 1


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = make_state(SGD).network.state_dict()
    torch.manual_seed(2)
    again, other = (
        make_state(ADAMW).network.state_dict(),
        make_state(SGD, seed=1).network.state_dict(),
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_average_forgets_the_start_and_then_decays_as_asked() -> None:
    state = make_state(ADAMW)
    name = next(iter(state.network.state_dict()))
    expected = state.network.state_dict()[name].double().clone()
    for step in range(120):
        take_step(state, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state.network.state_dict()[name].double()
    assert state.result is state.averaged
    found = state.result.state_dict()[name]
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert not torch.equal(found, state.network.state_dict()[name])


def test_the_average_is_of_weights_alone_and_buffers_are_copied() -> None:
    state = make_state(ADAMW)
    for network in (state.network, state.averaged):
        assert network is not None
        network.add_module("norm", torch.nn.BatchNorm2d(1))
    state.__post_init__()
    mean, statistics = torch.tensor([2.5]), torch.tensor(7)
    state.network.norm.running_mean.copy_(mean)  # type: ignore[union-attr, operator]
    state.network.norm.num_batches_tracked.copy_(statistics)  # type: ignore[union-attr, operator]
    state.step = 1000
    state.update_average()
    saved = state.result.state_dict()
    assert torch.equal(saved["norm.running_mean"], mean)
    assert torch.equal(saved["norm.num_batches_tracked"], statistics)


def test_the_average_stays_in_float32() -> None:
    state = make_state(ADAMW.replace(average=0.999))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step in range(2):
            take_step(state, step)
    assert {value.dtype for value in state.result.state_dict().values()} == {torch.float32}


def test_without_an_average_the_network_is_the_result() -> None:
    state = make_state(SGD)
    take_step(state, 0)
    assert state.averaged is None
    assert state.result is state.network


@pytest.mark.parametrize("recipe", [SGD, ADAMW, NADAM])
def test_a_state_goes_on_from_its_file_as_if_nothing_had_happened(
    recipe: Recipe, tmp_path: Path
) -> None:
    state = make_state(recipe)
    for seed in range(3):
        take_step(state, seed)
    state.sums.losses.append(0.5)
    state.sums.tally += Tally(counts={"right": (7,), "wrong": (8, 2**40)})
    state.sums.skipped.append("case_1")
    state.elapsed, state.failures = 12.5, 2
    save_training_state(tmp_path / "resume.pt", state.snapshot())
    saved = load_training_state(tmp_path / "resume.pt")
    assert saved_recipe(saved, where="resume.pt") == recipe
    other = make_state(recipe, seed=5)
    other.restore(saved, where="resume.pt")
    assert (other.step, other.elapsed, other.failures) == (3, 12.5, 2)
    assert (other.sums.losses, other.sums.skipped) == ([0.5], ["case_1"])
    assert other.sums.tally.counts == {"right": (7,), "wrong": (8, 2**40)}
    for each in (state, other):
        take_step(each, 3)
    one, again = state.result.state_dict(), other.result.state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_a_state_of_another_network_is_refused() -> None:
    saved = make_state(SGD).snapshot()
    wider = make_state(SGD, spec=SPEC.replace(features=(2, 6)))
    with pytest.raises(ModelError, match=r"^resume\.pt: .* has the shape"):
        wider.restore(saved, where="resume.pt")


def test_a_state_of_another_objective_is_refused() -> None:
    state = make_state(SGD)
    saved = state.snapshot()
    saved["counts"] = {"right": [7]}
    with pytest.raises(
        ModelError, match=r"^resume\.pt: .*counted.*'right': 1.*'wrong': 2"
    ) as caught:
        state.restore(saved, where="resume.pt")
    assert "--fresh" in caught.value.hint


def test_the_counts_of_version_0_1_are_one_tensor() -> None:
    lengths = {"true_positive": 2, "false_positive": 2, "false_negative": 2}
    state = make_state(SGD)
    saved = {**state.snapshot(), "counts": torch.tensor([[1, 2], [3, 4], [5, 2**40]])}
    state.sums = EpochSums(tally=Tally.empty(lengths))
    state.restore(saved, where="resume.pt")
    assert state.sums.tally.counts == {
        "true_positive": (1, 2),
        "false_positive": (3, 4),
        "false_negative": (5, 2**40),
    }


def test_a_recipe_of_another_version_is_told() -> None:
    saved = make_state(SGD).snapshot()
    saved["recipe"]["optimizer"] = "lion"
    with pytest.raises(ArtifactError, match=r"^resume\.pt: .*lion"):
        saved_recipe(saved, where="resume.pt")


def test_weights_lie_channels_last_on_the_cpu() -> None:
    assert memory_format(SPEC, CPU) == torch.channels_last
    assert memory_format(SPEC, torch.device("cuda")) == torch.contiguous_format
    wide = next(p for p in make_state(SGD).network.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert wide.is_contiguous(memory_format=torch.channels_last)
