"""Models of nnU-Net v1: read, computed, cleaned, and refused one by one where they do not fit."""

import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet.v1_writer import CASCADE, V1Model, forward, plans, stage, state_dict
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.nnunet.model import read_nnunet_folds, read_nnunet_model, write_nnunet_model
from autoliver.nnunet.pickles import read_pickle
from autoliver.nnunet.v1_plan import v2_plans
from autoliver.pipeline.models import ImportRequest, import_model
from autoliver.pipeline.run.source import find_source
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.transfer.table import Transfer
from autoliver.workspace import ModelFolder, Workspace

torch.set_num_threads(1)
FINAL = "model_final_checkpoint.model"


@pytest.fixture
def model(tmp_path: Path) -> V1Model:
    return V1Model(results=tmp_path / "results/nnUNet")


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("old", [False, True])
def test_the_network_computes_what_its_layers_say(model, tmp_path, axes, old):
    model = V1Model(results=tmp_path / "r", about=plans({0: stage(axes)}), old=old)
    name = "2d" if axes == 2 else "3d_fullres"
    (fold,) = read_nnunet_model(model.write(name))
    assert fold.info.configuration == name
    network = build_network(fold.info.decisions.network, deep_supervision=False)
    network.load_state_dict(fold.weights)
    x = torch.randn(1, 1, *(8, 16, 16)[-axes:], generator=torch.manual_seed(1))
    strides = model.about["plans_per_stage"][0]["pool_op_kernel_sizes"]
    with torch.no_grad():
        expected = forward(state_dict(model.about, 0), strides, x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_every_decision_arrives(model):
    (fold,) = read_nnunet_model(model.write())
    plan, decisions = fold.info.plan, fold.info.decisions
    assert (plan.dataset, plan.modality, plan.channel_names) == ("Dataset050_Own", "CT", ("CT",))
    assert plan.labels.values == {"background": (0,), "label_1": (1,), "label_2": (2,)}
    assert (plan.transpose_forward, plan.transpose_backward) == ((1, 2, 0), (2, 0, 1))
    stats = plan.intensities[0]
    assert (stats.mean, stats.std, stats.percentile_00_5, stats.max) == (99.0, 40.0, -20.0, 400.0)
    assert decisions.spacing_mm == (3.0, 1.5, 1.5)
    assert (decisions.patch_shape, decisions.normalization) == ((8, 16, 16), ("ct",))
    assert (decisions.normalize_after_resampling, decisions.average) == (True, "probabilities")
    assert decisions.network.features == (4, 8, 16)
    assert decisions.network.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert (fold.info.mirror_axes, fold.info.epochs, fold.info.fold) == ((0, 1, 2), 1000, "0")


def test_mr_has_no_statistics_and_is_normalised_by_itself(model):
    about = plans({0: stage()}, modality="MRI")
    about["use_mask_for_norm"] = OrderedDict([(0, True)])
    (fold,) = read_nnunet_model(V1Model(results=model.results, about=about).write())
    assert fold.info.plan.modality == "MR"
    assert fold.info.decisions.normalization == ("zscore",)
    assert fold.info.decisions.mask_norm == (True,)


@pytest.mark.parametrize(
    ("trainer", "axes"), [("nnUNetTrainerV2_noMirroring", ()), ("nnUNetTrainerV2_DA3", (0, 1, 2))]
)
def test_flips_are_those_of_the_trainer(model, trainer, axes):
    (fold,) = read_nnunet_model(model.write(trainer=trainer))
    assert fold.info.mirror_axes == axes


def test_features_stop_doubling_where_v1_stops(tmp_path):
    for axes, expected in ((2, [300, 480, 480]), (3, [300, 320, 320])):
        about = plans({0: stage(axes)}) | {"base_num_features": 300}
        (tmp_path / "plans.pkl").write_bytes(pickle.dumps(about))
        about = read_pickle(tmp_path / "plans.pkl")
        found = v2_plans(about, stage=0, trainer="nnUNetTrainerV2", dataset="D", where="plans.pkl")
        ((_, settings),) = found["configurations"].items()
        base, most = settings["UNet_base_num_features"], settings["unet_max_num_features"]
        assert [min(base * 2**level, most) for level in range(3)] == expected


def test_plans_before_strides_were_written_down(model):
    old = stage()
    del old["pool_op_kernel_sizes"], old["conv_kernel_sizes"]
    about = plans({0: old})
    for key in ("transpose_forward", "transpose_backward", "conv_per_stage", "preprocessor_name"):
        del about[key]
    full = {**stage(), "conv_kernel_sizes": [[3, 3, 3]] * 3}
    weights = state_dict(plans({0: full}), 0)
    (fold,) = read_nnunet_model(V1Model(results=model.results, about=about).write(weights=weights))
    network = fold.info.decisions.network
    assert network.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert fold.info.plan.transpose_forward == (0, 1, 2)


def two_stages(model: V1Model) -> V1Model:
    low = stage(spacing=(6.0, 3.0, 3.0))
    return V1Model(results=model.results, about=plans({0: low, 1: stage()}))


def test_a_zip_of_all_configurations_as_v1_exports_it(model, tmp_path, caplog):
    model = two_stages(model)
    model.write("3d_lowres", number=0, folds=("fold_0", "fold_1"))
    model.write("3d_fullres", number=1, folds=("all",))
    folder = model.write("3d_cascade_fullres", number=1, trainer=CASCADE)
    model.clean(folder, [[1, 2], 2])
    ensemble = model.results / "ensembles/Task050_Own/ensemble_2d__a__b--3d_fullres__a__b"
    ensemble.mkdir(parents=True)
    (ensemble / "postprocessing.json").write_text("{}")
    export = Path(shutil.make_archive(str(tmp_path / "Task050_Own"), "zip", model.results))
    folds = read_nnunet_model(export)
    assert caplog.text.count("keeps no names of labels") == 1
    assert [(fold.info.configuration, fold.info.fold) for fold in folds] == [
        ("3d_cascade", "0"),
        ("3d_fullres", "all"),
        ("3d_lowres", "0"),
        ("3d_lowres", "1"),
    ]
    moved = import_model(Workspace(tmp_path / "ws"), export, ImportRequest(name="LiTS"))
    assert [(run.configuration, run.previous) for run in moved.facts.runs] == [
        ("3d_cascade", False),
        ("3d_lowres", True),
    ]
    runs = {run.path.name for run in ModelFolder(moved.path).runs}
    assert runs == {"3d_cascade", "3d_fullres", "3d_lowres"}
    # v1 cleans what a cascade takes from its first stage.
    model.clean(model.folder("3d_lowres"), [1])
    low, cascade = (
        read_nnunet_folds(model.results, wanted=name)[0].info
        for name in ("3d_lowres", "3d_cascade")
    )
    assert [str(rule) for rule in low.next_stage_cleaning] == [
        "label_1: only the largest component connected through faces"
    ]
    assert cascade.next_stage_cleaning == ()
    assert moved.facts.cleaning == (
        "label_1 + label_2: only the largest component connected through faces",
        "label_2: only the largest component connected through faces",
    )


def test_names_of_labels_come_from_dataset_json(model, caplog):
    folder = model.write()
    read_nnunet_model(folder)
    assert "called label_1, label_2" in caplog.text
    described = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
    }
    (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": 9}))
    (fold,) = read_nnunet_model(folder)
    assert list(fold.info.plan.labels.values) == ["background", "liver", "tumour"]
    described["labels"] = {**described["labels"], "3": "spleen"}
    (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": 9}))
    with pytest.raises(ModelError, match=r"its labels are \[1, 2, 3\], those of .* \[1, 2\]"):
        read_nnunet_model(folder)


def test_pretrained_takes_a_folder_a_checkpoint_and_a_zip(model, tmp_path):
    folder = model.write(folds=("fold_0", "fold_3"))
    export = shutil.make_archive(str(tmp_path / "Task050_Own"), "zip", model.results)
    workspace = Workspace(tmp_path / "ws")
    for path, fold in (
        (folder, "0"),
        (model.results, "0"),
        (folder / "fold_3" / FINAL, "3"),
        (export, "0"),
    ):
        source = find_source(workspace, str(path), wanted="3d_fullres", target="MR")
        assert source.name == "Own"
        assert source.fold == f"Own/{folder.name}__3d_fullres/fold_{fold}"
        assert source.read()["encoder.0.0.conv.weight"].shape == (4, 1, 3, 3, 3)


def test_of_several_configurations_the_wanted_one(model):
    model = two_stages(model)
    model.write("3d_lowres", number=0)
    model.write("3d_fullres", number=1)
    (fold,) = read_nnunet_folds(model.results, wanted="3d_lowres")
    assert fold.info.decisions.spacing_mm == (6.0, 3.0, 3.0)


def test_the_public_liver_model_predicts_and_starts_a_training(model, tmp_path):
    """Its zip has no names of labels: those of LiTS are known, so that heads are taken over."""
    public = V1Model(results=model.results, about=plans({0: stage(2)}), task="Task029_LITS")
    public.write("2d")
    export = shutil.make_archive(str(tmp_path / "Task029_LITS"), "zip", model.results)
    options = PhantomOptions(contrast="CT", shape_zyx=(8, 40, 40), spacing_mm=(10.0, 6.0, 6.0))
    data = write_phantom_dataset(tmp_path, name="Dataset005_CT", cases=2, seed=3, options=options)
    place = ("-w", tmp_path / "ws")
    length = ("--fold", "all", "--epochs", 1, "--iterations", 2)
    for command in (
        ("import", export, "--name", "LiTS", *place),
        ("predict", "-m", "LiTS", "-i", data / "imagesTr", "-o", tmp_path / "out", *place),
        ("plan", data, "--preset", "tiny", *place),
        ("train", data, "2d", "--pretrained", "LiTS", *length, *place),
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "out/CT_000.nii.gz").exists()
    run = tmp_path / "ws/Dataset005_CT/runs/2d@LiTS"
    assert (run / "fold_all/weights.safetensors").exists()
    assert Transfer.load(run / "transfer.json").table.labels["liver"] == "liver"


class Call:
    """Calls a function when a pickle is read by Python."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("value", [
    np.array([[1, 2], [3, 4]]), np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]), np.array(2.5),
    np.array([1, 2], ">i2"), np.float32(1.5), np.bool_(True), OrderedDict(a=[1, (2, 3)]), {1, 2},
])  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_values_and_arrays_are_read(tmp_path, value, protocol):
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps({"value": value}, protocol=protocol))
    found = read_pickle(path)["value"]
    if isinstance(value, np.ndarray):
        assert np.array_equal(np.squeeze(found), value)
    else:
        assert found == value


@pytest.mark.parametrize(
    ("harmful", "named"),
    [
        (Call(os.system, "true"), "posix.system"),
        (Call(eval, "1"), "builtins.eval"),
        (Call(getattr, "", "join"), "builtins.getattr"),
        (Call(np.load, "x", None, True), "numpy.*load"),
        (np.array([None]), "'O8'"),
        (np.array(["text"]), "'U4'"),
        (Path("x"), r"pathlib\.\w*Path"),
    ],
)
def test_what_a_pickle_names_is_refused_and_not_run(model, harmful, named):
    folder = model.write()
    for path in (folder / "plans.pkl", folder / f"fold_0/{FINAL}.pkl"):
        before = path.read_bytes()
        path.write_bytes(pickle.dumps({"plans_per_stage": {}, "more": harmful}, protocol=2))
        with pytest.raises(ModelError, match=named) as error:
            read_nnunet_model(folder)
        assert str(path.name) in error.value.problem
        assert error.value.hint
        path.write_bytes(before)


@pytest.mark.parametrize("new", [False, True])
def test_what_a_checkpoint_names_is_refused(model, tmp_path, new):
    folder, mark = model.write(), tmp_path / "was_here"
    content = {"epoch": 1, "state_dict": {}, "more": Call(os.mkdir, str(mark))}
    path = folder / "fold_0" / FINAL
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ModelError, match=r"have to run posix\.mkdir"):
        read_nnunet_model(folder)
    assert not mark.exists()


def test_a_pickle_cannot_change_what_the_next_one_gets(tmp_path):
    """BUILD with a pair sets attributes, here of what stands for numpy.dtype."""
    path = tmp_path / "plans.pkl"
    path.write_bytes(b"\x80\x02cnumpy\ndtype\n(N}X\x0a\x00\x00\x00of_numbersX\x01\x00\x00\x00xstb.")
    read_pickle(path)
    path.write_bytes(pickle.dumps(np.array([1.0])))
    assert read_pickle(path) == [1.0]


def remove(name):
    return lambda folder: (folder / name).unlink()


def changed(**changes):
    def change(folder):
        for path in (folder / "plans.pkl", folder / f"fold_0/{FINAL}.pkl"):
            content = pickle.loads(path.read_bytes())
            content.get("plans", content).update(changes)
            path.write_bytes(pickle.dumps(content))

    return change


def trained_by(name):
    def change(folder):
        path = folder / f"fold_0/{FINAL}.pkl"
        path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), "name": name}))

    return change


def weight(name, value):
    def change(folder):
        path = folder / "fold_0" / FINAL
        content = torch.load(path, weights_only=False)
        content["state_dict"].pop(name, None)
        if value is not None:
            content["state_dict"][name] = value
        torch.save(content, path)

    return change


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


HEAD = "seg_outputs.1.weight"
RULES = '{"for_which_classes": [1], "min_valid_object_sizes": "{1: 50.0}"}'


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (remove("plans.pkl"), "plans.pkl is missing"),
        (remove(f"fold_0/{FINAL}"), f"expected {FINAL}, found no checkpoint"),
        (remove(f"fold_0/{FINAL}.pkl"), rf"{FINAL}\.pkl: there is no such file"),
        (cut("plans.pkl", 50), "plans.pkl: damaged"),
        (cut(f"fold_0/{FINAL}", 500), f"{FINAL}: damaged"),
        (text("plans.pkl", "hello"), "plans.pkl: damaged"),
        (weight(HEAD, torch.zeros(4, 4, 1, 1, 1)), r"heads\.0\.weight has the shape \(4, 4"),
        (weight(HEAD, torch.zeros(4)), r"heads\.0\.weight has the shape"),
        (weight("tu.0.weight", None), "1 are missing, the first is tu.0.weight"),
        (weight("td.0.weight", torch.zeros(1)), "unknown to the network, the first is td.0.weight"),
        (weight(HEAD, "text"), "is not a tensor"),
        (trained_by("nnUNetTrainerV2_ReLU"), "trained by nnUNetTrainerV2_ReLU"),
        (trained_by("nnUNetTrainerV2BraTSRegions"), "Regions"),
        (changed(all_classes=[1, 3]), r"all_classes are \[1, 3\]"),
        (changed(normalization_schemes={0: "CT2"}), "CT2"),
        (changed(normalization_schemes={}), "each of the 1 channels"),
        (changed(preprocessor_name="Own"), "preprocessor_name: Own"),
        (changed(preprocessor_name="PreprocessorFor2D"), "2D, expected GenericPreprocessor"),
        (changed(use_mask_for_norm={0: True}), "use_mask_for_norm: CT"),
        (changed(segmentation_export_params={"interpolation_order": 3}), "interpolation_order"),
        (changed(dataset_properties={}), "foreground intensities of channel 0 lack 'mean'"),
        (changed(plans_per_stage={1: stage()}), r"has the stages \[1\]"),
        (changed(transpose_backward=[0, 1, 2]), "transpose_forward"),
        (changed(base_num_features=8), "has the shape"),
        (changed(num_modalities=10**30), "num_modalities"),
        (changed(num_classes=10**30), "num_classes"),
        (changed(conv_per_stage=10**30), "conv_per_stage"),
        (changed(dataset_properties={"intensityproperties": -1}), "intensities of channel 0"),
        (changed(plans_per_stage={0: stage() | {"patch_size": [0, 0, 0]}}), "patch_size"),
        (changed(plans_per_stage={0: stage() | {"patch_size": [9, 17, 19]}}), "multiples of"),
        (changed(plans_per_stage={0: stage() | {"current_spacing": [np.nan] * 3}}), "spacing"),
        (changed(plans_per_stage={0: stage() | {"conv_kernel_sizes": []}}), "0 conv_kernel_sizes"),
        (changed(base_num_features="many"), "base_num_features"),
        (text("postprocessing.json", "{"), "postprocessing.json: not a"),
        (text("postprocessing.json", '{"for_which_classes": [7]}'), "postprocessing.json: not a"),
        (text("postprocessing.json", RULES), "kept by their size"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(model, change, named):
    folder = model.write()
    change(folder)
    with pytest.raises(ModelError, match=named) as error:
        read_nnunet_model(folder)
    assert error.value.hint
    assert "\n" not in error.value.problem


def test_plans_of_another_training_are_refused(model):
    folder = model.write()
    other = {**stage(), "current_spacing": np.array([1.0, 1.0, 1.0])}
    (folder / "plans.pkl").write_bytes(pickle.dumps(plans({0: other})))
    with pytest.raises(ModelError, match=r"was trained with other plans than .*plans\.pkl"):
        read_nnunet_model(folder)


def test_an_export_for_v2_says_that_v2_predicts_in_another_order(model, tmp_path, caplog):
    (fold,) = read_nnunet_model(model.write())
    out = write_nnunet_model([(fold.info, fold.weights)], tmp_path / "out")
    assert "3d_fullres: nnU-Net v2 normalises before it resamples" in caplog.text
    caplog.clear()
    (again,) = read_nnunet_model(out)
    assert again.info.decisions.average == "logits"
    write_nnunet_model([(again.info, again.weights)], tmp_path / "again")
    assert not caplog.records


def test_folders_may_have_any_names(tmp_path):
    model = V1Model(results=tmp_path / "结果 mit Leerzeichen/nnUNet", task="Task050_Leber und 肝臓")
    folder = model.write()
    zipped = shutil.make_archive(str(tmp_path / "模型 1"), "zip", model.results)
    for source, name in ((folder, "a"), (Path(zipped), "b")):
        moved = import_model(Workspace(tmp_path / "ws 肝"), source, ImportRequest(name=name))
        assert [run.configuration for run in moved.facts.runs] == ["3d_fullres"]
    (fold,) = read_nnunet_model(folder)
    assert fold.info.plan.dataset == "Dataset050_Leber und 肝臓"


def test_the_best_checkpoint_counts_only_after_the_training(model):
    folder = model.write()
    for end in ("", ".pkl"):
        (folder / f"fold_0/{FINAL}{end}").rename(folder / f"fold_0/model_best.model{end}")
    (fold,) = read_nnunet_model(folder)
    assert fold.info.fold == "0"
    (folder / "fold_0/model_latest.model").touch()
    with pytest.raises(
        ModelError, match=r"found model_best\.model and model_latest\.model"
    ) as error:
        read_nnunet_model(folder)
    assert "nnUNet_train" in error.value.hint


def test_a_cascade_without_its_first_stage(model, tmp_path):
    folder = two_stages(model).write("3d_cascade_fullres", number=1, trainer=CASCADE)
    with pytest.raises(ModelError, match="a cascade without the 3d_lowres") as error:
        import_model(Workspace(tmp_path / "ws"), folder)
    assert error.value.hint
    assert not (tmp_path / "ws/models/Dataset050_Own").exists()
    two_stages(model).write("3d_fullres", number=1)
    moved = import_model(Workspace(tmp_path / "ws"), model.results)
    assert [run.configuration for run in moved.facts.runs] == ["3d_fullres"]


def test_an_ensemble_holds_no_weights(model, tmp_path):
    pair = "ensemble_2d__T__P--3d_fullres__T__P"
    folder = model.results / "ensembles/Task050_Own" / pair
    folder.mkdir(parents=True)
    (folder / "postprocessing.json").write_text("{}")
    for path in (folder, model.results):
        with pytest.raises(ModelError, match="an ensemble of 2d__T__P and 3d_fullres__T__P"):
            import_model(Workspace(tmp_path / "ws"), path)
