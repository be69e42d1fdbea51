"""What `train` says at its end, and the command it names next."""

import shlex
from pathlib import Path

import pytest
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.errors import OptionError
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
SHORT = ("--epochs", 1, "--iterations", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = PhantomOptions(contrast="CT", shape_zyx=(8, 32, 32), spacing_mm=(9.0, 6.0, 6.0))
    folder = tmp_path_factory.mktemp("data")
    return write_phantom_dataset(folder, name=NAME, cases=2, seed=1, options=options)


def shown(*words: object) -> list[str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stdout.splitlines()
    assert max(map(len, (line for line in lines if not line.startswith(("Folds", "Next"))))) <= 80
    return lines


def test_a_training_ends_with_the_dice_of_labels_and_what_is_next(
    data: Path, tmp_path: Path
) -> None:
    place = tmp_path / "my workspace"
    work = ("-w", place)
    train = ("train", data, "2d", *SHORT, "--preset", "tiny")
    lines = shown(*train, "--fold", 0, *work)
    header = next(line for line in lines if line.startswith("Dice")).split()
    assert header == ["Dice", "fold", "0", "mean", "of", "1"]
    assert {line.split()[0] for line in lines if line} >= {"liver", "spleen", "mean", "held-out"}
    quoted = shlex.quote(str(place))
    assert lines[-1] == f"Next: autoliver train {NAME} 2d --fold 1 -w {quoted}"

    done = run("train", NAME, "2d", "--fold", 1, *work)
    assert done["next"] == f"autoliver select {NAME} -w {quoted}"
    (fold,) = done["folds"]  # type: ignore[misc]
    assert fold["labels"].keys() >= {"liver", "spleen"}
    both = shown("train", NAME, "2d", *work)
    values = next(line for line in both if line.startswith("liver")).split()[1:]
    assert float(values[2]) == pytest.approx((float(values[0]) + float(values[1])) / 2, abs=2e-3)

    lines = shown("train", NAME, "2d", "--fold", "all", *work)
    assert any("no case is held out" in line for line in lines)
    assert lines[-1].startswith(f"Next: autoliver predict -i IN -o OUT -m {NAME}/2d --folds all")


def test_a_comparison_ends_with_the_gain_of_each_label(data: Path, tmp_path: Path) -> None:
    work = ("-w", tmp_path / "w")
    run("train", data, "2d", *SHORT, "--preset", "tiny", "--fold", "all", *work)
    other = data.with_name("Dataset002_Other")
    if not other.exists():
        other.symlink_to(data)
    compared = ("--pretrained", "Phantom", "--compare-scratch", "--fold", 0, *SHORT)
    lines = shown("train", other, "2d", *compared, *work)
    rows = lines[next(n for n, line in enumerate(lines) if "difference" in line) :]
    assert rows[0].split() == ["Dice", "transferred", "from", "scratch", "difference"]
    liver = next(line.split() for line in rows if line.startswith("liver"))
    assert float(liver[3]) == pytest.approx(float(liver[1]) - float(liver[2]), abs=2e-3)
    assert lines[-1].startswith(
        "Next: autoliver train Dataset002_Other 2d --fold 1 --pretrained Phantom --compare-scratch"
    )


def test_a_preset_is_for_a_dataset_without_a_plan(data: Path, tmp_path: Path) -> None:
    work = ("-w", tmp_path / "w")
    first = ("train", data, "2d", *SHORT, "--fold", 0)
    run(*first, "--preset", "tiny", *work)
    run(*first, "--preset", "tiny", *work)  # the same again is no contradiction
    with pytest.raises(OptionError, match="already planned with the preset tiny") as caught:
        run(*first, "--preset", "M", *work)
    assert f"autoliver plan {NAME} --preset M -w" in caught.value.hint
    with pytest.raises(OptionError, match="preset is 'huge'; it must be one of default, M"):
        autoliver.train(data, "2d", preset="huge", workspace=tmp_path / "w")
    for other in ("--pretrained", "--like"):
        with pytest.raises(OptionError, match=f"--preset tiny and {other} contradict"):
            run(*first, "--preset", "tiny", other, "X", *work)


def test_the_schedule_is_said_once(data: Path, tmp_path: Path) -> None:
    words = ["train", data, "2d", *SHORT, "--preset", "tiny", "--fold", 0, "-w", tmp_path / "w"]
    told = [CliRunner().invoke(app, [*map(str, words)]).stderr for _ in range(2)]
    assert [text.count("--schedule short") for text in told] == [1, 0]
