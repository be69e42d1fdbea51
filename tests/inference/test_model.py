import hashlib
import shutil

import pytest
import torch

from autoliver.datasets.cases import Labels
from autoliver.errors import ArtifactError, MachineError, ModelError
from autoliver.inference.model import load_member, load_model
from autoliver.models.files import (
    MODEL_FILE,
    WEIGHTS_FILE,
    FoldModel,
    MemberFiles,
    ModelFiles,
    together,
)
from autoliver.models.selection import CleaningRule
from autoliver.networks.build import build_network

torch.set_num_threads(1)
CPU = torch.device("cpu")


def load(*folders):
    return load_member(folders, name="Toy/3d_fullres", device=CPU)


def test_a_fold_comes_back_ready_to_predict(save, plan):
    folder = save("fold_0", seed=3)
    model = load(folder)
    assert model.plan == plan
    assert model.configuration == plan.configurations["3d_fullres"]
    (network,) = model.networks
    assert not network.training
    spec = model.configuration.network
    made = build_network(
        spec, deep_supervision=False, generator=torch.Generator().manual_seed(3)
    ).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(image)[0], made(image)[0])


def test_networks_that_do_not_fit_on_a_gpu_end_with_one_error(save, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("autoliver.networks.checkpoint.load_network", full)
    with pytest.raises(MachineError, match=r"Toy/3d_fullres: .* too little memory for 2 networks"):
        load(save("fold_0"), save("fold_1"))


def test_the_checksum_is_of_the_weights_and_nothing_else_is_left_in_the_folder(save):
    folder = save("fold_0")
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert FoldModel.load(folder / MODEL_FILE).weights_sha256 == digest
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_FILE, MODEL_FILE}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: content[:0],
        lambda content: content[:-8] + b"\x00" * 8,
        lambda content: b"PK\x03\x04" + content,
    ],
    ids=["short", "head", "empty", "bits", "foreign"],
)
def test_damaged_weights_are_named(save, damage):
    weights = save("fold_0") / WEIGHTS_FILE
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ModelError, match=r"fold_0/weights\.safetensors: damaged"):
        load(weights.parent)


def test_weights_of_another_fold_are_noticed(save):
    one, other = save("fold_0", seed=0), save("fold_1", seed=1)
    shutil.copy(one / WEIGHTS_FILE, other / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"fold_1/.*checksum differs from the one in model\.json"):
        load(one, other)


def test_missing_files_are_named(save):
    folder = save("fold_0")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=r"weights\.safetensors: there is no such"):
        load(folder)
    (folder / MODEL_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"model\.json: there is no such file"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"kind": "model", "sch', "not valid JSON"),
        ('{"kind": "plan", "schema": 1}', "expected a file of kind 'model', found 'plan'"),
        ('{"kind": "model", "schema": 99, "autoliver": "9.0"}', "schema 99 by autoliver 9.0"),
        ('{"kind": "model", "schema": 1, "fold": 0}', "model.json: .*fold"),
    ],
)
def test_a_damaged_or_foreign_description_says_what_to_do(save, content, words):
    folder = save("fold_0")
    (folder / MODEL_FILE).write_text(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        load(folder)
    assert "autoliver train" in caught.value.hint


def test_folds_of_different_plans_or_configurations_do_not_mix(save):
    one = save("fold_0")
    with pytest.raises(ModelError, match="fold_1 was trained with another plan than fold_0"):
        load(one, save("fold_1", vram_gb=2.0))
    with pytest.raises(ModelError, match="fold_2 was trained with another plan"):
        load(one, save("fold_2", configuration="2d"))


def test_members_with_other_labels_or_channels_are_refused(save):
    one = MemberFiles(folds=(save("fold_0"),))
    labels = Labels(values={"background": (0,), "liver": (1,), "cyst": (2,)})
    shutil.move(one.folds[0].parent, one.folds[0].parents[1] / "first")
    one = MemberFiles(folds=(one.folds[0].parents[1] / "first/fold_0",))
    other = MemberFiles(folds=(save("fold_0", labels=labels),))
    with pytest.raises(ModelError, match=r"first has .*tumour.*3d_fullres .*cyst"):
        load_model(ModelFiles(name="both", members=(one, other)), device=CPU)
    model = load_model(ModelFiles(name="twice", members=(one, one)), device=CPU)
    assert len(model.members) == 2


def test_a_cascade_without_its_first_stage_says_what_to_train(save, plan):
    whole = plan.configurations["3d_fullres"]
    network = whole.network.replace(in_channels=1 + len(plan.labels.foreground))
    cascade = whole.replace(previous_stage="3d_lowres", network=network)
    folder = save("fold_0", configurations={"3d_fullres": cascade})
    files = ModelFiles(name="Toy/3d_cascade", members=(MemberFiles(folds=(folder,)),))
    with pytest.raises(ModelError, match=r"3d_lowres model .* is missing") as caught:
        load_model(files, device=CPU)
    assert caught.value.hint == "Train it: autoliver train Dataset009_Toy 3d_lowres"


def test_several_models_together_share_the_rules_they_agree_on(save):
    part, second, third = (MemberFiles(folds=(save(f"fold_{n}", seed=n),)) for n in range(3))
    liver, tumour = (CleaningRule(labels=(name,), keep="largest") for name in ("liver", "tumour"))
    one = ModelFiles(name="A", members=(part,), cleaning=(liver, tumour))
    other = ModelFiles(name="B", members=(second, third), cleaning=(tumour,))
    assert together([one]) is one
    both = together([one, other])
    assert (both.name, both.cleaning) == ("A + B", (tumour,))
    assert len(load_model(both, device=CPU).members) == 3
