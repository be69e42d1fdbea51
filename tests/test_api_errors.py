"""Values that cannot be, given to the library and to the commands: each is named, nothing is done.

No dataset or model of the calls exists, so that a value that is looked at too late shows: the error
would be about what does not exist.
"""

import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from command_lines import COMMANDS as ALL_COMMANDS

import autoliver
from autoliver.cli.main import run
from autoliver.errors import AutoliverError, OptionError, WrongValue
from autoliver.values import check_number, check_whole

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Bad:
    """A call with one wrong value.

    Attributes:
        function: Of the library.
        wrong: Its argument.
        value: What is given.
        words: What the message or its hint must say besides.
        command: The same for the command line; None: it cannot be said there.
        more: Other arguments.
    """

    function: str
    wrong: str
    value: Any
    words: str = ""
    command: tuple[str, ...] | None = None
    more: dict[str, Any] = field(default_factory=dict)


def bad(function: str, wrong: str, value: Any, words: str = "", **more: Any) -> Bad:
    return Bad(function, wrong, value, words, more=more)


def both(function: str, wrong: str, value: Any, *command: str, words: str = "", **more: Any) -> Bad:
    """A call whose value the command line can say as well."""
    return Bad(function, wrong, value, words, command, more)


CALLS = [
    # plan
    both("plan", "preset", "big", "--preset", "big", words="default, M, L, XL, tiny"),
    bad("plan", "preset", "tinny", "Did you mean tiny"),
    bad("plan", "preset", 3),
    both("plan", "preset", "", "--preset", ""),
    both("plan", "vram", 0, "--vram", "0"),
    both("plan", "vram", -8, "--vram", "-8"),
    both("plan", "vram", NAN, "--vram", "nan"),
    both("plan", "vram", INF, "--vram", "inf"),
    both("plan", "vram", "8 GB", "--vram", "8 GB", words="a number"),
    both("plan", "spacing", (1, 0, 1), "--spacing", "1", "0", "1"),
    both("plan", "spacing", (1, NAN, 1), "--spacing", "1", "nan", "1"),
    bad("plan", "spacing", (1, 1), "3 numbers"),
    bad("plan", "spacing", 1.0, "3 numbers"),
    bad("plan", "spacing", "1 1 1"),
    bad("plan", "spacing", ()),
    both("plan", "window", (5, 5), "--window", "5", "5"),
    both("plan", "window", (250, -150), "--window", "250", "-150"),
    both("plan", "window", (-INF, 250), "--window", "-inf", "250"),
    bad("plan", "window", (1, 2, 3), "2 numbers"),
    bad("plan", "batch_cap", "no"),
    both("plan", "modality", "PET", "--modality", "PET", words="CT, MR, other"),
    bad("plan", "modality", 3, "CT, MR, other"),
    both("plan", "like", "", "--like", ""),
    both("plan", "like_spacing", "own", "--like", "A", "--like-spacing", "own", like="A"),
    both("plan", "like_spacing", "target", "--like-spacing", "target", words="like SOURCE"),
    bad("plan", "like_spacing", "fixed", "spacing", like="A"),
    bad("plan", "spacing", "sources", "Did you mean source", like="A"),
    both("plan", "preset", "M", "--like", "A", "--preset", "M", words="like A", like="A"),
    both("plan", "workers", -1, "--workers", "-1"),
    both("plan", "workers", 1.5, "--workers", "1.5"),
    both("plan", "memory_gb", 0, "--memory-gb", "0"),
    both("plan", "memory_gb", NAN, "--memory-gb", "nan"),
    both("plan", "memory_gb", INF, "--memory-gb", "inf"),
    bad("plan", "prest", "tiny", "Did you mean preset"),
    bad("plan", "dataset", None),
    bad("plan", "dataset", ""),
    bad("plan", "workspace", None),
    # train
    both("train", "configuration", "3d_fulres", words="3d_fullres"),
    bad("train", "configuration", None),
    both("train", "folds", "first", "--fold", "first", words="0..4, all, cv"),
    both("train", "folds", -1, "--fold", "-1"),
    both("train", "folds", "", "--fold", ""),
    bad("train", "folds", 1.5),
    bad("train", "folds", None),
    bad("train", "folds", [0, True]),
    both("train", "epochs", 0, "--epochs", "0", words="at least 1"),
    both("train", "epochs", "many", "--epochs", "many", words="a whole number"),
    bad("train", "epochs", 2.5),
    both("train", "epochs", 10**30, "--epochs", str(10**30)),
    both("train", "iterations", -1, "--iterations", "-1"),
    both("train", "batch_size", 0, "--batch-size", "0"),
    both("train", "batch_size", "4x", "--batch-size", "4x"),
    both("train", "lr", NAN, "--lr", "nan"),
    both("train", "lr", 0, "--lr", "0"),
    both("train", "hours", INF, "--hours", "inf"),
    both("train", "loss", "dice_topkk", "--loss", "dice_topkk", words="dice-topk"),
    both("train", "schedule", "finetun", "--schedule", "finetun", words="finetune"),
    both("train", "optimiser", "adam", "--optimiser", "adam"),
    both("train", "augment", "gim", "--augment", "gim", words="Did you mean gin"),
    bad("train", "augment", 5),
    both("train", "patch", "7x9", "--patch", "7x9"),
    bad("train", "patch", (0, 0)),
    bad("train", "patch", 96),
    both("train", "seed", -1, "--seed", "-1"),
    both("train", "seed", 2**70, "--seed", str(2**70)),
    both("train", "extend", 0, "--extend", "0"),
    both("train", "device", "warp", "--device", "warp"),
    both("train", "device", "cudaa", "--device", "cudaa", words="Did you mean cuda"),
    bad("train", "device", None),
    both("train", "gpus", "a", "--gpus", "a"),
    both("train", "jobs", 0, "--jobs", "0"),
    both("train", "cache", "rom", "--cache", "rom", words="ram"),
    both("train", "tag", "a/b", "--tag", "a/b"),
    both("train", "pretrained", "", "--pretrained", ""),
    bad("train", "fresh", "no"),
    bad("train", "mirror", "yes"),
    bad("train", "epoch", 3, "Did you mean epochs"),
    # select
    bad("select", "runs", [None]),
    bad("select", "runs", 3),
    both("select", "runs", ""),
    both("select", "device", "gpu:0", "--device", "gpu:0"),
    both("select", "memory_gb", -2, "--memory-gb", "-2"),
    bad("select", "run", "2d", "Did you mean runs"),
    # predict
    both("predict", "step", 0, "--step", "0", words="0.1"),
    both("predict", "step", 2, "--step", "2"),
    both("predict", "step", NAN, "--step", "nan"),
    both("predict", "step", "half", "--step", "half"),
    bad("predict", "step", None),
    bad("predict", "mirror", 1),
    bad("predict", "exact", "yes"),
    both("predict", "modality", "PET", "--modality", "PET", words="auto, CT, MR"),
    bad("predict", "modality", "mrr", "Did you mean MR"),
    both("predict", "device", "tpu", "--device", "tpu"),
    both("predict", "folds", "x", "--folds", "x"),
    bad("predict", "folds", [], "no fold"),
    both("predict", "model", "", "-m", ""),
    bad("predict", "models", [1]),
    both("predict", "roi", "", "--roi", ""),
    bad("predict", "source", None),
    bad("predict", "output", ""),
    both("predict", "memory_gb", 0, "--memory-gb", "0"),
    bad("predict", "stepp", 0.5, "Did you mean step"),
    # load_model
    bad("load_model", "step", 0),
    bad("load_model", "modality", 5),
    bad("load_model", "device", "cpuu", "Did you mean cpu"),
    bad("load_model", "folds", 1.5),
    bad("load_model", "model", 3),
    bad("load_model", "probabilities", True, "no option 'probabilities'"),
    bad("load_model", "workspace", 5),
    # evaluate
    both("evaluate", "metrics", "dise", "--metrics", "dise", words="Did you mean dice"),
    bad("evaluate", "metrics", [1]),
    both("evaluate", "metrics", "", "--metrics", ""),
    bad("evaluate", "chaos", "x"),
    both("evaluate", "dataset", "", "-d", ""),
    bad("evaluate", "prediction", None),
    bad("evaluate", "reference", ""),
    bad("evaluate", "overwrite", None),
    both("evaluate", "workers", -3, "--workers", "-3"),
    bad("evaluate", "limits", 3),
    # convert
    bad("convert", "kind", "camu", "Did you mean camus"),
    bad("convert", "kind", None),
    bad("convert", "source", ""),
    bad("convert", "output", 3),
    bad("convert", "part", 3),
    # mend
    both("mend", "values", ["x"], "--value", "x"),
    bad("mend", "leave_out", "yes"),
    bad("mend", "output", ""),
    # adopt
    both("adopt", "modality", "PET", "--modality", "PET", words="CT, MR, other"),
    both("adopt", "like", "", "--like", ""),
    bad("adopt", "link", "yes"),
    bad("pool", "add", ["A"]),
    bad("pseudolabel", "labels", ""),
    bad("pseudolabel", "min_confidence", 2),
    bad("pseudolabel", "volume", (5, 1)),
    bad("pseudolabel", "band", (0.6, 0.7)),
    bad("pseudolabel", "largest", "yes"),
    bad("pseudolabel", "output", ""),
    bad("pseudolabel", "model", ""),
    bad("pool", "add", ["A:liver=rael", "B"], "Did you mean real"),
    bad("pool", "drop_duplicates", "yes"),
    bad("pool", "inside", "tumour"),
    bad("pool", "output", ""),
    both("report", "output", "", "--output", ""),
    bad("report", "dataset", 3),
    bad("report", "images", "in", "prediction"),
    bad("report", "workers", -1),
    bad("adopt", "images", None),
    bad("adopt", "corrected", 3),
    bad("adopt", "output", ""),
    bad("adopt", "modalty", "MR", "Did you mean modality"),
    # export, import and verify
    both("export", "format", "onnx", "--format", "onnx"),
    both("export", "folds", "x", "--folds", "x"),
    bad("export", "target", None),
    both("import_model", "name", "a/b", "--name", "a/b"),
    bad("import_model", "source", ""),
    bad("verify", "dataset", 7),
    both("verify", "memory_gb", NAN, "--memory-gb", "nan"),
    # clean
    bad("clean", "dataset", 7),
    bad("clean", "yes", "x"),
    bad("clean", "yess", True, "Did you mean yes"),
    bad("clean", "workspace", None),
    # spellings of the same argument, and misspelt ones
    bad("plan", "fresh", "no"),
    bad("plan", "windw", (0, 1), "Did you mean window"),
    bad("train", "fold", 0, "same argument", folds=[0, 1]),
    bad("predict", "model", "A", "same argument", models="B"),
    bad("predict", "models", {"A": 1}),
    bad("predict", "window", (0, 1), "no option"),
    bad("load_model", "model", ["A", "B"]),
]  # fmt: skip

# What each function must be given, and what the same is for its command.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plan": {"dataset": "Nothing"},
    "train": {"dataset": "Nothing", "configuration": "2d"},
    "select": {"dataset": "Nothing"},
    "predict": {"source": "in", "output": "out"},
    "load_model": {},
    "evaluate": {"prediction": "pred", "reference": "ref"},
    "convert": {"kind": "camus", "source": "in", "output": "out"},
    "adopt": {"images": "in", "corrected": "corrected", "output": "out"},
    "pseudolabel": {"dataset": "Nothing", "output": "out", "model": "M"},
    "pool": {"output": "out", "add": ["A", "B"]},
    "report": {},
    "export": {"model": "Nothing", "target": "out.autoliver"},
    "import_model": {"source": "nothing.autoliver"},
    "clean": {},
    "verify": {"dataset": "Nothing"},
    "mend": {"dataset": "Nothing", "output": "out"},
}
COMMANDS: dict[str, list[str]] = {
    "plan": ["plan", "Nothing"],
    "train": ["train", "Nothing", "2d"],
    "select": ["select", "Nothing"],
    "predict": ["predict", "-i", "in", "-o", "out"],
    "evaluate": ["evaluate", "-p", "pred", "-r", "ref"],
    "convert": ["convert", "camus", "in", "out"],
    "adopt": ["adopt", "-i", "in", "-p", "corrected", "out"],
    "pseudolabel": ["pseudolabel", "Nothing", "out", "-m", "M"],
    "pool": ["pool", "out", "--add", "A", "--add", "B"],
    "report": ["report", "Nothing"],
    "export": ["export", "Nothing", "out.autoliver"],
    "import_model": ["import", "nothing.autoliver"],
    "verify": ["verify", "Nothing"],
    "mend": ["verify", "Nothing", "--fix", "out"],
}


def name_of(call: Bad) -> str:
    return f"{call.function}({call.wrong}={call.value!r})"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with a folder as workspace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    return tmp_path


def test_there_are_enough_calls() -> None:
    assert len(CALLS) >= 60
    assert len({name_of(call) for call in CALLS}) == len(CALLS)


@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_the_library_names_the_argument_before_it_does_anything(call: Bad, empty: Path) -> None:
    arguments = {**ARGUMENTS[call.function], "workspace": empty / "w", **call.more}
    with pytest.raises(AutoliverError) as caught:
        getattr(autoliver, call.function)(**{**arguments, call.wrong: call.value})
    problem, text = caught.value.problem, str(caught.value)
    # Said of fold and folds, model and models alike.
    assert re.search(rf"(?<![a-z]){call.wrong.removesuffix('s')}s?(?![a-z])", problem), text
    assert "--" not in text or "autoliver " in text, "an option as the command line spells it"
    assert re.search(call.words, text), text
    assert sorted(path.name for path in empty.rglob("*")) == ["w"]
    assert caught.value.hint, "what to do is not said"


@pytest.mark.parametrize("call", [c for c in CALLS if c.command is not None], ids=name_of)
def test_the_command_says_it_without_a_traceback(
    call: Bad, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = list(COMMANDS[call.function])
    if not call.command:  # an argument instead of an option
        words = [*words[:2], str(call.value)]
    options = [*(call.command or ()), "-w", str(empty / "w")]
    monkeypatch.setattr(sys, "argv", ["autoliver", *words, *options])
    with pytest.raises(SystemExit) as caught:
        run()
    shown = capsys.readouterr()
    assert caught.value.code in (1, 2)
    assert shown.out == ""
    assert "Traceback" not in shown.err
    spelled = call.wrong.removesuffix("s").replace("_", "-")
    assert re.search(rf"(?<![a-z]){spelled}s?(?![a-z])", shown.err), shown.err
    if caught.value.code == 1:
        assert shown.err.startswith("Error: ")
    assert sorted(path.name for path in empty.rglob("*")) == ["w"]


def test_friendly_spellings_reach_the_lookup_of_the_dataset(empty: Path) -> None:
    def missing(function: str, **given: Any) -> None:
        arguments = {**ARGUMENTS[function], "workspace": empty / "w", **given}
        with pytest.raises(AutoliverError, match="Nothing"):
            getattr(autoliver, function)(**arguments)

    missing("plan", preset="Tiny", spacing=[2, 1, 1], window=(-150, 250), vram=8, workers=1)
    missing("plan", preset="xl", spacing=np.array([2.0, 1.0, 1.0]), vram=np.float32(8))
    missing("plan", like="Nothing", spacing="target")
    missing("plan", like="Nothing", spacing=(2, 1, 1))
    missing("train", folds="all")
    missing("train", folds=0)
    missing("train", folds="0,2")
    missing("train", fold="cv")
    missing("train", folds=np.int64(1), epochs=np.int64(3), gpus="", memory_gb=4)
    missing("train", folds=range(2), patch=[32, 32], lr=1, device="cpu")
    missing("select", runs="2d")
    missing("predict", model="Nothing", folds=0, roi="off")
    missing("predict", models=Path("Nothing"), folds=[0, 1])
    missing("predict", models=["Nothing"], folds="all", exact=True)
    missing("load_model", model="Nothing", folds=0, exact=True)
    missing("evaluate", dataset="Nothing", metrics="dice")
    missing("export", folds=[0], with_case_names=True)


def test_one_option_is_not_taken_under_two_names(empty: Path) -> None:
    with pytest.raises(AutoliverError, match="twice"):
        autoliver.plan("Nothing", workspace=empty / "w", vram=8, vram_gb=8)


@pytest.mark.parametrize("function", ARGUMENTS)
def test_calls_that_do_not_fit(function: str, tmp_path: Path) -> None:
    call = getattr(autoliver, function)
    needed = ARGUMENTS[function]
    with pytest.raises(OptionError, match="too many positional") as caught:
        call(*needed.values(), *range(9))
    assert caught.value.hint.startswith("Its arguments are ")
    if needed:
        first = next(iter(needed))
        with pytest.raises(OptionError, match=f"missing a required argument: '{first}'"):
            call(workspace=tmp_path)
        with pytest.raises(OptionError, match=f"multiple values for argument '{first}'"):
            call("x", **needed)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("plan", {"preset": "Tiny"}),
        ("plan", {"spacing": [3, 2, 2]}),
        ("plan", {"window": None, "spacing": None, "vram": None}),
        ("train", {"folds": "all"}),
        ("train", {"folds": 0}),
        ("train", {"folds": [0, 1]}),
        ("train", {"fold": "0,1"}),
        ("predict", {"models": "X"}),
        ("predict", {"model": "X"}),
        ("predict", {"model": ["X", "B"]}),
        ("predict", {"models": [Path("X")], "folds": 0}),
        ("load_model", {"model": "X", "folds": [0, 1]}),
        ("export", {"folds": "all"}),
        ("clean", {"dataset": Path("X")}),
    ],
)
def test_what_is_right_is_taken(function: str, options: dict[str, Any], tmp_path: Path) -> None:
    needed = {} if function in ("load_model", "clean") else ARGUMENTS[function]
    with pytest.raises(AutoliverError, match=r"'(Nothing|X)'"):  # only the names are unknown
        getattr(autoliver, function)(**needed, **options, workspace=tmp_path)


NUMBERS = [
    pytest.param(name, option, id=f"{name} {option.opts[0]}")
    for name, command in ALL_COMMANDS.items()
    for option in command.params
    if not {int, float}.isdisjoint((kind := option.type_descriptor.annotation, *get_args(kind)))
]
REQUIRED = {
    **COMMANDS,
    "preprocess": ["preprocess", "Nothing"],
    "import": COMMANDS["import_model"],
    "demo": ["demo"],
    "finish": ["finish", "Nothing", "2d"],
    "clean": ["clean", "Nothing"],
    "status": ["status"],
    "synthesize fit": ["synthesize", "fit", "--from", "A", "--to", "B", "-o", "N"],
    "synthesize apply": ["synthesize", "apply", "N", "OUT"],
}


def test_there_are_numbers_in_most_commands() -> None:
    assert len(NUMBERS) >= 25


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_a_number_that_no_option_takes_is_wrong_usage(
    name: str,
    option: Any,
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = {1: ["-1"], 2: ["5", "1"], 3: ["1", "-1", "1"]}[option.nargs]
    words = [*REQUIRED[name], option.opts[0], *wrong, "-w", str(empty / "w")]
    monkeypatch.setattr(sys, "argv", ["autoliver", *words])
    with pytest.raises(SystemExit) as caught:
        run()
    shown = capsys.readouterr()
    assert caught.value.code == 2, shown.err
    assert option.opts[0] in shown.err
    assert "must be" in shown.err or "expected" in shown.err
    assert sorted(path.name for path in empty.rglob("*")) == ["w"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--epochs", "0"), 2),
        (("--foreground", "2"), 2),
        (("--loss", "foo"), 2),
        (("--augment", "foo"), 2),
        (("--device", "foo"), 2),
        (("--gpus", "x"), 2),
        (("--patch", "0,1"), 2),
        (("--tag", "a/b"), 2),
        (("--fold", "x"), 2),
        (("--schedule", "foo"), 2),
        (("--epochs", "3"), 1),  # there is no such dataset
        (("--mirror", "--augment", "none"), 1),  # each of them is a value that the option takes
    ],
)
def test_exit_codes_tell_wrong_values_from_what_the_data_refuses(
    options: tuple[str, ...],
    code: int,
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*COMMANDS["train"], *options, "-w", str(empty / "w")]
    monkeypatch.setattr(sys, "argv", ["autoliver", *words])
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("check", "value", "hint"),
    [
        ({"least": 1}, 0, "The nearest value is 1."),
        ({"least": 1, "most": 9}, 10, "The nearest value is 9."),
        ({"least": 1}, 2.6, "The nearest value is 3."),
        ({"least": 1}, NAN, "Give a whole number."),
        ({"least": 1}, -INF, "The nearest value is 1."),
        ({"least": 1}, "two", "Give a whole number."),
        ({"least": 1}, True, "Give a whole number."),
    ],
)
def test_the_nearest_whole_number_is_proposed(
    check: dict[str, Any], value: object, hint: str
) -> None:
    with pytest.raises(WrongValue) as caught:
        check_whole("--epochs", value, **check)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("bounds", "value", "hint"),
    [
        ({"least": 0, "most": 1}, 2, "The nearest value is 1."),
        ({"least": 0, "most": 1}, -0.5, "The nearest value is 0."),
        ({"least": 0.1}, 0, "The nearest value is 0.1."),
        ({"least": 0.1}, INF, "Give a finite number of at least 0.1."),
        ({"least": 0, "most": 1}, NAN, "Give a number from 0 to 1."),
        ({"above": 0}, 0, "Give a finite number above 0."),
        ({"above": 0}, "x", "Give a finite number above 0."),
        ({"above": 0, "most": 1}, 0, "Give a finite number above 0 and at most 1."),
        ({"above": 0, "most": 1}, 1.5, "The nearest value is 1."),
        ({"above": 0, "most": 1}, NAN, "Give a finite number above 0 and at most 1."),
        ({"most": 1}, 1.5, "The nearest value is 1."),
        ({"most": 1}, NAN, "Give a finite number of at most 1."),
    ],
)
def test_the_nearest_number_is_proposed(bounds: dict[str, Any], value: object, hint: str) -> None:
    with pytest.raises(WrongValue) as caught:
        check_number("--lr", value, **bounds)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("function", "typed", "proposed"),
    [
        ("predict", "modeel", "models"),
        ("predict", "modesl", "models"),
        ("predict", "flods", "folds"),
        ("load_model", "modeel", "model"),
        ("export", "modeel", "model"),
        ("train", "fodl", "folds"),
        ("select", "run", "runs"),
        ("plan", "vram_bg", "vram"),
        ("plan", "spacing_m", "spacing"),
        ("evaluate", "subsets", "subset"),
        ("export", "case_name", "case_names"),
    ],
)
def test_the_documented_name_is_proposed(function: str, typed: str, proposed: str) -> None:
    with pytest.raises(OptionError, match="has no option") as caught:
        getattr(autoliver, function)(**ARGUMENTS[function], **{typed: "x"})
    assert caught.value.hint == f"Did you mean {proposed}?"
