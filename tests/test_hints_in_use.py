"""Hints of faulty situations: their commands can be pasted, and are about the workspace in use."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io
from command_lines import commands_in, problems
from commands import run, told
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.commands import command, completed, remove
from autoliver.errors import AutoliverError
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset007_Toy"
TINY = ("--epochs", "1", "--iterations", "2", "--batch-size", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, and a workspace `ws` with its 2d run of fold 0."""
    place = tmp_path_factory.mktemp("hints")
    options = PhantomOptions(shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(place, name=NAME, cases=6, seed=0, options=options)
    (place / "spare").mkdir()
    for path in sorted((place / NAME).rglob("Toy_005*")):
        path.rename(place / "spare" / f"{path.parent.name}--{path.name}")
    description = place / NAME / "dataset.json"
    description.write_text(description.read_text().replace('"numTraining": 6', '"numTraining": 5'))
    run("plan", place / NAME, "--preset", "tiny", "-w", place / "ws")
    run("train", place / NAME, "2d", "--fold", "0", *TINY, "-w", place / "ws")
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged; the workspace finds its dataset beside it."""
    shutil.copytree(trained, tmp_path / "used")
    return tmp_path / "used"


def add_case(place: Path) -> None:
    for path in (place / "spare").iterdir():
        folder, _, name = path.name.partition("--")
        shutil.copy(path, place / NAME / folder / name)


def after_accepted_changes(place: Path) -> list[object]:
    add_case(place)
    words = ["train", place / NAME, "2d", "--fold", "1", *TINY, "--accept-changes"]
    run(*words, "-w", place / "ws")
    return ["select", NAME]


def changed(place: Path) -> list[object]:
    add_case(place)
    return ["train", place / NAME, "2d", "--fold", "1"]


def cut_label(place: Path) -> list[object]:
    path = next((place / NAME / "labelsTr").iterdir())
    path.write_bytes(path.read_bytes()[:40])
    return ["plan", place / NAME]


def cut_label_by_name(place: Path) -> list[object]:
    return [*cut_label(place)[:1], NAME]


def other_run(place: Path) -> list[object]:
    return ["train", place / NAME, "3d_fullres", "--pretrained", NAME]


def other_run_beside(place: Path) -> list[object]:
    return ["train", place / NAME, "3d_fullres", "--pretrained", f"{NAME}/2d+no"]


def no_such_source(place: Path) -> list[object]:
    return ["train", place / NAME, "3d_fullres", "--pretrained", "zzz"]


def gone(place: Path) -> list[object]:
    shutil.rmtree(place / NAME)
    shutil.move(place / "ws", place / "elsewhere")
    known = place / f"elsewhere/{NAME}/dataset.json"
    known.write_text(known.read_text().replace("hints", "no-hints"))
    shutil.move(place / "elsewhere", place / "ws")
    return ["plan", NAME]


def unknown(place: Path) -> list[object]:
    shutil.rmtree(place / "ws" / NAME)
    return ["verify", "zzz"]


def unnamed(place: Path) -> list[object]:
    shutil.rmtree(place / "ws" / NAME)
    return ["verify"]


def damaged(name: str, *words: object) -> Callable[[Path], list[object]]:
    def situation(place: Path) -> list[object]:
        (path,) = (place / "ws" / NAME).rglob(name)
        path.write_text("{")
        return list(words)

    situation.__name__ = f"damaged_{name}"
    return situation


def no_model(place: Path) -> list[object]:
    shutil.rmtree(place / "ws" / NAME / "runs")
    return ["predict", "-i", place / NAME / "imagesTr", "-o", place / "out"]


SITUATIONS = [
    *(after_accepted_changes, changed, cut_label, cut_label_by_name, other_run, other_run_beside),
    *(no_such_source, gone, unknown, unnamed, no_model),
    damaged("options.json", "train", NAME, "2d", "--fold", "0"),
    damaged("options.json", "select", NAME),
    damaged("plan.json", "train", NAME, "2d", "--fold", "0"),
    damaged("fingerprint.json", "plan", NAME),
    damaged("verify.json", "verify", NAME),
    damaged("resume.pt", "train", NAME, "2d", "--fold", "0", "--extend", "1"),
    damaged("weights.safetensors", "predict", "-i", "IMAGES", "-o", "OUT", "-m", NAME),
]


def failed(place: Path, words: list[object]) -> AutoliverError:
    images = {"IMAGES": place / NAME / "imagesTr", "OUT": place / "out"}
    with pytest.raises(AutoliverError) as caught:
        run(*[images.get(str(word), word) for word in words], "-w", place / "ws")
    return caught.value


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_commands_of_hints_fit_the_situation(
    situation: Callable[[Path], list[object]], place: Path
) -> None:
    error = failed(place, situation(place))
    assert error.hint, error.problem
    found = commands_in(error.hint)
    for text in (error.problem, error.hint):
        assert problems(text) == []
    for words in found:
        assert words[words.index("-w") + 1] == str(place / "ws"), error.hint


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("options.json", ("train", NAME, "2d", "--fold", "0", *TINY)),
        ("plan.json", ("train", NAME, "2d", "--fold", "0", *TINY, "--fresh")),
        ("fingerprint.json", ("plan", NAME)),
        ("verify.json", ("verify", NAME)),
        ("store.json", ("train", NAME, "2d", "--fold", "1", *TINY)),
    ],
)
def test_what_a_hint_says_mends(name: str, words: tuple[str, ...], place: Path) -> None:
    words = (*words, "-w", str(place / "ws"))
    error = failed(place, damaged(name, *words)(place))
    pasted = error.hint.partition("Make it again with: ")[2].partition(" (")[0]
    script = f'autoliver() {{ "{sys.executable}" -m autoliver "$@"; }}\n{pasted}'
    subprocess.run(["bash", "-ec", script], check=True, capture_output=True)
    told(*words)


def test_select_names_the_option_that_train_was_given(place: Path) -> None:
    error = failed(place, after_accepted_changes(place))
    (words,) = commands_in(error.hint)
    assert words[:3] == ["select", NAME, "--accept-changes"]
    chosen: Any = run(*words)
    assert chosen["members"] or chosen


def test_a_run_whose_options_are_damaged_is_removed_by_the_hint(place: Path) -> None:
    error = failed(place, damaged("options.json", "train", NAME, "2d", "--fold", "0")(place))
    assert f"rm -r {place}/ws/{NAME}/runs/2d (removes the run" in error.hint


@pytest.mark.parametrize("name", ["-odd", "--odd", "-w", "--fold", "-", "a b", "it's", "$x"])
def test_any_name_of_a_dataset_makes_a_command_that_works(
    name: str, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / NAME, tmp_path / name)
    workspace = tmp_path / "w s"
    again = command("plan", str(tmp_path / name), options=["--preset", "tiny"], workspace=workspace)
    told(*shlex.split(again)[1:])
    shown = command("verify", name, options=["-v"], workspace=workspace)
    told(*shlex.split(shown)[1:])
    next_one = told_next(["plan", "--preset", "tiny", "-w", str(workspace), "--", name])
    assert shlex.split(next_one)[:2] == ["autoliver", "train"]
    assert name in shlex.split(next_one)


def told_next(words: list[str]) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout.rpartition("Next: ")[2]


def test_a_command_that_removes_is_about_a_file() -> None:
    assert remove(Path("-ws/x")) == "rm ./-ws/x"


@pytest.mark.parametrize(
    ("text", "dataset", "shown"),
    [
        ("autoliver verify DATASET", "Toy", "autoliver verify Toy -w ws"),
        ("autoliver verify DATASET", "", "autoliver verify -w ws"),
        ("autoliver verify DATASET", None, "autoliver verify DATASET -w ws"),
        ("autoliver verify DATASET", "my data", "autoliver verify 'my data' -w ws"),
        ("autoliver plan DATASET --vram GB", "Toy", "autoliver plan Toy -w ws --vram GB"),
        ("the DATASET of autoliver", "Toy", "the DATASET of autoliver"),
        ("autoliver verify Other", "Toy", "autoliver verify Other"),
    ],
)
def test_incomplete_commands_are_completed(text: str, dataset: str | None, shown: str) -> None:
    assert completed(text, dataset=dataset, workspace=Path("ws")) == shown


def test_the_library_names_the_argument_that_it_has() -> None:
    with pytest.raises(AutoliverError, match=r"^folds: 'x' is not one of"):
        autoliver.train("Toy", "2d", folds="x")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("where", ["/proc/x", "/proc/x/y", "/proc/1/x"])
def test_a_place_where_nothing_can_be_made(where: str, trained: Path) -> None:
    with pytest.raises(AutoliverError) as caught:
        run("plan", trained / NAME, "-w", where)
    assert "--workspace" in caught.value.hint or "permissions" in caught.value.hint


@pytest.mark.parametrize("words", [["predict", "-o", "out"], ["adopt", "-p", "p", "new"]])
def test_a_pattern_of_the_shell_is_named(words: list[str], trained: Path) -> None:
    files = sorted(map(str, (trained / NAME / "imagesTr").iterdir()))
    result = CliRunner().invoke(app, [words[0], "-i", *files, *words[1:]])
    assert result.exit_code == 2
    assert "5 files in place of one" in result.output
    assert "Give the folder" in result.output


def test_the_encoding_of_a_dataset_json_is_named(place: Path) -> None:
    path = place / NAME / "dataset.json"
    raw = json.loads(path.read_text())
    text = json.dumps({**raw, "description": "Läsion"}, ensure_ascii=False, indent=1)
    path.write_bytes(text.encode("latin-1"))
    error = failed(place, ["plan", place / NAME])
    assert "its encoding is not UTF-8: byte 0xe4 in line" in error.problem
    assert "save it as UTF-8" in error.hint


@pytest.mark.parametrize("tag", ["--", "-x", ".", "..", ".hidden", "a b"])
def test_tags_that_are_no_names(tag: str, place: Path) -> None:
    error = failed(place, ["train", NAME, "2d", "--fold", "0", "--tag", tag])
    assert "cannot be part of a folder's name" in error.problem


@pytest.mark.parametrize(("letters", "fits"), [(236, True), (237, False), (248, False)])
def test_a_case_name_leaves_room_for_what_is_made_of_it(
    letters: int, fits: bool, tmp_path: Path
) -> None:
    for folder, most in (("images", 255), ("labels", 2)):
        (tmp_path / "Toy" / folder).mkdir(parents=True)
        array = np.random.default_rng(0).integers(0, most, (32, 32)).astype("uint8")
        skimage.io.imsave(
            tmp_path / "Toy" / folder / f"{'x' * letters}.png", array, check_contrast=False
        )
    words = ["plan", tmp_path / "Toy", "--modality", "other", "--preset", "tiny"]
    if fits:
        run(*words, "-w", tmp_path / "w")
        return
    with pytest.raises(AutoliverError, match=f"{letters} bytes, expected at most 236"):
        run(*words, "-w", tmp_path / "w")


@pytest.mark.parametrize(
    ("channels", "described", "words"),
    [
        (3, False, ('"channel_names": {"0": "red", "1": "green", "2": "blue"}', "one channel")),
        (4, False, ('"3": "channel 3"', "one channel")),
        (4, True, ("transparency",)),
        (1, True, ("Add the missing channels",)),
    ],
)
def test_the_channels_of_pictures(
    channels: int, described: bool, words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "Toy"
    for kind, depth in (("images", channels), ("labels", 1)):
        (folder / kind).mkdir(parents=True)
        shape = (32, 32, depth) if depth > 1 else (32, 32)
        array = np.random.default_rng(0).integers(0, 2, shape).astype("uint8")
        skimage.io.imsave(folder / kind / "one.png", array, check_contrast=False)
    names = {str(i): name for i, name in enumerate(("red", "green", "blue"))}
    raw = {"channel_names": names, "labels": {"background": 0, "liver": 1}}
    if described:
        (folder / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(AutoliverError) as caught:
        run("plan", folder, "--modality", "other", "-w", tmp_path / "w")
    for word in words:
        assert word in caught.value.hint
    # What the hint says to write is taken.
    if "write a dataset.json" in caught.value.hint:
        found = caught.value.hint.partition("names all: ")[2].splitlines()[0]
        (folder / "dataset.json").write_text(found)
        run("plan", folder, "--preset", "tiny", "-w", tmp_path / "w")


def test_a_renamed_dataset_is_told_of_its_plan(place: Path) -> None:
    shutil.move(place / NAME, place / "Renamed")
    text = warnings_of("plan", place / "Renamed", "-w", place / "ws")
    assert f"the same data has a plan as {NAME}, with: --preset tiny" in text
    (words,) = commands_in(text)
    run(*words)
    again = warnings_of("plan", "Renamed", "-w", place / "ws")
    assert "the same data" not in again
    plan = json.loads((place / "ws/Renamed/plan.json").read_text())
    assert plan["preset"] == "tiny"


def warnings_of(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "autoliver", *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr
