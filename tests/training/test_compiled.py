"""A compiled training is the same training, and one that cannot be compiled goes on without."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import make_task

from autoliver.errors import AutoliverError, OptionError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import load_training_state
from autoliver.training import compiled
from autoliver.training.compiled import compiles, may_go_on
from autoliver.training.determinism import same_bits
from autoliver.training.fold import FoldTask, TrainedFold
from autoliver.training.loop import train_fold
from autoliver.training.objectives.segmentation import LossKind, LossOptions, segmentation_loss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch hides them by itself, which a thread that draws patches meanwhile may undo.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


def task_of(folder: Path, compile_: str, **options: Any) -> FoldTask:
    task = make_task(folder, epochs=2, iterations=3, **options)
    return replace(task, machine=task.machine.replace(compile=compile_))


def trained(folder: Path, compile_: str, **options: Any) -> TrainedFold:
    torch.compiler.reset()
    return train_fold(task_of(folder, compile_, **options))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("schedule", ["short", "nnunet"])
def test_losses_and_state_dicts_are_those_without_compilation(
    backend: str, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", backend)
    plain = trained(tmp_path / "off", "off", schedule=schedule)
    calls = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: calls.append(a) or real(*a, **k))
    ours = trained(tmp_path / "on", "on", schedule=schedule)
    assert len(calls) == 2  # the network and its loss
    for one, other in zip(ours.logs, plain.logs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.validation_loss == pytest.approx(other.validation_loss, abs=1e-4)
    states = [load_training_state(tmp_path / name / "resume.pt") for name in ("on", "off")]
    assert list(states[0]["network"]) == list(states[1]["network"])
    assert list(ours.weights) == list(plain.weights)
    for name, weights in plain.weights.items():
        if not name.endswith("conv.bias"):  # their gradient is rounding
            torch.testing.assert_close(ours.weights[name], weights, rtol=1e-3, atol=1e-4)


def broken(*_: Any) -> Any:
    raise RuntimeError("no compiler found\nand more lines of it")


def broken_backward(*_: Any) -> Any:
    """A backend whose graphs compile but do not run."""

    def run(*_: Any) -> Any:
        raise ValueError("a kernel cannot be launched")

    return run


@pytest.mark.parametrize("backend", [broken, broken_backward])
def test_what_cannot_be_compiled_goes_on_without_and_says_so(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = trained(tmp_path / "off", "off")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    with caplog.at_level(logging.WARNING):
        found = trained(tmp_path / "on", "on")
    (note,) = [r.getMessage() for r in caplog.records if r.name.startswith("autoliver")]
    assert "Toy 2d fold 0: cannot be compiled here" in note
    assert "no compiler" in note or "a kernel" in note
    assert "--compile off" in note
    assert "\n" not in note
    for name, weights in plain.weights.items():
        assert torch.equal(found.weights[name], weights), name


def test_an_error_of_the_training_is_none_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    task = task_of(tmp_path, "on", augment="none")
    for case in task.train:
        case.image[:] = float("nan")
    with pytest.raises(AutoliverError, match="not finite"):
        train_fold(task)
    assert "compiled" not in caplog.text


@pytest.mark.parametrize(
    ("asked", "device", "deterministic", "expected"),
    [
        ("auto", "cuda", False, True),
        ("auto", "cuda", True, False),
        ("auto", "cpu", False, False),
        ("auto", "mps", False, False),
        ("on", "cpu", False, True),
        ("off", "cuda", False, False),
    ],
)
def test_what_is_compiled(
    asked: str, device: str, deterministic: bool, expected: bool, tmp_path: Path
) -> None:
    task = task_of(tmp_path, asked, deterministic=deterministic)
    assert compiles(replace(task, device=torch.device(device))) is expected


def test_what_is_chosen_by_timing_is_not_deterministic(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--compile on and --deterministic"):
        compiles(task_of(tmp_path, "on", deterministic=True))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), AutoliverError("a case is damaged")]
)
def test_what_is_no_error_of_the_compiler(error: Exception) -> None:
    assert not may_go_on(error, proven=False)


@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_chooses_by_timing_unless_bits_must_be_the_same(wanted: bool) -> None:
    before = torch.backends.cudnn.benchmark
    with same_bits(wanted):
        assert torch.backends.cudnn.benchmark is not wanted
    assert torch.backends.cudnn.benchmark is before


@pytest.mark.parametrize(
    ("kind", "ignore"),
    [
        ("dice-ce", 2),
        ("dice-topk", None),  # with voxels to ignore, their number is read from the device
        ("dice-focal", 2),
        ("dice-bce", 2),
        ("focal-tversky", 2),
    ],
)
def test_network_and_loss_trace_to_one_graph(
    kind: LossKind, ignore: int | None, tmp_path: Path
) -> None:
    spec = task_of(tmp_path, "off").configuration.network
    generator = torch.Generator().manual_seed(0)
    network = build_network(spec, deep_supervision=True, generator=generator)
    options = LossOptions(batch_dice=False, kind=kind, ignore=ignore)

    def step(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return segmentation_loss(network(image), target, options=options)

    torch.compiler.reset()
    target = torch.randint(0, 3, (2, 1, 16, 16), dtype=torch.int16)
    found = torch._dynamo.explain(step)(torch.randn(2, 1, 16, 16), target)
    assert (found.graph_count, found.break_reasons) == (1, [])
