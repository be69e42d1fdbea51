"""Plain pairs of folders without dataset.json: their images are looked at, or the user says."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

import autoliver
from autoliver.datasets.cases import read_dataset
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.files import read_image, write_image
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

TINY = ("--preset", "tiny")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain pairs "ct" and "mr" of two cases each."""
    folder = tmp_path_factory.mktemp("pairs")
    for number, name in enumerate(("ct", "mr")):
        options = PhantomOptions(
            contrast="CT" if name == "ct" else "T2",
            shape_zyx=(16, 32, 32),
            spacing_mm=(8.0, 6.0, 6.0),
        )
        write_phantom_dataset(folder / "made", name=name, cases=2, seed=number, options=options)
        for kind in ("images", "labels"):
            (folder / name / kind).mkdir(parents=True)
            for path in (folder / "made" / name / f"{kind}Tr").iterdir():
                stem = path.name.replace("_0000", "")
                shutil.copy(path, folder / name / kind / f"{name}_{stem}")
    return folder


def pair(phantoms: Path, place: Path, *kinds: str) -> Path:
    """A plain pair of the cases of one kind or of several."""
    for kind in kinds:
        shutil.copytree(phantoms / kind, place, dirs_exist_ok=True)
    return place


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """Runs a command and returns what it warns of."""

    def tell(*arguments: object) -> str:
        caplog.clear()
        run(*arguments)
        return caplog.text

    return tell


def channels(folder: Path) -> dict[str, str]:
    raw = json.loads((folder / "dataset.json").read_text())
    return dict(raw["channel_names"])


@pytest.mark.parametrize(
    ("kind", "channel", "scheme"), [("ct", "CT", "ct"), ("mr", "MRI", "zscore")]
)
def test_images_are_taken_for_what_they_look_like(
    kind: str,
    channel: str,
    scheme: str,
    phantoms: Path,
    tmp_path: Path,
    told: Callable[..., str],
) -> None:
    folder = pair(phantoms, tmp_path / "liver", kind)
    modality = "CT" if kind == "ct" else "MR"
    (finding,) = autoliver.verify(folder, workspace=tmp_path / "w").findings
    assert f"2 of 2 cases look like {modality}" in finding.problem
    assert not (folder / "dataset.json").exists()
    text = told("plan", folder, *TINY, "-w", tmp_path / "w")
    assert f"taken for {channel}: 2 of 2 cases look like {modality}: values from" in text
    assert channels(folder) == {"0": channel}
    plan = Plan.load(tmp_path / "w/liver/plan.json")
    assert (plan.modality, plan.channel_names) == (modality, (channel,))
    assert plan.configurations["2d"].normalization == (scheme,)
    again = told("plan", "liver", "-w", tmp_path / "w")
    assert "taken for" not in again
    assert Plan.load(tmp_path / "w/liver/plan.json") == plan


def test_training_looks_as_well(phantoms: Path, tmp_path: Path) -> None:
    folder = pair(phantoms, tmp_path / "liver", "ct")
    run("preprocess", folder, "2d", "-w", tmp_path / "w")
    assert channels(folder) == {"0": "CT"}


@pytest.mark.parametrize(
    ("name", "kinds", "words"),
    [
        ("liver", ("ct", "mr"), "2 of 4 cases (mr_"),
        ("LiverCT", ("mr",), "although the folder's name says CT"),
        ("liver", ("normed",), "look like neither CT nor MR"),
    ],
)
def test_where_values_do_not_tell_the_user_says(
    name: str, kinds: tuple[str, ...], words: str, phantoms: Path, tmp_path: Path
) -> None:
    normed = kinds == ("normed",)
    folder = pair(phantoms, tmp_path / name, *(("mr",) if normed else kinds))
    for path in sorted((folder / "images").iterdir()) if normed else ():
        image = read_image([path])
        write_image(path, (image.array - image.array.mean()) / image.array.std(), image.geometry)
    workspace = tmp_path / "w"
    with pytest.raises(DatasetError) as caught:
        run("plan", folder, *TINY, "-w", workspace)
    assert words in caught.value.problem
    assert ("make two datasets" in caught.value.hint) == (len(kinds) > 1)
    assert not (folder / "dataset.json").exists()
    with pytest.raises(DatasetError, match="are these CT or MR"):
        run("preprocess", folder, "-w", workspace)
    # The hint is a command that works.
    hinted = shlex.split(caught.value.hint.partition("For CT: autoliver ")[2].splitlines()[0])
    run(*hinted, *TINY)
    assert channels(folder) == {"0": "CT"}
    run(*hinted)  # and works again


@pytest.mark.parametrize(("said", "channel"), [("CT", "CT"), ("mr", "MRI"), ("other", "image")])
def test_what_the_user_says_is_taken(
    said: str, channel: str, phantoms: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    folder = pair(phantoms, tmp_path / "liver", "ct")
    text = told("plan", folder, *TINY, "--modality", said, "-w", tmp_path / "w")
    assert channels(folder) == {"0": channel}
    assert ("have the values of air in CT" in text) == (said != "CT")
    plan = Plan.load(tmp_path / "w/liver/plan.json")
    assert plan.modality == {"CT": "CT", "mr": "MR", "other": "other"}[said]
    again = tmp_path / "again"
    (folder / "dataset.json").unlink()
    assert autoliver.plan(folder, workspace=again, preset="tiny", modality=said) == plan


def test_a_folder_that_keeps_no_dataset_json_is_known_by_the_workspace(
    phantoms: Path, tmp_path: Path
) -> None:
    folder = pair(phantoms, tmp_path / "liver", "ct")
    run("plan", folder, *TINY, "--modality", "other", "-w", tmp_path / "w")
    (folder / "dataset.json").unlink()  # as if it could not be written
    run("preprocess", "liver", "2d", "-w", tmp_path / "w")
    run("plan", "liver", "-w", tmp_path / "w")
    assert channels(folder) == {"0": "image"}
    (folder / "dataset.json").unlink()
    run("plan", "liver", "--modality", "CT", "-w", tmp_path / "w")
    assert Plan.load(tmp_path / "w/liver/plan.json").modality == "CT"


def test_a_modality_beside_a_dataset_json_is_refused_with_what_to_edit(
    phantoms: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    folder = tmp_path / "ct"
    shutil.copytree(phantoms / "made/ct", folder)
    with pytest.raises(OptionError, match="names the channels already: CT") as caught:
        run("plan", folder, "--modality", "MR", "-w", tmp_path / "w")
    assert str(folder / "dataset.json") in caught.value.problem
    assert '"channel_names": {"0": "MRI"}' in caught.value.hint
    run("plan", folder, *TINY, "--modality", "CT", "-w", tmp_path / "w")  # as it says
    with pytest.raises(AutoliverError, match=r"--modality CT .* not for --like"):
        run("plan", folder, "--modality", "CT", "--like", "ct", "-w", tmp_path / "w")
    raw = json.loads((folder / "dataset.json").read_text())
    raw["channel_names"] = {"0": "image"}
    raw.pop("modality", None)
    (folder / "dataset.json").write_text(json.dumps(raw))
    text = told("plan", folder, "-w", tmp_path / "w")
    assert "named image, but the images of 2 cases have the values of air in CT" in text


@pytest.mark.parametrize(
    ("value", "words"), [("ct scan", "one of CT, MR, other"), (3, "one of"), ("M", "Did you mean")]
)
def test_a_modality_that_there_is_not(value: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        autoliver.plan("nothing", workspace=tmp_path, modality=value)
    assert words in f"{caught.value.problem} {caught.value.hint}"
    assert caught.value.problem.startswith("modality is ")


def test_pictures_tell_no_modality(tmp_path: Path) -> None:
    import numpy as np
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for kind in ("images", "labels"):
            (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
            most = 255 if kind == "images" else 2
            picture = sitk.GetImageFromArray(rng.integers(0, most, (40, 48)).astype(np.uint8))
            sitk.WriteImage(picture, str(tmp_path / "photos" / kind / f"{name}.png"))
    run("plan", tmp_path / "photos", *TINY, "-w", tmp_path / "w")
    assert read_dataset(tmp_path / "photos").channel_names == ("image",)
