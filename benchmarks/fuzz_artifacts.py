"""Coverage-guided fuzzing of all that reads artefacts and models of others.

    python -m benchmarks.fuzz_artifacts [--seconds N] [--folder DIR] [--seed N]

It needs atheris (pip install atheris), which is a tool and no dependency; without it nothing is
done. Inputs begin as the files of the workspace of tests/hostile/artefacts.py. They are changed
byte by byte, or field by field where they are JSON. What ends neither in a value nor in an
`AutoliverError`, or takes longer than two seconds, is a finding: its input is kept in
DIR/findings, one for each place in the code. Exit code 1 if there is any.
"""

import argparse
import hashlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

try:
    import atheris
except ImportError:
    print("atheris is not installed: nothing was fuzzed (pip install atheris).")
    sys.exit(0)

with atheris.instrument_imports(include=["autoliver"]):
    import torch

    import autoliver.pipeline.run.request
    import autoliver.pipeline.status
    import autoliver.pipeline.translation.fit  # noqa: F401
    from autoliver.artifacts import Artifact, json_line
    from autoliver.datasets.cases import read_dataset
    from autoliver.errors import AutoliverError
    from autoliver.inference.model import load_model
    from autoliver.models.archive import open_archive
    from autoliver.networks.checkpoint import load_network, load_training_state
    from autoliver.nnunet.model import read_nnunet_model
    from autoliver.nnunet.pickles import read_pickle
    from autoliver.system import in_words
    from autoliver.training.progress import EpochLog

from hostile.artefacts import Arena, as_text, places, replaced, wrong

SECONDS = 2.0
SUMMARY = "summary.txt"


@dataclass(frozen=True)
class Content:
    """A file that is not on disk."""

    content: bytes

    def __str__(self) -> str:
        return "fuzzed.json"

    def read_bytes(self) -> bytes:
        """As `Path.read_bytes`."""
        return self.content


KINDS: dict[str, type[Artifact]] = {}


def _kinds(parent: type[Artifact]) -> None:
    for kind in parent.__subclasses__():
        KINDS[kind.KIND] = kind
        _kinds(kind)


_kinds(Artifact)


def artefact(content: bytes, _: Path) -> None:
    """Any artefact: its own `kind` says which one is expected."""
    kind: object = None
    try:
        found = json.loads(content)
        kind = found.get("kind") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        pass
    record = KINDS.get(kind if isinstance(kind, str) else "", KINDS["plan"]).load(Content(content))
    record.digest()
    KINDS[record.KIND].load(Content(record.to_bytes()))


def weights(content: bytes, _: Path) -> None:
    load_network(Content(content))


def state(content: bytes, folder: Path) -> None:
    load_training_state(_file(folder / "resume.pt", content))


def archive(content: bytes, folder: Path) -> None:
    files = open_archive(_file(folder / "a.autoliver", content)).files()
    load_model(files, device=torch.device("cpu"))


def line(content: bytes, _: Path) -> None:
    json_line(content, EpochLog)


def description(content: bytes, folder: Path) -> None:
    _file(folder / "data/dataset.json", content)
    read_dataset(folder / "data")


def plans(content: bytes, folder: Path) -> None:
    (path,) = (folder / "nn").rglob("plans.json")
    path.write_bytes(content)
    read_nnunet_model(folder / "nn")


def checkpoint(content: bytes, folder: Path) -> None:
    (path,) = (folder / "nn2").rglob("checkpoint_final.pth")
    path.write_bytes(content)
    read_nnunet_model(folder / "nn2")


def exported(content: bytes, folder: Path) -> None:
    read_nnunet_model(_file(folder / "nn.zip", content))


def pickled(content: bytes, folder: Path) -> None:
    read_pickle(_file(folder / "plans.pkl", content))


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


TARGETS: tuple[Callable[[bytes, Path], None], ...] = (
    *(artefact, weights, state, archive, line, description, plans, checkpoint, exported, pickled),
)


def seeds(arena: Path) -> list[bytes]:
    """The first inputs: a byte for the target, and a file of the workspace."""
    import pickle
    import zipfile

    found: list[tuple[Callable[[bytes, Path], None], bytes]] = []
    for path in sorted(arena.rglob("*.json")):
        raw = path.read_bytes()
        if json.loads(raw).__class__ is dict and json.loads(raw).get("kind") in KINDS:
            found.append((artefact, raw))
    run = arena / "ws/Dataset001_Toy/runs/3d_fullres/fold_0"
    found.append((weights, (run / "weights.safetensors").read_bytes()))
    found.append((weights, (arena / "ws/synthesis/toy-as-mr/generator.safetensors").read_bytes()))
    found += [(state, path.read_bytes()) for path in run.glob("resume.pt")]
    found.append((archive, (arena / "toy.autoliver").read_bytes()))
    found.append((line, (run / "progress.jsonl").read_bytes().splitlines()[0]))
    found.append((description, (arena / "data/Dataset001_Toy/dataset.json").read_bytes()))
    found.append((description, (arena / "pool/dataset.json").read_bytes()))
    (model,) = (arena / "nn").glob("*/*")
    found.append((plans, (model / "plans.json").read_bytes()))
    fold = model / "fold_0/checkpoint_final.pth"
    found.append((checkpoint, fold.read_bytes()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in (model / "plans.json", model / "dataset.json", fold):
            file.write(path, path.relative_to(arena / "nn"))
    found.append((exported, buffer.getvalue()))
    value = {"a": [1, 2.5, "x", None, {1, 2}], "b": {"c": b"x"}}
    found += [(pickled, pickle.dumps(value, protocol)) for protocol in range(5)]
    return [bytes([TARGETS.index(target)]) + content for target, content in found]


def prepare(folder: Path, arena: Path) -> None:
    """Makes the folders that targets put their file into."""
    import shutil

    (folder / "data").mkdir(parents=True)
    for name in ("nn", "nn2"):
        shutil.copytree(arena / "nn", folder / name)
        for fold in (folder / name).rglob("fold_1"):
            shutil.rmtree(fold)
    for name in ("imagesTr", "labelsTr"):
        shutil.copytree(arena / "data/Dataset001_Toy" / name, folder / "data" / name)


class Fuzzer:
    """What is done with each input, and what was found."""

    def __init__(self, folder: Path, scratch: Path, rng: random.Random) -> None:
        self.folder, self.scratch, self.rng = folder, scratch, rng
        self.found: dict[str, str] = {}
        self.inputs = self.values = 0

    def one(self, data: bytes) -> None:
        """Reads one input."""
        if not data:
            return
        target = TARGETS[data[0] % len(TARGETS)]
        self.inputs += 1
        begun = time.monotonic()
        try:
            with in_words():  # as every command does
                target(data[1:], self.scratch)
            self.values += 1
        except AutoliverError:
            pass
        except Exception as error:  # noqa: BLE001
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "/autoliver/" in frame.filename
            ]
            last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            self.keep(f"{type(error).__name__} {target.__name__} {where}", data, str(error))
        if self.inputs % 200 == 0:
            self.tell()
        if time.monotonic() - begun > SECONDS:
            self.keep(f"slow {target.__name__}", data, f"{time.monotonic() - begun:.1f} s")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 4 * 2**20:
            self.keep(f"memory {target.__name__}", data, "above 4 GB")

    def keep(self, name: str, data: bytes, told: str) -> None:
        """Keeps an input that ended otherwise than it should."""
        if name in self.found:
            return
        self.found[name] = told
        digest = hashlib.sha256(data).hexdigest()[:12]
        (self.folder / "findings").mkdir(exist_ok=True)
        (self.folder / "findings" / digest).write_bytes(data)
        print(f"FOUND {name}: {told[:200]} ({digest})", flush=True)

    def tell(self) -> None:
        """Writes down how many there were."""
        (self.folder / SUMMARY).write_text(
            f"{self.inputs} inputs, {self.values} of them read as values, "
            f"{len(self.found)} findings in {self.folder}"
        )

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Changes a field of JSON, or bytes of anything."""
        rng = random.Random(seed)
        if len(data) > 1 and data[1:2] in (b"{", b"[") and rng.random() < 0.7:
            changed = _field_changed(data[1:], rng)
            if changed is not None and len(changed) < most:
                return data[:1] + changed
        return bytes(atheris.Mutate(data, most))


def _field_changed(content: bytes, rng: random.Random) -> bytes | None:
    try:
        value: Any = json.loads(content)
        at, old = rng.choice(list(places(value)))
        return as_text(replaced(value, at, rng.choice(list(wrong(old)))[1])).encode()
    except (ValueError, RecursionError, IndexError, AttributeError, TypeError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--folder", type=Path, help="where inputs and findings are kept")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="autoliver-fuzz-"))
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    arena = Arena(folder).root
    for content in seeds(arena):
        (folder / "corpus" / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch) / "x", arena)
        fuzzer = Fuzzer(folder, Path(scratch) / "x", random.Random(given.seed))
        options = [
            f"-max_total_time={given.seconds}",
            "-max_len=200000",
            "-rss_limit_mb=8192",
            "-timeout=60",
            f"-seed={given.seed}",
            "-print_final_stats=1",
            f"-artifact_prefix={folder}/",
            str(folder / "corpus"),
        ]
        child = os.fork()  # libFuzzer ends its process without telling anybody
        if child == 0:
            atheris.Setup([sys.argv[0], *options], fuzzer.one, custom_mutator=fuzzer.mutate)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    told = (folder / SUMMARY).read_text()
    print(f"{told}; the process ended with {os.waitstatus_to_exitcode(status)}.")
    return int("0 findings" not in told or status != 0)


if __name__ == "__main__":
    sys.exit(main())
