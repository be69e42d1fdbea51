"""What `verify` warns of is shown once by the command that plans, and counted afterwards."""

import json
from pathlib import Path

import pytest
from commands import run, told

from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four cases of CT, the first with slices as if 30 times as thick."""
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path, name=NAME, cases=4, seed=0, options=options)
    image = min((tmp_path / NAME / "imagesTr").iterdir())
    label = min((tmp_path / NAME / "labelsTr").iterdir())
    for path, read, write in ((image, read_image, write_image), (label, read_label, write_label)):
        volume = read([path] if read is read_image else path)
        grid = volume.geometry.replace(spacing_mm=(240.0, 6.0, 6.0))
        write(path, volume.array if read is read_image else volume.array[0], grid)
    return tmp_path


def test_warnings_are_shown_by_the_first_plan_and_counted_by_the_next(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = ("-w", folder / "ws")
    found = run("plan", folder / NAME, "--preset", "tiny", *place)
    assert "along z about 30 times" in caplog.text
    (warning,) = found["warnings"]  # type: ignore[misc]
    assert warning["code"] == "spacing"
    plan = Plan.load(folder / "ws" / NAME / "plan.json")
    assert plan.seen is not None
    assert plan.seen.cases == 4
    assert plan.digest() == plan.replace(seen=None).digest()
    caplog.clear()
    told("plan", NAME, *place)
    assert "1 warning of 'verify'" in caplog.text
    assert "along z" not in caplog.text


def test_a_note_that_was_mended_is_not_told_again(folder: Path) -> None:
    place = ("-w", folder / "ws")
    source = folder / NAME

    def codes() -> set[object]:
        found = run("verify", source, *place)["findings"]
        return {each["code"] for each in found} - {"spacing"}  # type: ignore[attr-defined]

    assert codes() == set()
    description = (source / "dataset.json").read_text()
    image = min((source / "imagesTr").iterdir())
    extra = image.with_name(image.name.replace(".nii.gz", ".nrrd"))
    for change, mend, code in (
        (
            lambda: (source / "dataset.json").write_text(
                json.dumps({**json.loads(description), "numTraining": 77})
            ),
            lambda: (source / "dataset.json").write_text(description),
            "num_training",
        ),
        (lambda: extra.write_bytes(image.read_bytes()), extra.unlink, "extra_file"),
    ):
        change()
        assert codes() == {code}
        mend()
        assert codes() == set()


@pytest.mark.parametrize(
    "where", ["imagesTr", "labelsTr", "../ws/{name}", "../nnUNet_preprocessed/{name}"]
)
def test_splits_in_a_wrong_place_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    source = folder / NAME
    wrong = source / where.format(name=NAME) / "splits_final.json"
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.write_text("[]")
    told("plan", source, "--preset", "tiny", "-w", folder / "ws")
    (warning,) = [each for each in caplog.messages if "splits_final.json" in each]
    assert f"is not used: splits are read from {source / 'splits_final.json'}" in warning
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.gz"))
    splits = [{"train": cases[1:], "val": cases[:1]}]
    (source / "splits_final.json").write_text(json.dumps(splits))
    caplog.clear()
    told("plan", source, "-w", folder / "ws")
    assert [each for each in caplog.messages if "splits_final.json" in each] == []
