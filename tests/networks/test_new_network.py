"""A network is added with its own files, a name in a union, a line in a match and a preset.

The package is copied, the network of `new_network/` is added to the copy, and a child process does
with it what people do: plan, train, transfer, predict, export.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from copied import CopiedPackage
from safetensors.numpy import load_file

from autoliver.io.files import read_label

TOY = Path(__file__).parent / "new_network"
OWN_FILES = ("toy_spec.py", "toy.py")
CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"

# File -> (what is there, what takes its place).
EDITS = {
    "networks/spec.py": [
        (
            "from autoliver.networks.unet_spec",
            "from autoliver.networks.toy_spec import ToySpec\nfrom autoliver.networks.unet_spec",
        ),
        (
            "    UNetSpec | ResidualUNetSpec |",
            "    ToySpec | UNetSpec | ResidualUNetSpec |",
        ),
    ],
    "networks/build.py": [
        (
            "from autoliver.networks.unet import UNet\n",
            "from autoliver.networks.toy import Toy\n"
            "from autoliver.networks.toy_spec import ToySpec\n"
            "from autoliver.networks.unet import UNet\n",
        ),
        (
            "    match spec:\n",
            "    match spec:\n"
            "        case ToySpec():\n"
            "            return Toy(spec, deep_supervision=deep_supervision)\n",
        ),
    ],
    "planning/names.py": [('"XL", "tiny"]', '"XL", "tiny", "toy"]')],
    "planning/presets.py": [
        (
            "from autoliver.planning.names import",
            "from autoliver.networks.toy_spec import ToySpec\nfrom autoliver.planning.names import",
        ),
        (
            "PRESETS: dict[Preset, PresetRow] = {\n",
            "def _toy(topology: Topology, *, in_channels: int, out_channels: int) -> ToySpec:\n"
            "    axes = len(topology.patch_shape)\n"
            "    return ToySpec(axes=axes, in_channels=in_channels, out_channels=out_channels)\n"
            "\n\n"
            "PRESETS: dict[Preset, PresetRow] = {\n"
            '    "toy": PresetRow(\n'
            "        network=_toy,\n"
            "        vram_gb=1,\n"
            "        reference={2: 4_000_000, 3: 40_000_000},\n"
            "        must_fit=_MIN_BATCH,\n"
            "        max_batch=2,\n"
            "    ),\n",
        ),
    ],
}


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder that everything was written to, and what was refused in which words."""
    folder = tmp_path_factory.mktemp("toy")
    copied = CopiedPackage(folder / "code")
    for name in OWN_FILES:
        copied.add(f"networks/{name}", (TOY / name).read_text())
    for name, changes in EDITS.items():
        for before, after in changes:
            copied.edit(name, before, after)
    assert copied.changed == {*EDITS, *(f"networks/{name}" for name in OWN_FILES)}
    done = copied.python(TOY / "journey.py", copied.package, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "refused.json").read_text())


def weights(fold: Path) -> dict[str, np.ndarray]:
    return load_file(fold / "weights.safetensors")


def test_the_plan_holds_the_new_network(journey):
    plan = json.loads((journey[0] / "workspace" / CT / "plan.json").read_text())
    decided = plan["configurations"]["2d"]
    network = {"kind": "toy", "in_channels": 1, "out_channels": 6, "axes": 2, "features": 8}
    assert decided["network"] == network
    assert decided["batch_size"] == 2
    size = " x ".join(map(str, decided["patch_shape"]))
    assert decided["reasons"]["topology"] == (
        f"Two convolutions of 8 features see 3 voxels along yx of {size}."
    )
    assert plan["configurations"]["3d_fullres"]["network"] == {**network, "axes": 3}


def test_it_learns_and_its_held_out_case_is_scored(journey):
    fold = journey[0] / "workspace" / CT / "runs/2d/fold_0"
    found = weights(fold)
    assert {name: w.shape for name, w in found.items()} == {
        "body.weight": (8, 1, 3, 3),
        "body.bias": (8,),
        "head.weight": (6, 8, 1, 1),
        "head.bias": (6,),
    }
    assert np.abs(found["body.bias"]).max() > 0  # drawn as 0
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 1
    assert (fold / "validation/scores.json").is_file()


def test_a_frozen_part_stays_as_the_source_has_it_and_the_head_moves(journey):
    workspace = journey[0] / "workspace"
    source = weights(workspace / CT / "runs/2d/fold_0")
    run = workspace / MR / "runs/2d@PhantomCT"
    tuned = weights(run / "fold_all")
    for name in ("body.weight", "body.bias"):
        assert np.array_equal(tuned[name], source[name])
    for name in ("head.weight", "head.bias"):
        assert not np.array_equal(tuned[name], source[name])
    transfer = json.loads((run / "transfer.json").read_text())
    assert transfer["share"] == 1.0
    assert {w["action"] for w in transfer["table"]["weights"]} == {"loaded"}


def test_it_predicts_from_the_workspace_and_from_a_file_alike(journey):
    folder = journey[0]
    (one,) = (folder / "by_name").glob("*.nii.gz")
    label = read_label(one)
    assert label.array.shape == (1, 10, 32, 32)
    assert len(np.unique(label.array)) > 1
    other = read_label(folder / "by_file" / one.name)
    assert np.array_equal(label.array, other.array)


def test_what_it_cannot_do_is_refused_in_words(journey):
    folder, refused = journey
    assert refused == {
        "nnunet": "nnU-Net has no network of kind 'toy'. Export it as a file of autoliver instead.",
        "other network": "--pretrained PhantomCT/2d/fold_0: The source's network is toy, the "
        "target's unet 8-16-32-64: their weights do not correspond. Leave out --own-plan: then the "
        "network is planned like the source's.",
        "part": "--freeze body.1: this network has no part 'body.1': its body has 1 stage, body.0; "
        "heads always learn. Name body.",
        "factor": "--encoder-factor 0.1: this network has no part 'encoder', only body. "
        "Leave it out.",
    }
    assert not (folder / "nnunet").exists()
