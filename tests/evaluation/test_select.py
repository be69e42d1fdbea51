import numpy as np
import pytest

from autoliver.datasets.cases import Labels
from autoliver.evaluation.results import CaseScores, MetricOptions, Score
from autoliver.evaluation.score import score_case
from autoliver.evaluation.select import PAIR_MARGIN, Candidate, choose, make_candidate
from autoliver.io.volume import Geometry, Volume

LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})


def candidate(*runs, dice):
    return Candidate(runs=runs, dice=dice, labels={"liver": dice})


def test_a_candidate_sums_up_the_scores_of_its_cases():
    # Worked by hand: liver 2*2/(2+4) and 1; tumour 0 (invented) and absent from both.
    predictions = ([1, 1, 0, 0, 2, 0], [1, 0, 0, 0, 0, 0])
    references = ([1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0])
    geometry = Geometry(shape_zyx=(1, 1, 6), spacing_mm=(1.0, 1.0, 1.0))
    cases = []
    for index, pair in enumerate(zip(predictions, references, strict=True)):
        volumes = [Volume(array=np.array([[[row]]], np.uint8), geometry=geometry) for row in pair]
        options = MetricOptions(metrics=("dice",))
        cases.append(score_case(*volumes, labels=LABELS, options=options, name=str(index)))
    found = make_candidate(["2d", "3d_fullres"], cases)
    assert found.name == "2d + 3d_fullres"
    assert found.labels == {"liver": pytest.approx((2 / 3 + 1) / 2), "tumour": 0.0}
    assert found.dice == pytest.approx((2 / 3 + 1) / 4)


def test_a_label_that_no_case_defines_is_in_no_mean():
    scores = {"liver": Score(voxels=1, reference_voxels=1, dice=0.5), "tumour": None}
    scores["tumour"] = Score(voxels=0, reference_voxels=0)
    found = make_candidate(["2d"], [CaseScores(name="a", labels=scores)])
    assert (found.dice, found.labels) == (0.5, {"liver": 0.5, "tumour": None})
    scores["liver"] = scores["tumour"]
    assert choose([make_candidate(["2d"], [CaseScores(name="a", labels=scores)])]) is None


@pytest.mark.parametrize(
    ("gain", "chosen"), [(-0.1, "b"), (0.0, "b"), (0.0009, "b"), (0.0011, "a + b"), (0.1, "a + b")]
)
def test_a_pair_must_be_clearly_better(gain, chosen):
    singles = [candidate("a", dice=0.7), candidate("b", dice=0.8)]
    pair = candidate("a", "b", dice=0.8 + gain)
    choice = choose([*singles, pair])
    assert choice is not None
    assert choice.candidate.name == chosen
    assert "b has the highest mean Dice of the single runs: 0.8000; next comes a" in choice.why[0]
    if chosen == "b":
        assert f"not more than {PAIR_MARGIN:g} better" in choice.why[1]
    else:
        assert f"({gain:+.4f}): it is chosen" in choice.why[1]


def test_of_equals_the_first_wins():
    choice = choose([candidate(name, dice=0.8) for name in ("2d", "3d_lowres", "3d_fullres")])
    assert choice is not None
    assert choice.candidate.name == "2d"


def test_a_run_alone_is_chosen_for_want_of_others():
    choice = choose([candidate("2d", dice=0.3), candidate("3d_fullres", dice=None)])
    assert choice is not None
    assert choice.why == ("2d is the only run compared: mean Dice 0.3000.",)
