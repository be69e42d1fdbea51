"""Shards: several processes, on one machine or many, that each do a part of a command's cases.

The truth lies on disk. A shard writes a result for each of its cases, whole or not at all, and
nothing else. The same command without --shard takes the results that are there, computes those that
are missing, and writes what is made of all of them.
"""

import contextlib
import functools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from autoliver.artifacts import Artifact, Record, brief, digest
from autoliver.errors import ArtifactError, WrongValue
from autoliver.locks import only_one, only_one_kind, remove_if_stale
from autoliver.parallel import CaseMapper
from autoliver.system import entries
from autoliver.values import counted

A = TypeVar("A")
R = TypeVar("R")

_SPELT = re.compile(r"(?P<number>\d{1,9})/(?P<count>\d{1,9})", re.ASCII)
# What locks a folder: shards may work beside each other, the whole only alone.
_LOCKED, _PART, _WHOLE = "cases", "shard", "whole"


class Shard(Record, frozen=True, kw_only=True):
    """One of several equal parts of the cases of a command.

    Attributes:
        number: Which one, from 1 on.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: object) -> "Shard":
        """Reads a shard as users write it: "3/8" is the third of eight.

        Raises:
            WrongValue: It is none.
        """
        found = _SPELT.fullmatch(text) if isinstance(text, str) else None
        number, count = (int(found["number"]), int(found["count"])) if found else (0, 0)
        if not 1 <= number <= count:
            raise WrongValue(
                f"--shard {text}: expected I/N without blanks, I from 1 to N, N below 10^9.",
                hint="The first of four shards is --shard 1/4, the last one --shard 4/4.",
            )
        return cls(number=number, count=count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def names(self, names: Iterable[str]) -> list[str]:
        """Returns its part of the names of cases: every N-th of the sorted ones.

        Cases of one scanner often have names that follow each other, so that neighbours go to
        different shards.
        """
        return sorted(names)[self.number - 1 :: self.count]

    def part(self, items: Iterable[A], name: Callable[[A], str]) -> list[A]:
        """Returns its part of items that have the names of cases, in their order."""
        every = list(items)
        own = set(self.names(map(name, every)))
        return [item for item in every if name(item) in own]


# The only one of one.
EVERY_CASE = Shard(number=1, count=1)


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """What a shard has done; the command without --shard writes what is made of all shards.

    Attributes:
        shard: The shard.
        cases: The names of its cases.
        new: How many of them were worked on now; the others were finished before.
        of: The number of cases of all shards.
    """

    shard: Shard
    cases: tuple[str, ...]
    new: int
    of: int

    __repr__ = brief

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "shard": str(self.shard),
            "cases": list(self.cases),
            "new": self.new,
            "cases_of_all_shards": self.of,
        }

    def __str__(self) -> str:
        """One line about the shard."""
        if not self.cases and self.shard.count > self.of:
            return (
                f"Shard {self.shard}: it has no case, since of {counted(self.of, 'case')} no more "
                f"than {counted(self.of, 'shard')} can have one."
            )
        if not self.cases:
            return f"Shard {self.shard}: none of {counted(self.of, 'case')} is left for it."
        before = len(self.cases) - self.new
        done = f", {before} of them before" if before else ""
        return f"Shard {self.shard}: {counted(len(self.cases), 'case')} of {self.of} done{done}."


class CaseResult(Artifact, frozen=True, kw_only=True):
    """What a stage has found out about one case, kept until the whole is made.

    Attributes:
        case: The case's name.
        content: The result as plain values.
    """

    KIND: ClassVar[str] = "case result"

    case: str
    content: Any


def _no_state(_: object) -> None:
    """What there is to say of items whose plain values say everything."""


def _is_whole(_: object, __: object) -> bool:
    """Whether results without files are whole."""
    return True


class InTurn:
    """Maps a function over cases in this process, one after another."""

    def map(self, function: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """Yields the function's result for each item."""
        return map(function, items)


@dataclass(frozen=True, kw_only=True)
class KeptStage(Generic[A, R]):
    """A stage over cases whose results can be kept on disk.

    All functions must be picklable, since worker processes keep what they have computed.

    Attributes:
        name: Its name, which is that of a folder.
        case: Gives the name of an item's case.
        plain: Turns a result into plain values.
        result: Turns them back.
        state: Says of an item what its plain values do not, such as the states of its files.
        there: Whether the files that belong to a result are still there.
    """

    name: str
    case: Callable[[A], str]
    plain: Callable[[R], object]
    result: Callable[[Any], R]
    state: Callable[[A], object] = _no_state
    there: Callable[[A, R], bool] = _is_whole


@dataclass(kw_only=True)
class KeptCases:
    """Maps a stage over cases like the mapper that it is given, and keeps each result on disk.

    A result that is there, and was made from the same, is not computed again.

    Attributes:
        folder: The folder of the results.
        stage: The stage.
        mapper: Computes what is missing.
        way: What the results depend on besides their items; empty for the function and the
            arguments that a partial function has.
        new: The names of the cases whose results were computed.
    """

    folder: Path
    stage: KeptStage[Any, Any]
    mapper: CaseMapper
    way: str = ""
    new: set[str] = field(default_factory=set, init=False)

    def finished(self, function: Callable[[A], object], items: Iterable[A]) -> set[str]:
        """Returns the names of the cases whose results are there; arguments as for `map`."""
        keep = self._keep(function)
        return {self.stage.case(item) for item in items if keep.read(item) is not None}

    def map(self, function: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """Yields the function's result for each item, in the order of the items.

        Args:
            function: As for `CasePool.map`; a partial function must have arguments with a JSON
                form, since a result that was made with other arguments is computed again.
            items: The items; they must have a JSON form as well.
        """
        every, keep = list(items), self._keep(function)
        missing = [keep.read(item) is None for item in every]
        made = iter(self.mapper.map(keep, [i for i, no in zip(every, missing, strict=True) if no]))
        for item, no in zip(every, missing, strict=True):
            if no:
                found = next(made)
                self.new.add(self.stage.case(item))
            else:
                again = keep.read(item)
                found = keep(item) if again is None else again[0]  # it was just removed
            yield found

    def _keep(self, function: Callable[[A], R]) -> "_Keep[A, R]":
        return _Keep(function, self.folder, self.stage, self.way or _digest(function))


@dataclass(frozen=True)
class _Keep(Generic[A, R]):
    """A function that writes each of its results to a file."""

    function: Callable[[A], R]
    folder: Path
    stage: KeptStage[A, R]
    way: str

    def __call__(self, item: A) -> R:
        made_from = self._made_from(item)
        found = self.function(item)
        name, content = self.stage.case(item), self.stage.plain(found)
        CaseResult(made_from=made_from, case=name, content=content).save(self._file(item))
        return found

    def read(self, item: A) -> tuple[R] | None:
        """The result that is kept; None if there is none, or it was made from something else."""
        path = self._file(item)
        if not path.exists():
            return None
        try:
            kept = CaseResult.load(path)
            if kept.made_from != self._made_from(item) or kept.case != self.stage.case(item):
                return None
            found: R = self.stage.result(kept.content)
            return (found,) if self.stage.there(item, found) else None
        except (ArtifactError, msgspec.ValidationError, KeyError, ValueError):
            return None

    def _made_from(self, item: A) -> dict[str, str]:
        state = _hash([item, self.stage.state(item)])
        return {"function": self.way, "case": state, "autoliver": version("autoliver")}

    def _file(self, item: A) -> Path:
        # Not the name itself, which may be as long as a disk allows without .json behind it.
        return self.folder / self.stage.name / f"{digest(self.stage.case(item))}.json"


def _digest(function: Callable[..., object]) -> str:
    """A digest of a function's name and of the arguments that a partial function has."""
    if isinstance(function, functools.partial):
        inner: Any = function.func
        return _hash([inner.__module__, inner.__qualname__, function.args, function.keywords])
    own: Any = function
    return _hash([own.__module__, own.__qualname__])


def _hash(value: object) -> str:
    return digest(
        msgspec.json.decode(msgspec.json.encode(value, enc_hook=_as_plain, order="sorted"))
    )


def _as_plain(value: object) -> str | float:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float):  # numpy's
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """Where the shards of a command keep the results of their cases, until the whole is made.

    Attributes:
        path: The folder.
    """

    path: Path

    def kept(self, stage: KeptStage[Any, Any], mapper: CaseMapper, *, way: str = "") -> KeptCases:
        """Returns what maps a stage over cases and keeps the results here."""
        return KeptCases(folder=self.path, stage=stage, mapper=mapper, way=way)

    def whole(self, stage: KeptStage[Any, Any], mapper: CaseMapper) -> CaseMapper:
        """Returns what maps a stage over all cases: by what shards have kept, if there are any."""
        return self.kept(stage, mapper) if self._folders() else mapper

    @contextlib.contextmanager
    def doing(self, shard: Shard) -> Iterator[None]:
        """Holds the folder for a shard; other shards may work beside it.

        Raises:
            AutoliverError: Another process does this shard, or makes the whole.
            MachineError: The folder cannot be written.
        """
        own = self.path / f".{shard.number}-of-{shard.count}.lock"
        whole = "the same command without --shard is at work"
        with (
            only_one_kind(self.path, _LOCKED, _PART, whole),
            only_one(own, f"shard {shard} is being done"),
        ):
            yield

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Holds the folder while the whole is made, and removes the results when it is there.

        Raises:
            AutoliverError: A shard is at work.
            MachineError: The folder cannot be written.
        """
        if not self.path.is_dir():
            yield
            return
        with only_one_kind(self.path, _LOCKED, _WHOLE, "a shard is being done"):
            yield
            for inside in self._folders():
                shutil.rmtree(inside, ignore_errors=True)
            for lock in entries(self.path, ".*.lock"):
                remove_if_stale(lock)
        with contextlib.suppress(OSError):  # another one has begun, or it is gone
            self.path.rmdir()
            self.path.parent.rmdir()

    def _folders(self) -> list[Path]:
        """The folders of results that shards have kept."""
        return [each for each in entries(self.path) if each.is_dir()] if self.path.is_dir() else []
