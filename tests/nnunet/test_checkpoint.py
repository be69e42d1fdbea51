import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from autoliver.errors import ModelError
from autoliver.nnunet.checkpoint import read_checkpoint, write_checkpoint


class Call:
    """Calls a function when a plain pickle is read."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def final(folder: Path) -> Path:
    return folder / "fold_0/checkpoint_final.pth"


def test_what_matters_is_read(write, plans):
    found = read_checkpoint(final(write()))
    assert (found.trainer, found.configuration, found.epochs) == (
        "nnUNetTrainer",
        "3d_fullres",
        1000,
    )
    assert found.mirror_axes == (0, 1, 2)
    assert found.plans == plans
    assert len(found.digest) == 12
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.weights.values())


@pytest.mark.parametrize("number", [np.float64(1.5), np.int64(-3), np.bool_(True), np.uint8(7)])
def test_numpy_numbers_are_read_without_numpy(write, number):
    path = final(write(current_epoch=number))
    assert read_checkpoint(path).epochs == int(number)


def test_no_mirroring(write):
    assert read_checkpoint(final(write(inference_allowed_mirroring_axes=None))).mirror_axes == ()


def test_a_pickle_that_would_run_code_is_refused_and_not_run(write, tmp_path):
    mark = tmp_path / "was_here"
    path = final(write(logging=Call(os.mkdir, str(mark))))
    with pytest.raises(ModelError, match=r"have to run (posix|nt)\.mkdir,") as error:
        read_checkpoint(path)
    assert not mark.exists()
    assert "--trust" in error.value.hint
    assert "any code" in error.value.hint
    assert read_checkpoint(path, trust=True).epochs == 1000
    assert mark.exists()


@pytest.mark.parametrize(
    "harmful",
    [
        Call(eval, "1"),
        Call(np.load, "x", None, True),
        Call(np.dtype, "O"),
        np.array([1.0]),
        np.str_("text"),
        np.datetime64("2026-01-01"),
    ],
    ids=["eval", "load", "object", "array", "text", "date"],
)
def test_numpy_is_no_way_in(write, harmful):
    path = final(write(logging={"values": harmful, "number": np.float32(1)}))
    if isinstance(harmful, Call) and harmful.function is np.dtype:
        read_checkpoint(path)  # a type that is never used for anything
        return
    with pytest.raises(ModelError, match="have to run"):
        read_checkpoint(path)


def test_objects_of_programs_that_are_missing(write, monkeypatch):
    import collections

    foreign = type("Foreign", (), {"__module__": "collections"})
    monkeypatch.setattr(collections, "Foreign", foreign, raising=False)
    path = final(write(logging=foreign()))
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"collections\.Foreign"):
        read_checkpoint(path)
    with pytest.raises(ModelError, match="not installed here"):
        read_checkpoint(path, trust=True)


def test_damaged_files(write):
    path = final(write())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    place = record.header_offset + 200
    flipped = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    for content in (whole[: len(whole) // 2], b"", b"not a zip", flipped):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="damaged"):
            read_checkpoint(path)


def test_other_files_of_torch(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    for content in ({"state_dict": {}}, [1, 2], torch.zeros(3), {"network_weights": {"a": 1}}):
        torch.save(content, path)
        for trust in (False, True):
            with pytest.raises(ModelError, match="not a checkpoint of nnU-Net v2"):
                read_checkpoint(path, trust=trust)


def test_a_pickle_that_breaks_the_rules(write):
    path = final(write())
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [name for name in records if name.endswith("data.pkl")]
    for content in (b"", b"\x80\x02.", b"\x80\x02]q\x00(K\x01e"):
        with zipfile.ZipFile(path, "w") as archive:
            for each, data in (records | {name: content}).items():
                archive.writestr(each, data)
        with pytest.raises(ModelError):
            read_checkpoint(path)


def test_written_ones_need_no_trust_by_anyone(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    weight = torch.arange(6.0)
    start = {"configuration": "2d", "plans": {"a": [1]}}
    write_checkpoint(path, {"a": weight, "b": weight}, start=start, epochs=3, mirror_axes=())
    content = torch.load(path, weights_only=True)  # nothing but torch's own allow-list
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["inference_allowed_mirroring_axes"] is None
    found = read_checkpoint(path)
    assert found.weights["a"].data_ptr() == found.weights["b"].data_ptr()
    assert torch.equal(found.weights["b"], weight)
    assert (found.configuration, found.epochs, found.plans) == ("2d", 3, {"a": [1]})
