"""Runs five commands on malformed inputs, and judges how each of them ends."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import numpy as np
from hostile.images import (
    Member,
    _nifti,
    image_voxels,
    label_voxels,
    nifti_bytes,
)

SECONDS = 10.0
MOST_KB = 1 << 20  # over the peak of the same command on a good dataset
_GUARD_KB = 3 << 20  # a run that takes more is ended
PICTURES = (".png", ".tif", ".bmp", ".jpg")
COMMANDS = ("verify", "plan", "predict", "evaluate -p", "evaluate -r", "convert")


@dataclass(frozen=True)
class Outcome:
    """How one command went on one member.

    Attributes:
        member: Its name.
        command: One of `COMMANDS`.
        verdict: "right" or "refused" if it was as it should be; else what was bad.
        seconds: How long it kept a core busy.
        peak_kb: Its largest memory.
        output: What it printed.
    """

    member: str
    command: str
    verdict: str
    seconds: float
    peak_kb: int
    output: str

    @property
    def good(self) -> bool:
        return self.verdict in ("right", "refused")


class Zygote:
    """A process that has imported everything, and runs commands in forks of itself.

    Attributes:
        baseline_kb: Its own memory, which every command begins with.
    """

    def __init__(self) -> None:
        self._process = forked.start(Path(__file__).with_name("zygote.py"))
        assert self._process.stdout is not None
        self.baseline_kb = int(self._process.stdout.readline().removeprefix("ready "))

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(
        self,
        arguments: list[str],
        output: Path,
        folder: Path,
        *,
        most_kb: int | None = None,
        seconds: float = SECONDS,
    ) -> dict[str, Any]:
        """Runs a command.

        Args:
            arguments: Its words.
            output: The file for what it prints.
            folder: The current folder.
            most_kb: Memory at which it is ended; None for some more than it may take.
            seconds: How long it may keep a core busy.

        Returns:
            What zygote.py answers.
        """
        asked: dict[str, Any] = {
            "arguments": arguments,
            "output": str(output),
            "folder": str(folder),
            "seconds": seconds,
            "most_kb": most_kb or self.baseline_kb + _GUARD_KB,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


def verdict_of(result: dict[str, Any], text: str, baseline_kb: int) -> str:
    """What is bad about how a command ended, whatever it was given; empty if nothing is."""
    code = result["code"]
    if result["ended"] != "by itself":
        return "hangs" if result["ended"] == "late" else "takes memory"
    if result["signal"]:
        return f"signal {result['signal']}"
    if "Traceback (most recent call last)" in text or code == 99:
        return "traceback"
    if result["peak_kb"] > baseline_kb + MOST_KB:
        return f"takes {(result['peak_kb'] - baseline_kb) / 2**20:.1f} GB"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    # The words of the command line itself say what is wrong on a line of their own.
    if code and len(re.findall(r"^Error: ", text, re.MULTILINE)) != 1:
        return f"{text.count('Error: ')} errors"
    return ""


class Runner:
    """Runs commands on members, in a folder of its own.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = _model(folder / "model")
        self._zygote = Zygote()
        self._baseline = dict.fromkeys(COMMANDS, 1 << 30)
        good = Member("good/case", "dataset", lambda _: None, "right")
        series = Member("good/series", "series", _good_series, "right", "")
        self.baselines = [*self.run(good), *self.run(series)]
        for each in self.baselines:
            assert each.good, each
            self._baseline[each.command] = max(
                each.peak_kb,
                0 if self._baseline[each.command] == 1 << 30 else self._baseline[each.command],
            )

    def close(self) -> None:
        """Ends the process that runs the commands."""
        self._zygote.close()

    def run(self, member: Member) -> Iterator[Outcome]:
        """Makes a member and runs every command that takes such an input."""
        place = self.folder / "run"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        dataset = place / "Dataset001_Hostile"
        picture = member.ending in PICTURES
        source = (
            _series_dataset(dataset, member)
            if member.role == "series"
            else _dataset(dataset, member, picture)
        )
        for name, arguments in self._commands(place, dataset, source, member).items():
            yield self._outcome(place, member, name, arguments)
        shutil.rmtree(place, ignore_errors=True)

    def _commands(
        self, place: Path, dataset: Path, source: Path, member: Member
    ) -> dict[str, list[str]]:
        model = self.model["2d" if member.ending in PICTURES else "3d"]
        workspace = ["-w", str(place / "work")]
        one = ["--workers", "1", *workspace]
        found = {
            "verify": ["verify", str(dataset), *one],
            "plan": ["plan", str(dataset), "--preset", "tiny", *one],
            "predict": [
                "predict",
                "-i",
                str(source),
                "-o",
                str(place / "out"),
                "-m",
                str(model),
                "--device",
                "cpu",
                *workspace,
            ],
        }
        if member.role == "series":
            found["convert"] = ["convert", "dicom", str(source), str(place / "converted"), *one]
            return found
        scores = ["-o", str(place / "scores"), *one]
        if member.role == "dataset":
            labels = str(dataset / "labelsTr")
            found["evaluate -p"] = ["evaluate", "-p", labels, "-r", str(dataset), *scores]
        else:
            bad = str(dataset / f"labelsTr/c{member.ending}" if member.role == "pair" else source)
            truth = str(place / ("truth/c.png" if member.ending in PICTURES else "truth/c.nii.gz"))
            found["evaluate -p"] = ["evaluate", "-p", bad, "-r", truth, *scores]
            scores = ["-o", str(place / "other-scores"), *one]
            found["evaluate -r"] = ["evaluate", "-p", truth, "-r", bad, *scores]
        found["convert"] = ["convert", "lesion-classes", str(dataset), "--label", "tumour"]
        found["convert"] += ["--template", str(place / "lesions.csv"), *one]
        return found

    def _outcome(self, place: Path, member: Member, name: str, arguments: list[str]) -> Outcome:
        output = place / "output.txt"
        most_kb = self._baseline[name] + _GUARD_KB
        result = self._zygote.ask(arguments, output, place, most_kb=most_kb)
        text = output.read_bytes().decode("utf-8", "replace") if output.exists() else ""
        return Outcome(
            member=member.name,
            command=name,
            verdict=self._verdict(member, name, result, text),
            seconds=result["seconds"],
            peak_kb=result["peak_kb"],
            output=text,
        )

    def _verdict(self, member: Member, name: str, result: dict[str, Any], text: str) -> str:
        code = result["code"]
        bad = verdict_of(result, text, self._baseline[name])
        if bad:
            return bad
        expected = _expected(member, name)
        if code and expected == "right":
            return "refused, though it is right"
        if not code and expected == "refused":
            return "accepted"
        return "refused" if code else "right"


def _expected(member: Member, name: str) -> str:
    """What a command should say of a member, which it may not read at all."""
    reads_image = name in ("verify", "plan", "predict")
    if member.role == "image" and name == "convert":  # the template needs label maps alone
        return "either"
    # Predictions read no label map.
    if name == "predict" and member.name.startswith("values label/"):
        return "either"
    if name == "convert" and member.name in ("values label/2D", "values label/another size"):
        return "either"
    if member.role == "image" and not reads_image:
        return "refused" if member.expected == "refused" else "either"
    if member.role == "label" and name == "predict":
        return "either"
    if member.role == "dataset" and name in ("predict", "evaluate -p", "convert"):
        return "right" if member.expected == "right" else "either"
    if member.role == "dataset" and name == "verify" and member.expected == "right":
        return "right"
    return member.expected


def _good_series(folder: Path) -> None:
    from hostile.images import _series

    _series(folder)


def _model(folder: Path) -> dict[str, Path]:
    """Untrained folds in 2D and 3D."""
    import torch
    from small_models import plan as fixture

    from autoliver.models.files import FoldModel, save_fold
    from autoliver.networks.build import build_network

    plan = fixture.__wrapped__().replace(channel_names=("MR",))
    folds = {}
    for name, configuration in (("2d", "2d"), ("3d", "3d_fullres")):
        spec = plan.configurations[configuration].network
        network = build_network(
            spec, deep_supervision=True, generator=torch.Generator().manual_seed(0)
        )
        info = FoldModel(
            plan=plan,
            configuration=configuration,
            fold="0",
            cases=("case_1",),
            epochs=1,
            mirror_axes=(),
            weights_sha256="",
            augment="default",
        )
        folds[name] = folder / f"Dataset009_Toy/runs/{configuration}"
        save_fold(folds[name] / "fold_0", network.state_dict(), info)
    return folds


_LABELS = {"background": 0, "liver": 1, "tumour": 2}


def _dataset(folder: Path, member: Member, picture: bool) -> Path:
    """Two good cases and the member; returns what `predict` is given."""
    ending = ".png" if picture else ".nii.gz"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    description = {"channel_names": {"0": "MR"}, "labels": _LABELS, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ending}))
    truth = folder.parent / "truth/c"
    truth.parent.mkdir()
    for seed, name in enumerate(("a", "b")):
        _good(folder / f"imagesTr/{name}_0000", image_voxels(seed), picture)
        _good(folder / f"labelsTr/{name}", label_voxels(), picture)
    _good(truth, label_voxels(), picture)
    match member.role:
        case "image":
            member.make(folder / "imagesTr/c_0000")
            _good(folder / "labelsTr/c", label_voxels(), picture)
            return folder / f"imagesTr/c_0000{member.ending}"
        case "label":
            _good(folder / "imagesTr/c_0000", image_voxels(7), picture)
            member.make(folder / "labelsTr/c")
            return folder / f"labelsTr/c{member.ending}"
        case "pair":
            member.make(folder)
            return folder / f"imagesTr/c_0000{member.ending}"
    member.make(folder)
    return folder / "imagesTr"


def _good(path: Path, array: np.ndarray, picture: bool) -> None:
    if not picture:
        _nifti(path, ".nii.gz", array)
        return
    import PIL.Image

    PIL.Image.fromarray(array[5].clip(0, 255).astype("u1")).save(f"{path}.png")


def _series_dataset(folder: Path, member: Member) -> Path:
    """A plain dataset whose case c is a folder with a series; returns that folder."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for seed, name in enumerate(("a", "b")):
        _nifti(folder / f"images/{name}", ".nii.gz", image_voxels(seed))
        _nifti(folder / f"labels/{name}", ".nii.gz", label_voxels())
    member.make(folder / "images/c")
    label = np.zeros((6, 14, 16), dtype=np.uint8)
    label[2:4, 5:9, 5:9] = 1
    import struct

    raw = bytearray(nifti_bytes(label, qcode=0, dx=0.7, dy=0.8, dz=2.5))
    rows = (-0.7, 0, 0, 10, 0, -0.8, 0, -20, 0, 0, 2.5, 30)
    struct.pack_into("<12f", raw, 280, *rows)
    (folder / "labels/c.nii").write_bytes(bytes(raw))
    return folder / "images/c"
