"""Every option of every command that takes a path, and what may lie in the place of a file.

A place is one option of one command line that works as it is. A thing is made at a path, and the
path is given to the option. `runner.py` runs commands; `test_paths.py` runs a sample, and `python
-m benchmarks.hostile_paths` runs all of them.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_lines import COMMANDS
from hostile.artefacts import ALONE, CPU, FOLD, MR, SMALL, TOY, WS, Arena, Command
from hostile.images import IRREGULAR, _series
from hostile.runner import SECONDS, Outcome, Zygote, verdict_of

from autoliver.pipeline.conversion.kinds import KINDS

PLACE = "{place}"
DATA, MR_DATA = "{root}/data/" + TOY, "{root}/data/" + MR


@dataclass(frozen=True)
class Place:
    """An option, in a command line that works with the good value.

    Attributes:
        command: The name of the command.
        option: The option as it is spelt, or the name of an argument.
        line: The command line, with `PLACE` where the path is given.
        good: What the option is given otherwise, below the root; empty if it writes there.
        ending: The ending of a file in this place.
    """

    command: str
    option: str
    line: Command
    good: str = ""
    ending: str = ""

    @property
    def writes(self) -> bool:
        return not self.good


@dataclass(frozen=True)
class Thing:
    """What lies in a place.

    Attributes:
        name: What it is.
        make: Makes it, given a folder, the good thing or None, and the ending; returns its path.
        right: Whether a command may use it.
    """

    name: str
    make: Callable[[Path, Path | None, str], str]
    right: bool = False


def _irregular(make: Callable[[Path], None]) -> Callable[[Path, Path | None, str], str]:
    def made(folder: Path, _: Path | None, ending: str) -> str:
        make(folder / f"x{ending}")
        return str(folder / f"x{ending}")

    return made


def _named(name: str) -> Callable[[Path, Path | None, str], str]:
    """A path at which nothing lies, or the good thing under another name."""

    def made(folder: Path, good: Path | None, ending: str) -> str:
        path = folder / f"{name}{ending}"
        if good is None or len(os.fsencode(path.name)) > 255:
            return str(path)
        if good.is_dir():
            shutil.copytree(good, path)
        else:
            shutil.copyfile(good, path)
        return str(path)

    return made


def _dash(folder: Path, good: Path | None, ending: str) -> str:
    """Relative to the current folder, so that it begins with a dash."""
    made = Path(_named("-x")(folder, good, ending))
    if made.exists():
        made.rename(folder.parent / made.name)
    return made.name


def _full(path: Path) -> None:
    path.symlink_to("/dev/full")


def _text(path: Path) -> None:
    path.write_text("no such thing\n" * 40)


def _noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


# Names that a command looks for in a folder.
_LOOKED_FOR = (
    *("dataset.json", "plans.json", "model.json", "predict.json", "scores.json", "lesions.json"),
    *("pool.json", "plan.json", "manifest.json", "splits_final.json", "weights.safetensors"),
    *("Toy_003.nii.gz", "Toy_003_0000.nii.gz", "fold_0", "runs", "imagesTr", "labelsTr", "x.dcm"),
    *("resume.pt", "checkpoint_final.pth", "plans.pkl", "fingerprint.json", TOY, "models"),
)


def _folder_of(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def made(path: Path) -> None:
        path.mkdir()
        for name in _LOOKED_FOR:
            make(path / name)

    return made


def _among_images(folder: Path, _: Path | None, ending: str) -> str:
    return str(folder.parent / f"data/{TOY}/imagesTr/x{ending}")


def _below_file(folder: Path, _: Path | None, ending: str) -> str:
    (folder / "file").write_text("x")
    return str(folder / f"file/x{ending}")


THINGS = (
    *(Thing(name, _irregular(make)) for name, make in IRREGULAR.items()),
    Thing("a full device", _irregular(_full)),
    Thing("an empty file", _irregular(lambda path: path.write_bytes(b"") and None)),
    Thing("a text file", _irregular(_text)),
    Thing("noise", _irregular(_noise)),
    Thing("a folder of nothing", _irregular(Path.mkdir)),
    Thing("a folder of pipes", _irregular(_folder_of(IRREGULAR["a pipe"]))),
    Thing("a folder of sockets", _irregular(_folder_of(IRREGULAR["a socket"]))),
    Thing("a folder of devices", _irregular(_folder_of(IRREGULAR["a device"]))),
    Thing("a folder of loops", _irregular(_folder_of(IRREGULAR["a link to itself"]))),
    Thing("a folder of folders", _irregular(_folder_of(Path.mkdir))),
    Thing("a folder of empty files", _irregular(_folder_of(Path.touch))),
    Thing("nothing", lambda folder, _, ending: str(folder / f"absent{ending}")),
    Thing("a path below a file", _below_file),
    Thing("a place among images", _among_images),
    Thing("5,000 letters", _named("x" * 5000)),
    Thing("an empty name", lambda *_: ""),
    Thing("a blank", lambda *_: " "),
    Thing("a name with a line break", _named("a\nb"), right=True),
    Thing("a name of bytes", _named("a\udcffb"), right=True),
    Thing("a name with an escape", _named("a\x1b[31mb"), right=True),
    Thing("a name with spaces", _named("a b  ü (1)"), right=True),
    Thing("a name with a leading dash", _dash, right=True),
    Thing("a name of HTML", _named('<b>&"'), right=True),
    Thing("a name of a shell", _named("$(touch x)`y`;z"), right=True),
)

NEW = "{root}/made"
# Places that read: what they are given otherwise, then the line.
_READ: tuple[tuple[str, str, str, str, Command], ...] = (
    ("doctor", "dataset", f"data/{TOY}", "", ("doctor", PLACE, *WS)),
    ("doctor", "--workspace", "ws", "", ("doctor", TOY, "-w", PLACE)),
    *(("convert", "source", f"data/{TOY}", "", ("convert", k, PLACE, NEW, *WS)) for k in KINDS),
    ("convert", "source", "dicom", "", ("convert", "dicom", PLACE, NEW, *WS)),
    ("convert", "source", "dicom", "", ("convert", "dicom-seg", PLACE, NEW, "--labels",
                                        "{root}/drawn", "--like", TOY, *WS)),
    ("convert", "source", f"data/{TOY}", "", ("convert", "lesion-classes", PLACE, "--template",
                                              "{root}/t.csv", *WS)),
    ("convert", "--classes", "classes.csv", ".csv", ("convert", "lesion-classes", DATA, NEW,
                                                     "--classes", PLACE, *WS)),
    ("convert", "--labels", "drawn", "", ("convert", "dicom", "{root}/dicom", NEW, "--labels",
                                          PLACE, *WS)),
    ("convert", "--like", f"data/{TOY}", "", ("convert", "dicom-seg", "{root}/dicom", NEW,
                                              "--labels", "{root}/drawn", "--like", PLACE, *WS)),
    ("verify", "dataset", f"data/{TOY}", "", ("verify", PLACE, *WS)),
    ("plan", "dataset", f"data/{TOY}", "", ("plan", PLACE, "--preset", "tiny", *WS)),
    ("plan", "--like", "toy.autoliver", "", ("plan", DATA, "--like", PLACE, "--fresh", *WS)),
    ("preprocess", "dataset", f"data/{TOY}", "", ("preprocess", PLACE, "--workers", "1", *WS)),
    ("preprocess", "--workspace", "ws", "", ("preprocess", TOY, "--workers", "1", "-w", PLACE)),
    ("train", "dataset", f"data/{TOY}", "", ("train", PLACE, "3d_fullres", "--fold", "0", "--tag",
                                             "new", *SMALL, *CPU, *WS)),
    ("train", "--workspace", "ws", "", ("train", TOY, "3d_fullres", "--fold", "0", *SMALL, *CPU,
                                        "-w", PLACE)),
    *(("train", option, "toy.autoliver", "", ("train", TOY, "3d_fullres", "--tag", "new", "--fold",
                                              "0", *SMALL, *CPU, *WS, option, PLACE, *more))
      for option, more in {"--pretrained": (), "--like": (), "--replay": (), "--synthetic": (),
                           "--roi-from": ("--roi", "liver")}.items()),
    ("train", "--encoder-weights", "encoder.safetensors", ".safetensors",
     ("train", TOY, "3d_fullres", "--tag", "new", "--fold", "0", *SMALL, *CPU, *WS,
      "--pretrained", "imagenet", "--encoder-weights", PLACE)),
    ("train-queued", "request", f"{FOLD}/model.json", ".json", ("train-queued", PLACE)),
    ("status", "dataset", f"data/{TOY}", "", ("status", PLACE, *WS)),
    ("status", "--workspace", "ws", "", ("status", "-w", PLACE)),
    ("select", "dataset", f"data/{TOY}", "", ("select", PLACE, *WS)),
    ("select", "--workspace", "ws", "", ("select", TOY, "-w", PLACE)),
    *(("predict", "--input", good, ending, ("predict", "-i", PLACE, "-o", "{root}/new", "-m", TOY,
                                            *ALONE, *WS))
      for good, ending in (("in", ""), ("in/Toy_003_0000.nii.gz", ".nii.gz"), ("dicom", ""))),
    *(("predict", "--model", good, ending, ("predict", "-i", "{root}/in", "-o", "{root}/new", "-m",
                                            PLACE, *ALONE, *WS))
      for good, ending in ((f"ws/{TOY}/runs/3d_fullres", ""), ("toy.autoliver", ".autoliver"),
                           (f"{FOLD}", ""))),
    *(("predict", option, "toy.autoliver", ".autoliver",
       ("predict", "-i", "{root}/in", "-o", "{root}/new", "-m", TOY, option, PLACE, *ALONE, *WS))
      for option in ("--roi", "--roi-from")),
    ("predict", "--lesions", "truth", "", ("predict", "-i", "{root}/in", "-o", "{root}/new", "-m",
                                           TOY, "--lesions", PLACE, *ALONE, *WS)),
    ("predict", "--workspace", "ws", "", ("predict", "-i", "{root}/in", "-o", "{root}/new", "-m",
                                          TOY, *ALONE, "-w", PLACE)),
    *(("evaluate", "--prediction", good, ending, ("evaluate", "-p", PLACE, "-r", "{root}/truth",
                                                  "-d", DATA, *WS))
      for good, ending in (("other", ""), ("other/Toy_003.nii.gz", ".nii.gz"))),
    *(("evaluate", "--reference", good, ending, ("evaluate", "-p", "{root}/other", "-r", PLACE,
                                                 "-d", DATA, *WS))
      for good, ending in (("truth", ""), ("truth/Toy_003.nii.gz", ".nii.gz"))),
    ("evaluate", "--dataset", f"data/{TOY}", "", ("evaluate", "-p", "{root}/other", "-r",
                                                  "{root}/truth", "-d", PLACE, *WS)),
    ("report", "dataset", f"data/{TOY}", "", ("report", PLACE, *WS)),
    ("report", "--prediction", "out", "", ("report", "-p", PLACE, "-i", "{root}/in", *WS)),
    ("report", "--images", "in", "", ("report", "-p", "{root}/out", "-i", PLACE, *WS)),
    ("report", "--reference", "truth", "", ("report", "-p", "{root}/out", "-i", "{root}/in", "-r",
                                            PLACE, *WS)),
    ("report", "--workspace", "ws", "", ("report", TOY, "-w", PLACE)),
    ("adopt", "--input", "in", "", ("adopt", NEW, "-i", PLACE, "-p", "{root}/out", *WS)),
    ("adopt", "--prediction", "out", "", ("adopt", NEW, "-i", "{root}/in", "-p", PLACE, "--like",
                                          TOY, *WS)),
    ("adopt", "--like", f"data/{TOY}", "", ("adopt", NEW, "-i", "{root}/in", "-p", "{root}/out",
                                            "--like", PLACE, *WS)),
    ("pool", "--add", f"data/{TOY}", "", ("pool", NEW, "--add", PLACE, "--add", MR_DATA, *WS)),
    ("pseudolabel", "dataset", f"data/{MR}", "", ("pseudolabel", PLACE, NEW, "-m", TOY, *ALONE,
                                                  *WS)),
    ("pseudolabel", "--model", "toy.autoliver", ".autoliver", ("pseudolabel", MR_DATA, NEW, "-m",
                                                               PLACE, *ALONE, *WS)),
    ("export", "model", f"ws/{TOY}/runs/3d_fullres", "", ("export", PLACE, "{root}/e.autoliver",
                                                          *WS)),
    ("export", "--workspace", "ws", "", ("export", TOY, "{root}/e.autoliver", "-w", PLACE)),
    *(("import", "source", good, ending, ("import", PLACE, "--name", "again", *WS))
      for good, ending in (("toy.autoliver", ".autoliver"), ("nn", ""), ("nn.zip", ".zip"))),
    ("finish", "dataset", f"data/{TOY}", "", ("finish", PLACE, "2d", *WS)),
    ("finish", "--workspace", "ws", "", ("finish", TOY, "2d", "-w", PLACE)),
    ("clean", "dataset", f"data/{TOY}", "", ("clean", PLACE, *WS)),
    ("clean", "--workspace", "ws", "", ("clean", "-w", PLACE)),
    *(("synthesize fit", option, f"data/{MR}", "",
       ("synthesize", "fit", *("--from", TOY) * (option == "--to"),
        *("--to", MR) * (option == "--from"), option, PLACE, "-o", "new", "--model", "cyclegan",
        "--features", "4", "--blocks", "1", "--batch-size", "1", "--patch", "24", "24",
        "--epochs", "1", "--iterations", "1", "--device", "cpu", *WS))
      for option in ("--from", "--to")),
    ("synthesize apply", "name", "ws/synthesis/toy-as-mr", "", ("synthesize", "apply", PLACE, NEW,
                                                                *ALONE, *WS)),
    ("synthesize apply", "--judge", "toy.autoliver", ".autoliver",
     ("synthesize", "apply", "toy-as-mr", NEW, "--judge", PLACE, *ALONE, *WS)),
    ("synthesize apply", "--workspace", "ws", "", ("synthesize", "apply", "toy-as-mr", NEW, *ALONE,
                                                   "-w", PLACE)),
)  # fmt: skip
# Places that are written to.
_WRITTEN: tuple[tuple[str, str, str, Command], ...] = (
    ("convert", "output", "", ("convert", "dicom", "{root}/dicom", PLACE, *WS)),
    ("convert", "output", "", ("convert", "dicom-seg", "{root}/dicom", PLACE, "--labels",
                               "{root}/drawn", "--like", TOY, *WS)),
    ("convert", "--template", ".csv", ("convert", "lesion-classes", DATA, "--template", PLACE,
                                       *WS)),
    ("convert", "--workspace", "", ("convert", "lesion-classes", DATA, "--template",
                                    "{root}/t.csv", "-w", PLACE)),
    ("verify", "--fix", "", ("verify", "{root}/bad", "--value", "9=0", "--fix", PLACE,
                              *WS)),
    ("verify", "--workspace", "", ("verify", DATA, "-w", PLACE)),
    ("plan", "--workspace", "", ("plan", DATA, "--preset", "tiny", "-w", PLACE)),
    *(("predict", "--output", ending, ("predict", "-i", "{root}/in", "-o", PLACE, "-m", TOY,
                                       *ALONE, *WS)) for ending in ("", ".nii.gz")),
    ("evaluate", "--output", "", ("evaluate", "-p", "{root}/other", "-r", "{root}/truth", "-d",
                                  DATA, "-o", PLACE, *WS)),
    ("evaluate", "--workspace", "", ("evaluate", "-p", "{root}/other", "-r", "{root}/truth", "-d",
                                     DATA, "-o", "{root}/scores", "-w", PLACE)),
    *(("report", "--output", ".html", ("report", *what, "-o", PLACE, *WS))
      for what in ((TOY,), ("-p", "{root}/out", "-i", "{root}/in"))),
    ("adopt", "output", "", ("adopt", PLACE, "-i", "{root}/in", "-p", "{root}/out", *WS)),
    ("adopt", "--workspace", "", ("adopt", NEW, "-i", "{root}/in", "-p", "{root}/out", "--like",
                                  DATA, "-w", PLACE)),
    ("pool", "output", "", ("pool", PLACE, "--add", DATA, "--add", MR_DATA, *WS)),
    ("pool", "--workspace", "", ("pool", NEW, "--add", DATA, "--add", MR_DATA, "-w", PLACE)),
    ("pseudolabel", "output", "", ("pseudolabel", MR_DATA, PLACE, "-m", TOY, *ALONE, *WS)),
    ("pseudolabel", "--workspace", "", ("pseudolabel", MR_DATA, NEW, "-m", "{root}/toy.autoliver",
                                        *ALONE, "-w", PLACE)),
    ("export", "target", ".autoliver", ("export", TOY, PLACE, *WS)),
    ("export", "target", "", ("export", TOY, PLACE, "--format", "nnunet", *WS)),
    *(("import", "--workspace", "", ("import", "{root}/" + good, "--name", "again", "-w", PLACE))
      for good in ("toy.autoliver", "nn")),
    ("import", "--name", "", ("import", "{root}/toy.autoliver", "--name", PLACE, *WS)),
    ("synthesize fit", "--name", "", ("synthesize", "fit", "--from", TOY, "--to", MR, "-o", PLACE,
                                      "--model", "cyclegan", "--features", "4", "--blocks", "1",
                                      "--batch-size", "1", "--patch", "24", "24", "--epochs", "1",
                                      "--iterations", "1", "--device", "cpu", *WS)),
    ("synthesize fit", "--workspace", "", ("synthesize", "fit", "--from", TOY, "--to", MR, "-o",
                                           "new", "--epochs", "1", "-w", PLACE)),
    ("synthesize apply", "output", "", ("synthesize", "apply", "toy-as-mr", PLACE, "--judge",
                                        "imported", *ALONE, *WS)),
    ("train", "--tag", "", ("train", TOY, "3d_fullres", "--fold", "0", "--tag", PLACE, *SMALL,
                            *CPU, *WS)),
    ("demo", "--output", "", ("demo", "-o", PLACE)),
)  # fmt: skip

PLACES = (
    *(Place(c, option, line, good, ending) for c, option, good, ending, line in _READ),
    *(Place(c, option, line, "", ending) for c, option, ending, line in _WRITTEN),
)
# Options whose values are texts that no path is made of.
TEXTS = {
    "doctor": {"--device"},
    "convert": {"kind", "--part", "--label", "--series"},
    "verify": {"--value"},
    "plan": {"--shard", "--dask"},
    "preprocess": {"configurations", "--shard", "--dask"},
    "finish": {"run", "--device"},
    "train": {
        *("configuration", "--fold", "--keep-source", "--loss", "--task", "--lesion-classes"),
        *("--class-weights", "--roi", "--augment", "--patch", "--freeze", "--unfreeze"),
        *("--device", "--gpus"),
    },
    "select": {"runs", "--device"},
    "predict": {"--folds", "--series", "--device", "--shard", "--dask"},
    "evaluate": {"--metrics", "--lesion-labels", "--shard", "--dask"},
    "pool": {"--inside"},
    "pseudolabel": {"--label", "--folds", "--device", "--shard", "--dask"},
    "export": {"--folds", "--format"},
    "help": {"command"},
    "synthesize fit": {"--held-out", "--patch", "--device"},
    "synthesize apply": {"--device", "--shard", "--dask"},
}
# It measures how long trainings take.
_SECONDS = {"doctor": 60.0}
# The demonstration trains for minutes where it may write.
_FREE = ("nothing", "a folder of nothing", "a link to nothing", "a folder")


def options_of_paths() -> set[tuple[str, str]]:
    """Each command with each of its options that takes a text or a path."""
    found = set()
    for name, command in COMMANDS.items():
        for option in command.params:
            kind = str(option.type_descriptor.annotation)
            spelt = option.opts[0]
            if ("Path" in kind or "str" in kind) and spelt not in TEXTS.get(name, ()):
                found.add((name, spelt))
    return found


@dataclass(frozen=True)
class Trial:
    """One thing in one place."""

    place: Place
    thing: Thing

    @property
    def name(self) -> str:
        words = [word for word in self.place.line if word != PLACE and "{root}" not in word]
        kind = f" {words[1]}" if self.place.command == "convert" else ""
        how = self.place.good or "written"
        ending = f" ({how}{self.place.ending if how == 'written' else ''})"
        return f"{self.place.command}{kind} {self.place.option}{ending}: {self.thing.name}"


def trials() -> Iterator[Trial]:
    """Every thing in every place."""
    for place in PLACES:
        for thing in THINGS:
            if place.command == "demo" and (thing.right or thing.name in _FREE):
                continue
            yield Trial(place, thing)


class Paths:
    """Runs trials, each in a fresh copy of a small workspace in which everything was done.

    Args:
        folder: Where it lies; it is made there if it is not yet there.
    """

    def __init__(self, folder: Path) -> None:
        self.arena = Arena(folder)
        self.root = self.arena.root
        self._further = folder / "further"
        if not self._further.exists():
            _make_further(self.root, self._further)
        self._zygote = Zygote()
        self._fresh: State = {}

    def close(self) -> None:
        """Ends the process that runs the commands."""
        self._zygote.close()

    def run(self, trial: Trial) -> Outcome:
        """Makes a thing and runs the command."""
        self._restore()
        good = self.root / trial.place.good if trial.place.good else None
        folder = self.root / "place"
        folder.mkdir()
        path = trial.thing.make(folder, good, trial.place.ending)
        arguments = [
            word.replace("{root}", str(self.root)).replace(PLACE, path) for word in trial.place.line
        ]
        # A file that is written may replace a link that leads nowhere.
        links = trial.place.writes and trial.thing.name == "a link to nothing"
        before = {} if links else _state(self.root)
        output = self.root.parent / "output.txt"
        result = self._zygote.ask(
            arguments, output, self.root, seconds=_SECONDS.get(trial.place.command, SECONDS)
        )
        text = output.read_bytes().decode("utf-8", "replace") if output.exists() else ""
        verdict = self._verdict(trial, result, text)
        if verdict in ("right", "refused") and (gone := _changed(before, _state(self.root))):
            verdict = f"changes {gone}"
        seconds, peak = result["seconds"], result["peak_kb"]
        return Outcome(trial.name, trial.place.command, verdict, seconds, peak, text)

    def _restore(self) -> None:
        """Makes the workspace as it was; nothing is copied if nothing was changed."""
        place = self.root / "place"
        if place.exists():
            shutil.rmtree(place)
        if self._fresh and _state(self.root, all_files=True) == self._fresh:
            return
        self.arena.restore()
        shutil.copytree(self._further, self.root, dirs_exist_ok=True)
        self._fresh = _state(self.root, all_files=True)

    def _verdict(self, trial: Trial, result: dict[str, Any], text: str) -> str:
        bad = verdict_of(result, text, self._zygote.baseline_kb)
        if bad:
            return bad
        if result["code"] == 0 and not (trial.thing.right or _may_be_used(trial)):
            return "right" if _WARNED in text else "accepted"
        return "refused" if result["code"] else "right"


# A page shows what it can, and says what it cannot.
_WARNED = ": no slices: "


def _may_be_used(trial: Trial) -> bool:
    """Whether a command may end well although the thing is odd."""
    name, place = trial.thing.name, trial.place
    if name == "a place among images":  # a page, a table or a model is no image
        return place.ending in (".csv", ".html", ".autoliver")
    if place.writes or place.option == "--workspace":
        # A new folder, or files that are added to one that is there.
        return "folder" in name or name in ("nothing", "a link to nothing")
    return False


def _make_further(root: Path, folder: Path) -> None:
    """A DICOM series with a label map, classes of lesions, and a zip of nnU-Net's folder."""
    import numpy as np

    from autoliver.io.files import read_image, read_label, write_label

    _series(folder / "dicom/a")
    geometry = read_image([folder / "dicom/a"]).geometry
    label = np.zeros(geometry.shape_zyx, dtype=np.uint8)
    label[2:4, 5:9, 5:9] = 1
    write_label(folder / "drawn/a.nii.gz", label, geometry)
    shutil.copytree(root / "data" / TOY, folder / "bad")
    wrong = read_label(folder / "bad/labelsTr/Toy_000.nii.gz")
    wrong.array[0, 0, 0, 0] = 9
    write_label(folder / "bad/labelsTr/Toy_000.nii.gz", wrong.array[0], wrong.geometry)
    (folder / "classes.csv").write_text("case,lesion,class\nToy_000,*,cyst\n")
    shutil.make_archive(str(folder / "nn"), "zip", root / "nn")
    shutil.copyfile(root / FOLD / "weights.safetensors", folder / "encoder.safetensors")


State = dict[str, tuple[int, int, int]]
# What commands write into.
_THEIRS = ("ws", "made", "new", "out", "other", "place", "t.csv", "e.autoliver", "scores")


def _state(root: Path, *, all_files: bool = False) -> State:
    """The files that are the user's and what lies in the place, or all files."""
    found = {}
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        state = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        if all_files or not (inside.parts[0] in _THEIRS or inside.parts[0].startswith("-x")):
            found[str(inside)] = (state.st_mode, state.st_size, state.st_mtime_ns)
        elif inside.parts[0] == "place" and not regular:
            found[str(inside)] = (state.st_mode, 0, 0)
    return found


def _changed(before: State, after: State) -> str:
    """What is no more as it was; links to nothing may have been filled."""
    return next((name for name, state in before.items() if after.get(name) != state), "")
