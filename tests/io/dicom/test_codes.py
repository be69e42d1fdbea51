"""Labels are coded by their names, in the forms people use; what is not known is tissue."""

import pytest
from pydicom.sr._concepts_dict import concepts

from autoliver.io.dicom import codes as module
from autoliver.io.dicom.codes import (
    ANATOMY,
    LESION,
    UNKNOWN,
    Concept,
    SegmentCodes,
    code_labels,
    code_problem,
)

# Codes of SNOMED CT that DICOM has in none of its lists.
BEYOND_DICOM = {"25370001", "70179006", "278527001"}

ORGANS = {
    "liver": ("Liver", None),
    "Liver": ("Liver", None),
    "liver parenchyma": ("Liver", None),
    "spleen": ("Spleen", None),
    "kidney_right": ("Kidney", "Right"),
    "right kidney": ("Kidney", "Right"),
    "Left Kidney": ("Kidney", "Left"),
    "RightKidney": ("Kidney", "Right"),
    "kidney (l)": ("Kidney", "Left"),
    "kidneys": ("Kidney", None),
    "adrenal_gland_left": ("Adrenal gland", "Left"),
    "pancreas": ("Pancreas", None),
    "gall_bladder": ("Gallbladder", None),
    "oesophagus": ("Esophagus", None),
    "stomach": ("Stomach", None),
    "aorta": ("Aorta", None),
    "IVC": ("Inferior vena cava", None),
    "postcava": ("Inferior vena cava", None),
    "Portal vein": ("Portal vein", None),
    "hepatic veins": ("Hepatic vein", None),
    "vessels": ("Blood Vessel", None),
}
LESIONS = {
    "tumour": ("Neoplasm", None),
    "tumors": ("Neoplasm", None),
    "Liver tumour": ("Neoplasm", "Liver"),
    "tumour of the liver": ("Neoplasm", "Liver"),
    "pancreatic cancer": ("Neoplasm", "Pancreas"),
    "liver lesions": ("Lesion", "Liver"),
    "lesion 2": ("Lesion", None),
    "masses": ("Mass", None),
    "liver metastases": ("Neoplasm, Secondary", "Liver"),
    "metastasis": ("Neoplasm, Secondary", None),
    "CRLM": ("Neoplasm, Secondary", "Liver"),
    "HCC": ("Hepatocellular carcinoma", "Liver"),
    "ICC": ("Cholangiocarcinoma", "Liver"),
    "FNH": ("Focal nodular hyperplasia of liver", "Liver"),
    "haemangioma": ("Hemangioma", None),
    "hepatic hemangiomas": ("Hemangioma", "Liver"),
    "cysts": ("Cyst", None),
    "abscesses": ("Abscess", None),
    "renal_cyst_left": ("Cyst", "Kidney"),
}
# Some would be found by words in them, and are something else.
UNKNOWNS = (
    *("label_1", "liver segment 4", "left liver", "no tumour", "tumour thrombus", "Anterior"),
    *("right spleen", "left tumour of the liver", "peri-hepatic fat", "bone", "x", "肝脏"),
)


@pytest.mark.parametrize("name", ORGANS)
def test_organs_and_vessels(name: str) -> None:
    meaning, side = ORGANS[name]
    coding = code_labels([name])[name]
    assert coding.known
    assert coding.codes.category == ANATOMY
    assert coding.codes.type.meaning == meaning
    assert (coding.codes.modifier and coding.codes.modifier.meaning) == side
    assert coding.codes.region is None


@pytest.mark.parametrize("name", LESIONS)
def test_lesions(name: str) -> None:
    meaning, region = LESIONS[name]
    coding = code_labels([name])[name]
    assert coding.codes.category == LESION
    assert coding.codes.type.meaning == meaning
    assert (coding.codes.region and coding.codes.region.meaning) == region


@pytest.mark.parametrize("name", UNKNOWNS)
def test_what_is_not_known_is_tissue(name: str) -> None:
    coding = code_labels([name])[name]
    assert not coding.known
    assert coding.codes == UNKNOWN


def test_vessels_of_an_organ_lie_in_it() -> None:
    codes = code_labels(["liver vessels"])["liver vessels"].codes
    assert (codes.type.meaning, codes.category) == ("Blood Vessel", ANATOMY)
    assert codes.region is not None
    assert codes.region.meaning == "Liver"


def test_the_side_of_a_lesion_is_that_of_its_organ() -> None:
    codes = code_labels(["left kidney tumour"])["left kidney tumour"].codes
    assert (codes.region, codes.region_modifier, codes.modifier) == (
        Concept("64033007", "SCT", "Kidney"),
        Concept("7771000", "SCT", "Left"),
        None,
    )


@pytest.mark.parametrize(
    ("names", "region"),
    [
        (["liver", "tumour"], "Liver"),
        (["liver", "portal vein", "tumour"], "Liver"),
        (["left kidney", "right kidney", "tumour"], "Kidney"),
        (["liver", "spleen", "tumour"], None),
        (["prostate", "HCC"], "Liver"),
    ],
)
def test_a_lesion_lies_in_the_only_organ(names: list[str], region: str | None) -> None:
    found = code_labels(names)[names[-1]].codes.region
    assert (found and found.meaning) == region


def test_given_codes_come_first() -> None:
    own = SegmentCodes(type=Concept("1", "99LAB", "Our liver"))
    coded = code_labels(["liver", "spleen"], {"liver": own})
    assert coded["liver"].codes == own
    assert coded["spleen"].codes.type.meaning == "Spleen"


def test_unknown_labels_have_different_colours() -> None:
    names = [f"part {number}" for number in "abcdefgh"]
    assert len({coding.rgb for coding in code_labels(names).values()}) == len(names)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (Concept("1", "99LAB", "Liver"), ""),
        (Concept("", "SCT", "Liver"), "type: the value"),
        (Concept("1", "A SCHEME TOO LONG", "Liver"), "type: the scheme"),
        (Concept("1", "SCT", "x" * 65), "type: the meaning"),
        (Concept("1", "SCT", "a\\b"), "type: the meaning"),
        (Concept("1", "SCT", "a\nb"), "type: the meaning"),
    ],
)
def test_codes_that_dicom_cannot_hold(code: Concept, problem: str) -> None:
    found = code_problem(SegmentCodes(type=code))
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_every_code_is_one_of_the_standard_with_its_meaning() -> None:
    meanings: dict[str, set[str]] = {}
    for known in concepts["SCT"].values():
        for code, (meaning, _) in known.items():
            meanings.setdefault(code, set()).add(meaning)
    parts = (*module._PARTS, *module._FINDINGS)
    wrong = [p for p in parts if p.meaning not in meanings.get(p.code, ())]
    assert {p.code for p in wrong} == BEYOND_DICOM
