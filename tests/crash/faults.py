"""Commands that are disturbed while they write, and what has to hold afterwards.

A command runs on a small workspace in which everything was done once. shim.c counts its operations
on files and disturbs the n-th: it kills the command, or says that the disk is full. Then a later
stage runs on what is there, and the command itself runs again; what it leaves is compared with what
an undisturbed run leaves.
"""

import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import forked
from crash.scenarios import SCENARIOS, Build, Command, Scenario, build, filled

SECONDS = 120.0  # a command takes some seconds of a core that others use as well
DAY, YEAR = -86_400, 366 * 86_400
_MODES = ("count", "kill", "stop", "full", "read-only", "once", "vanish", "cut")
_LAYOUT = struct.Struct("qqqqqqqqq256s256s512s")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES)
KINDS = (
    *("kill", "random kill", "clock back", "clock ahead", "two"),
    *("full", "read-only", "failing", "vanish", "cut"),
)
Tree = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens to a command.

    Attributes:
        kind: One of `KINDS`.
        at: The number of the operation, from 1; for "random kill" how many milliseconds later.
        error: The errno of "full", "read-only" and "failing".
    """

    kind: str
    at: int
    error: int = 0

    def __str__(self) -> str:
        what = f" {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.kind}{what} at {self.at}"


@dataclass(frozen=True)
class Outcome:
    """How a command took a fault.

    Attributes:
        scenario: The command's name.
        fault: What happened to it.
        where: The operation and the file that were disturbed.
        bad: What was wrong; empty if nothing was.
        told: Output that shows it.
    """

    scenario: str
    fault: Fault
    where: str = ""
    bad: tuple[str, ...] = ()
    told: str = ""


@dataclass(frozen=True)
class Ran:
    """How a command ended.

    Attributes:
        code: The exit code; None for a signal.
        state: "ended", "late" for a hang, "stopped" or "runs".
        output: What it printed.
    """

    code: int | None
    state: str
    output: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output or self.code == 99


@dataclass
class Reference:
    """What undisturbed runs leave.

    Attributes:
        base: The files before the command.
        final: The files after it.
        mask: Files, or places in JSON files, that differ between two undisturbed runs.
        operations: How many operations change files.
        reads: How often a file of the input is opened.
        seconds: How long the command takes.
        later: Per later command: what it writes after the command, and what it would before.
    """

    base: Tree
    final: Tree
    mask: set[str]
    operations: int
    reads: int
    seconds: float
    later: dict[Command, tuple[Tree, ...]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)


def compile_shim(folder: Path) -> Path:
    """Compiles shim.c with the system's C compiler."""
    target = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    words = ["cc", "-O1", "-w", "-shared", "-fPIC", "-o", str(target), str(source), "-ldl"]
    subprocess.run(words, check=True, capture_output=True)
    return target


class Laboratory:
    """A workspace that is made once and restored before each command.

    Args:
        folder: Where it lies. A workspace that an earlier process made there is used again.
        make: Makes it.
    """

    def __init__(self, folder: Path, make: Build = build) -> None:
        self.folder, self.root = folder, folder / "root"
        self._states = folder / "states"
        self._control_file = folder / "control"
        self._control_file.write_bytes(bytes(_LAYOUT.size))
        with self._control_file.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _LAYOUT.size)
        shim = {"LD_PRELOAD": str(compile_shim(folder)), "CRASH_CONTROL": str(self._control_file)}
        self._process = forked.start(Path(__file__).with_name("zygote.py"), shim)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._references: dict[str, Reference] = {}
        if not (self._states / "whole").exists():
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir()
            make(self.root, self._must)
            self.keep("whole")

    def close(self) -> None:
        """Ends the process that runs the commands."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._control.close()

    # States of the workspace.

    def keep(self, name: str) -> None:
        """Keeps the workspace as it is under a name."""
        target = self._states / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.root, target, symlinks=True)

    def restore(self, name: str) -> None:
        """Makes the workspace as it was when it was kept."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._states / name, self.root, symlinks=True)

    def tree(self) -> Tree:
        """All files and empty folders, with their content."""
        found: Tree = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_dir():
                if not any(path.iterdir()):
                    found[name] = "empty folder"
            else:
                found[name] = _content(path)
        return found

    # Commands.

    def _ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, command: Command, *, armed: bool, output: str = "output") -> int:
        """Starts a command and returns its process."""
        file = self.folder / output
        answer = self._ask(
            start=filled(command, self.root),
            output=str(file),
            folder=str(self.folder),
            control=str(self._control_file) if armed else None,
        )
        process: int = answer["process"]
        return process

    def wait(
        self,
        process: int,
        *,
        seconds: float = SECONDS,
        stopped: bool = False,
        output: str = "output",
    ) -> Ran:
        """Waits for a process."""
        answer = self._ask(wait=process, seconds=seconds, stopped=stopped)
        text = (self.folder / output).read_bytes().decode("utf-8", "replace")
        return Ran(answer["code"], answer["state"], text)

    def arm(self, mode: str = "count", at: int = 0, error: int = 0, clock_s: int = 0) -> None:
        """Says what happens to the next command that is started armed."""
        numbers = (0, _MODES.index(mode), at, error, 0, 0, 0, clock_s, self.old)
        inputs = str(self.root / self.inputs)
        self._control[:] = _LAYOUT.pack(*numbers, str(self.root).encode(), inputs.encode(), b"")

    inputs = "data"
    old = False

    def fired(self) -> str:
        """Which operation was disturbed, and its file; empty if none was."""
        return _LAYOUT.unpack(self._control[:])[-1].rstrip(b"\0").decode()

    def run(self, command: Command, *, armed: bool = False) -> Ran:
        """Runs a command to its end."""
        return self.wait(self.start(command, armed=armed))

    def _must(self, *commands: Command) -> None:
        for command in commands:
            ran = self.run(command)
            assert ran.code == 0, (command, ran.output)

    # What undisturbed runs leave.

    def reference(self, scenario: Scenario) -> Reference:
        """What undisturbed runs of a scenario leave; it is made once."""
        if scenario.name not in self._references:
            self._references[scenario.name] = self._referred(scenario)
        return self._references[scenario.name]

    def _referred(self, scenario: Scenario) -> Reference:
        self.inputs, self.old = scenario.inputs, scenario.old
        self.restore("whole")
        self._must(*scenario.before)
        for pattern in scenario.remove:
            for path in self.root.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        base = self.tree()
        state = f"base {scenario.name}"
        self.keep(state)
        finals, seconds = [], 0.0
        for clock_s in (0, 5000):
            self.restore(state)
            self.arm(clock_s=clock_s)
            begun = time.monotonic()
            ran = self.run(scenario.command, armed=True)
            seconds = time.monotonic() - begun
            assert ran.code == 0, (scenario.name, ran.output)
            finals.append(self.tree())
        self.keep(f"final {scenario.name}")
        mask = _varying(finals) | {name for name in finals[0] if scenario.inexact(name)}
        operations, reads = _LAYOUT.unpack(self._control[:])[4:6]
        found = Reference(base, finals[0], mask, operations, reads, seconds)
        for command in scenario.later:
            found.later[command] = self._of_later(scenario, command, mask)
        return found

    def _of_later(self, scenario: Scenario, command: Command, mask: set[str]) -> tuple[Tree, ...]:
        """What a later command writes after the scenario's command, and without it."""
        results = []
        for state in (f"final {scenario.name}", f"base {scenario.name}"):
            found = []
            for clock_s in (0, 5000) if state.startswith("final") else (0,):
                self.restore(state)
                before = self.tree()
                self.arm(clock_s=clock_s)
                ran = self.run(command, armed=True)
                assert not ran.traceback, ran.output
                found.append(_changed(before, self.tree()))
            if ran.code == 0:
                mask |= _varying(found)
                results.append(found[0])
            else:
                assert state.startswith("base"), (command, ran.output)
        return tuple(results)

    # Faults.

    def judge(self, scenario: Scenario, fault: Fault) -> Outcome:
        """Does a fault to a command and says what was bad about what came of it."""
        expected = self.reference(scenario)
        self.inputs, self.old = scenario.inputs, scenario.old
        self.restore(f"base {scenario.name}")
        outcome = Outcome(scenario.name, fault)
        if fault.kind == "two":
            return self._two(scenario, fault, expected, outcome)
        if fault.kind in ("kill", "random kill", "clock back", "clock ahead"):
            return self._killed(scenario, fault, expected, outcome)
        return self._refused(scenario, fault, expected, outcome)

    def _killed(
        self, scenario: Scenario, fault: Fault, expected: Reference, outcome: Outcome
    ) -> Outcome:
        clock_s = {"clock back": YEAR, "clock ahead": DAY}.get(fault.kind, 0)
        if fault.kind == "random kill":
            self.arm()
            process = self.start(scenario.command, armed=True)
            time.sleep(fault.at / 1000)
            try:
                os.killpg(process, signal.SIGKILL)
            except ProcessLookupError:  # it has not made its group, or has ended
                time.sleep(0.1)
            ran = self.wait(process)
        else:
            self.arm("kill", fault.at, clock_s=clock_s)
            ran = self.run(scenario.command, armed=True)
        outcome = replace(outcome, where=self.fired())
        if ran.code is not None:  # it had ended before
            outcome = replace(outcome, where=outcome.where or "not reached")
        killed = self.tree()
        bad, told = [], []
        lost = [name for name in expected.base if name in expected.final and name not in killed]
        lost = [name for name in lost if not scenario.may_lack(name)]
        if lost:
            bad.append(f"lost: {', '.join(lost[:4])}")
        self.keep("killed")
        # What later stages see has often been seen before.
        seen = json.dumps({name: value for name, value in killed.items() if "/." not in name})
        fresh = seen not in expected.seen
        expected.seen.add(seen)
        for command, allowed in expected.later.items() if fresh else ():
            self.restore("killed")
            later = self.run(command)
            if later.traceback or later.state == "late":
                bad.append(f"later {command[0]}: {_how(later)}")
                told.append(later.output)
            elif later.code == 0:
                found = self.tree()
                if not any(not self._differences(found, tree, expected) for tree in allowed):
                    worst = self._differences(found, allowed[0], expected)
                    bad.append(f"later {command[0]} is wrong: {'; '.join(worst[:4])}")
                    told.append(later.output)
            self.restore("killed")
        return self._again(scenario, expected, outcome, bad, told)

    def _refused(
        self, scenario: Scenario, fault: Fault, expected: Reference, outcome: Outcome
    ) -> Outcome:
        mode = "once" if fault.kind == "failing" else fault.kind
        self.arm(mode, fault.at, fault.error)
        ran = self.run(scenario.command, armed=True)
        where = self.fired()
        outcome = replace(outcome, where=where)
        bad, told = [], []
        if ran.traceback or ran.state == "late" or ran.code not in (0, 1):
            bad.append(_how(ran))
            told.append(ran.output)
        elif ran.code == 1 and not _names(ran.output, where, self.root):
            bad.append("does not name the file")
            told.append(ran.output)
        elif ran.code == 0 and where:
            worst = self._differences(self.tree(), expected.final, expected, whole=True)
            # What is only for the eye may fail with a warning; what may not be removed is left.
            worst = [each for each in worst if not scenario.decorative(each)]
            worst = [each for each in worst if ".lock" not in each and ".partial." not in each]
            # An input that was cut or removed after it was read for the last time.
            hit = str(Path(where.partition(" ")[2]).relative_to(self.root))
            worst = [each for each in worst if not each.startswith(f"{hit} ")]
            if worst:
                bad.append(f"ends well, but {'; '.join(worst[:4])}")
                told.append(ran.output)
        now = self.tree()
        lost = [name for name in expected.base if name in expected.final and name not in now]
        lost = [n for n in lost if not scenario.may_lack(n) and not where.endswith(n)]
        if lost and fault.kind not in ("read-only",):
            bad.append(f"lost: {', '.join(lost[:4])}")
        if fault.kind in ("vanish", "cut") and where:
            name = Path(where.partition(" ")[2]).relative_to(self.root)
            shutil.copy2(self._states / f"base {scenario.name}" / name, self.root / name)
        return self._again(scenario, expected, outcome, bad, told)

    def _two(
        self, scenario: Scenario, fault: Fault, expected: Reference, outcome: Outcome
    ) -> Outcome:
        """Stops a command at an operation, runs it a second time, and lets the first go on."""
        self.arm("stop", fault.at)
        first = self.start(scenario.command, armed=True)
        ran = self.wait(first, stopped=True, seconds=SECONDS)
        outcome = replace(outcome, where=self.fired())
        bad, told = [], []
        others = []
        if ran.state == "stopped":
            second = self.start(scenario.command, armed=False, output="second")
            patience = max(10.0, 5 * expected.seconds)
            other = self.wait(second, stopped=True, seconds=patience, output="second")
            os.killpg(first, signal.SIGCONT)
            ran = self.wait(first)
            if other.state == "runs":  # it waits for the first
                other = self.wait(second, output="second")
            others.append(other)
        for each in (ran, *others):
            if each.traceback or each.state == "late" or each.code not in (0, 1):
                bad.append(_how(each))
                told.append(each.output)
            elif each.code == 1 and not _names_owner(each.output, self.root):
                bad.append("does not say who is in the way")
                told.append(each.output)
        if all(each.code for each in (ran, *others)):
            bad.append("neither of two was let through")
            told += [each.output for each in (ran, *others)]
        return self._again(scenario, expected, outcome, bad, told)

    def _again(
        self,
        scenario: Scenario,
        expected: Reference,
        outcome: Outcome,
        bad: list[str],
        told: list[str],
    ) -> Outcome:
        """Runs the command again, undisturbed, and compares what is there then.

        A command that had done all before it was killed, or of which one of two had, is not run
        again: `--extend` would extend a second time.
        """
        left = self._differences(self.tree(), expected.final, expected, whole=True)
        if not any(".lock" not in each for each in left):
            return replace(outcome, bad=tuple(bad), told="\n--\n".join(told)[-6000:])
        ran = self.run(scenario.command)
        worst = self._differences(self.tree(), expected.final, expected, whole=True)
        # The line of the last epoch may be lost, if that was saved.
        worst = [each for each in worst if not each.endswith("train.log is missing")]
        if ran.code:  # all was done before; a lock that nobody holds is in nobody's way
            worst = [each for each in worst if ".lock" not in each]
        if ran.traceback or ran.state == "late":
            bad.append(f"again: {_how(ran)}")
            told.append(ran.output)
        elif worst:
            what = "differs" if ran.code == 0 else "is refused"
            bad.append(f"again {what}: {'; '.join(worst[:4])}")
            told.append(ran.output)
        return replace(outcome, bad=tuple(bad), told="\n--\n".join(told)[-6000:])

    def _differences(
        self, found: Tree, wanted: Tree, reference: Reference, *, whole: bool = False
    ) -> list[str]:
        """How files differ from what they should be; with `whole` also what should not be there."""
        worst = []
        for name, value in wanted.items():
            if name not in found:
                worst.append(f"{name} is missing")
            elif name not in reference.mask:
                worst += _unequal(name, found[name], value, reference.mask)
        if whole:
            worst += [f"{name} is left" for name in found if name not in wanted]
        return worst

    def faults(
        self, scenario: Scenario, kind: str, number: int, rng: random.Random
    ) -> Iterator[Fault]:
        """So many faults of a kind, spread over the operations of a command."""
        reference = self.reference(scenario)
        if kind in ("vanish", "cut") and not reference.reads:
            return
        last = reference.reads if kind in ("vanish", "cut") else reference.operations
        if kind == "random kill":
            for _ in range(number):
                yield Fault(kind, rng.randrange(1, 1 + int(1000 * reference.seconds)))
            return
        for at in sorted(rng.sample(range(1, last + 1), min(number, last))):
            error = 0
            if kind == "full":
                error = rng.choice(_FULL)
            elif kind == "read-only":
                error = rng.choice(_READ_ONLY)
            elif kind == "failing":
                error = errno.EIO
            yield Fault(kind, at, error)


def _content(path: Path) -> Any:
    """What a file holds: a table of its leaves for JSON, else a checksum."""
    raw = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and len(raw) < 1 << 20:
        try:
            lines = raw.splitlines() if path.suffix == ".jsonl" else [raw]
            return dict(_leaves([json.loads(line) for line in lines]))
        except ValueError:
            pass
    return hashlib.sha256(raw).hexdigest()


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{at}/{key}")
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from _leaves(each, f"{at}/{number}")
    else:
        yield at, value


def _varying(trees: list[Tree]) -> set[str]:
    """Files, and places in JSON files, that differ between undisturbed runs."""
    first, mask = trees[0], set()
    for other in trees[1:]:
        assert first.keys() == other.keys(), first.keys() ^ other.keys()
        for name, value in first.items():
            if value == other[name]:
                continue
            if isinstance(value, dict) and isinstance(other[name], dict):
                places = value.keys() | other[name].keys()
                mask |= {
                    f"{name}:{place}"
                    for place in places
                    if value.get(place) != other[name].get(place)
                }
            else:
                mask.add(name)
    return mask


def _changed(before: Tree, after: Tree) -> Tree:
    return {name: value for name, value in after.items() if before.get(name) != value}


def _unequal(name: str, found: Any, wanted: Any, mask: set[str]) -> Iterator[str]:
    if found == wanted:
        return
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        yield f"{name} is another"
        return
    for place in sorted(found.keys() | wanted.keys()):
        if place.endswith("/mtime_ns"):  # of a file that the disturbed command wrote
            continue
        if f"{name}:{place}" not in mask and found.get(place) != wanted.get(place):
            yield f"{name}: {place} is {found.get(place)!r}, not {wanted.get(place)!r}"
            return


def _how(ran: Ran) -> str:
    if ran.state == "late":
        return "hangs"
    if ran.traceback:
        last = [line for line in ran.output.strip().splitlines() if line.strip()][-1:]
        return f"traceback: {last[0][:200] if last else ''}"
    return f"exit code {ran.code}"


def _names(output: str, where: str, root: Path) -> bool:
    """Whether an error says which file or folder it is about."""
    error = output.partition("Error: ")[2] or output
    path = Path(where.partition(" ")[2])
    parts = [part for part in path.parts[len(root.parts) :] if not part.startswith(".")]
    return str(root) in error or any(part.split(".")[0] in error for part in parts)


def _names_owner(output: str, root: Path) -> bool:
    error = output.partition("Error: ")[2] or output
    return "process" in error or str(root) in error


__all__ = ["KINDS", "SCENARIOS", "Fault", "Laboratory", "Outcome"]
