"""Whole models: folders of nnU-Net's as folds of ours, and folds as such folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from autoliver.errors import AutoliverError, ModelError
from autoliver.inference.model import load_member
from autoliver.models.files import save_fold
from autoliver.nnunet.model import read_nnunet_model, write_nnunet_model

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    with np.load(GOLDEN / f"networks_{name}.npz") as file:
        return torch.from_numpy(file["image"]), torch.from_numpy(file["output_0"])


@pytest.mark.parametrize(
    ("configuration", "network"), [("2d", "plain_2d"), ("3d_fullres", "resenc_3d")]
)
def test_an_imported_model_computes_what_nnunet_computed(write, tmp_path, configuration, network):
    axes = (0, 1) if configuration == "2d" else (0, 1, 2)
    folder = write(configuration, network, folds=(0, 2), inference_allowed_mirroring_axes=axes)
    imported = read_nnunet_model(folder)
    shutil.rmtree(folder)  # what was read does not hang on it
    places = []
    for fold in imported:
        assert fold.run == f"nnUNetTrainer__nnUNetPlans__{configuration}"
        assert fold.info.made_from["checkpoint"]
        places.append(tmp_path / f"ours/fold_{fold.info.fold}")
        save_fold(places[-1], fold.weights, fold.info)
    assert [place.name for place in places] == ["fold_0", "fold_2"]
    model = load_member(places, name="Toy", device=torch.device("cpu"))
    image, expected = golden(network)
    with torch.no_grad():
        for each in model.networks:
            torch.testing.assert_close(each(image), expected, rtol=1e-5, atol=1e-5)
    assert model.mirror_axes == axes


def test_a_cascade_knows_the_run_it_starts_from(write, golden_state):
    lowres = write("3d_lowres", "resenc_3d")
    (first,) = read_nnunet_model(lowres)
    assert (first.info.configuration, first.info.previous_run) == ("3d_lowres", None)
    cascade = write("3d_cascade_fullres", "resenc_3d")
    # The golden network has 2 inputs, a cascade of 2 channels and 2 labels needs 4.
    with pytest.raises(ModelError, match=r"has the shape \(4, 2, 1, 3, 3\).* expects \(4, 4,"):
        read_nnunet_model(cascade)
    weights = golden_state("resenc_3d")
    for name in ("encoder.stem.convs.0.conv.weight", "encoder.stem.convs.0.all_modules.0.weight"):
        for prefix in ("", "decoder."):
            weights[prefix + name] = weights[prefix + name].repeat(1, 2, 1, 1, 1)
    change(cascade, 0, network_weights=weights)
    (second,) = read_nnunet_model(cascade)
    assert (second.info.configuration, second.info.previous_run) == ("3d_cascade", "3d_lowres")


def test_all_configurations_of_a_zip(write, tmp_path):
    write("2d", "plain_2d", inference_allowed_mirroring_axes=(0, 1))
    write()
    export = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "results")
    imported = read_nnunet_model(Path(export))
    assert [fold.info.configuration for fold in imported] == ["2d", "3d_fullres"]
    # The unpacked files are gone; the weights are still there.
    assert all(
        torch.isfinite(tensor).all() for fold in imported for tensor in fold.weights.values()
    )


def change(folder, fold, **changes):
    path = folder / f"fold_{fold}/checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, **changes}, path)


def start_of(folder, fold):
    path = folder / f"fold_{fold}/checkpoint_final.pth"
    return torch.load(path, weights_only=False)["init_args"]


def test_folds_of_different_trainings_are_refused(write):
    folder = write(folds=(0, 1))
    change(folder, 1, trainer_name="nnUNetTrainerDA5")
    with pytest.raises(ModelError, match=r"fold_1: its trainer is nnUNetTrainerDA5"):
        read_nnunet_model(folder)
    assert len(read_nnunet_model(folder, folds=["1"])) == 1
    change(folder, 1, trainer_name="nnUNetTrainer")
    start = start_of(folder, 1)
    change(folder, 1, init_args={**start, "configuration": "3d_lowres"})
    with pytest.raises(ModelError, match=r"its configuration is 3d_lowres"):
        read_nnunet_model(folder)
    start["plans"]["configurations"]["3d_fullres"]["spacing"] = [3, 1, 1]
    change(folder, 1, init_args=start)
    with pytest.raises(ModelError, match=r"fold_1: was trained with other plans"):
        read_nnunet_model(folder)
    del start["plans"]
    change(folder, 1, init_args=start)
    assert len(read_nnunet_model(folder)) == 2


def test_weights_of_another_network_are_refused(write):
    folder = write("3d_fullres", "plain_3d", trainer_name="nnUNetTrainerBN")
    with pytest.raises(ModelError, match=r"fold_0: nnU-Net weights") as error:
        read_nnunet_model(folder)
    assert "nnUNetTrainerBN may build another network" in error.value.hint


def test_weights_of_another_shape_are_refused(write, plans):
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4, 8, 8]
    folder = write()
    with pytest.raises(ModelError, match=r"has the shape \(6, .* expects \(8"):
        read_nnunet_model(folder)


def test_axes_that_do_not_exist(write):
    with pytest.raises(ModelError, match=r"flips the axes \(0, 1, 2\)"):
        read_nnunet_model(write("2d", "plain_2d"))


def test_dataset_json_that_says_nothing(write):
    folder = write()
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(AutoliverError, match=r"dataset\.json"):
        read_nnunet_model(folder)


def test_an_exported_model_is_the_imported_one(write, tmp_path, head):
    folder = write(folds=(0, "all"))
    imported = read_nnunet_model(folder)
    out = write_nnunet_model([(f.info, f.weights) for f in imported], tmp_path / "out")
    assert out == tmp_path / "out/Dataset007_Toy/nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert json.loads((out / "dataset.json").read_text()) == {**head, "numTraining": 0}
    for fold in (0, "all"):
        file = f"fold_{fold}/checkpoint_final.pth"
        theirs = torch.load(folder / file, weights_only=False)
        ours = torch.load(out / file, weights_only=True)
        assert list(ours["network_weights"]) == list(theirs["network_weights"])
        for name, tensor in theirs["network_weights"].items():
            assert torch.equal(ours["network_weights"][name], tensor)
        for key in ("trainer_name", "inference_allowed_mirroring_axes", "current_epoch"):
            assert ours[key] == theirs[key]
        assert ours["init_args"]["configuration"] == "3d_fullres"
        assert ours["init_args"]["fold"] == fold
    again = read_nnunet_model(out)
    for first, second in zip(imported, again, strict=True):
        changed = {"made_from", "plan"}
        for name in set(type(first.info).__struct_fields__) - changed:
            assert getattr(first.info, name) == getattr(second.info, name)
        assert first.info.plan.replace(reasons={}) == second.info.plan.replace(reasons={})


def test_names_for_nnunet(write, tmp_path):
    (fold,) = read_nnunet_model(write())
    for own, number, name in (
        ("Livers", None, "Dataset999_Livers"),
        ("Livers", 12, "Dataset012_Livers"),
        ("Dataset007_Toy", 7, "Dataset007_Toy"),
        ("Dataset007_Toy", 8, "Dataset008_Toy"),
        ("Task07_Pan", None, "Dataset007_Pan"),
        ("Dataset12_short", None, "Dataset012_short"),
    ):
        plan = fold.info.plan.replace(dataset=own)
        folds = [(fold.info.replace(plan=plan), fold.weights)]
        out = write_nnunet_model(folds, tmp_path / f"{own}{number}", number=number)
        assert out.parent.name == name
        assert json.loads((out / "plans.json").read_text())["dataset_name"] == name


def test_exports_that_cannot_be(write, tmp_path):
    (fold,) = read_nnunet_model(write())
    other = fold.info.replace(fold="1", plan=fold.info.plan.replace(file_ending=".nrrd"))
    with pytest.raises(ModelError, match="no fold"):
        write_nnunet_model([], tmp_path / "out")
    with pytest.raises(ModelError, match="another plan"):
        write_nnunet_model([(fold.info, fold.weights), (other, fold.weights)], tmp_path / "out")
    with pytest.raises(ModelError, match="missing"):
        write_nnunet_model([(fold.info, {})], tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list(tmp_path.glob("out/*/*"))
    write_nnunet_model([(fold.info, fold.weights)], tmp_path / "out")
    with pytest.raises(ModelError, match="already exists"):
        write_nnunet_model([(fold.info, fold.weights)], tmp_path / "out")


@pytest.mark.parametrize(("order", "warned"), [([1, 2, 3], True), ([3, 2, 1], False)])
def test_an_order_of_regions_that_loses_some_is_kept_with_a_warning(
    write, head, caplog, order, warned
):
    head["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [1, 2], "enhancing": 1}
    head["regions_class_order"] = order
    (fold,) = read_nnunet_model(write())
    assert fold.info.plan.labels.regions_class_order == tuple(order)
    assert ("region 'core' [1, 2] becomes [2, 3]" in caplog.text) == warned
    assert ('"regions_class_order": [3, 2, 1]' in caplog.text) == warned
