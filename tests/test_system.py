"""What the system refuses is said in two lines that name the path and the remedy."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import run

from autoliver.artifacts import read_json, replacing, write_bytes
from autoliver.datasets.cases import read_dataset
from autoliver.datasets.contents import FileIndex, identify, unread
from autoliver.errors import AutoliverError, DatasetError, MachineError
from autoliver.io.files import read_image, read_label, write_label
from autoliver.io.volume import Geometry
from autoliver.models.archive_zip import StoredFile
from autoliver.networks.checkpoint import load_training_state, load_weights
from autoliver.nnunet.checkpoint import read_checkpoint
from autoliver.parallel import CasePool, Limits, Need
from autoliver.planning.findings import REFUSED
from autoliver.planning.verify import verify
from autoliver.preprocessing.store import open_array
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.system import entries, in_words, is_damage, stops_later, system_error

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]

# Reading this file fails with EIO, as a broken disk does.
BROKEN = Path("/proc/self/mem")
NOBODY = 65534

needs_linux = pytest.mark.skipif(not BROKEN.exists(), reason="needs Linux's /proc")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Whom permissions bind; root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# Limits hold for this process as a whole, so only while the code that is tested runs: else pytest
# itself could not write what it prints.
@contextlib.contextmanager
def few_files() -> Iterator[None]:
    """No file can be opened any more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file can be larger than 1000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def save(path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 3, (6, 7, 8)).astype("uint8")
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def phantoms(folder: Path) -> Path:
    options = PhantomOptions(shape_zyx=(16, 24, 24))
    return write_phantom_dataset(folder, name="Dataset001_CT", cases=3, seed=0, options=options)


# --- words


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "--workspace"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.ENOENT, "moved or deleted"),
        (errno.ENOTDIR, "A file is where a folder"),
        (errno.EISDIR, "A folder is where a file"),
        (errno.EEXIST, "in the way"),
        (errno.ENOTEMPTY, "in the way"),
        (errno.ENAMETOOLONG, "Shorten"),
        (errno.EILSEQ, "another name"),
        (errno.ELOOP, "circle"),
        (errno.EIO, "disk or network share"),
        (errno.ESTALE, "share"),
        (errno.ETIMEDOUT, "share is connected"),
        (errno.ENOTCONN, "share is connected"),
        (errno.EHOSTDOWN, "share is connected"),
        (errno.ENODEV, "share is connected"),
        (errno.EBUSY, "wait"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "too many files"),
        (errno.ENOMEM, "memory"),
        (errno.EAGAIN, "ulimit -u"),
    ],
)
def test_every_refusal_has_a_path_a_reason_and_a_remedy(number: int, remedy: str) -> None:
    error = OSError(number, os.strerror(number), "/data/x")
    told = system_error(error)
    assert told is not None
    assert told.problem == f"/data/x: cannot be used: {os.strerror(number)}."
    assert remedy in told.hint
    assert not is_damage(error)
    with (
        pytest.raises(MachineError, match="/data/y: cannot be read") as caught,
        in_words("/data/y", verb="read"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError("a reader's own"), OSError(errno.EPIPE, "pipe")])
def test_what_may_be_a_bug_keeps_its_traceback(error: OSError) -> None:
    assert system_error(error) is None
    with pytest.raises(OSError, match=r".") as caught, in_words():
        raise error
    assert caught.value is error


def test_an_error_without_a_path_says_what_it_says() -> None:
    told = system_error(FileNotFoundError(errno.ENOENT, "No usable temporary directory in /tmp"))
    assert told is not None
    assert told.problem.startswith("No usable temporary directory in /tmp")


# --- reading


@needs_linux
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".bmp", ".hdr"])
def test_a_broken_disk_is_not_a_damaged_image(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.symlink_to(BROKEN)
    for read in (lambda: read_image([path]), lambda: read_label(path)):
        with pytest.raises(MachineError, match=f"a{ending}: cannot be read: Input/output error"):
            read()


@needs_linux
def test_a_broken_disk_under_the_voxels_is_named(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(save(tmp_path / "x.mha"))), str(tmp_path / "a.mhd"), False)
    for header, voxels in {"a.mhd": "a.raw"}.items():
        (tmp_path / voxels).unlink()
        (tmp_path / voxels).symlink_to(BROKEN)
        with pytest.raises(MachineError, match=f"{voxels}: cannot be read: Input/output error"):
            read_image([tmp_path / header])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".tif", ".hdr"])
def test_a_missing_permission_is_not_a_damaged_image(ending: str) -> None:
    # Not in pytest's folder, into which other users may not look.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = save(Path(folder) / f"a{ending}")
        path.chmod(0)
        with (
            as_nobody(),
            pytest.raises(MachineError, match="cannot be read: Permission denied") as caught,
        ):
            read_image([path])
    assert "permissions" in caught.value.hint


def test_too_many_open_files_are_not_a_damaged_image() -> None:
    path = Path(__file__)
    with pytest.raises(MachineError, match="Too many open files") as caught, few_files():
        read_image([path])
    assert "ulimit -n" in caught.value.hint


@needs_linux
@pytest.mark.parametrize("read", [load_weights, load_training_state])
def test_a_broken_disk_is_not_damaged_weights(read: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.symlink_to(BROKEN)
    with pytest.raises(MachineError, match=r"safetensors: cannot be read: Input/output"):
        read(path)  # type: ignore[operator]


@needs_linux
def test_verify_lists_refused_files_and_asks_again_the_next_time(tmp_path: Path) -> None:
    folder = phantoms(tmp_path)
    path = folder / "imagesTr" / sorted(p.name for p in (folder / "imagesTr").iterdir())[1]
    kept = path.rename(tmp_path / "kept.nii.gz")
    path.symlink_to(BROKEN)
    found = verify(read_dataset(folder))
    assert [(error.code, error.case) for error in found.errors] == [
        (REFUSED, path.name.partition("_0000")[0])
    ]
    for command in (["plan", folder], ["train", folder, "2d"]):
        with pytest.raises(AutoliverError, match="Input/output error"):
            run(*command, "-w", tmp_path / "w")
    path.unlink()
    kept.rename(path)
    assert run("verify", folder, "-w", tmp_path / "w")["findings"] == []


@pytest.mark.parametrize("copied", ["half", "not"])
def test_a_file_that_was_half_copied_is_read_again_though_its_date_is_the_same(
    copied: str, tmp_path: Path
) -> None:
    """As if it had been written while `verify` looked at it: name, size and date stay."""
    folder = phantoms(tmp_path)
    path = min((folder / "imagesTr").iterdir())
    content, times = path.read_bytes(), path.stat()
    broken = content[: len(content) // 2] if copied == "half" else b""
    path.write_bytes(broken.ljust(len(content), b"\0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(read_dataset(folder)).errors
    with pytest.raises(AutoliverError):
        run("plan", folder, "-w", tmp_path / "w")
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run("verify", folder, "-w", tmp_path / "w")["findings"] == []


# --- writing


def test_the_first_error_is_not_replaced_by_one_of_clean_up(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write_and_lose_the_disk() -> None:
        with replacing(folder / "a.json") as beside:
            beside.mkdir()
            folder.rename(tmp_path / "elsewhere")
            folder.symlink_to(folder)  # under which nothing can be looked up or removed
            raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        write_and_lose_the_disk()


def test_names_up_to_the_limit_of_a_disk_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 240 + ".json", "ä" * 120 + ".json", "x" * 248 + ".nii.gz"):
        write_bytes(tmp_path / name, b"{}")
        assert (tmp_path / name).read_bytes() == b"{}"
    with pytest.raises(MachineError, match="File name too long") as caught:
        write_bytes(tmp_path / ("x" * 256), b"{}")
    assert "Shorten" in caught.value.hint
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".tif"])
def test_a_limit_on_the_size_of_files_is_named(ending: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 200, (20, 20, 20))
    grid = Geometry(shape_zyx=labels.shape, spacing_mm=(1.0, 1.0, 1.0))
    words = "cannot be written: File too large"
    with pytest.raises(MachineError, match=words) as caught, small_files():
        write_label(tmp_path / f"a{ending}", labels, grid)
    assert "ulimit -f" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["file", "loop"])
def test_a_workspace_that_cannot_be_one_is_named(what: str, tmp_path: Path) -> None:
    folder = phantoms(tmp_path)
    place = tmp_path / "w"
    place.write_text("") if what == "file" else place.symlink_to(place)
    with pytest.raises(AutoliverError, match=r"cannot be|expected a folder") as caught:
        run("plan", folder, "-w", place)
    assert str(place) in caught.value.problem
    assert caught.value.hint


# --- the command line


@needs_linux
def test_a_command_ends_in_two_lines(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").symlink_to(BROKEN)
    done = subprocess.run(
        [sys.executable, "-m", "autoliver", "plan", str(tmp_path), "-w", str(tmp_path / "w")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("Error: ")
    assert "Input/output error" in first
    assert second.startswith("Hint: ")


def _square(number: int) -> int:
    return number**2


def test_cases_are_done_here_where_no_process_can_be_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(workers=2, memory_gb=4)
    pool = CasePool(what="squares", limits=limits, need=lambda item: Need(name=str(item), gb=0.1))
    with few_files():
        found = list(pool.map(_square, range(5)))
    assert found == [0, 1, 4, 9, 16]
    assert "cannot be started here" in caplog.text


def test_images_refused_by_a_dataset_error_stay_dataset_errors(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="its header is damaged"):
        read_image([path])


# --- what readers hide


@needs_linux
@pytest.mark.parametrize("number", [errno.EUCLEAN, errno.EREMOTEIO, errno.ENOLCK, errno.EOVERFLOW])
def test_a_refusal_without_a_remedy_of_its_own_is_no_bug(number: int) -> None:
    told = system_error(OSError(number, os.strerror(number), "/data/x"))
    assert told is not None
    assert os.strerror(number) in told.problem
    assert told.hint


@needs_linux
def test_a_folder_that_cannot_be_listed_is_not_empty() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        (folder / "2d").mkdir(parents=True)
        Path(place).chmod(0o755)
        assert [path.name for path in entries(folder)] == ["2d"]
        assert entries(folder, "3*") == []
        assert entries(folder / "nowhere") == []
        folder.chmod(0)
        with as_nobody(), pytest.raises(MachineError, match="runs: cannot be read: Permission"):
            entries(folder)
        folder.chmod(0o755)


@needs_linux
def test_a_broken_disk_is_not_a_damaged_zip_store_or_checkpoint(tmp_path: Path) -> None:
    for name, read in {
        "m.autoliver": lambda path: StoredFile(path, "manifest.json").read_bytes(),
        "checkpoint_final.pth": read_checkpoint,
        "case.image.b2nd": open_array,
        "x.json": lambda path: read_json(path),
    }.items():
        path = tmp_path / name
        path.symlink_to(BROKEN)
        with pytest.raises(MachineError, match=f"{name}: cannot be .*Input/output error"):
            read(path)


def test_a_file_that_could_not_be_looked_at_once_is_the_same_file(tmp_path: Path) -> None:
    folder = phantoms(tmp_path)
    dataset = read_dataset(folder)
    identified, index = identify(dataset, FileIndex())
    assert identify(dataset, FileIndex())[0] == identified
    assert identify(dataset, index) == (identified, index)
    image = Path(dataset.cases[0].images[0])
    kept = image.rename(tmp_path / "kept")
    image.symlink_to(tmp_path / "nowhere")
    lost = identify(dataset, index)[0]
    assert unread(lost) == [image]
    image.unlink()
    kept.rename(image)
    assert identify(dataset, index)[0] == identified


@pytest.mark.parametrize("side", [2, 4, 7])
def test_images_that_are_too_small_for_a_network_are_said(side: int, tmp_path: Path) -> None:
    folder = phantoms(tmp_path)
    for part, value in {"imagesTr": 50, "labelsTr": 1}.items():
        for path in sorted((folder / part).iterdir()):
            array = np.full((side, side, side), value, dtype=np.int16)
            array[0, 0, 0] = 0 if part == "labelsTr" else len(path.name)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    with pytest.raises(DatasetError, match=r"the median case has .* voxels") as caught:
        run("plan", folder, "--preset", "tiny", "-w", tmp_path / "w")
    assert "finer --spacing" in caught.value.hint


def test_streams_that_are_closed_or_full_are_no_bug(tmp_path: Path) -> None:
    folder = phantoms(tmp_path)
    command = f"{sys.executable} -m autoliver verify {folder} -w {tmp_path / 'w'}"
    assert subprocess.run(f"{command} 2>&-", shell=True, stdout=subprocess.DEVNULL).returncode == 0
    if Path("/dev/full").exists():
        full = subprocess.run(
            f"{command} --json > /dev/full", shell=True, stderr=subprocess.PIPE, text=True
        )
        assert full.returncode == 1
        assert "standard output: cannot be written" in full.stderr
        assert "Traceback" not in full.stderr
    gone = subprocess.run(
        f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {command}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert gone.returncode == 1
    assert "The current folder does not exist any more" in gone.stderr


class Asked(Exception):
    """What the handler of a signal raises."""


@contextlib.contextmanager
def raising(number: int) -> Iterator[None]:
    def handler(asked: int, _: object) -> None:
        raise Asked(asked)

    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def in_block(number: int, times: int) -> Iterator[str]:
    with stops_later():
        yield "begun"
        for _ in range(times):
            os.kill(os.getpid(), number)
        yield "ended"


@pytest.mark.parametrize(
    ("times", "reached"), [(0, ["begun", "ended"]), (1, ["begun", "ended"]), (2, ["begun"])]
)
@pytest.mark.parametrize("number", STOPS)
def test_what_asks_to_stop_waits_for_a_block_once(
    number: int, times: int, reached: list[str]
) -> None:
    seen: list[str] = []
    with raising(number), pytest.raises(Asked) if times else contextlib.nullcontext():
        deque(map(seen.append, in_block(number, times)))
    assert seen == reached


def test_what_is_not_answered_here_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stops_later():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        with ThreadPoolExecutor() as other:  # where no handler can be set
            other.submit(lambda: contextlib.ExitStack().enter_context(stops_later())).result()
    finally:
        signal.signal(signal.SIGHUP, before)
