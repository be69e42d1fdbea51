from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import Labels
from autoliver.evaluation import metrics
from autoliver.evaluation.cleaning import (
    LEAST_CASES,
    SMALL_ML,
    judge,
    learn_rules,
    rounds,
    touched,
    try_rules,
)
from autoliver.inference.clean import clean
from autoliver.io.files import write_label
from autoliver.io.volume import Geometry
from autoliver.models.selection import CleaningRule

LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,), "spleen": (3,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,), "spleen": (3,)},
    regions_class_order=(1, 2, 3),
)
SPACING = (4.0, 2.0, 2.0)  # 0.016 ml a voxel


def largest(*names):
    return CleaningRule(labels=names, keep="largest")


def least(name, ml):
    return CleaningRule(labels=(name,), keep="least", least_ml=ml)


def reference():
    array = np.zeros((10, 24, 24), np.uint8)
    array[1:8, 2:12, 2:12] = 1
    array[3:5, 4:7, 4:7] = 2
    array[6, 9, 9] = 2
    array[2:8, 16:20, 16:20] = 3
    return array


def save(folder: Path, cases, references):
    geometry = Geometry(shape_zyx=references[0].shape, spacing_mm=SPACING)
    pairs = {}
    for index, arrays in enumerate(zip(cases, references, strict=True)):
        paths = (folder / f"p{index}.nii.gz", folder / f"r{index}.nii.gz")
        for path, array in zip(paths, arrays, strict=True):
            write_label(path, array, geometry)
        pairs[f"case_{index}"] = paths
    return pairs


def dice(array, truth, values, counted=None):
    masks = [np.isin(a, values) for a in (array, truth)]
    if counted is not None:
        masks = [mask & counted for mask in masks]
    value = metrics.dice(*masks)
    return None if np.isnan(value) else value


@pytest.mark.parametrize("labels", [LABELS, REGIONS, LABELS.replace(ignore=7)])
@pytest.mark.parametrize("seed", range(5))
def test_dice_after_a_rule_is_that_of_the_cleaned_label_map(labels, seed):
    rng = np.random.default_rng(seed)
    noise = rng.choice([0, 1, 2, 3], p=[0.9, 0.05, 0.03, 0.02], size=(10, 24, 24))
    predicted = np.where(rng.random(noise.shape) < 0.3, noise, reference()).astype(np.uint8)
    truth = reference()
    if labels.ignore:
        truth[:, :9] = labels.ignore
    rules = [rule for round_ in rounds(labels) for choices in round_ for rule in choices]
    tried = try_rules(predicted, truth, rules, labels=labels, spacing_mm=SPACING)
    counted = truth != 7
    for name, values in labels.foreground.items():
        assert tried.before[name] == dice(predicted, truth, values, counted)
    assert len(rules) == len(tried.after) == 1 + 3 + 3 * len(SMALL_ML)
    for rule, after in zip(rules, tried.after, strict=True):
        cleaned = clean(predicted, [rule], values=labels.values, spacing_mm=SPACING)
        assert set(after) == set(touched(rule, labels))
        for name, found in after.items():
            assert found == dice(cleaned, truth, labels.values[name], counted), (rule, name)


def test_rules_of_one_round_touch_no_common_label():
    brain = Labels(values={"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "edema": (1,)})
    for labels, number in ((LABELS, 3), (REGIONS, 5), (brain, 1 + 2 + 3)):
        made = rounds(labels)
        assert len(made) == number
        for round_ in made:
            names = [name for choices in round_ for name in touched(choices[0], labels)]
            assert len(names) == len(set(names))
    one = rounds(Labels(values={"background": (0,), "liver": (1,)}))
    assert [[len(choices) for choices in round_] for round_ in one] == [[1], [len(SMALL_ML)]]


def test_a_rule_that_helps_is_kept_and_one_that_hurts_is_not(tmp_path):
    # Every prediction is right but for a spot of liver by the spleen; the truth has two tumours.
    predicted = reference()
    predicted[9, 22:24, 22:24] = 1
    pairs = save(tmp_path, [predicted] * 3, [reference()] * 3)
    trials = {str(trial.rule): trial for trial in learn_rules(pairs, labels=LABELS)}
    assert not trials["liver + tumour + spleen: only the largest component"].kept
    liver = trials["liver: only the largest component"]
    assert liver.kept
    truth = np.count_nonzero(reference() == 1)
    assert liver.before == {"liver": pytest.approx(2 * truth / (2 * truth + 4))}
    assert liver.after == {"liver": 1.0}
    tumour = trials["tumour: only the largest component"]
    assert not tumour.kept
    assert tumour.before == {"tumour": 1.0}
    assert tumour.after["tumour"] < 1
    assert "liver: only the largest component: kept, Dice 0.99" in str(liver)
    assert sum(trial.kept for trial in trials.values()) == 1


def test_the_least_limit_that_helps_most_is_told(tmp_path):
    truth = reference()
    truth[6, 9, 9] = 1
    truth[8:10, 22, 10:16] = 2  # a second tumour of 0.19 ml
    predicted = truth.copy()
    predicted[9, 0, 0:2] = 2  # 0.03 ml
    predicted[9, 0, 10:15] = 2  # 0.08 ml
    trials = learn_rules(save(tmp_path, [predicted] * 4, [truth] * 4), labels=LABELS)
    limits = [trial for trial in trials if trial.rule.keep == "least"]
    assert [trial.rule.labels for trial in limits] == [("liver",), ("tumour",), ("spleen",)]
    assert [trial.rule for trial in trials if trial.kept] == [least("tumour", 0.1)]
    assert limits[1].after == {"tumour": 1.0}


def test_later_rules_are_tried_on_top_of_kept_ones(tmp_path):
    truth = reference()
    truth[6, 9, 9] = 1
    predicted = truth.copy()
    predicted[9, 0, 0:2] = 2
    trials = learn_rules(save(tmp_path, [predicted] * 3, [truth] * 3), labels=LABELS)
    tumour = [trial for trial in trials if trial.rule.labels == ("tumour",)]
    assert [trial.kept for trial in tumour] == [True, False]
    assert tumour[0].after == tumour[1].before == {"tumour": 1.0}


def test_a_rule_may_cost_no_touched_label_anything():
    rule = largest("liver", "spleen")
    better = [({"liver": 0.5, "spleen": 0.9}, {"liver": 0.9, "spleen": 0.8999})] * 3
    trial = judge(rule, better)
    assert trial.gain == pytest.approx(0.19995)
    assert not trial.kept
    tiny = [({"liver": 0.5, "spleen": 0.9}, {"liver": 0.5002, "spleen": 0.9})]
    assert not judge(rule, tiny).kept  # 0.0001 on average
    assert judge(rule, [({"liver": 0.5, "spleen": 0.9}, {"liver": 0.501, "spleen": 0.9})]).kept


def test_false_positives_that_go_leave_a_case_without_dice():
    rule = least("tumour", 1.0)
    cases = [({"tumour": 0.8}, {"tumour": 0.8}), ({"tumour": 0.0}, {"tumour": None})]
    trial = judge(rule, cases)
    assert (trial.before, trial.after, trial.kept) == ({"tumour": 0.4}, {"tumour": 0.8}, True)
    nothing = judge(rule, [({"tumour": 0.0}, {"tumour": None})])
    assert not nothing.kept
    assert "no case defines its Dice" in str(nothing)


def test_few_cases_teach_nothing(tmp_path):
    pairs = save(tmp_path, [reference()] * (LEAST_CASES - 1), [reference()] * (LEAST_CASES - 1))
    assert learn_rules(pairs, labels=LABELS) == ()


def test_a_single_slice_has_no_small_volumes():
    truth = reference()[3:4]
    predicted = truth.copy()
    predicted[0, 0, 0] = 1
    rules = [least("liver", 5.0), largest("liver")]
    tried = try_rules(predicted, truth, rules, labels=LABELS, spacing_mm=(999.0, 1.0, 1.0))
    assert tried.after[0] == tried.before
    assert tried.after[1] == {"liver": 1.0}


def test_empty_label_maps_are_no_trouble():
    empty = np.zeros((4, 5, 6), np.uint8)
    rules = [rule for round_ in rounds(LABELS) for choices in round_ for rule in choices]
    tried = try_rules(empty, empty, rules, labels=LABELS, spacing_mm=SPACING)
    assert set(tried.before.values()) == {None}
    assert all(value is None for after in tried.after for value in after.values())


def test_rules_are_not_judged_by_labels_that_nobody_marked(tmp_path):
    truth = reference()
    predicted = truth.copy()
    predicted[9, 0, 0:2] = 1
    pairs = save(tmp_path, [predicted] * 3, [truth] * 3)
    left_out = {name: {"liver"} for name in pairs}
    trials = {str(t.rule): t for t in learn_rules(pairs, labels=LABELS, unscored=left_out)}
    liver = trials["liver: only the largest component"]
    assert (liver.before, liver.kept) == ({}, False)
    kept = {str(t.rule): t for t in learn_rules(pairs, labels=LABELS)}
    assert kept["liver: only the largest component"].before.keys() == {"liver"}
