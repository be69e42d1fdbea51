import json
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread

from autoliver.training.progress import (
    EpochLog,
    FurtherScores,
    add_to_log,
    draw_progress,
    epoch_line,
    read_progress,
    write_progress,
)


def make_log(epoch: int, **changes: object) -> EpochLog:
    fields: dict[str, object] = {
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "learning_rate": 0.01 / (epoch + 1),
        "train_loss": 1.0 - 0.1 * epoch,
        "train_dice": 0.1 * epoch,
        "validation_loss": 1.1 - 0.1 * epoch,
        "validation_dice": (0.5, None),
        "seconds": 1.5,
        "data_wait": 0.25,
    }
    return EpochLog(**fields | changes)  # type: ignore[arg-type]


LOGS = [make_log(0), make_log(1, skipped=("case_3",)), make_log(2, validation_dice=None)]


def test_logs_come_back_as_they_were_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    write_progress(path, LOGS)
    assert read_progress(path) == LOGS
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 2]
    write_progress(path, LOGS[:1])
    assert read_progress(path) == LOGS[:1]


def test_scores_besides_dice_are_in_the_file_where_there_are_any(tmp_path: Path) -> None:
    scores = FurtherScores(train={"a": 1.0, "b": None}, validation={"a": 0.75}, watched="a")
    path = tmp_path / "progress.jsonl"
    logs = [
        make_log(0),
        make_log(1, scores=scores),
        make_log(2, scores=scores.replace(watched=None)),
    ]
    write_progress(path, logs)
    assert read_progress(path) == logs
    plain, own, _ = (json.loads(line) for line in path.read_text().splitlines())
    assert list(plain) == [
        *("epoch", "step", "learning_rate", "train_loss", "train_dice"),
        *("validation_loss", "validation_dice", "seconds", "data_wait", "skipped"),
    ]
    assert own["scores"]["train"] == {"a": 1.0, "b": None}
    # What should rise: the watched score, else the mean Dice.
    assert [log.watched for log in logs] == [0.5, 0.75, 0.5]
    assert make_log(0, scores=scores.replace(validation={"a": -3.0})).watched == -3.0
    assert make_log(0, scores=scores, validation_dice=None, train_loss=2.0).watched == -2.0


def test_a_missing_log_has_no_epochs(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "progress.jsonl") == []


@pytest.mark.parametrize("cut", [1, 2, 30, 150])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "progress.jsonl"
    write_progress(path, LOGS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_progress(path) == (LOGS if cut == 1 else LOGS[:2])


def test_values_that_are_not_finite_are_written_as_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    write_progress(path, [make_log(0, validation_loss=float("nan"))])
    assert "NaN" not in path.read_text()
    assert read_progress(path)[0].validation_loss is None


def test_mean_dice_is_over_the_labels_that_occur() -> None:
    assert make_log(0, validation_dice=(0.2, None, 0.6)).mean_validation_dice == pytest.approx(0.4)
    assert make_log(0, validation_dice=(None, None)).mean_validation_dice is None
    assert make_log(0, validation_dice=None).mean_validation_dice is None


@pytest.mark.parametrize("known", [True, False])
def test_the_picture_shows_curves(tmp_path: Path, known: bool) -> None:
    path = tmp_path / "progress.png"
    nothing = {"train_loss": None, "train_dice": None, "validation_loss": None}
    logs = LOGS if known else [make_log(0, **nothing, validation_dice=None)]
    draw_progress(path, logs, title="Toy $a_{", names=("liver", "_a$b{"))
    image = imread(path)
    assert image.shape[:2] == (1000, 1000)
    colours = image[..., :3].reshape(-1, 3) @ np.array([1, 256, 65536])
    assert len(set(colours.tolist())) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["progress.png"]


def test_the_line_of_an_epoch_has_all_that_is_asked_of_a_log() -> None:
    line = epoch_line(make_log(2), ("liver", "liver\nand\rspleen"), epochs=7)
    assert line == (
        "epoch 3/7; training loss 0.8000; training Dice 0.200; held-out loss 0.9000; pseudo Dice "
        "liver 0.500, liver and spleen -; learning rate 0.00333; 1.5 s"
    )
    nothing = {"train_loss": None, "train_dice": None, "validation_dice": None}
    alone = epoch_line(make_log(0, **nothing), ("liver",), epochs=1)
    assert alone == "epoch 1/1; training loss -; training Dice -; learning rate 0.01; 1.5 s"


def test_lines_are_added_once_to_a_log_and_to_another_stream(tmp_path: Path) -> None:
    path, other = tmp_path / "fold_0/train.log", tmp_path / "other"
    add_to_log(path, "one")
    with path.open("a") as same, other.open("w") as stream:
        add_to_log(path, "two", also=same)
        add_to_log(path, "three", also=stream)
    stamped = [line.split(maxsplit=2) for line in path.read_text().splitlines()]
    assert [line[2] for line in stamped] == ["one", "two", "three"]
    assert all(len(day) == 10 and len(clock) == 8 for day, clock, _ in stamped)
    assert other.read_text().endswith(" three\n")
