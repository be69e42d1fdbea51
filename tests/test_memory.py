"""Cases that do not fit into the memory fail alone, with their numbers."""

import errno
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import plan, save
from three_images import ASKED, GRID, image, images, run

from autoliver import memory
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.model import load_model
from autoliver.inference.predict import Listener, make_jobs
from autoliver.io.files import write_image
from autoliver.machine import Machine
from autoliver.memory import check_room, out_of_memory, running_out
from autoliver.models.files import MemberFiles, ModelFiles
from autoliver.parallel import Limits
from autoliver.pipeline.folder import CasesFailed, predict_folder
from autoliver.pipeline.prediction import predict_as_asked
from autoliver.workspace import Workspace

__all__ = ["images", "plan", "run", "save"]


MACHINE_IS_FULL = [
    MemoryError("Unable to allocate 3.00 TiB"),
    np._core._exceptions._ArrayMemoryError((1 << 20, 1 << 20), np.dtype("f8")),  # type: ignore[attr-defined]
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 9 bytes. Error code 12"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]
ACCELERATOR_IS_FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB, max allowed: 9.07 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]
SOMETHING_ELSE = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        *((error, "machine") for error in MACHINE_IS_FULL),
        *((error, "accelerator") for error in ACCELERATOR_IS_FULL),
        *((error, None) for error in SOMETHING_ELSE),
    ],
)
def test_full_memories_are_told_from_each_other_and_from_other_errors(
    error: Exception, full: str | None
) -> None:
    assert out_of_memory(error) == full


def test_what_pytorch_itself_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value) == "machine"


@pytest.mark.parametrize("error", [*MACHINE_IS_FULL, *ACCELERATOR_IS_FULL])
def test_running_out_is_told_of_the_case(error: Exception) -> None:
    with (
        pytest.raises(DatasetError, match=r"^c: there is not enough memory") as caught,
        running_out("c"),
    ):
        raise error
    assert "spacing" in caught.value.hint


@pytest.mark.parametrize("error", SOMETHING_ELSE)
def test_other_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, running_out("c"):
        raise error
    assert caught.value is error


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_machine_bytes", lambda *_: 3 * memory.GB)
    check_room(2.5, case="c", what="it has 5 voxels")
    with pytest.raises(
        DatasetError, match=r"c: it has 5 voxels, which takes 3\.5 GB of memory; 3\.0 GB"
    ):
        check_room(3.5, case="c", what="it has 5 voxels")


# Below and above eight times the free memory, by which a case is refused before it is read.
@pytest.mark.parametrize("spacing", [(120.0, 120.0, 120.0), (450.0, 500.0, 500.0)])
def test_a_case_that_is_too_large_fails_alone(
    spacing: tuple[float, float, float],
    images: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_machine_bytes", lambda *_: memory.GB // 2)
    write_image(images / "case_1.nii.gz", image(1), GRID.replace(spacing_mm=spacing))
    out = tmp_path / "out"
    with pytest.raises(CasesFailed, match=r"1 of 3 cases failed:\ncase_1: .* GB") as caught:
        predict_folder(Workspace(tmp_path / "w"), images, out, ASKED, models=[str(run)])
    assert "spacing" in caught.value.hint
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["case_0.nii.gz", "case_2.nii.gz"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_limit_of_the_system_fails_a_case(images: Path, run: Path, tmp_path: Path) -> None:
    write_image(images / "case_1.nii.gz", image(1), GRID.replace(spacing_mm=(200.0, 200.0, 200.0)))
    done = subprocess.run(
        [sys.executable, "-m", "autoliver", *f"predict -i {images} -o out -m {run}".split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30)),
    )
    assert done.returncode == 1
    assert "1 of 3 cases failed" in done.stderr
    assert "case_1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_is_refused_wherever_it_is_predicted(
    images: Path, run: Path, tmp_path: Path
) -> None:
    """Also by models that find a region, and in pairs of runs, whose outputs are exported."""
    files = ModelFiles(name="m", members=(MemberFiles(folds=(run / "fold_0",)),))
    model = load_model(files, device=torch.device("cpu"))
    cases = {path.name.split(".")[0]: [path] for path in sorted(images.iterdir())}
    jobs = make_jobs(cases, tmp_path / "out")
    asked = replace(ASKED, machine=Machine(device="cpu", limits=Limits(memory_gb=1e-6)))
    reached: list[str] = []
    with pytest.raises(OptionError, match=r"case_0: to predict it needs about .* GB, --memory-gb"):
        predict_as_asked(model, jobs, asked, export=lambda job, _: reached.append(job.name))
    taken: list[str] = []
    listener = Listener(on_failure=lambda job, _: taken.append(job.name))
    predict_as_asked(model, jobs, asked, listener=listener)
    assert (reached, taken) == ([], ["case_0", "case_1", "case_2"])
    assert not (tmp_path / "out").exists()
