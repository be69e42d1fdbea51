"""synthesize fit and apply with all models, in 2D and 3D, and what helps with damaged files."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_lines import misuse
from commands import run
from ct_and_mr import CT, MR, write_ct_and_mr
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.errors import AutoliverError, ModelError, OptionError
from autoliver.io.files import read_image
from autoliver.networks.checkpoint import load_network
from autoliver.pipeline.translation.again import fit_command
from autoliver.pipeline.translation.apply import ApplyRequest, apply
from autoliver.pipeline.translation.fit import Synthesizer
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.workspace import Workspace

SHORT = {
    **{"features": 4, "blocks": 1, "batch_size": 2, "epochs": 2, "iterations": 2, "lr": 1e-3},
    "patch": (32, 32),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT and MR phantoms, planned, and a translation with a segmentation network, in 3D."""
    root = tmp_path_factory.mktemp("models")
    write_ct_and_mr(root, cases=2)
    for name in (CT, MR):
        autoliver.plan(root / name, preset="tiny", workspace=root / "ws")
    fit(root, "solid", patch=(4, 32, 32))
    return root


def fit(root: Path, name: str, **given: object) -> Path:
    return autoliver.synthesize_fit("CT", "MR", name, workspace=root / "ws", **{**SHORT, **given})


def translated(root: Path, name: str, **given: object) -> Path:
    return autoliver.synthesize_apply(
        name, root / f"Out_{name}", workspace=root / "ws", qc_min_dice=0.0, **given
    ).folder


def test_a_translation_in_3d_is_recorded_and_applied(place):
    folder = place / "ws/synthesis/solid"
    info = Synthesizer.load(folder / "synthesizer.json")
    assert info.options.patch == (4, 32, 32)
    assert list(info.plan.configurations) == ["3d_fullres"]
    assert info.plan.configurations["3d_fullres"].network.dimension == 3
    assert load_network(folder / "generator.safetensors").spec.dimension == 3
    assert (folder / "segmentor/3d_fullres/fold_all/model.json").exists()
    for name in ("losses.png", "samples.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    out = translated(place, "solid")
    for path in (out / "imagesTr").iterdir():
        made, before = read_image([path]), read_image([place / CT / "imagesTr" / path.name])
        assert made.array.shape == before.array.shape
        assert made.array.std() > 0
    model = folder / "segmentor/3d_fullres"
    run(
        "predict", "-i", place / MR / "imagesTr", "-o", place / "p", "-m", model, "-w", place / "ws"
    )
    assert len(list((place / "p").glob("*.nii.gz"))) == 2


def test_contrastive_translation_is_applied_with_a_judge(place):
    fit(place, "cut", model="cut")
    folder = place / "ws/synthesis/cut"
    assert not (folder / "segmentor").exists()
    info = Synthesizer.load(folder / "synthesizer.json")
    assert (info.options.model, info.options.identity, info.options.pool) == ("cut", 1.0, 0)
    assert set((folder / "progress.jsonl").read_text().split('"')) >= {"contrast", "identity"}
    with pytest.raises(OptionError, match="with judge"):
        translated(place, "cut")
    out = translated(place, "cut", judge=str(place / "ws/synthesis/solid/segmentor/3d_fullres"))
    assert len(list((out / "imagesTr").iterdir())) == 2


def test_contrastive_translation_may_have_a_segmentation_network(place):
    folder = fit(place, "both", model="cut", lambda_seg=1.0)
    assert (folder / "segmentor/2d/fold_all/model.json").exists()
    assert len(list((translated(place, "both") / "imagesTr").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "patch"),
    [
        ("--patch 32 40", (32, 40)),
        ("--patch 32,40", (32, 40)),
        ("--patch 4 32 40", (4, 32, 40)),
        ("--patch 4,32,40 ", (4, 32, 40)),
    ],
)
def test_patches_of_two_or_three_sizes_on_the_command_line(place, words, patch):
    start = "synthesize fit --from CT --to MR -o cli --fresh --features 4 --blocks 1 --epochs 1"
    more = f"--iterations 1 --batch-size 1 --model cut -w {place / 'ws'}"
    done = CliRunner().invoke(app, f"{start} {words} {more}".split())
    assert done.exit_code == 0, done.output
    info = Synthesizer.load(place / "ws/synthesis/cli/synthesizer.json")
    assert info.options.patch == patch


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ((4, 33, 32), "multiples of 2 x 4 x 4"),
        ((5, 32, 32), "multiples of 2 x 4 x 4"),
        ((16, 32, 32), "smallest image has 8 x 40 x 44"),
        ((2, 32, 32), "at least 4"),
        ((4, 16, 32), "at least 24"),
        ((32,), "2 or 3 sizes"),
        ((4, 4, 32, 32), "2 or 3 sizes"),
        ("a", "not a list of sizes"),
    ],
)
def test_patches_that_cannot_be_are_refused(place, patch, problem):
    with pytest.raises(AutoliverError, match=problem) as caught:
        fit(place, "wrong", patch=patch)
    assert caught.value.hint


def test_a_dataset_without_a_plan_in_3d_is_refused(place, tmp_path):
    root = tmp_path / "flat"
    shutil.copytree(place, root)
    path = root / "ws" / MR / "plan.json"
    plan = autoliver.planning.plan.Plan.load(path)
    plan.replace(configurations={"2d": plan.configurations["2d"]}).save(path)
    with pytest.raises(AutoliverError, match="has no 3d_fullres"):
        fit(root, "solid2", patch=(4, 32, 32))


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_damaged_translation_names_the_command_that_learns_it_again(place, tmp_path):
    """The command of the hint is typed as it is."""
    root = tmp_path / "damaged"
    shutil.copytree(place, root)
    given = {"lambda_nce": 0.5, "held_out": ("MR_001",), "seed": 3, "patch": (32, 36)}
    folder = fit(root, "bad one", model="cut", **given)
    before = load_network(folder / "generator.safetensors").state_dict()
    damage(folder / "generator.safetensors")
    with pytest.raises(ModelError, match=r"generator\.safetensors: cut short") as caught:
        apply(Workspace(root / "ws"), "bad one", root / "no", ApplyRequest(judge="x"))
    hints = [caught.value.hint]
    damage(folder / "resume.pt")
    with pytest.raises(ModelError, match=r"resume\.pt: cut short") as caught:
        fit(root, "bad one", model="cut", **given)
    hints.append(caught.value.hint)
    for hint in hints:
        program, *words = shlex.split(hint.partition(": ")[2])
        assert [program, *words[:2]] == ["autoliver", "synthesize", "fit"]
        assert words[-3:] == ["--fresh", "-w", str(root / "ws")]
        assert misuse("synthesize fit", words[2:]) is None
        shutil.rmtree(folder)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        again = load_network(folder / "generator.safetensors").state_dict()
        assert all(np.array_equal(before[name], again[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "--model essnet"),
        ({"model": "cut", "contrast": 2.0}, "--model cut --lambda-nce 2.0"),
        ({"lr": 1e-3, "decay_start": 4}, "--model essnet --decay-start 4 --lr 0.001"),
        ({"patch": (4, 32, 32), "pool": 0}, "--model essnet --patch 4 32 32 --pool 0"),
        ({"identity": 0.0, "model": "cut"}, "--model cut --lambda-id 0.0"),
    ],
)
def test_the_command_says_what_is_not_a_default(options, expected):
    for chosen in (
        TranslationOptions(**options),
        TranslationOptions(**options).settled(options.get("patch", (32, 36))),
    ):
        words = fit_command(("A", "B"), "N", chosen, workspace=Path("autoliver-workspace"))
        if "patch" not in options and chosen.patch is not None:
            words = words.replace(" --patch 32 36", "")
        assert words == f"autoliver synthesize fit --from A --to B -o N {expected}"
        assert misuse("synthesize fit", shlex.split(words)[3:]) is None
