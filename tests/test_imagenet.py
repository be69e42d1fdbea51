"""Training from ImageNet weights, by the commands, on phantoms at the smallest size."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import run, told
from published import resnet_state
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoliver.artifacts import file_sha256
from autoliver.errors import AutoliverError
from autoliver.networks.build import initialise
from autoliver.networks.efficientnet import EfficientNet
from autoliver.networks.encoders import full_spans, published_strides
from autoliver.pipeline.data import planned_dataset
from autoliver.pipeline.run.cascade import first_stage
from autoliver.pipeline.run.request import TrainRequest
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.workspace import Workspace

NAME, PLAIN = "Dataset001_Phantom", "Dataset002_Plain"
NONE = ("--epochs", 0)
FEW = ("--epochs", 1, "--iterations", 2, "--batch-size", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, one planned with an encoder, and a file of weights for it."""
    folder = tmp_path_factory.mktemp("imagenet")
    options = PhantomOptions(contrast="CT", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    for name in (NAME, PLAIN):
        write_phantom_dataset(folder / "data", name=name, cases=5, seed=1, options=options)
    torch.save({"state_dict": as_published()}, folder / "lite0.pth")
    lite = ("--preset", "tiny", "--encoder", "efficientnet_lite0")
    run("plan", folder / "data" / NAME, *lite, "-w", folder / "ws")
    run("plan", folder / "data" / PLAIN, "--preset", "tiny", "-w", folder / "ws")
    return folder


def as_published() -> dict[str, Tensor]:
    torch.manual_seed(3)
    network = EfficientNet(
        "efficientnet_lite0", 3, strides=published_strides(2), spans=full_spans(2)
    )
    initialise(network)
    for name, statistic in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            statistic.uniform_(0.5, 1.5)
    return network.state_dict() | {"classifier.weight": torch.zeros(1000, 1280)}


def train(place: Path, *options: object, config: str = "2d", fold: object = 0) -> Path:
    words = ("--pretrained", "imagenet", "--encoder-weights", place / "lite0.pth", *options)
    run("train", NAME, config, "--fold", fold, *words, "-w", place / "ws")
    tags = [options[i + 1] for i, word in enumerate(options) if word == "--tag"]
    name = f"{config}@imagenet" + (f"+{tags[0]}" if tags else "")
    return place / "ws" / NAME / "runs" / name / f"fold_{fold}"


def test_the_encoder_is_loaded_and_the_rest_drawn(place: Path) -> None:
    fold = train(place, *NONE, "--tag", "loaded")
    source, made = as_published(), load_file(fold / "weights.safetensors")
    for name, weight in source.items():
        if name == "conv_stem.weight":
            weight = weight.sum(1, keepdim=True)
        if name != "classifier.weight":
            assert torch.equal(made[f"encoder.{name}"], weight), name
    transfer = json.loads((fold.parent / "transfer.json").read_text())
    table = {each["name"]: each for each in transfer["table"]["weights"]}
    actions = {"encoder": {"loaded", "adapted"}, "front": {"reset"}, "decoder": {"reset"}}
    for part, expected in (actions | {"heads": {"reset"}}).items():
        assert {w["action"] for n, w in table.items() if n.startswith(f"{part}.")} == expected
    assert table["encoder.conv_stem.weight"]["how"] == "3 channels summed"
    assert transfer["table"]["ignored"] == ["classifier.weight"]
    assert not any(transfer["table"]["labels"].values())
    assert transfer["share"] == 1


def test_the_run_records_its_source(place: Path) -> None:
    fold = train(place, *NONE, "--tag", "loaded")
    digest = file_sha256(place / "lite0.pth")[:12]
    transfer = json.loads((fold.parent / "transfer.json").read_text())
    assert (transfer["source"], transfer["made_from"]["source"]) == ("imagenet", digest)
    assert str(place / "lite0.pth") in transfer["found"]
    assert digest in transfer["found"]
    options = json.loads((fold.parent / "options.json").read_text())
    assert options["pretrained"] == "imagenet"
    assert json.loads((fold / "model.json").read_text())["ancestors"] == [digest]


@pytest.mark.parametrize(("way", "kept"), [("mean", 1.0), ("center", 1.0), ("repeat", 3.0)])
def test_a_3d_network_gets_inflated_kernels(place: Path, way: str, kept: float) -> None:
    options = (*NONE, "--tag", way, "--inflate", way)
    made = load_file(train(place, *options, config="3d_fullres") / "weights.safetensors")
    flat = as_published()
    deep = made["encoder.blocks.6.0.conv_dw.weight"]
    assert deep.shape[2:] == (3, 3, 3)  # where slices are no longer thick
    expected = flat["blocks.6.0.conv_dw.weight"] * kept
    torch.testing.assert_close(deep.sum(2), expected)
    assert torch.equal(made["encoder.bn1.running_var"], flat["bn1.running_var"])


def test_a_frozen_encoder_keeps_weights_and_statistics(place: Path) -> None:
    fold = train(place, *FEW, "--tag", "frozen", "--freeze", "encoder")
    start = load_file(fold.parent / "start.safetensors")
    for name, weight in load_file(fold / "weights.safetensors").items():
        same = torch.equal(weight, start[name])
        assert same == name.startswith("encoder."), name


def test_the_encoders_rate_can_be_lower(place: Path) -> None:
    fold = train(place, *FEW, "--tag", "slow", "--encoder-factor", 1e-6)
    start = load_file(fold.parent / "start.safetensors")
    made = load_file(fold / "weights.safetensors")
    moved = {n: (made[n] - start[n]).abs().max().item() for n in start if n.endswith("conv.weight")}
    moved |= {n: (made[n] - start[n]).abs().max().item() for n in start if "conv_pw" in n}
    encoder = max(moved[n] for n in moved if n.startswith("encoder."))
    others = max(moved[n] for n in moved if not n.startswith("encoder."))
    assert 0 < encoder < others / 1000


def test_a_run_goes_on_when_its_file_is_gone(place: Path) -> None:
    fold = train(place, *FEW, "--tag", "moved")
    weights = file_sha256(fold / "weights.safetensors")
    (place / "lite0.pth").rename(place / "gone.pth")
    words = ("--pretrained", "imagenet", "--encoder-weights", place / "lite0.pth", "--tag", "moved")
    try:
        said = told("train", NAME, "2d", "--fold", "0,1", *words, "-w", place / "ws")
    finally:
        (place / "gone.pth").rename(place / "lite0.pth")
    assert "continues from imagenet, with which it was begun" in said
    assert file_sha256(fold / "weights.safetensors") == weights
    ancestors = json.loads((fold.parent / "fold_1/model.json").read_text())["ancestors"]
    assert ancestors == [file_sha256(place / "lite0.pth")[:12]]


@pytest.fixture(scope="module")
def begun(place: Path) -> Path:
    """The folder of a run with a finished fold."""
    return train(place, *FEW, "--tag", "begun").parent


def of_another_seed(path: Path) -> None:
    state = {name: w + 1 for name, w in as_published().items()}
    torch.save(state, path)


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize(
    ("write", "says"),
    [
        (of_another_seed, "was started with another source"),
        (lambda path: torch.save(resnet_state((2, 2, 2, 2), bottleneck=False), path), "resnet18"),
    ],
)
def test_a_run_refuses_another_file_than_it_began_with(
    place: Path, tmp_path: Path, write: Callable[[Path], None], says: str
) -> None:
    write(tmp_path / "other.pth")
    words = ("--encoder-weights", tmp_path / "other.pth", "--tag", "begun", "-w", place / "ws")
    with pytest.raises(AutoliverError, match=says) as caught:
        run("train", NAME, "2d", "--fold", 0, "--pretrained", "imagenet", *words)
    assert caught.value.hint
    if "another source" in says:
        assert "--fresh" in caught.value.hint
        assert "--tag" in caught.value.hint


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize(
    "write",
    [
        lambda _: None,
        lambda path: path.write_bytes(b"nothing"),
        lambda path: torch.save({"conv_stem.weight": Path("x")}, path),
    ],
    ids=["missing", "damaged", "harmful"],
)
def test_a_run_says_that_it_does_not_read_a_file_and_keeps_its_weights(
    place: Path, tmp_path: Path, write: Callable[[Path], object]
) -> None:
    file = tmp_path / "other.pth"
    write(file)
    words = ("--pretrained", "imagenet", "--encoder-weights", file, "--tag", "begun")
    said = told("train", NAME, "2d", "--fold", 0, *words, "-w", place / "ws")
    assert f"{file} is not read: the run keeps the weights it began with" in " ".join(said.split())
    following = str(run("train", NAME, "2d", "--fold", 0, *words, "-w", place / "ws")["next"])
    assert "--pretrained imagenet" in following
    assert "--encoder-weights" not in following


@pytest.mark.usefixtures("begun")
def test_the_next_command_repeats_a_file_with_the_weights_of_the_run(
    place: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes((place / "lite0.pth").read_bytes())
    words = ("--pretrained", "imagenet", "--encoder-weights", copy, "--tag", "begun")
    following = str(run("train", NAME, "2d", "--fold", 0, *words, "-w", place / "ws")["next"])
    assert f"--encoder-weights {copy}" in following


def test_a_twin_from_scratch_is_compared(place: Path) -> None:
    fold = train(place, *FEW, "--tag", "both", "--compare-scratch")
    twin = fold.parents[1] / "2d@imagenet+both-scratch/fold_0"
    assert json.loads((twin / "model.json").read_text())["ancestors"] == []
    shapes = [
        {n: w.shape for n, w in load_file(each / "weights.safetensors").items()}
        for each in (fold, twin)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("arch", "config", "stem", "others"),
    [
        ("omnia", "2d", "reset", {"loaded"}),
        ("dxnet", "3d_fullres", "reset", {"loaded", "adapted"}),
        ("dsnet", "3d_fullres", "loaded", {"loaded"}),  # three slices are its colours
    ],
)
def test_the_published_networks_take_what_fits(
    place: Path, tmp_path: Path, arch: str, config: str, stem: str, others: set[str]
) -> None:
    options = ("--preset", "tiny", "--arch", arch, "--encoder", "efficientnet_lite0")
    run("plan", place / "data" / NAME, *options, "-w", tmp_path)
    words = ("--pretrained", "imagenet", "--encoder-weights", place / "lite0.pth", *NONE)
    run("train", NAME, config, "--fold", "all", *words, "-w", tmp_path)
    transfer = json.loads((tmp_path / NAME / f"runs/{config}@imagenet/transfer.json").read_text())
    table = {each["name"]: each["action"] for each in transfer["table"]["weights"]}
    encoder = {name: action for name, action in table.items() if "encoder." in name}
    first = next(name for name in encoder if name.endswith("conv_stem.weight"))
    assert encoder.pop(first) == stem
    assert {*encoder.values()} == others
    assert {action for name, action in table.items() if "encoder." not in name} == {"reset"}
    assert ("conv_stem.weight" in transfer["table"]["ignored"]) == (stem == "reset")
    assert transfer["share"] > 0.99


@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("3d_lowres@imagenet+a", "a", "--tag a --pretrained imagenet --encoder-weights w.pth"),
        ("3d_lowres@imagenet", "a", "--pretrained imagenet --encoder-weights w.pth"),
        ("3d_lowres+a", "a", "--tag a"),
        ("3d_lowres", None, ""),
    ],
)
def test_the_hint_of_a_cascade_finishes_the_first_stage_that_is_found(
    place: Path, tmp_path: Path, name: str, tag: str | None, words: str
) -> None:
    ws = Path(shutil.copytree(place / "ws", tmp_path / "ws", ignore=lambda *_: ["runs"]))
    for file in ("model.json", "weights.safetensors"):
        (ws / NAME / "runs" / name / "fold_0").mkdir(parents=True, exist_ok=True)
        (ws / NAME / "runs" / name / "fold_0" / file).touch()
    own = planned_dataset(Workspace(ws), NAME)
    source = {"pretrained": "imagenet", "encoder_weights": "w.pth"}
    request = TrainRequest(configuration="3d_cascade", tag=tag, **source)
    with pytest.raises(AutoliverError, match="held out by none") as caught:
        first_stage(replace(own, source="imagenet"), "3d_lowres", request)
    hint = f"Train all of its folds: autoliver train {NAME} 3d_lowres {words} -w {ws}"
    assert caught.value.hint == hint.replace("  ", " ")


def test_networks_that_do_not_correspond_are_refused_before_anything_is_planned(
    place: Path, tmp_path: Path
) -> None:
    data, ws = place / "data", tmp_path / "ws"
    ds = ("--preset", "tiny", "--arch", "dsnet", "--encoder", "efficientnet_lite0")
    run("plan", data / NAME, *ds, "-w", ws)
    run("plan", data / PLAIN, "--preset", "tiny", "-w", ws)
    run("train", NAME, "2d", "--fold", "all", *FEW, "-w", ws)
    command = ("train", PLAIN, "3d_fullres", "--fold", 0, *NONE, "--pretrained", f"{NAME}/2d")
    with pytest.raises(AutoliverError, match="in 2D has other weights than in 3D") as caught:
        run(*command, "-w", ws)
    assert "--pretrained imagenet" in (caught.value.hint or "")
    assert not list(ws.glob("*/plan@*.json"))
    flat = ("train", PLAIN, "2d", "--fold", 0, *NONE, "--pretrained", f"{NAME}/2d", "-w", ws)
    with pytest.raises(AutoliverError, match="do not correspond") as caught:
        run(*flat, "--own-plan")
    assert "Leave out --own-plan" in (caught.value.hint or "")
    run(*flat)  # as the hint says
    run("plan", PLAIN, "--like", f"{NAME}/2d", "-w", ws)
    plan = json.loads(next((ws / PLAIN).glob("plan@*.json")).read_text())
    assert [*plan["configurations"]] == ["2d"]


ERRORS = [
    (PLAIN, ("--pretrained", "imagenet"), "the network of Dataset002_Plain 2d is unet", "plan"),
    ("Dataset003_New", ("--pretrained", "imagenet"), "Dataset003_New has no plan yet", "plan"),
    (
        *("Dataset003_New", ("--pretrained", "imagenet", "--preset", "tiny")),
        *("Dataset003_New has no plan yet", "--encoder efficientnet_b0"),
    ),
    (
        *(NAME, ("--pretrained", "imagenet", "--preset", "M")),
        *("already planned with the preset tiny", "plan"),
    ),
    (NAME, ("--encoder-weights", "x.pth"), "goes with --pretrained imagenet alone", "Leave it out"),
    (
        *(NAME, ("--pretrained", "imagenet", "--encoder-weights", "none.pth")),
        *("none.pth: there is no such file or installed package", "--encoder-weights FILE"),
    ),
    (
        *(
            NAME,
            ("--pretrained", "imagenet", "--encoder-weights", "FILE", "--freeze", "front,decoder"),
        ),
        *("front and decoder would keep random weights", "--freeze encoder"),
    ),
    (
        *(NAME, ("--pretrained", "imagenet", "--keep-source", 0.5)),
        *("--keep-source 0.5", "Leave it out"),
    ),
]


def test_a_file_of_an_encoder_is_no_model(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "lite0.safetensors"
    save_file(as_published(), file)
    with pytest.raises(AutoliverError, match="weights of a network for classification") as caught:
        run("train", NAME, "2d", "--pretrained", file, "-w", place / "ws")
    assert f"--pretrained imagenet --encoder-weights {file}" in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "options", "says", "mends"), ERRORS)
def test_what_cannot_be_done_is_one_error_with_a_way_out(
    place: Path, name: str, options: tuple[object, ...], says: str, mends: str
) -> None:
    if name == "Dataset003_New":
        new = PhantomOptions(contrast="CT", shape_zyx=(4, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
        write_phantom_dataset(place / "data", name=name, cases=1, seed=1, options=new)
    options = tuple(place / "lite0.pth" if each == "FILE" else each for each in options)
    with pytest.raises(AutoliverError) as caught:
        run("train", place / "data" / name, "2d", *options, "-w", place / "ws")
    assert says in caught.value.problem
    assert mends in (caught.value.hint or "")
    assert not (place / "ws/Dataset003_New/plan.json").exists()
