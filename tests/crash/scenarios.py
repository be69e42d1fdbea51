"""The commands that are disturbed, on a workspace in which everything was done once."""

import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from abdomen_trees import write_lits
from hostile.artefacts import FIT, MR, TOY
from hostile.artefacts import build as build_all
from hostile.artefacts import filled as filled

from autoliver.io.files import read_label, write_label
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

Command = tuple[str, ...]
# Makes a workspace in a folder, with a function that runs commands.
Build = Callable[[Path, Callable[..., None]], None]
WS = ("-w", "{root}/ws")
# Otherwise the way that is fastest at the time decides the last bits of a prediction.
EXACT = ("--exact", *WS)
CPU = ("--device", "cpu", "--workers", "1", "--cache", "ram")
DATA = f"ws/{TOY}"
UNLABELLED, BROKEN = "Dataset003_Unlabelled", "Dataset004_Broken"


@dataclass(frozen=True)
class Scenario:
    """A command, and what is done before and after it.

    Attributes:
        name: Its name.
        command: The command that is disturbed.
        later: Commands that use what it makes.
        before: Commands that are run first.
        remove: What is removed first, so that there is something to do.
        inputs: The folder whose files vanish.
        lacks: Patterns of files that the command removes and makes again.
        old: Whether the system cannot exchange two folders in one step, as on NFS.
        eye: Patterns of files that may fail with a warning, such as pictures.
        bits: Patterns of files whose last bits depend on how many cases a process predicts, since
            the command has no `--exact`.
    """

    name: str
    command: Command
    later: tuple[Command, ...] = ()
    before: tuple[Command, ...] = ()
    remove: tuple[str, ...] = ()
    inputs: str = "data"
    lacks: tuple[str, ...] = ()
    old: bool = False
    eye: tuple[str, ...] = ("*.png*", "*tensorboard*")
    bits: tuple[str, ...] = ()

    def may_lack(self, name: str) -> bool:
        """Whether a file may be gone while the command has not been run again."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.lacks)

    def inexact(self, name: str) -> bool:
        """Whether the last bits of a file are left open."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.bits)

    def decorative(self, difference: str) -> bool:
        """Whether a difference is about what is only for the eye."""
        return any(fnmatch.fnmatchcase(difference, pattern) for pattern in self.eye)


def build_small(root: Path, must: Callable[..., None]) -> None:
    """Trains a fold, exports it, and imports it, for the quick tests."""
    options = PhantomOptions(
        contrast="CT", shape_zyx=(10, 32, 32), spacing_mm=(10.0, 6.0, 6.0), lesions=(0, 0)
    )
    write_phantom_dataset(root / "data", name=TOY, cases=3, seed=0, options=options, test_cases=1)
    shutil.copytree(root / "data" / TOY / "imagesTs", root / "in")
    must(
        ("plan", "{root}/data/" + TOY, "--preset", "tiny", *WS),
        (*_TRAIN, "--fold", "0", "--epochs", "1", "--iterations", "1"),
        ("export", TOY, "{root}/toy.autoliver", *WS),
        ("import", "{root}/toy.autoliver", "--name", "imported", *WS),
    )


def build(root: Path, must: Callable[..., None]) -> None:
    """Does everything once: what the hostile artefacts need, and runs of a second network."""
    build_all(root)
    short = ("--epochs", "1", "--iterations", "1")
    for fold in ("0", "1"):
        must(("train", TOY, "2d", "--fold", fold, *short, *CPU, *WS))
    write_lits(root / "lits")
    data = root / "data" / TOY
    names = ("dataset.json", "imagesTr", "imagesTs", "labelsTr")
    for target, fewer in ((root / UNLABELLED, names[:3]), (root / BROKEN, names)):
        target.mkdir()
        for name in fewer:
            whole = shutil.copy2 if name.endswith(".json") else shutil.copytree
            whole(data / name, target / name)
    (root / UNLABELLED / "labelsTr").mkdir()
    shutil.copy2(data / "labelsTr/Toy_000.nii.gz", root / UNLABELLED / "labelsTr")
    label = read_label(root / BROKEN / "labelsTr/Toy_001.nii.gz")
    moved = label.geometry.replace(origin_xyz=(7.0, 0.0, 0.0))
    write_label(root / BROKEN / "labelsTr/Toy_001.nii.gz", label.array[0], moved)
    litter(root / DATA)


def litter(folder: Path) -> None:
    """Leaves what nothing uses in the folder of a dataset, for `clean`."""
    store = next(path for path in sorted((folder / "store").iterdir()) if path.is_dir())
    shutil.copytree(store, store.with_name("0123456789ab"))
    left = folder / ".0123abcd.partial.json"
    left.write_text(json.dumps({"half": "written"}))
    for path in (
        left,
        *store.with_name("0123456789ab").rglob("*"),
        store.with_name("0123456789ab"),
    ):
        os.utime(path, (1e9, 1e9))


_IMAGES, _LABELS = "{root}/data/" + TOY + "/imagesTr", "{root}/data/" + TOY + "/labelsTr"
_PREDICT = ("predict", "-i", _IMAGES, "-o", "{root}/new", "-m", TOY, "--device", "cpu", *EXACT)
_ONE = (*_PREDICT, "--folds", "0")
_TRAIN = ("train", TOY, "3d_fullres", *CPU, *WS)
_NEW = (*_TRAIN, "--tag", "new", "--fold", "0", "--epochs", "2", "--iterations", "1")
_LATER_RUN = (*_TRAIN, "--tag", "later", "--fold", "0", "--epochs", "1", "--iterations", "1")
_EXPORT = ("export", TOY, "{root}/again.autoliver", *WS)
_IMPORT = ("import", "{root}/toy.autoliver", "--name", "again", *WS)
_OVER = ("import", "{root}/toy.autoliver", "--name", "imported", "--overwrite", *WS)
_PREPROCESS = ("preprocess", TOY, "2d", "3d_fullres", "--workers", "1", *WS)
_EVALUATE = (
    *("evaluate", "-p", "{root}/new", "-r", "{root}/data/" + TOY, "--workers", "1"),
    *("--subset", *WS),
)
_PSEUDO = (
    *("pseudolabel", "{root}/" + UNLABELLED, "{root}/made", "-m", TOY, "--folds", "0"),
    *("--min-confidence", "0", "--volume", "0", "100000", "--device", "cpu", *WS),
)
_APPLY_AGAIN = (
    *("synthesize", "apply", "again", "{root}/made", "--judge", MR),
    *("--qc-min-dice", "0", "--device", "cpu", *WS),
)
_USE = ("predict", "-i", "{root}/in", "-o", "{root}/new", "--device", "cpu", *EXACT)


def _plan(folder: str) -> Command:
    return ("plan", "{root}/" + folder, "--preset", "tiny", *WS)


def _sharded(name: str, command: Command, *before: Command) -> Iterator[Scenario]:
    """A shard of a command, after which the whole is made; and the whole, after all shards."""
    parts = [(*command, "--shard", part) for part in ("1/2", "2/2")]
    yield Scenario(f"{name} 1/2", parts[0], later=(command,), before=before)
    yield Scenario(f"{name}, whole", command, before=(*before, *parts))


SCENARIOS = {
    each.name: each
    for each in (
        Scenario(
            "plan",
            ("plan", "{root}/data/" + TOY, "--preset", "tiny", "--workers", "1", *WS),
            later=(("preprocess", TOY, "2d", "--workers", "1", *WS),),
            remove=(DATA,),
        ),
        Scenario(
            "plan again",
            ("plan", "{root}/data/" + TOY, "--preset", "tiny", "--fresh", "--workers", "1", *WS),
            later=(_LATER_RUN,),
        ),
        Scenario(
            "preprocess",
            _PREPROCESS,
            later=(_LATER_RUN,),
            remove=(f"{DATA}/store",),
        ),
        Scenario(
            "train",
            _NEW,
            later=((*_USE, "-m", f"{TOY}/3d_fullres+new"), ("select", TOY, "3d_fullres+new", *WS)),
        ),
        Scenario(
            "extend",
            (*_TRAIN, "--fold", "0", "--extend", "2"),
            later=(_ONE, _EXPORT),
            # Predictions and scores of the shorter training, which are outdated.
            lacks=("*/fold_0/validation/*",),
        ),
        Scenario(
            "predict",
            (*_ONE, "--probabilities", "--uncertainty"),
            later=(("evaluate", "-p", "{root}/new", "-r", _LABELS, "--workers", "1", *WS),),
        ),
        Scenario(
            "evaluate",
            ("evaluate", "-p", "{root}/other", "-r", "{root}/truth", "--workers", "1", *WS),
            later=(("report", "-p", "{root}/other", "-i", "{root}/in", *WS),),
            remove=("other/scores.*", "other/lesions.*"),
            inputs="truth",
        ),
        Scenario(
            "select",
            ("select", TOY, *WS),
            later=(_PREDICT, _EXPORT),
        ),
        Scenario(
            "export", _EXPORT, later=(("import", "{root}/again.autoliver", "--name", "x", *WS),)
        ),
        Scenario(
            "export over",
            ("export", TOY, "{root}/toy.autoliver", "--overwrite", *WS),
            later=(_IMPORT,),
        ),
        Scenario(
            "export nnunet",
            ("export", TOY, "{root}/again", "--format", "nnunet", *WS),
            later=(("import", "{root}/again", "--name", "x", *WS),),
        ),
        Scenario("import", _IMPORT, later=((*_USE, "-m", "again"),), inputs="toy.autoliver"),
        Scenario("import over", _OVER, later=((*_USE, "-m", "imported"),), inputs="toy.autoliver"),
        Scenario(
            "import over, NFS",
            _OVER,
            later=((*_USE, "-m", "imported"),),
            inputs="toy.autoliver",
            lacks=("ws/models/imported/*",),
            old=True,
        ),
        Scenario(
            "pool",
            (
                *("pool", "{root}/made", "--add", "{root}/data/" + TOY),
                *("--add", "{root}/data/" + MR, *WS),
            ),
            later=(_plan("made"),),
        ),
        Scenario(
            "adopt",
            (
                *("adopt", "{root}/made", "-i", "{root}/in", "-p", "{root}/out"),
                *("--like", TOY, *WS),
            ),
            later=(_plan("made"),),
            inputs="in",
        ),
        Scenario(
            "apply",
            (
                *("synthesize", "apply", "toy-as-mr", "{root}/made", "--judge", MR),
                *("--qc-min-dice", "0", "--device", "cpu", *WS),
            ),
            before=(("train", MR, *_LATER_RUN[2:]),),
            later=(_plan("made"),),
        ),
        Scenario(
            "convert",
            ("convert", "lits", "{root}/lits", "{root}/made", "--workers", "1"),
            later=(_plan("made"),),
            inputs="lits",
        ),
        Scenario(
            "pseudolabel",
            _PSEUDO,
            later=(_plan("made"),),
            inputs=UNLABELLED,
            bits=("made/predicted/*.npz",),
        ),
        Scenario(
            "pseudolabel over",
            (*_PSEUDO, "--overwrite"),
            before=(_PSEUDO,),
            later=(_plan("made"),),
            inputs=UNLABELLED,
            lacks=("made/predicted/*",),
            bits=("made/predicted/*.npz",),
        ),
        Scenario(
            "synthesize fit",
            tuple("again" if word == "toy-as-mr" else word for word in FIT),
            before=(("train", MR, *_LATER_RUN[2:]),),
            later=(_APPLY_AGAIN,),
        ),
        Scenario("clean", ("clean", "--yes", *WS), later=(_LATER_RUN, ("report", TOY, *WS))),
        Scenario("report", ("report", TOY, "--workers", "1", *WS), inputs=DATA),
        Scenario(
            "report of predictions",
            (
                *("report", "-p", "{root}/out", "-i", "{root}/in", "-r", "{root}/truth"),
                *("--workers", "1", *WS),
            ),
            remove=("out/scores.*", "out/lesion_scores.csv"),
            inputs="out",
        ),
        Scenario(
            "verify --fix",
            ("verify", "{root}/" + BROKEN, "--fix", "{root}/made", "--workers", "1", *WS),
            later=(_plan("made"),),
            inputs=BROKEN,
        ),
        Scenario(
            "finish",
            ("finish", TOY, "3d_fullres", "--device", "cpu", "--workers", "1", *WS),
            before=((*_TRAIN, "--fold", "2", "--epochs", "1", "--iterations", "1"),),
            remove=(f"{DATA}/runs/3d_fullres/fold_[01]/validation", f"{DATA}/model.json"),
            later=(_PREDICT, _EXPORT),
        ),
        Scenario(
            "preprocess 1/2",
            (*_PREPROCESS, "--shard", "1/2"),
            later=(_PREPROCESS, _LATER_RUN),
            remove=(f"{DATA}/store",),
        ),
        *_sharded("predict", (*_ONE, "--uncertainty")),
        *_sharded("evaluate", _EVALUATE, _ONE),
    )
}
