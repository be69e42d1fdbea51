"""Numbers in texts that are longer than any count, or look like digits and are none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import run
from small_models import plan

from autoliver.datasets.cases import read_dataset
from autoliver.errors import AutoliverError, DatasetError, ModelError
from autoliver.evaluation.probabilities import read_probabilities
from autoliver.io.files import read_image
from autoliver.io.text_headers import segment_values
from autoliver.nnunet.checkpoint import read_checkpoint
from autoliver.nnunet.network import architecture_of, spec_from_nnunet
from autoliver.pipeline.conversion.class_table import rows_of_file
from autoliver.planning.plan import Plan
from autoliver.values import natural

__all__ = ["plan"]
LONG = "9" * 5000
NONE = ("\u00b2", "\u0663", LONG, "9" * 10**6, "-1", "1.5", "1e5", "0x1", "", " 1", "1_0")


@pytest.mark.parametrize("text", NONE, ids=range(len(NONE)))
def test_what_is_no_count(text: str) -> None:
    assert natural(text) is None


def test_what_is_a_count() -> None:
    assert [natural(text) for text in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]


def description(folder: Path, number: str) -> None:
    labels = {"0": "background", number: "liver"}
    text = {"modality": {"0": "CT"}, "labels": labels, "numTraining": 0, "training": []}
    (folder / "dataset.json").write_text(json.dumps(text))
    read_dataset(folder)


def classes(folder: Path, number: str) -> None:
    (folder / "t.csv").write_text(f"case,lesion,class\na,{number},cyst\n")
    rows_of_file(folder / "t.csv")


def probabilities(folder: Path, number: str) -> None:
    (folder / "t.csv").write_text(f"case,lesion,probability_cyst\na,{number},0.5\n")
    read_probabilities(folder / "t.csv", ["cyst"])


def pattern(folder: Path, number: str) -> None:
    head = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"
    (folder / "x.mhd").write_text(f"{head}ElementDataFile = x%d.raw 1 {number} 1\n")
    read_image([folder / "x.mhd"])


def option(of: str) -> Callable[[Path, str], None]:
    def call(folder: Path, number: str) -> None:
        run(*of.split(), number, "-w", folder)

    return call


PLACES = {
    "a label of dataset.json": description,
    "a lesion in a table of classes": classes,
    "a lesion in a table of probabilities": probabilities,
    "a file of a pattern": pattern,
    "--fold": option("train Toy 2d --fold"),
    "--gpus": option("train Toy 2d --gpus"),
    "--patch": option("train Toy 2d --patch"),
    "--device": lambda folder, number: run("doctor", "--device", f"cuda:{number}", "-w", folder),
}


@pytest.mark.parametrize("number", [LONG, "\u00b2", "1e400"], ids=["long", "superscript", "1e400"])
@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_none_is_an_error(tmp_path: Path, place: str, number: str) -> None:
    with pytest.raises((AutoliverError, AssertionError)) as caught:
        PLACES[place](tmp_path, number)
    if isinstance(caught.value, AssertionError):  # wrong usage of the command line
        assert "Traceback" not in str(caught.value)


def test_a_segment_whose_value_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "x.seg.nrrd"
    for number in (LONG, "\u00b2"):
        text = f"NRRD0004\nSegment0_Name:=a\nSegment0_LabelValue:={number}\n\n"
        path.write_bytes(text.encode())
        assert segment_values(path) == {}


@pytest.mark.parametrize("cell", ["x" * 200_000, "a\0b"], ids=["long", "zero"])
def test_a_cell_that_cannot_be_read(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "t.csv"
    for text in (f"case,lesion,class,{cell}\n", f"case,lesion,class\na,1,{cell}\n"):
        path.write_text(text)
        assert len(refusal(rows_of_file, path)) < 1000
    for text in (f"{cell},lesion,probability_cyst\n", f"case,lesion,probability_cyst\n{cell},1,1"):
        path.write_text(text)
        assert len(refusal(read_probabilities, path, ["cyst"])) < 1000


def refusal(call: Callable[..., object], *given: object) -> str:
    """The text of an error; empty if there is none."""
    try:
        call(*given)
    except DatasetError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("stages", [10**12, float("inf"), float("nan"), -1, 0])
def test_a_network_of_many_stages_takes_no_memory(plan: Plan, stages: float) -> None:
    found = architecture_of(plan.configurations["3d_fullres"].network)
    found["arch_kwargs"]["n_stages"] = stages
    found["arch_kwargs"]["features_per_stage"] = 4
    with pytest.raises(ModelError, match="cannot be built from its description"):
        spec_from_nnunet(
            {"patch_size": [8, 8, 8], "architecture": found},
            in_channels=1,
            out_channels=3,
            where="plans.json",
        )


@pytest.mark.parametrize("epoch", [float("inf"), float("nan"), "x", None])
def test_a_checkpoint_whose_epoch_is_no_number(tmp_path: Path, epoch: object) -> None:
    path = tmp_path / "checkpoint_final.pth"
    content = {
        **{"network_weights": {"a": torch.zeros(1)}, "current_epoch": epoch},
        **{"trainer_name": "x", "init_args": {"configuration": "2d"}},
    }
    torch.save(content, path)
    with pytest.raises(ModelError, match="not a checkpoint of nnU-Net v2"):
        read_checkpoint(path)
