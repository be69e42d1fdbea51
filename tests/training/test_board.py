import importlib.util
from pathlib import Path

import pytest

from autoliver.errors import OptionError
from autoliver.training.board import Board, _scalars, check_tensorboard
from autoliver.training.progress import EpochLog, FurtherScores

INSTALLED = importlib.util.find_spec("tensorboard") is not None


def log(epoch: int, dice: float) -> EpochLog:
    return EpochLog(
        epoch=epoch,
        step=epoch + 1,
        learning_rate=0.01,
        train_loss=-dice,
        train_dice=dice,
        validation_dice=(dice, None),
        seconds=1.0,
        data_wait=0.0,
    )


@pytest.mark.skipif(INSTALLED, reason="TensorBoard is installed")
def test_without_tensorboard_the_extra_is_named() -> None:
    with pytest.raises(OptionError, match="--tensorboard") as caught:
        check_tensorboard()
    assert "autoliver[tensorboard]" in caught.value.hint


def test_nothing_is_written_without_an_epoch(tmp_path: Path) -> None:
    Board(tmp_path / "board", ("liver",)).close()
    assert not (tmp_path / "board").exists()


def test_scores_besides_dice_are_shown_under_their_names() -> None:
    scores = FurtherScores(train={"share": 0.25}, validation={"share": 0.5})
    plain, own = (dict(_scalars(each, ("liver",))) for each in (log(0, 0.3), with_scores(scores)))
    assert own == {**plain, "share/training": 0.25, "share/held_out_patches": 0.5}
    assert "share/training" not in plain


def with_scores(scores: FurtherScores) -> EpochLog:
    return log(0, 0.3).replace(scores=scores)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra 'tensorboard'")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_epochs_are_read_back_and_those_of_a_killed_training_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    check_tensorboard()
    for epochs in (range(4), range(2, 6)):
        board = Board(tmp_path, ("liver", "tumour"))
        for epoch in epochs:
            board.add(log(epoch, epoch / 10 + (0.01 if epochs[0] else 0.0)))
        board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(e.step, round(e.value, 5)) for e in events.Scalars("dice/held_out_patches")]
    assert found == [(0, 0.0), (1, 0.1), (2, 0.21), (3, 0.31), (4, 0.41), (5, 0.51)]
    tags = events.Tags()["scalars"]
    assert "dice_of_held_out_patches/liver" in tags
    assert "dice_of_held_out_patches/tumour" not in tags
