import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from autoliver.cli.main import app, run
from autoliver.evaluation.results import ALL_METRICS
from autoliver.training.options import (
    FEW_CASES,
    FEW_EPOCHS,
    PRETRAINED_EPOCHS,
    SHORT_BELOW_STEPS,
    TrainingOptions,
)

COMMANDS = {
    *("demo", "verify", "plan", "preprocess", "train", "predict", "evaluate"),
    *("export", "import"),
}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run_in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of the `autoliver` script."""
    monkeypatch.setattr(sys, "argv", ["autoliver", *arguments])
    with pytest.raises(SystemExit) as caught:
        run()
    return caught.value.code, *capsys.readouterr()


def test_help_lists_the_commands() -> None:
    for option in ("-h", "--help"):
        result = invoke(option)
        assert result.exit_code == 0
        lines = result.stdout.partition("Commands:")[2].splitlines()
        assert {line.split()[0] for line in lines if line.strip()} >= COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_its_options(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "--verbose" in result.stdout


def test_the_help_names_all_metrics_and_the_defaults_of_train() -> None:
    words = " ".join(invoke("evaluate", "--help").stdout.split())
    listed = words.partition("Metric to compute: ")[2].partition(".")[0]
    assert tuple(listed.replace(" or ", ", ").split(", ")) == ALL_METRICS
    words = " ".join(invoke("train", "--help").stdout.split())
    epochs = f"with --pretrained {PRETRAINED_EPOCHS}, or {FEW_EPOCHS} for fewer than {FEW_CASES}"
    assert f"[default: {TrainingOptions().epochs}; {epochs} training cases; " in words
    assert f"short below {SHORT_BELOW_STEPS:,} steps" in words
    for name in ("iterations", "seed", "foreground", "loss", "augment", "encoder_factor"):
        line = words.partition(f" --{name.replace('_', '-')} ")[2].partition("]")[0]
        value = line.rpartition("[default: ")[2]
        default = getattr(TrainingOptions(), name)
        assert type(default)(value) == default


def test_the_version_is_that_of_the_package() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("autoliver 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("train", "LiTS", "2d", "--epoch", "3"), "--epochs"),
        (("train", "LiTS", "2d", "--fold", "x"), "'x' is not one of 0..4, all, cv"),
        (("train", "LiTS", "2d", "--epochs", "many"), "Invalid value for '--epochs'"),
        (("train", "LiTS"), "CONFIG"),
        (("predict", "-i", "in"), "--output"),
        (("predict", "-i", "in", "-o", "out", "--step", "2"), "--step"),
        (("predict", "-i", "in", "-o", "out", "--modality", "PET"), "'PET' is not one of"),
        (("plan", "--preset", "big"), "'big' is not one of"),
    ],
)
def test_misuse_exits_with_2_and_says_what_is_meant(arguments: tuple[str, ...], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_without_a_command_the_help_is_shown() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Commands:" in result.output


def test_a_problem_exits_with_1_and_two_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoliver", "plan", "LiTS", "-w", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    problem, hint = done.stderr.splitlines()
    assert problem.startswith("Error: There is no folder and no planned dataset 'LiTS'")
    assert hint.startswith("Hint: ")


def test_with_json_a_problem_is_one_object_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", "LiTS", "3d_fulres", "--json", "-w", str(tmp_path))
    code, out, err = run_in_process(monkeypatch, capsys, *arguments)
    assert code == 2
    assert json.loads(out) == {
        "error": "There is no configuration '3d_fulres'.",
        "hint": "Did you mean 3d_fullres?",
    }
    assert err.splitlines() == [
        "Error: There is no configuration '3d_fulres'.",
        "Hint: Did you mean 3d_fullres?",
    ]


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (("trian",), "Did you mean 'train'?", "autoliver --help"),
        (("train", "LiTS", "2d", "--epoch", "3"), "No such option: --epoch", "help train"),
        (("train", "LiTS"), "Missing argument 'CONFIG'", "help train"),
        (("predict", "-i", "in"), "Missing option '--output'", "help predict"),
        (("train", "LiTS", "2d", "--epochs", "1.5"), "'1.5'; it must be a whole number", "train"),
        (("train", "LiTS", "2d", "--lr", "x"), "'x'; it must be a number", "help train"),
        (("train", "LiTS", "2d", "--workers", "-1"), "'-1'; it must be at least 0", "help train"),
        (("predict", "-i", "a", "-o", "b", "--step", "7"), "it must be at most 1", "help predict"),
        (("train", "LiTS", "2d", "--fold", "x"), "'x' is not one of 0..4", "help train"),
        (("plan", "--preset", "big"), "'big' is not one of", "help plan"),
    ],
)
def test_with_json_misuse_is_one_object_on_stdout(
    arguments: tuple[str, ...],
    words: str,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run_in_process(monkeypatch, capsys, *arguments, "--json")
    assert code == 2
    found = json.loads(out)
    assert words in found["error"]
    assert hint in found["hint"]
    assert err.endswith(f"Error: {found['error']}\n")


def test_verify_tells_findings_as_one_object_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "Dataset001_Broken"
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(b"no image")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (source / "dataset.json").write_text(json.dumps(description))
    arguments = ("verify", str(source), "-w", str(tmp_path / "w"))
    code, out, _ = run_in_process(monkeypatch, capsys, *arguments, "--json")
    assert code == 1
    assert {finding["severity"] for finding in json.loads(out)["findings"]} == {"error"}
    code, _, err = run_in_process(monkeypatch, capsys, *arguments)
    assert code == 1
    assert "Error: The dataset has" in err


def test_the_workspace_can_come_from_the_environment(tmp_path: Path) -> None:
    where = {"AUTOLIVER_WORKSPACE": str(tmp_path / "mine")}
    result = CliRunner().invoke(app, ["plan", "LiTS"], env=where)
    assert f"workspace {tmp_path / 'mine'}" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        (["plan", "D", "--encoder", "EfficientNet-B0"], ""),
        (["plan", "D", "--arch=Omnia"], ""),
        (["plan", "D", "--arch", "Omnai"], "omnia"),
        (["plan", "D", "--encoder=efficientnetb0"], "efficientnet_b0"),
        (["train", "D", "2d", "--schedule", "Omnia"], ""),
        (["train", "D", "2d", "--sampler", "Modality_Balanced"], ""),
        (["train", "D", "2d", "--loss", "Dice_BCE"], ""),
        (["train", "D", "2d", "--optimiser", "NAdam"], ""),
        (["train", "D", "2d", "--schedule=omnai"], "omnia"),
        (["predict", "-i", "in", "-o", "out", "--modality", "MRI"], "MR"),
    ],
)
def test_listed_words_may_be_spelled_otherwise(
    words: list[str], choice: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [*words, "-w", str(tmp_path)])
    if choice:
        assert result.exit_code == 2
        assert f"Did you mean {choice}?" in " ".join(result.stderr.replace("│", " ").split())
    else:  # refused only since there is no such dataset
        assert "planned dataset 'D'" in str(result.exception)


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_says_how_to_go_on(as_json: bool, tmp_path: Path) -> None:
    process = subprocess.Popen(
        # A shell starts what runs in the background with Ctrl-C ignored, which children inherit.
        [
            *("env", "--default-signal=INT", sys.executable, "-m", "autoliver"),
            *("demo", "-o", str(tmp_path / "demo")),
            *(["--json"] if as_json else []),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(tmp_path.rglob("*.nii.gz")):  # it works for a minute at least
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    again = "Run the same command again to continue."
    assert err.endswith(f"Stopped. {again}\n")
    assert "Traceback" not in err
    assert not as_json or json.loads(out) == {"error": "Stopped.", "hint": again}


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_is_answered_while_modules_are_imported(as_json: bool, tmp_path: Path) -> None:
    # What is imported first by the command line stands still until the signal is there.
    (tmp_path / "typer.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise AssertionError\n"
    )
    words = ["convert", "camus", "in", "out", *(["--json"] if as_json else [])]
    start = (
        f"import sys, signal; sys.argv = ['autoliver', *{words!r}]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from autoliver.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    again = "Run the same command again to continue."
    assert (done.returncode, done.stderr) == (130, f"Stopped. {again}\n")
    assert not as_json or json.loads(done.stdout) == {"error": "Stopped.", "hint": again}


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 75)]
)
@pytest.mark.parametrize("place", ["callback", "handler"])
def test_a_stop_that_is_dropped_is_given_again(name: str, code: int, place: str) -> None:
    # Python drops what the callback of a weak reference raises, and libraries what they catch.
    start = (
        "import os, signal, time, typer, weakref\n"
        "from autoliver.cli import main, stop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Gone: ...\n"
        "def callback(_):\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "    time.sleep(0.01)\n"
        "main.app = typer.Typer()\n"
        "@main.app.command()\n"
        "def command():\n"
        "    gone = Gone()\n"
        f"    if {place!r} == 'callback':\n"
        "        reference = weakref.ref(gone, callback)\n"
        "        del gone\n"
        "    else:\n"
        "        try:\n"
        "            callback(None)\n"
        "        except BaseException:\n"
        "            pass\n"
        "    time.sleep(20)\n"
        "stop.stop_again()\n"
        "main.run()\n"
    )
    done = subprocess.run(
        ["env", f"--default-signal={name[3:]}", sys.executable, "-c", start],
        capture_output=True,
        text=True,
        timeout=15,
    )
    again = "Run the same command again to continue."
    assert (done.returncode, done.stderr) == (code, f"Stopped. {again}\n")


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 75)]
)
def test_a_stop_while_modules_are_imported_is_answered(
    name: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(20)\n"
    )
    start = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from autoliver.__main__ import main; main()"
    )
    done = subprocess.run(
        ["env", f"--default-signal={name[3:]}", sys.executable, "-c", start],
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert (done.returncode, done.stderr) == (
        code,
        "Stopped. Run the same command again to continue.\n",
    )


def test_a_request_to_start_again_after_the_work_is_done_changes_nothing() -> None:
    # What is held to the end is let go of when Python has forgotten its answers to signals.
    start = (
        "import builtins, os, signal, sys\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGUSR1):\n"
        "        kill(me, number)\n"
        "sys.argv = ['autoliver', '--version']\n"
        "import autoliver.__main__\n"
        "builtins.late = Late()\n"
        "autoliver.__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_heavy_is_loaded_before_a_command_runs() -> None:
    heavy = ("torch", "SimpleITK", "numpy", "scipy", "matplotlib", "skimage", "blosc2", "jinja2")
    script = (
        "import sys, autoliver.cli.main; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "which"),
    [
        (["predict", "-i", "in", "-o", ""], "--output"),
        (["predict", "-i", "in", "--output="], "--output"),
        (["predict", "-i", "", "-o", "out"], "--input"),
        (["plan", ""], "dataset"),
        (["train", "LiTS", "2d", "--pretrained", ""], "--pretrained"),
        (["train", "LiTS", "2d", "-w", ""], "--workspace"),
        (["evaluate", "-p", "a", "-r", "b", "-o", ""], "--output"),
        (["export", "LiTS", ""], "model or target"),
    ],
)
def test_what_is_empty_is_refused(
    arguments: list[str], which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"{which} is empty" in result.output
    assert list(tmp_path.iterdir()) == []
