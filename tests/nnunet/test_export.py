import json

import pytest

from autoliver.datasets.description import read_description
from autoliver.errors import ModelError
from autoliver.nnunet.export import NAMES, nnunet_dataset, nnunet_plans
from autoliver.nnunet.plan import plan_from_nnunet

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "ignore": 4}


@pytest.fixture
def convert(tmp_path, plans, head):
    def convert(configuration):
        (tmp_path / "dataset.json").write_text(json.dumps(head))
        description = read_description(tmp_path)
        return plan_from_nnunet(plans, description, configuration=configuration, where="here")

    return convert


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
