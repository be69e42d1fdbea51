"""Artefacts that are malformed or make no sense, and the commands that read them.

A corpus is made from a small workspace in which everything was done once: each field of each JSON
file is replaced by each of a list of wrong values, and weights by tensors that no network has. A
command that reads such a file has to end in a result or in one `AutoliverError`, within ten seconds
and one GB above what the process had before. Each one runs in a process of its own that is forked
from one in which everything is imported.
"""

import gc
import hashlib
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from commands import run
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import AutoliverError
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.system import in_words

SECONDS = 10.0
MOST_BYTES = 1 << 30
TOY, MR = "Dataset001_Toy", "Dataset002_MR"
FOLD = f"ws/{TOY}/runs/3d_fullres/fold_0"
SMALL = ("--epochs", "1", "--iterations", "1")
CPU = ("--device", "cpu", "--workers", "1")
ALONE = ("--device", "cpu")
WS = ("-w", "{root}/ws")

PREDICT = ("predict", "-i", "{root}/in", "-o", "{root}/new", "-m", TOY, *ALONE, *WS)
PREDICT_ONE = (*PREDICT, "--folds", "0")
PREDICT_FILE = (*PREDICT[:5], "-m", "{root}/toy.autoliver", *ALONE, *WS)
PREDICT_FILE_ONE = (*PREDICT_FILE, "--folds", "0")
PREDICT_AGAIN = ("predict", "-i", "{root}/in", "-o", "{root}/out", "-m", TOY, *ALONE, *WS)
TRAIN = ("train", TOY, "3d_fullres", "--fold", "0", *SMALL, *CPU, *WS)
TRAIN_ON = ("train", TOY, "3d_fullres", "--fold", "0", "--extend", "1", *CPU, *WS)
TRAIN_NEW = ("train", TOY, "3d_fullres", "--tag", "new", "--fold", "0", *SMALL, *CPU, *WS)
TRAIN_FROM = (*TRAIN_NEW, "--pretrained", "imported")
SELECT = ("select", TOY, *WS)
STATUS = ("status", *WS)
REPORT = ("report", TOY, *WS)
REPORT_OUT = ("report", "-p", "{root}/out", "-i", "{root}/in", *WS)
EXPORT = ("export", TOY, "{root}/again.autoliver", *WS)
EXPORT_NNUNET = ("export", TOY, "{root}/again", "--format", "nnunet", *WS)
IMPORT = ("import", "{root}/toy.autoliver", "--name", "again", *WS)
IMPORT_NNUNET = ("import", "{root}/nn", "--name", "again", *WS)
PLAN = ("plan", "{root}/data/" + TOY, *WS)
REPLAN = ("plan", "{root}/data/" + TOY, "--preset", "tiny", "--fresh", *WS)
VERIFY = ("verify", "{root}/data/" + TOY, *WS)
EVALUATE = ("evaluate", "-p", "{root}/out", "-r", "{root}/truth", "--overwrite", *WS)
EVALUATE_DATA = (*EVALUATE, "-d", "{root}/data/" + TOY)
COMPARE = ("evaluate", "-p", "{root}/out", "-p", "{root}/other", "-r", "{root}/truth", *WS)
POOL = ("pool", "{root}/made", "--add", "{root}/data/" + TOY, "--add", "{root}/data/" + MR, *WS)
POOL_AGAIN = ("plan", "{root}/pool", *WS)
APPLY = ("synthesize", "apply", "toy-as-mr", "{root}/made", "--judge", "imported", *ALONE, *WS)
FIT = (
    *("synthesize", "fit", "--from", TOY, "--to", MR, "-o", "toy-as-mr", "--model", "cyclegan"),
    *("--features", "4", "--blocks", "1", "--batch-size", "1", "--patch", "24", "24"),
    *("--epochs", "1", "--iterations", "1", "--device", "cpu", *WS),
)
ADOPT = ("adopt", "{root}/made", "-i", "{root}/in", "-p", "{root}/out", "--like", TOY, *WS)
CLEAN = ("clean", *WS)
PREPROCESS = ("preprocess", TOY, "3d_fullres", "--workers", "1", *WS)

Command = tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A file of the workspace, and the commands that read it.

    Attributes:
        file: Its path; inside an archive after "!".
        commands: Each is run on a fresh copy of the workspace.
        remove: What is removed first, so that the file is needed.
    """

    file: str
    commands: tuple[Command, ...]
    remove: tuple[str, ...] = ()


DATA = f"ws/{TOY}"
TARGETS = (
    Target(
        f"{FOLD}/model.json",
        (PREDICT_ONE, PREDICT, EXPORT, EXPORT_NNUNET, SELECT, STATUS, TRAIN_ON),
    ),
    Target("ws/models/imported/runs/3d_fullres/fold_0/model.json", (TRAIN_FROM,)),
    Target(f"{DATA}/model.json", (PREDICT, EXPORT, STATUS, REPORT)),
    Target("toy.autoliver!manifest.json", (PREDICT_FILE, IMPORT)),
    Target("toy.autoliver!model.json", (PREDICT_FILE, IMPORT)),
    Target("toy.autoliver!runs/3d_fullres/fold_0/model.json", (PREDICT_FILE, IMPORT)),
    Target(f"{DATA}/plan.json", (TRAIN_NEW, PLAN, STATUS, REPORT)),
    Target(f"{DATA}/plan.json", (PREPROCESS,), remove=(f"{DATA}/store",)),
    Target(f"{DATA}/fingerprint.json", (REPLAN, REPORT, TRAIN_NEW)),
    Target(f"{DATA}/dataset.json", (TRAIN_NEW, STATUS, REPORT, SELECT)),
    Target(f"{DATA}/verify.json", (PLAN, TRAIN_NEW, REPORT)),
    Target(f"{DATA}/folds.json", (TRAIN_NEW, SELECT, REPORT)),
    Target(f"{DATA}/files.json", (PLAN, TRAIN_NEW)),
    Target(f"{DATA}/splits_final.json", (TRAIN_NEW, PLAN)),
    Target(f"ws/{TOY}/runs/3d_fullres/options.json", (TRAIN, TRAIN_ON, STATUS, REPORT, CLEAN)),
    Target(f"{FOLD}/validation/scores.json", (SELECT, STATUS, REPORT)),
    Target(f"{FOLD}/progress.jsonl", (STATUS, REPORT, TRAIN_ON)),
    Target(f"data/{TOY}/dataset.json", (VERIFY, REPLAN, EVALUATE_DATA, POOL)),
    Target("out/predict.json", (PREDICT_AGAIN, EVALUATE, REPORT_OUT, ADOPT)),
    Target("out/scores.json", (EVALUATE, REPORT_OUT)),
    Target("out/lesions.json", (EVALUATE, REPORT_OUT)),
    Target("pool/pool.json", (POOL_AGAIN,)),
    Target("pool/dataset.json", (POOL_AGAIN,)),
    Target("ws/synthesis/toy-as-mr/synthesizer.json", (APPLY, FIT, STATUS)),
    Target("nn/*/*/plans.json", (IMPORT_NNUNET,)),
    Target("nn/*/*/dataset.json", (IMPORT_NNUNET,)),
    Target(f"{DATA}/store/*/store.json", (TRAIN_NEW,)),
    Target(f"{DATA}/store/*/*_000.json", (TRAIN_NEW, REPORT)),
)


def build(root: Path) -> None:
    """Does everything once: datasets, a model, predictions, an export, a pool, a translation."""
    torch.set_num_threads(1)
    for seed, (name, contrast) in enumerate(((TOY, "CT"), (MR, "T2"))):
        options = PhantomOptions(
            contrast=contrast,
            shape_zyx=(10, 32, 32),
            spacing_mm=(10.0, 6.0, 6.0),
            lesions=(0, 0),
        )
        write_phantom_dataset(
            root / "data", name=name, cases=3, seed=seed, options=options, test_cases=1
        )
    for name, test in (("in", "imagesTs"), ("truth", "labelsTs")):
        shutil.copytree(root / "data" / TOY / test, root / name)
    prepare(root, ("plan", "{root}/data/" + MR, "--preset", "tiny", *WS), REPLAN, TRAIN)
    for fold in ("1",):
        prepare(root, tuple(fold if part == "0" else part for part in TRAIN))
    names = [f"Toy_00{number}" for number in range(3)]
    splits = [
        {"train": names[:number] + names[number + 1 :], "val": [names[number]]}
        for number in range(3)
    ]
    (root / DATA / "splits_final.json").write_text(json.dumps(splits))
    prepare(root, SELECT, PREDICT, EXPORT, EXPORT_NNUNET)
    (root / "new").rename(root / "out")
    shutil.copytree(root / "out", root / "other")
    (root / "again.autoliver").rename(root / "toy.autoliver")
    (root / "again").rename(root / "nn")
    prepare(root, EVALUATE, (*IMPORT[:3], "imported", *WS), FIT, POOL)
    (root / "made").rename(root / "pool")


def prepare(root: Path, *commands: Command) -> None:
    """Runs commands; their errors are raised."""
    for command in commands:
        run(*filled(command, root))


def filled(command: Command, root: Path) -> list[str]:
    return [part.replace("{root}", str(root)) for part in command]


class Raw(str):
    """A piece of JSON that is written as it is."""


class Twice:
    """A value whose key is written twice."""

    def __init__(self, value: object) -> None:
        self.value = value


MISSING = object()
DEEP = Raw("[" * 100_000 + "]" * 100_000)
_TYPES: dict[str, object] = {
    "null": None,
    "text": "x",
    "number": 7,
    "half": 0.5,
    "yes": True,
    "object": {"x": 1},
    "nested": [[[[1]]]],
    "missing": MISSING,
}
_RAW: dict[str, object] = {"NaN": Raw("NaN"), "inf": Raw("1e999"), "deep": DEEP}


def wrong(value: object) -> Iterator[tuple[str, object]]:
    """Wrong values for one that is there: of other types, and of the same type."""
    yield from _TYPES.items()
    yield from _RAW.items()
    yield "twice", Twice(value)
    if isinstance(value, bool):
        yield "flipped", not value
    elif isinstance(value, int | float):
        near = (0, -1, 1, value + 1, 9, 10**6, 10**12, -(10**12), 2**63, 10**30)
        yield from ((f"{number:g}", number) for number in near)
        if isinstance(value, float):
            yield from ((f"{number:g}", number) for number in (1e308, -1e308, 1e-308, 1e30))
    elif isinstance(value, str):
        texts = (
            "",
            " ",
            "../../x",
            "/etc/passwd",
            "a\0b",
            "a\nb",
            "=1+1",
            "-x",
            "\ud800"[:0] + "\u202e",
        )
        yield from ((f"text {text!r}", text) for text in texts)
        yield "long text", "x" * 100_000
    elif isinstance(value, list):
        yield from {
            "empty": [],
            "doubled": value + value,
            "reversed": value[::-1],
            "shorter": value[:-1],
            "first alone": value[:1],
            "longer": value + value[-1:],
            "zeros": [0 for _ in value],
            "first everywhere": [value[0] for _ in value] if value else [0],
            "a thousand": value[:1] * 1000,
        }.items()
    elif isinstance(value, dict):
        yield "empty", {}
        yield "further key", {**value, "further": 1}
        yield "first alone", dict(list(value.items())[:1])
        yield "other names", {f"{key}?": each for key, each in value.items()}
        yield "unfit names", {f"../{key}\n": each for key, each in value.items()}


Place = tuple[str | int, ...]


def places(value: object, at: Place = ()) -> Iterator[tuple[Place, object]]:
    """All places in a JSON value; of lists the first and the last entry, of tables some."""
    yield at, value
    if isinstance(value, dict):
        for key in list(value)[:40]:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*at, index))


def replaced(value: Any, at: Place, new: object) -> Any:
    """A JSON value with another one at a place."""
    if not at:
        return new
    if isinstance(value, list):
        items = list(value)
        items[int(at[0])] = replaced(items[int(at[0])], at[1:], new)
        return [item for item in items if item is not MISSING]
    changed = {key: replaced(v, at[1:], new) if key == at[0] else v for key, v in value.items()}
    return {key: each for key, each in changed.items() if each is not MISSING}


def as_text(value: object) -> str:
    """JSON, with pieces that no encoder writes."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        pairs = []
        for key, each in value.items():
            inner = each.value if isinstance(each, Twice) else each
            pairs += [f"{json.dumps(key)}: {as_text(inner)}"] * (1 + isinstance(each, Twice))
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_text(each) for each in value) + "]"
    if isinstance(value, Twice):
        return as_text(value.value)
    return json.dumps(None if value is MISSING else value)


@dataclass(frozen=True)
class Mutant:
    """One wrong file with one command that reads it.

    Attributes:
        name: File, field and wrong value.
        target: The file.
        change: Writes the wrong file, given the root of a fresh workspace.
        command: The command.
    """

    name: str
    file: str
    change: Callable[[Path], None] = field(repr=False)
    command: Command
    remove: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{' '.join(self.command[:2])} | {self.name}"


def find(root: Path, pattern: str) -> Path:
    """The first file of a pattern."""
    return min(root.glob(pattern)) if "*" in pattern else root / pattern


def read(root: Path, file: str) -> str:
    """A file of the workspace, or of an archive in it."""
    path, _, inner = file.partition("!")
    if inner:
        with zipfile.ZipFile(root / path) as archive:
            return archive.read(inner).decode()
    return find(root, path).read_text()


def write(root: Path, file: str, content: str | bytes) -> None:
    """Replaces a file; the manifest of an archive states what is there."""
    data = content.encode() if isinstance(content, str) else content
    path, _, inner = file.partition("!")
    if not inner:
        find(root, path).write_bytes(data)
        return
    with zipfile.ZipFile(root / path) as archive:
        there = {info.filename: archive.read(info) for info in archive.infolist()}
    there[inner] = data
    if inner != "manifest.json":
        manifest = json.loads(there["manifest.json"])
        for entry in manifest["entries"]:
            held = there[entry["name"]]
            entry |= {"size": len(held), "sha256": hashlib.sha256(held).hexdigest()}
        there["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(root / path, "w") as archive:
        for name, held in there.items():
            archive.writestr(zipfile.ZipInfo(name), held)


def json_mutants(root: Path) -> Iterator[Mutant]:
    """Each field of each file with each wrong value, for each command that reads it."""
    for target in TARGETS:
        text = read(root, target.file)
        lines = text.splitlines() if target.file.endswith(".jsonl") else [text]
        value = json.loads(lines[0])
        for at, old in places(value):
            for name, new in wrong(old):
                if new is MISSING and not at:
                    continue
                content = "\n".join([as_text(replaced(value, at, new)), *lines[1:]])
                where = ".".join(map(str, at)) or "$"
                for command in target.commands:
                    yield Mutant(
                        name=f"{target.file}: {where}: {name}",
                        file=target.file,
                        change=_writing(target.file, content),
                        command=command,
                        remove=target.remove,
                    )


# What may happen to the bytes of a JSON file.
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "UTF-8 with a mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.decode().encode("utf-16-le"),
    "UTF-32": lambda text: text.decode().encode("utf-32-be"),
    "half of UTF-16": lambda text: text.decode().encode("utf-16")[:-1],
    "marks alone": lambda _: b"\xff\xfe",
    "EBCDIC": lambda text: text.decode().encode("cp037", "replace"),
    "Latin-1": lambda text: text.replace(b'"', b'"\xe9', 1),
    "a byte that is no text": lambda text: text.replace(b'"', b'"\xff', 1),
    "half of a letter": lambda text: text.replace(b'"', b'"\xc3', 1),
    "an escape without a letter": lambda text: text.replace(b'"', b'"\\ud800', 1),
    "a zero": lambda text: text[: len(text) // 2] + b"\0" + text[len(text) // 2 :],
    "empty": lambda _: b"",
    "blanks": lambda _: b" \n\t" * 1000,
    "zeros": lambda _: bytes(5000),
    "half": lambda text: text[: len(text) // 2],
    "without the end": lambda text: text.rstrip()[:-1],
    "twice": lambda text: text + text,
    "more behind": lambda text: text + b"]",
    "a comment": lambda text: b"// x\n" + text,
    "a comma too many": lambda text: text.rstrip()[:-1] + b",}",
    "single quotes": lambda text: text.replace(b'"', b"'"),
    "lines of Windows": lambda text: text.replace(b"\n", b"\r\n"),
    "a web page": lambda _: b"<!DOCTYPE html><html></html>",
    "a pickle": lambda _: b"\x80\x04\x95" + b"c" * 400,
    "null": lambda _: b"null",
    "a list": lambda text: b"[" + text + b"]",
    "a text": lambda _: b'"x"',
    "a number": lambda _: b"7",
    "1e400": lambda _: b"1e400",
    "-1e-400": lambda _: b"-1e-400",
    "5,000 digits": lambda _: b"9" * 5000,
    "10^6 digits": lambda _: b"9" * 10**6,
    "a key of 10^6 letters": lambda text: b'{"' + b"x" * 10**6 + b'":' + text + b"}",
    "10^5 keys": lambda _: as_text({str(n): n for n in range(10**5)}).encode(),
    "depth": lambda _: str(DEEP).encode(),
    "depth of objects": lambda _: b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "depth without an end": lambda _: b"[" * 10**6,
    "depth behind a key": lambda text: text.rstrip()[:-1] + b',"x":' + str(DEEP).encode() + b"}",
    "NaN": lambda text: text.rstrip()[:-1] + b',"x":NaN}',
}


def byte_mutants(root: Path) -> Iterator[Mutant]:
    """Each file with each change of its bytes; of a log the first line is changed."""
    for target in TARGETS:
        text = read(root, target.file).encode()
        for name, change in BYTES.items():
            for command in target.commands:
                yield Mutant(
                    name=f"{target.file}: {name}",
                    file=target.file,
                    change=_changing(target.file, text, change),
                    command=command,
                    remove=target.remove,
                )


def _changing(file: str, text: bytes, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the bytes of a file when it is written, since many of them become large."""
    first, rest = (text, b"")
    if file.endswith(".jsonl"):
        first, _, rest = text.partition(b"\n")
    return lambda root: write(root, file, change(first) + (b"\n" + rest if rest else b""))


def _writing(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda root: write(root, file, content)


Tensors = dict[str, torch.Tensor]


def _every(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: change(tensor) for name, tensor in tensors.items()}


def _one(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    def changed(tensors: Tensors) -> Tensors:
        first = next(iter(tensors))
        return {**tensors, first: change(tensors[first])}

    return changed


WEIGHTS: dict[str, Callable[[Tensors], Tensors]] = {
    "float64": _every(lambda t: t.double()),
    "float16": _every(lambda t: t.half()),
    "bfloat16": _every(lambda t: t.bfloat16()),
    "integers": _every(lambda t: t.long()),
    "bytes": _every(lambda t: t.to(torch.uint8)),
    "booleans": _every(lambda t: t > 0),
    "complex": _every(lambda t: t.to(torch.complex64)),
    "one float16": _one(lambda t: t.half()),
    "NaN": _every(lambda t: torch.full_like(t, math.nan)),
    "one NaN": _one(
        lambda t: t.clone().view(-1).index_fill(0, torch.tensor([0]), math.nan).view_as(t)
    ),
    "infinite": _one(lambda t: torch.full_like(t, math.inf)),
    "huge": _every(lambda t: torch.full_like(t, 3e38)),
    "zeros": _every(torch.zeros_like),
    "other shape": _one(lambda t: t.flatten()),
    "no values": _one(lambda t: t[:0]),
    "a scalar": _one(lambda t: t.flatten()[0]),
    "none": lambda _: {},
    "one missing": lambda tensors: dict(list(tensors.items())[1:]),
    "one more": lambda tensors: {**tensors, "further.weight": torch.zeros(1)},
    "other names": lambda tensors: {f"module.{name}": t for name, t in tensors.items()},
}
_WEIGHTS_OF = {
    f"{FOLD}/weights.safetensors": (PREDICT, EXPORT, EXPORT_NNUNET, TRAIN_ON),
    "ws/models/imported/runs/3d_fullres/fold_0/weights.safetensors": (TRAIN_FROM,),
    "ws/synthesis/toy-as-mr/generator.safetensors": (APPLY,),
}


def weight_mutants(root: Path) -> Iterator[Mutant]:
    """Weights that no network has, with the checksum that model.json records."""
    for file, commands in _WEIGHTS_OF.items():
        tensors, metadata = tensors_of(root / file)
        for name, change in WEIGHTS.items():
            for command in commands:
                yield Mutant(
                    name=f"{file}: {name}",
                    file=file,
                    change=_saving(file, change, tensors, metadata),
                    command=command,
                )
        for name, content in headers(root / file):
            for command in commands:
                yield Mutant(
                    name=f"{file}: header: {name}",
                    file=file,
                    change=_stamping(file, content),
                    command=command,
                )


def tensors_of(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _saving(
    file: str, change: Callable[[Tensors], Tensors], tensors: Tensors, metadata: dict[str, str]
) -> Callable[[Path], None]:
    def save(root: Path) -> None:
        changed = {name: each.contiguous() for name, each in change(tensors).items()}
        save_file(changed, root / file, metadata)
        _stamp(root / file)

    return save


def _stamping(file: str, content: bytes) -> Callable[[Path], None]:
    def save(root: Path) -> None:
        (root / file).write_bytes(content)
        _stamp(root / file)

    return save


def _stamp(path: Path) -> None:
    """Records the checksum of weights in the model.json beside them."""
    model = path.with_name("model.json")
    if model.exists():
        raw = json.loads(model.read_text())
        raw["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        model.write_text(json.dumps(raw))


def headers(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files of weights whose header lies."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    first, second = [name for name in header if name != "__metadata__"][:2]

    def made(changed: object, rest: bytes = body) -> bytes:
        text = as_text(changed).encode()
        return len(text).to_bytes(8, "little") + text + rest

    def entry(name: str, **changes: object) -> dict[str, object]:
        return {**header, name: {**header[name], **changes}}

    start, end = header[first]["data_offsets"]
    metadata = header["__metadata__"]
    spec = json.loads(metadata["spec"])
    yield "nested deeply", made({**header, "x": DEEP})
    yield "nothing but depth", made(DEEP)
    yield "spec nested deeply", made({**header, "__metadata__": {**metadata, "spec": str(DEEP)}})
    yield "overlapping", made(entry(second, data_offsets=header[first]["data_offsets"]))
    yield "beyond the end", made(entry(first, data_offsets=[start, len(body) + 10**9]))
    yield "negative offsets", made(entry(first, data_offsets=[-8, end]))
    yield "backwards", made(entry(first, data_offsets=[end, start]))
    yield "huge offsets", made(entry(first, data_offsets=[0, 10**30]))
    yield "offsets of text", made(entry(first, data_offsets=["0", "8"]))
    yield "three offsets", made(entry(first, data_offsets=[0, 4, 8]))
    yield "no offsets", made(entry(first, data_offsets=[]))
    yield "negative shape", made(entry(first, shape=[-1, 3, 3]))
    yield "huge shape", made(entry(first, shape=[10**9, 10**9]))
    yield "overflowing shape", made(entry(first, shape=[2**62, 8]))
    yield "shape of text", made(entry(first, shape="x"))
    yield "another type", made(entry(first, dtype="F4"))
    yield "type of number", made(entry(first, dtype=4))
    yield "a hole", made({k: v for k, v in header.items() if k != first})
    yield "entry of a number", made({**header, first: 3})
    yield "a list", made([header])
    yield "a name twice", made({**header, first: Twice(header[first])})
    yield "metadata of numbers", made({**header, "__metadata__": {"kind": 1}})
    yield "a long length", (10**18).to_bytes(8, "little") + content[8:]
    yield "a longer header", (size + 10**6).to_bytes(8, "little") + content[8:]
    yield "no header", (0).to_bytes(8, "little") + content[8:]
    yield "no UTF-8", content[:8] + b"{\xff" + content[10:]
    for name, changes in _SPECS.items():
        changed = {**spec, **changes(spec)} if callable(changes) else {**spec, **changes}
        text = as_text(changed)
        yield f"spec {name}", made({**header, "__metadata__": {**metadata, "spec": text}})


_SPECS: dict[str, Any] = {
    "of 10^9 features": lambda spec: _all_of(spec, "features", 10**9),
    "of 10^7 blocks": lambda spec: _all_of(spec, "blocks", 10**7),
    "of 10^12 channels": {"in_channels": 10**12},
    "of no output": {"out_channels": 0},
    "of another kind": {"kind": "unheard-of"},
    "of a list": {"kind": ["unet"]},
    "without a kind": {"kind": None},
}


def _all_of(spec: dict[str, Any], start: str, number: int) -> dict[str, Any]:
    """The fields whose names begin so, with another number everywhere."""
    return {
        key: [number] * len(value) if isinstance(value, list) else number
        for key, value in spec.items()
        if key.startswith(start)
    }


def _changed(file: str, **values: object) -> Callable[[Path], None]:
    """Sets some fields, named by their path with dots; `configuration` stands for its place."""

    def change(root: Path) -> None:
        raw = json.loads(read(root, file))
        for name, new in values.items():
            parts = name.replace("configuration__", "plan__configurations__3d_fullres__").split(
                "__"
            )
            if "plan" not in raw and parts[0] == "plan":
                parts = parts[1:]
            at = tuple(int(part) if part.isdigit() else part for part in parts)
            raw = replaced(raw, at, new)
        write(root, file, as_text(raw))

    return change


# Fields of a model that are of the right type, each for itself, and make no sense.
SENSELESS: dict[str, dict[str, object]] = {
    "patch of zeros": {"configuration__patch_shape": [0, 0, 0]},
    "negative patch": {"configuration__patch_shape": [-8, 8, 8]},
    "1D": {"configuration__patch_shape": [8], "configuration__spacing_mm": [1.0]},
    "no axes": {"configuration__patch_shape": [], "configuration__spacing_mm": []},
    "4D": {"configuration__patch_shape": [8] * 4, "configuration__spacing_mm": [1.0] * 4},
    "2D patch in 3D": {"configuration__patch_shape": [8, 8]},
    "odd patch": {"configuration__patch_shape": [7, 9, 11]},
    "patch of 10^6": {"configuration__patch_shape": [10**6] * 3},
    "patch of 10^30": {"configuration__patch_shape": [10**30] * 3},
    "spacing of zeros": {"configuration__spacing_mm": [0.0, 0.0, 0.0]},
    "negative spacing": {"configuration__spacing_mm": [-1.0, 1.0, 1.0]},
    "tiny spacing": {"configuration__spacing_mm": [1e-9, 1e-9, 1e-9]},
    "huge spacing": {"configuration__spacing_mm": [1e308, 1e308, 1e308]},
    "spacing too short": {"configuration__spacing_mm": [1.0, 1.0]},
    "spacing too long": {"configuration__spacing_mm": [1.0] * 4},
    "transpose of zeros": {"plan__transpose_forward": [0, 0, 0]},
    "transpose beyond": {"plan__transpose_forward": [0, 1, 3]},
    "negative transpose": {"plan__transpose_forward": [-1, 1, 2]},
    "another transpose back": {"plan__transpose_backward": [2, 0, 1]},
    "mirror axis 9": {"mirror_axes": [9]},
    "mirror axis -1": {"mirror_axes": [-1]},
    "mirror axis twice": {"mirror_axes": [0, 0]},
    "batch of 0": {"configuration__batch_size": 0},
    "batch of 10^12": {"configuration__batch_size": 10**12},
    "equal labels": {"plan__labels__values": {"background": [0], "a": [1], "b": [1], "c": [2]}},
    "no background": {"plan__labels__values": {"a": [1], "b": [2], "c": [3]}},
    "background alone": {"plan__labels__values": {"background": [0]}},
    "no labels": {"plan__labels__values": {}},
    "a label without value": {"plan__labels__values": {"background": [0], "a": []}},
    "negative label": {"plan__labels__values": {"background": [0], "a": [-1], "b": [2]}},
    "label of 10^12": {"plan__labels__values": {"background": [0], "a": [10**12], "b": [2]}},
    "label of 2^31": {"plan__labels__values": {"background": [0], "a": [2**31 - 1], "b": [2]}},
    "region twice": {
        "plan__labels__values": {"background": [0], "a": [1, 2], "b": [2]},
        "plan__labels__regions_class_order": [1, 1],
    },
    "order that repeats": {
        "plan__labels__values": {"background": [0], "a": [1, 2], "b": [2], "c": [3]},
        "plan__labels__regions_class_order": [2, 2, 3],
    },
    "regions without an order": {
        "plan__labels__values": {"background": [0], "a": [1, 2], "b": [2], "c": [3]},
    },
    "order of zeros": {"plan__labels__regions_class_order": [0, 0]},
    "negative order": {"plan__labels__regions_class_order": [-1, 2]},
    "order of 10^12": {"plan__labels__regions_class_order": [10**12, 2]},
    "short order": {"plan__labels__regions_class_order": [1]},
    "ignore is a label": {"plan__labels__ignore": 1},
    "ignore is negative": {"plan__labels__ignore": -1},
    "no normalisation": {"configuration__normalization": []},
    "two normalisations": {"configuration__normalization": ["ct", "ct"]},
    "no mask": {"configuration__mask_norm": []},
    "no intensities": {"plan__intensities": []},
    "deviation of 0": {"plan__intensities__0__std": 0.0},
    "negative deviation": {"plan__intensities__0__std": -1.0},
    "bounds reversed": {
        "plan__intensities__0__percentile_00_5": 500.0,
        "plan__intensities__0__percentile_99_5": -500.0,
    },
    "intensities of 1e308": {"plan__intensities__0__mean": 1e308},
    "no channels": {"plan__channel_names": []},
    "three channels": {"plan__channel_names": ["CT", "a", "b"]},
    "equal channels": {"plan__channel_names": ["CT", "CT"]},
    "no configurations": {"plan__configurations": {}},
    "another configuration": {"configuration": "2d"},
    "10^9 features": {"configuration__network__features": [10**9] * 4},
    "no features": {"configuration__network__features": []},
    "10^7 blocks": {
        "configuration__network__blocks_encoder": [10**7] * 4,
        "configuration__network__blocks_decoder": [10**7] * 3,
    },
    "10^6 stages": {"configuration__network__features": [4] * 10**6},
    "kernels of 10^6": {"configuration__network__kernels": [[999_999] * 3] * 4},
    "strides of 10^6": {"configuration__network__strides": [[1] * 3] + [[10**6] * 3] * 3},
    "strides of 0": {"configuration__network__strides": [[0] * 3] * 4},
    "other channels": {"configuration__network__in_channels": 5},
    "other outputs": {"configuration__network__out_channels": 50},
    "slices of 4": {"configuration__slices": 4},
    "slices of 3 in 3D": {"configuration__slices": 3},
    "slices of 10^9": {"configuration__slices": 10**9},
    "a stage before": {"configuration__previous_stage": "3d_lowres"},
    "itself before": {"configuration__previous_stage": "3d_fullres"},
    "fold of another name": {"fold": "7"},
    "fold with a path": {"fold": "../../x"},
    "run before with a path": {"previous_run": "../../../x"},
    "itself as run before": {"previous_run": "3d_fullres"},
    "unknown classes": {"lesion_classes": ["x", "y"]},
    "equal classes": {"lesion_classes": ["liver", "liver"]},
    "epochs of -1": {"epochs": -1},
    "share of 7": {"replay_share": 7.0},
    "dataset with a path": {"plan__dataset": "../../../x"},
    "no ending": {"plan__file_ending": ""},
    "unknown ending": {"plan__file_ending": ".exe"},
    "other axes": {"plan__axis_codes": "XYZ"},
    "axes twice": {"plan__axis_codes": "LLS"},
}
RULES: dict[str, dict[str, object]] = {
    "unknown labels": {"cleaning": [{"labels": ["x"], "keep": "largest"}]},
    "no labels": {"cleaning": [{"labels": [], "keep": "largest"}]},
    "negative volume": {"cleaning": [{"labels": ["liver"], "keep": "least", "least_ml": -1.0}]},
    "huge volume": {"cleaning": [{"labels": ["liver"], "keep": "least", "least_ml": 1e308}]},
    "no members": {"members": []},
    "a member twice": {"members": [{"run": "3d_fullres", "folds": ["0"]}] * 2},
    "1,000 members": {"members": [{"run": "3d_fullres", "folds": ["0", "1"]}] * 1000},
    "no folds": {"members": [{"run": "3d_fullres", "folds": []}]},
    "a fold twice": {"members": [{"run": "3d_fullres", "folds": ["0", "0"]}]},
    "a fold 1,000 times": {"members": [{"run": "3d_fullres", "folds": ["0"] * 1000}]},
    "a run outside": {"members": [{"run": "../../../x", "folds": ["0"]}]},
    "a fold outside": {"members": [{"run": "3d_fullres", "folds": ["0/../fold_1"]}]},
    "a run without a name": {"members": [{"run": "", "folds": ["0"]}]},
    "temperature of 0": {"temperature": {"value": 0.0}},
    "negative temperature": {"temperature": {"value": -1.0}},
}


def senseless_mutants(_: Path) -> Iterator[Mutant]:
    """Values of the right types that contradict each other."""
    model = (PREDICT_ONE, EXPORT, STATUS)
    exported = "toy.autoliver!runs/3d_fullres/fold_0/model.json"
    for name, values in SENSELESS.items():
        yield from _all(f"{FOLD}/model.json", name, values, model)
        yield from _all(exported, name, values, (PREDICT_FILE_ONE, IMPORT))
        if all("__" in key for key in values):
            yield from _all(f"{DATA}/plan.json", name, values, (TRAIN_NEW, STATUS, REPORT))
    for name, values in RULES.items():
        yield from _all(f"{DATA}/model.json", name, values, (PREDICT, EXPORT))
        yield from _all("toy.autoliver!model.json", name, values, (PREDICT_FILE, IMPORT))


def _all(
    file: str, name: str, values: dict[str, object], commands: Sequence[Command]
) -> Iterator[Mutant]:
    for command in commands:
        yield Mutant(
            name=f"{file}: {name}", file=file, change=_changed(file, **values), command=command
        )


PARTS: dict[str, Callable[[Path], Iterator[Mutant]]] = {
    "senseless": senseless_mutants,
    "weights": weight_mutants,
    "bytes": byte_mutants,
    "fields": json_mutants,
}


def corpus(root: Path, parts: Sequence[str] = tuple(PARTS)) -> list[Mutant]:
    """All wrong files with the commands that read them."""
    return [mutant for part in parts for mutant in PARTS[part](root)]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        kind: "result", "refused", "traceback", "hang", "killed" or "memory".
        told: The error's message, or the traceback.
        seconds: How long the processor worked on it.
        more_mb: Memory above what the process had before.
    """

    kind: str
    told: str = ""
    seconds: float = 0.0
    more_mb: float = 0.0

    @property
    def good(self) -> bool:
        return self.kind in ("result", "refused")


class Arena:
    """A workspace that is made once and restored before each command.

    Args:
        folder: Where it lies; it is made there if it is not yet there.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self._kept = folder / "arena", folder / "kept"
        if not self._kept.exists():
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(parents=True)
            build(self.root)
            self.root.rename(self._kept)
        self.restore()
        for command in (STATUS, REPORT, TRAIN_NEW, APPLY):  # imports everything
            CliRunner().invoke(app, filled(command, self.root))
        self.restore()

    def restore(self) -> None:
        """Makes the workspace as it was."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._kept, self.root, symlinks=True)

    def judge(self, mutant: Mutant) -> Outcome:
        """Runs the command on the wrong file, in a process of its own."""
        self.restore()
        mutant.change(self.root)
        for pattern in mutant.remove:
            shutil.rmtree(self.root / pattern)
        answer, write_end = os.pipe()
        gc.freeze()
        sys.stdout.flush()
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(answer)
            _in_child(write_end, filled(mutant.command, self.root))
        os.close(write_end)
        try:
            return _waited(child, answer, begun)
        finally:
            os.close(answer)


def _in_child(write_end: int, arguments: list[str]) -> None:
    """Runs a command and says how it ended; never returns."""
    os.setsid()
    before = _resident()
    held = _pages()[0] * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 3 * MOST_BYTES,) * 2)
    kind, told = "result", ""
    try:
        result = CliRunner().invoke(app, arguments)
        error = result.exception
        if error is not None and not (isinstance(error, SystemExit)):
            with in_words():
                raise error
        if result.exit_code:
            kind, told = "refused", result.output
    except AutoliverError as error:
        kind, told = "refused", str(error)
    except BaseException:  # noqa: BLE001
        kind, told = "traceback", "".join(traceback.format_exc()[-3000:])
    more = max(0.0, _peak() - before)
    if more > MOST_BYTES:
        kind = "memory"
    try:
        os.write(write_end, json.dumps([kind, told[-3000:], more / 1e6]).encode())
    finally:
        os._exit(0)


def _resident() -> int:
    return _pages()[1] * resource.getpagesize()


def _pages() -> list[int]:
    return [int(part) for part in Path("/proc/self/statm").read_text().split()]


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _waited(child: int, answer: int, begun: float) -> Outcome:
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - begun > 6 * SECONDS:  # other programs may take most of the time
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("hang", seconds=time.monotonic() - begun)
        time.sleep(0.002)
    seconds = used.ru_utime + used.ru_stime
    content = os.read(answer, 1 << 16)
    if not content:
        return Outcome("killed", told=f"status {status}", seconds=seconds)
    kind, told, more = json.loads(content)
    if seconds > SECONDS:
        kind = "hang"
    return Outcome(kind, told, seconds, more)
