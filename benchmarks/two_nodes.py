"""A training on two "nodes", one of which is killed in mid-training and started again.

    python -m benchmarks.two_nodes [--epochs N] [--work DIR]

The nodes are two network namespaces joined by a pair of virtual devices, so that they reach each
other by TCP alone. That takes root and `ip`; elsewhere they are two addresses of the loopback
device, which is said. Each node runs `torchrun --nnodes 2` with one process, over gloo.

The same training is run twice: left alone, and with the second node killed by SIGKILL, all its
processes at once, after the first epochs, and started again by the same command. Exit code 1 if the
weights are not the same, bit by bit.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import read_progress

NAME = "Dataset001_Nodes"
_PORT = 29555
_LONGEST_S = 900.0
_MOST_AGAIN = 2  # starts of both after a failure
_SHOWN = 40  # last lines of a node's log, if it fails


@dataclass(frozen=True)
class Node:
    """One end of the network.

    Attributes:
        address: Its address.
        device: Its network device.
        enter: The command in front of what is to run there.
    """

    address: str
    device: str
    enter: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_nodes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    arguments = parser.parse_args()
    # As Ctrl-C: the nodes are ended, and their namespaces removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with (
        tempfile.TemporaryDirectory(prefix="two-nodes-", dir=arguments.work) as folder,
        nodes() as both,
    ):
        place = Path(folder)
        prepare(place)
        alone = train(place / "alone", both, arguments.epochs, kill=False)
        killed = train(place / "killed", both, arguments.epochs, kill=True)
        same = alone == killed
        print(f"weights: {'the same bits' if same else 'DIFFERENT'}")
    return 0 if same else 1


@contextlib.contextmanager
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes: network namespaces where that is possible, else addresses of the loopback."""
    mark = os.getpid() % 100_000
    spaces = [f"autoliver{mark}{end}" for end in "ab"]
    devices = [f"av{mark}{end}" for end in "ab"]
    addresses = ["10.231.77.1", "10.231.77.2"]
    try:
        for space in spaces:
            _ip("netns", "add", space)
        _ip(
            *("link", "add", devices[0], "netns", spaces[0], "type", "veth"),
            *("peer", "name", devices[1], "netns", spaces[1]),
        )
        for space, device, address in zip(spaces, devices, addresses, strict=True):
            _ip("-n", space, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", space, "link", "set", device, "up")
            _ip("-n", space, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        print(f"No network namespaces here ({said.strip()}): the nodes share the loopback device.")
        _remove(spaces)
        yield Node("127.0.0.1", "lo"), Node("127.0.0.2", "lo")
        return
    print("Two network namespaces, joined by a pair of virtual devices.")
    try:
        first, second = (
            Node(address, device, ("ip", "netns", "exec", space))
            for space, device, address in zip(spaces, devices, addresses, strict=True)
        )
        yield first, second
    finally:
        _remove(spaces)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _remove(spaces: list[str]) -> None:
    for space in spaces:
        with contextlib.suppress(OSError):
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


def prepare(place: Path) -> None:
    """Writes a dataset, and two equal workspaces in which it is preprocessed."""
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    source = write_phantom_dataset(place / "data", name=NAME, cases=5, seed=1, options=options)
    for words in (("plan", str(source), "--preset", "tiny"), ("preprocess", NAME, "2d")):
        command = [sys.executable, "-m", "autoliver", *words, "-w", str(place / "alone")]
        subprocess.run(command, check=True, capture_output=True)
    shutil.copytree(place / "alone", place / "killed")


def train(workspace: Path, both: tuple[Node, Node], epochs: int, *, kill: bool) -> bytes:
    """Trains on both nodes; returns the weights."""
    fold = workspace / NAME / "runs/2d/fold_0"
    begun = time.monotonic()
    running, again = [start(node, both[0], workspace, epochs) for node in both], 0
    try:
        if kill:
            while len(read_progress(fold / "progress.jsonl")) < epochs // 3:
                _wait(workspace, begun)
                if any(process.poll() is not None for process in running):
                    _give_up(workspace, "A node ended before it was killed.")
            _kill(both[1], running[1])
            done = len(read_progress(fold / "progress.jsonl"))
            print(f"node 2 killed after {done} of {epochs} epochs, and started again", flush=True)
            running[1] = start(both[1], both[0], workspace, epochs)
        while any(process.poll() != 0 for process in running):
            _wait(workspace, begun)
            if any(process.poll() for process in running):
                # As a scheduler does with a job of which a node has failed.
                if not kill or again == _MOST_AGAIN:
                    _give_up(workspace, "A node failed.")
                again += 1
                for node, process in zip(both, running, strict=True):
                    _kill(node, process)
                print("the group did not come together again: both are started anew", flush=True)
                running = [start(node, both[0], workspace, epochs) for node in both]
    finally:
        for node, process in zip(both, running, strict=True):
            _kill(node, process)
    how = "one node killed" if kill else "left alone"
    print(f"{how}: {epochs} epochs in {time.monotonic() - begun:.0f} s", flush=True)
    return (fold / "weights.safetensors").read_bytes()


def _kill(node: Node, process: "subprocess.Popen[bytes]") -> None:
    """Ends all processes of a node at once; torchrun's own are in sessions of their own."""
    there = [process.pid]
    if node.enter:
        listed = subprocess.run(
            ["ip", "netns", "pids", node.enter[-1]], capture_output=True, text=True, check=False
        )
        there += [int(pid) for pid in listed.stdout.split()]
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def start(node: Node, first: Node, workspace: Path, epochs: int) -> "subprocess.Popen[bytes]":
    """Starts torchrun on a node, as a user would."""
    words = (
        *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.address}:{_PORT}"),
        # In a namespace, the name of the machine does not lead to the node's address.
        *("--rdzv-conf", f"is_host={int(node is first)}"),
        *("--rdzv-id", workspace.name, "--local-addr", node.address),
        *("-m", "autoliver", "train", NAME, "2d", "--fold", "0", "--epochs", str(epochs)),
        *("--iterations", "4", "--cache", "ram", "--seed", "3", "--deterministic"),
        *("--device", "cpu", "-w", str(workspace)),
    )
    command = [*node.enter, sys.executable, "-m", "torch.distributed.run", *words]
    if first is node:
        print(shlex.join(command[len(node.enter) :]), flush=True)
    inherited = dict(os.environ)  # noqa: TID251
    surroundings = {**inherited, "GLOO_SOCKET_IFNAME": node.device, "OMP_NUM_THREADS": "1"}
    with (workspace / f"{node.address}.log").open("ab") as log:
        return subprocess.Popen(
            command, env=surroundings, stdout=log, stderr=log, start_new_session=True
        )


def _wait(workspace: Path, begun: float) -> None:
    time.sleep(0.1)
    if time.monotonic() - begun > _LONGEST_S:
        _give_up(workspace, "It takes too long.")


def _give_up(workspace: Path, why: str) -> NoReturn:
    """Ends with what the nodes said."""
    for log in sorted(workspace.glob("*.log")):
        print(f"{log.name}:", *log.read_text().splitlines()[-_SHOWN:], sep="\n")
    raise SystemExit(why)


if __name__ == "__main__":
    sys.exit(main())
