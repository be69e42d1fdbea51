"""What a row of the table is: the same work for both sides, and what is wanted of the outcome."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Call, Measured

_ROOT = Path(__file__).parents[1]
Values = dict[str, Any]


class Skip(Exception):
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Target:
    """A bound on one number of a row.

    Attributes:
        what: "speed" and "cpu" (nnU-Net's time over ours), "memory" (our peak over nnU-Net's),
            "seconds" (ours), or a number that the row's comparison gives.
        limit: The bound.
        least: Whether the number must be at least that; else at most.
    """

    what: str
    limit: float
    least: bool = False

    def __str__(self) -> str:
        return f"{self.what} {'>=' if self.least else '<='} {self.limit:g}"

    def met(self, numbers: Mapping[str, float]) -> bool | None:
        """Whether it is met; None where the number was not measured."""
        if self.what not in numbers:
            return None
        found = numbers[self.what]
        return found >= self.limit if self.least else found <= self.limit


@dataclass(frozen=True, kw_only=True)
class Row:
    """The same work for both sides.

    Attributes:
        work: What is done, in a few words.
        ours: Our side.
        peer: nnU-Net's; None where it is not wanted.
        targets: What is to be reached.
        compare: Numerical differences, from what both sides reported and wrote.
        repeats: Rounds, at most.
    """

    work: str
    ours: Call
    peer: Call | None
    targets: tuple[Target, ...]
    compare: Callable[[Values, Values], dict[str, float]] | None = None
    repeats: int = 99

    def numbers(self, ours: Measured, peer: Measured | None) -> dict[str, float]:
        """Ratios and differences by name, as targets call them."""
        numbers = {"seconds": ours.seconds}
        numbers |= {k: v for k, v in ours.values.items() if isinstance(v, float | int)}
        if peer is not None:
            numbers["speed"] = peer.seconds / ours.seconds
            numbers["cpu"] = peer.cpu_seconds / ours.cpu_seconds
            numbers["memory"] = ours.peak_mb / peer.peak_mb
            if self.compare is not None:
                numbers |= self.compare(ours.values, peer.values)
        return numbers


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how to measure.

    Attributes:
        folder: For inputs, outputs and logs.
        shared: Real data and golden values.
        peer_folder: The environment with nnU-Net; None: only our side.
        threads: For each side.
        quick: Small inputs: shows that everything works, not how fast.
        device: Of training and prediction.
        checkout: The checkout whose code is our side.
    """

    folder: Path
    shared: Path
    peer_folder: Path | None
    threads: int
    quick: bool
    device: str = "cpu"
    checkout: Path = _ROOT

    def ours(self, name: str, /, *, remove: tuple[Path, ...] = (), **arguments: Any) -> Call:
        """A call of a function of `benchmarks.ours`."""
        return self._function("ours", sys.executable, name, arguments, remove)

    def peer(self, name: str, /, *, remove: tuple[Path, ...] = (), **arguments: Any) -> Call | None:
        """A call of a function of `benchmarks.peer.work`, in nnU-Net's Python."""
        if self.peer_folder is None:
            return None
        python = str(self.peer_folder / "bin/python")
        return self._function("peer.work", python, name, arguments, remove)

    def our_command(self, *words: object, remove: tuple[Path, ...] = ()) -> Call:
        """A call of the `autoliver` command, whose whole process is timed."""
        command = (sys.executable, "-m", "autoliver", *map(str, words))
        return self._call(command, f"autoliver {words[0]}", remove=remove)

    def peer_command(self, name: str, *words: object, remove: tuple[Path, ...] = ()) -> Call | None:
        """A call of one of nnU-Net's commands, whose whole process is timed."""
        if self.peer_folder is None:
            return None
        command = (str(self.peer_folder / "bin" / name), *map(str, words))
        return self._call(command, name, remove=remove)

    def needs(self, path: Path) -> Path:
        """The path, if it is there.

        Raises:
            Skip: It is not.
        """
        if not path.exists():
            raise Skip(f"{path} is missing")
        return path

    def _function(
        self,
        module: str,
        python: str,
        name: str,
        arguments: Values,
        remove: tuple[Path, ...],
    ) -> Call:
        title = f"{module} {name}"
        asked, result = (self.folder / f"{title} {end}.json" for end in ("asked", "result"))
        text = json.dumps({**arguments, "threads": self.threads}, default=str)
        number = len(list(self.folder.glob(f"{title} asked*")))
        asked = asked.with_stem(f"{asked.stem} {number}")
        self.folder.mkdir(parents=True, exist_ok=True)
        asked.write_text(text)
        command = (python, "-m", f"benchmarks.{module}", name, str(asked), str(result))
        return self._call(command, title, result=result, remove=(result, *remove))

    def _call(
        self,
        command: tuple[str, ...],
        title: str,
        *,
        result: Path | None = None,
        remove: tuple[Path, ...] = (),
    ) -> Call:
        nnunet = {
            f"nnUNet_{name}": str(self.folder / "nnunet" / name)
            for name in ("raw", "preprocessed", "results")
        }
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        return Call(
            command=command,
            # nnU-Net's own default of 8 processes would only use up memory on few cores.
            settings={
                **nnunet,
                **threads,
                "PYTHONPATH": str(self.checkout),
                # Or the current folder would come before it.
                "PYTHONSAFEPATH": "1",
                "nnUNet_def_n_proc": str(self.threads),
            },
            log=self.folder / "logs" / f"{title}.txt",
            result=result,
            remove=remove,
        )
