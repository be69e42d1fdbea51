"""What users are told is whole and true: commands with what was given, and options by name."""

import logging
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import AutoliverError, OptionError
from autoliver.inference.record import DecidingOptions, Prediction
from autoliver.pipeline.pseudo import pseudolabel
from autoliver.pipeline.pseudo.request import PseudolabelRequest
from autoliver.pipeline.status import run_status
from autoliver.pipeline.translation.fit import _seen
from autoliver.shards import Shard, Sharded
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.synthesis.translation.options import IDLE, TranslationOptions, refuse_idle
from autoliver.system import say_if_slow
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import add_to_log, failure_line, failure_of
from autoliver.workspace import RunFolder

NAME = "Dataset007_Toy"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    options = PhantomOptions(shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(folder, name=NAME, cases=2, seed=0, options=options)
    return folder


@pytest.mark.parametrize(
    ("words", "variable", "shown"),
    [
        (["--shard", "7/9", "-w", "ws"], None, ["D", "-w", "ws"]),
        (["--shard=7/9", "--workspace=ws"], None, ["D", "--workspace=ws"]),
        (["--shard", "7/9", "--preset", "tiny"], "ws", ["D", "--preset", "tiny", "-w", "ws"]),
        (["--shard", "7/9", "-w", "ws"], "other", ["D", "-w", "ws"]),
    ],
)
def test_a_shard_ends_with_the_command_of_its_workspace(
    place: Path,
    words: list[str],
    variable: str | None,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    if variable is None:
        monkeypatch.delenv("AUTOLIVER_WORKSPACE", raising=False)
    else:
        monkeypatch.setenv("AUTOLIVER_WORKSPACE", variable)
    done = CliRunner().invoke(app, ["plan", NAME, *words])
    assert done.exit_code == 0, done.output
    told = shlex.split(done.stdout.strip().partition("When all 9 have ended: ")[2])
    assert told == ["autoliver", "plan", *(NAME if word == "D" else word for word in shown)]
    assert "of 2 cases no more than 2 shards" in done.stdout


@pytest.mark.parametrize(
    ("count", "of", "cases", "text"),
    [
        (9, 4, (), "Shard 7/9: it has no case, since of 4 cases no more than 4 shards can"),
        (9, 20, (), "Shard 7/9: none of 20 cases is left for it."),
        (9, 20, ("a",), "Shard 7/9: 1 case of 20 done."),
    ],
)
def test_a_shard_says_why_it_has_no_case(
    count: int, of: int, cases: tuple[str, ...], text: str
) -> None:
    shard = Shard(number=7, count=count)
    assert str(Sharded(shard=shard, cases=cases, new=len(cases), of=of)).startswith(text)


@pytest.mark.parametrize(
    ("hint", "helping"),
    [
        ("Look at the case.", ()),
        ("Give the same command with --fresh.", ("--fresh",)),
        ("The same command with --fresh and --lr 0.001. If not, ...", ("--fresh", "--lr", "0.001")),
        ("Start over with --lr 5e-05, and --fresh.", ("--fresh", "--lr", "5e-05")),
    ],
)
def test_a_log_says_what_helps(hint: str, helping: tuple[str, ...]) -> None:
    line = failure_line(AutoliverError("it failed.", hint=hint))
    assert "\n" not in line
    assert failure_of(line) == ("it failed.", helping)
    assert failure_of("epoch 1/2") == ("", ())


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (["fold_0"], "--fold 0 --epochs 7 --batch-size 3 --fresh --lr 0.001"),
        # The folds of a run have the same options: another one keeps those of the others.
        (["fold_0", "fold_1"], "--fold 0 --epochs 7 --batch-size 3 --tag NAME --lr 0.001"),
    ],
)
def test_status_does_not_repeat_what_diverges(tmp_path: Path, begun: list[str], words: str) -> None:
    run = RunFolder(tmp_path / "ws" / NAME / "runs" / "2d")
    for name in begun:
        (run.path / name).mkdir(parents=True)
    options = TrainingOptions(made_from={}, epochs=7, batch_size=3, lr=0.5)
    options.save(run.options)
    log = run.fold(0) / "train.log"
    error = AutoliverError("the loss is not finite.", hint="Give --fresh and --lr 0.001.")
    add_to_log(log, failure_line(error))
    status = next(run_status(run, []))
    assert (status.state, status.problem) == ("failed", "the loss is not finite.")
    start = f"autoliver train {NAME} 2d "
    assert status.command.startswith(start)
    told = status.command.removeprefix(start).replace(f" -w {tmp_path / 'ws'}", "")
    assert told == words


@pytest.mark.parametrize(
    ("model", "option"), [(model, name) for model, names in IDLE.items() for name in names]
)
def test_options_that_do_nothing_are_refused(model: Any, option: str) -> None:
    given: Any = {option: 0.25 if option in ("lr", "cycle", "contrast") else 3}
    if option in ("segmentation", "identity"):
        given = {option: 0.25}
    with pytest.raises(OptionError, match=f"does nothing for --model {model}"):
        refuse_idle(TranslationOptions(model=model, **given))
    usual = TranslationOptions(model=model)
    refuse_idle(usual)
    refuse_idle(usual.settled((32, 32)))


def test_cases_of_a_held_out_patient_are_not_seen(caplog: pytest.LogCaptureFixture) -> None:
    cases = [SimpleNamespace(name=n, patient=p) for n, p in (("a", "1"), ("b", "1"), ("c", "2"))]
    dataset: Any = SimpleNamespace(cases=cases)
    with caplog.at_level(logging.WARNING):
        assert [case.name for case in _seen(dataset, ["a"])] == ["c"]
    assert "1 further case of the same patients: not seen either: b." in caplog.text
    assert [case.name for case in _seen(dataset, ["c"])] == ["a", "b"]
    with pytest.raises(OptionError, match="or their patients"):
        _seen(dataset, ["a", "c"])


def test_pseudolabels_are_recorded_with_what_finds_the_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = DecidingOptions(
        step=0.5, mirror=True, folds=None, roi=None, modality=None, exact=False
    )
    record = Prediction(model="m", networks=(), cleaning=(), options=chosen)
    digest = ["one"]
    monkeypatch.setattr("autoliver.inference.record.describe", lambda *_, **__: record)
    monkeypatch.setattr("autoliver.pipeline.prediction.predict", lambda *_: None)
    monkeypatch.setattr(pseudolabel, "home_of", lambda _: None)
    monkeypatch.setattr(
        pseudolabel,
        "find_finders",
        lambda *_: (SimpleNamespace(name="coarse", digest=digest[0]),),
    )
    dataset: Any = SimpleNamespace(cases=[], name=NAME)
    files: Any = None
    pseudolabel._predict(files, dataset, [], tmp_path / "p", PseudolabelRequest())
    assert Prediction.load(tmp_path / "p/predict.json").finders == {"coarse": "one"}
    digest[0] = "two"
    with pytest.raises(OptionError, match="--roi-from coarse, as it was then"):
        pseudolabel._predict(files, dataset, [], tmp_path / "p", PseudolabelRequest())


def test_what_takes_longer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    say_if_slow("fast", seconds=5).cancel()
    waiting = say_if_slow("saving ...", seconds=0.0)
    waiting.join(10)
    assert capsys.readouterr().err == "saving ...\n"
