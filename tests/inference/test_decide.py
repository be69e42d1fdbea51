"""Label maps that are decided where the networks run, against those decided on the host."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_models import SaveFold

from autoliver.datasets.cases import Labels
from autoliver.errors import AutoliverError, MachineError
from autoliver.inference import decide, window
from autoliver.inference import outputs as outputs_module
from autoliver.inference.decide import decide_rows, decide_rows_on_host
from autoliver.inference.ensemble import Output
from autoliver.inference.model import load_model
from autoliver.inference.options import PredictOptions
from autoliver.inference.predict import Listener, make_jobs, predict_jobs
from autoliver.io.files import read_label
from autoliver.io.volume import Geometry
from autoliver.models.files import MemberFiles, ModelFiles
from autoliver.preprocessing import case as case_module
from autoliver.preprocessing.case import CaseProperties, backward_logits

Logits = npt.NDArray[np.float32]
CLASSES = Labels(values={"background": (0,), "liver": (3,), "tumour": (7,)})
MANY = Labels(values={"background": (0,), "a": (1,), "b": (300,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
# Grid of the network, its spacing, and the spacing of the input, whose crop has the size below.
GRIDS = {
    "same": ((20, 18, 22), (1.0, 1.0, 1.0), (20, 18, 22), (1.0, 1.0, 1.0)),
    "finer": ((20, 18, 22), (2.0, 2.0, 2.0), (37, 35, 44), (1.1, 1.0, 1.0)),
    "coarser": ((40, 36, 44), (1.0, 1.0, 1.0), (19, 17, 23), (2.1, 2.0, 2.0)),
    "thick slices": ((20, 36, 44), (1.0, 1.0, 1.0), (5, 50, 61), (4.0, 0.7, 0.7)),
    "one axis": ((20, 18, 22), (1.0, 1.0, 1.0), (20, 18, 33), (1.0, 1.0, 0.7)),
    "thin": ((1, 18, 22), (5.0, 1.0, 1.0), (3, 20, 22), (1.5, 1.0, 1.0)),
}


def make_logits(rows: int, shape: tuple[int, int, int]) -> Logits:
    """Smooth fields, of which each is the largest somewhere."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=(rows, *shape)), (0, 2, 2, 2))
    return (noise / noise.std() * 5).astype(np.float32)


def make_properties(name: str, transposed: tuple[int, int, int]) -> CaseProperties:
    shape, spacing, wanted, own = GRIDS[name]
    back = tuple(transposed.index(axis) for axis in range(3))
    whole = tuple(size + 3 for size in wanted)
    return CaseProperties(
        name="case_1",
        modality="MR",
        geometry=Geometry(
            shape_zyx=tuple(whole[axis] for axis in back),  # type: ignore[arg-type]
            spacing_mm=tuple(own[axis] for axis in back),  # type: ignore[arg-type]
        ),
        transpose_forward=transposed,
        box=tuple((1, 1 + size) for size in wanted),  # type: ignore[arg-type]
        shape_zyx=shape,
        spacing_mm=spacing,
    )


Decide = Callable[..., npt.NDArray[np.integer]]
DECIDERS = pytest.mark.parametrize("decide", [decide_rows, decide_rows_on_host])


def pieces(logits: Logits, depth: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Some rows at a time, overwritten afterwards as those of the windows are."""
    for first in range(0, logits.shape[1], depth):
        part = torch.from_numpy(logits[:, first : first + depth].copy())
        yield first, part
        part.fill_(torch.nan)


@DECIDERS
@pytest.mark.parametrize("depth", [1, 7, 100])
@pytest.mark.parametrize("labels", [CLASSES, MANY, REGIONS], ids=["classes", "many", "regions"])
@pytest.mark.parametrize("transposed", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("grid", GRIDS)
def test_labels_are_those_that_the_host_decides(
    grid: str,
    transposed: tuple[int, int, int],
    labels: Labels,
    depth: int,
    decide: Decide,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(case_module, "_SLAB_VOXELS", 4000)
    properties = make_properties(grid, transposed)
    logits = make_logits(labels.out_channels, properties.shape_zyx)
    expected = backward_logits(logits.copy(), properties, labels=labels)
    found = decide(pieces(logits, depth), properties, labels=labels)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert len(np.unique(expected)) > 2


@pytest.mark.gpu
@pytest.mark.parametrize("grid", GRIDS)
def test_a_real_gpu_decides_the_same(grid: str) -> None:
    properties = make_properties(grid, (0, 1, 2))
    logits = make_logits(3, properties.shape_zyx)
    expected = backward_logits(logits.copy(), properties, labels=CLASSES)
    rows = ((first, part.cuda()) for first, part in pieces(logits, 7))
    found = decide_rows(rows, properties, labels=CLASSES)
    assert np.mean(found != expected) < 1e-4  # ties to within the last bit


class OnGpu(torch.Tensor):
    """Logits that say they are on a GPU until they are brought to the host."""

    device = property(lambda _: torch.device("cuda", 0))  # type: ignore[assignment]

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("step", ["_labels", "_copied"])
@pytest.mark.parametrize("grid", ["same", "finer"])
def test_a_gpu_that_gets_full_leaves_the_decision_to_the_host(
    grid: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = make_properties(grid, (0, 1, 2))
    logits = make_logits(3, properties.shape_zyx)
    expected = backward_logits(logits.copy(), properties, labels=CLASSES)
    moved = []

    def full_on_gpu(name: str) -> None:
        plain = getattr(decide._Decider, name)

        def run(self: object, *args: object) -> torch.Tensor:
            *_, given = args
            if isinstance(given, OnGpu):
                if name == step:
                    moved.append(name)
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                args = (*args[:-1], given.cpu())
            found: torch.Tensor = plain(self, *args)
            return found

        monkeypatch.setattr(decide._Decider, name, run)

    for name in ("_labels", "_copied"):
        full_on_gpu(name)
    rows = list(pieces_of(logits, 7))
    rows[0] = (0, rows[0][1].as_subclass(OnGpu))
    found = decide_rows(rows, properties, labels=CLASSES)
    assert np.array_equal(found, expected)
    assert moved == ([] if (grid, step) == ("same", "_copied") else [step])


def pieces_of(logits: Logits, depth: int) -> list[tuple[int, torch.Tensor]]:
    return [(first, part.clone()) for first, part in pieces(logits, depth)]


@DECIDERS
def test_missing_rows_are_refused(decide: Decide) -> None:
    properties = make_properties("finer", (0, 1, 2))
    logits = make_logits(3, properties.shape_zyx)
    some = list(pieces(logits, 5))
    with pytest.raises(ValueError, match="rows are missing after"):
        decide(some[:2], properties, labels=CLASSES)
    with pytest.raises(ValueError, match="is missing before row"):
        decide([some[0], some[2]], properties, labels=CLASSES)
    with pytest.raises(ValueError, match="expected 2 rows"):
        decide(some, properties, labels=REGIONS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks on the CPU are taken for networks on a GPU that does not tell what is free."""
    for module in (outputs_module, window):
        monkeypatch.setattr(module, "on_gpu", lambda _: True)
    monkeypatch.setattr(window, "_free", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)


def predict(
    save: SaveFold, images: Path, folder: Path, seen: list[Output] | None = None, **asked: object
) -> list[npt.NDArray[np.integer]]:
    configuration = str(asked.pop("configuration", "3d_fullres"))
    folds = (save("fold_0", configuration=configuration, mirror_axes=(0, 1)),)
    model = load_model(
        ModelFiles(name="Toy/3d", members=(MemberFiles(folds=folds),)), device=torch.device("cpu")
    )
    cases = {path.name[:6]: [path] for path in sorted(images.iterdir())}
    jobs = make_jobs(cases, folder)
    folder.mkdir(exist_ok=True)
    options = PredictOptions(**asked)  # type: ignore[arg-type]
    kept = outputs_module.outputs

    def noted(*args: object, **more: object) -> tuple[Output, ...]:
        found = kept(*args, **more)  # type: ignore[arg-type]
        if seen is not None:
            seen.extend(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoliver.inference.predict.outputs", noted)
        predict_jobs(model, jobs, options, listener=Listener())
    return [read_label(job.output).array for job in jobs]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_gpu_returns_label_maps_alone_and_they_are_the_same(
    configuration: str,
    overlap: bool,
    save: SaveFold,
    images: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    options = {"configuration": configuration, "overlap": overlap}
    expected = predict(save, images, tmp_path / "host", **options)
    request.getfixturevalue("gpu")
    seen: list[Output] = []
    found = predict(save, images, tmp_path / "gpu", seen, **options)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
        assert len(np.unique(one)) > 1
    assert all(output.label_map is not None and output.logits.size == 0 for output in seen)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_host_holds_no_logits_of_a_whole_scan_either(
    configuration: str, save: SaveFold, images: Path, tmp_path: Path
) -> None:
    seen: list[Output] = []
    found = predict(save, images, tmp_path / "rows", seen, configuration=configuration, exact=True)
    assert all(output.logits.size == 0 for output in seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs_module, "_decides_at_once", lambda *_: False)
        whole = predict(save, images, tmp_path / "whole", configuration=configuration, exact=True)
    for one, other in zip(found, whole, strict=True):
        assert np.array_equal(one, other)
        assert len(np.unique(one)) > 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("asked", ["probabilities", "uncertainty", "exact"])
def test_what_needs_logits_gets_them(
    asked: str, save: SaveFold, images: Path, tmp_path: Path
) -> None:
    seen: list[Output] = []
    predict(save, images, tmp_path / "out", seen, **{asked: True})
    assert len(seen) == 3
    assert all(output.label_map is None and output.logits.size for output in seen)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_memory_ends_with_one_error_that_names_the_case(
    save: SaveFold, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(window, "_mean_over_networks", full)
    with pytest.raises(AutoliverError) as caught:
        predict(save, images, tmp_path / "out")
    assert isinstance(caught.value, MachineError)
    assert caught.value.problem.startswith("case_0: Toy/3d: the GPU has too little memory")
    assert caught.value.problem.count("case_0") == 1
    assert not list((tmp_path / "out").iterdir())
