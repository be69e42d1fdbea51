"""With --seed and --deterministic a training ends with the same bits, whatever happens to it.

Each way of the table trains the same fold anew: from another place, by other processes, or stopped
and given again. All have to end with the weights of the first, which was left alone.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import run

from autoliver.pipeline.run import job
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import read_progress
from autoliver.training.stop import Stopped, StopRequest

NAME = "Dataset001_Bits"
# Two epochs of two steps.
SAME = ("--fold", 0, "--epochs", 2, "--iterations", 2, "--seed", 7, "--deterministic")
RAM = ("--cache", "ram")


@dataclass(frozen=True)
class Way:
    """How a training comes to its end.

    Attributes:
        given: Options of its commands: for each part of the training, until it is stopped.
        steps: After how many steps each part is stopped, but the last.
        alone: Whether a process of its own trains.
    """

    given: tuple[tuple[object, ...], ...] = (RAM,)
    steps: tuple[int, ...] = ()
    alone: bool = False


DISK = ("--cache", "disk", "--workers", 2)
WAYS = {
    "again": Way(),
    "another process": Way(alone=True),
    "from disk": Way((("--cache", "disk", "--workers", 0),)),
    "two workers": Way((DISK,)),
    "stopped in mid-epoch": Way((RAM, RAM), steps=(1,)),
    "stopped at an epoch's end": Way((RAM, RAM), steps=(2,)),
    "stopped after every step": Way((RAM,) * 4, steps=(1, 1, 1)),
    "stopped with workers, goes on without": Way((DISK, RAM), steps=(3,)),
    "stopped without workers, goes on with": Way((RAM, DISK), steps=(1,)),
}
QUICK_3D = ("again", "stopped in mid-epoch", "stopped without workers, goes on with")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a plan, in which each configuration was trained without a stop."""
    place = tmp_path_factory.mktemp("bits")
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(place / "data", name=NAME, cases=5, seed=1, options=options)
    run("plan", place / "data" / NAME, "--preset", "tiny", "-w", place / "w")
    for configuration in ("2d", "3d_fullres"):
        run(*words(configuration, "whole", place), *RAM)
    return place


def words(configuration: str, tag: str, place: Path) -> tuple[object, ...]:
    return ("train", NAME, configuration, *SAME, "--tag", tag, "-w", place / "w")


def fold(configuration: str, tag: str, place: Path) -> Path:
    return place / "w" / NAME / "runs" / f"{configuration}+{tag}" / "fold_0"


class After(StopRequest):
    """Asks to stop after so many steps; the loop asks once a step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        if self.steps == 0:
            self.note(15)
        return super().__call__()


@pytest.mark.parametrize(
    ("configuration", "name"),
    [
        pytest.param(
            *(configuration, name),
            marks=() if configuration == "2d" or name in QUICK_3D else pytest.mark.slow,
        )
        for configuration in ("2d", "3d_fullres")
        for name in WAYS
    ],
)
def test_the_weights_are_those_of_a_training_left_alone(
    name: str, configuration: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, tag = WAYS[name], name.replace(" ", "_").replace(",", "").replace("'", "")
    command = words(configuration, tag, place)
    for given, steps in zip(way.given, way.steps, strict=False):

        @contextlib.contextmanager
        def stop(steps: int = steps) -> Iterator[StopRequest]:
            yield After(steps)

        with monkeypatch.context() as patched:
            patched.setattr(job, "stop_on_signal", stop)
            with pytest.raises(Stopped):
                run(*command, *given)
    if way.alone:
        # Names are hashed in another way in each process.
        alone = [sys.executable, "-m", "autoliver", *map(str, (*command, *way.given[-1]))]
        hashed = {**os.environ, "PYTHONHASHSEED": "99"}  # noqa: TID251
        subprocess.run(alone, env=hashed, check=True, capture_output=True)
    else:
        run(*command, *way.given[-1])
    whole, found = (fold(configuration, each, place) for each in ("whole", tag))
    assert same(whole, found, "weights.safetensors")
    expected, told = (read_progress(each / "progress.jsonl") for each in (whole, found))
    timeless = {"seconds": 0.0, "data_wait": 0.0}
    assert [log.replace(**timeless) for log in told] == [
        log.replace(**timeless) for log in expected
    ]
    (map_,) = (path.name for path in (whole / "validation").glob("*.nii.gz"))
    assert same(whole, found, f"validation/{map_}")


def same(one: Path, other: Path, name: str) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_another_seed_ends_with_other_weights(configuration: str, place: Path) -> None:
    run(*words(configuration, "seed", place), *RAM, "--seed", 8)
    found = [fold(configuration, tag, place) for tag in ("whole", "seed")]
    assert not same(*found, "weights.safetensors")
