import json

import pytest

from autoliver.datasets.description import read_description
from autoliver.errors import ModelError
from autoliver.nnunet.export import NAMES, nnunet_dataset, nnunet_name, nnunet_plans
from autoliver.nnunet.plan import plan_from_nnunet

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "ignore": 4}


@pytest.fixture
def convert(tmp_path, plans, head):
    def convert(configuration):
        (tmp_path / "dataset.json").write_text(json.dumps(head))
        description = read_description(tmp_path)
        return plan_from_nnunet(plans, description, configuration=configuration, where="here")

    return convert


@pytest.mark.parametrize(
    ("own", "there", "expected"),
    [
        ("Dataset003_Liver", ["Dataset003_Liver", "Dataset999_Other"], "Dataset003_Liver"),
        ("Dataset12_short", [], "Dataset012_short"),
        ("Dataset0012_long", [], "Dataset012_long"),
        ("Task07_Pan", [], "Dataset007_Pan"),
        ("Task029_LITS", [], "Dataset029_LITS"),
        ("Dataset9999_big", [], "Dataset999_big"),
        ("Dataset9999_big", ["Dataset999_Other", "Dataset998_More"], "Dataset997_big"),
        ("Dataset9999_big", ["Dataset997_big", "Dataset998_More"], "Dataset997_big"),
        ("Livers", ["Dataset999_Other", "notes.txt"], "Dataset998_Livers"),
        ("Dataset12", [], "Dataset999_Dataset12"),
        ("肝臓", [], "Dataset999_肝臓"),
        ("Dataset\N{FULLWIDTH DIGIT ONE}_x", [], "Dataset999_Dataset\N{FULLWIDTH DIGIT ONE}_x"),
    ],
)
def test_nnunet_finds_a_dataset_by_three_digits(tmp_path, own, there, expected):
    for name in there:
        (tmp_path / name).mkdir()
    assert nnunet_name(own, tmp_path) == expected
    assert nnunet_name(expected, tmp_path) == expected


def test_a_folder_without_a_free_number(tmp_path):
    for number in range(1, 1000):
        (tmp_path / f"Dataset{number:03d}_x").mkdir()
    with pytest.raises(ModelError, match="numbers 1 to 999 are all taken"):
        nnunet_name("Livers", tmp_path)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("configuration", ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"])
def test_plans_come_back_as_they_were(convert, plans, head, configuration, regions):
    if regions:
        head |= {"labels": REGIONS, "regions_class_order": [1, 2, 3]}
    plan, name = convert(configuration)
    assert NAMES[name] == configuration
    back = nnunet_plans(plan, name, dataset="Dataset007_Toy")
    own = plans["configurations"][configuration]
    full = plans["configurations"]["3d_fullres"] if "inherits_from" in own else {}
    theirs = {
        key: value
        for key, value in {**full, **own}.items()
        if key not in ("inherits_from", "next_stage", "data_identifier")
    }
    (ours,) = back["configurations"].values()
    assert {key: value for key, value in ours.items() if key != "data_identifier"} == theirs
    for key in ("transpose_forward", "transpose_backward", "experiment_planner_used"):
        assert back[key] == plans[key]
    key = "foreground_intensity_properties_per_channel"
    assert back[key] == plans[key]
    assert nnunet_dataset(plan, cases=9) == head


def test_what_nnunet_cannot_do_is_named(convert):
    plan, name = convert("3d_fullres")
    configuration = plan.configurations[name]
    wide = configuration.replace(network=configuration.network.replace(in_channels=5))
    gap = plan.labels.replace(values={"background": (0,), "liver": (1,), "tumour": (7,)})
    for changed, problem in (
        (plan.replace(configurations={name: wide}), "5 input"),
        (plan.replace(labels=gap), r"\[0, 1, 7\]"),
        (plan.replace(labels=plan.labels.replace(ignore=255)), "255"),
        (plan.replace(file_ending=".png"), r"\.png"),
    ):
        with pytest.raises(ModelError, match=problem):
            nnunet_plans(changed, name, dataset="Dataset007_Toy")
