"""Coded meanings of labels, for DICOM: what a segment shows, where, and its colour.

Most codes are those of SNOMED CT in the lists of the DICOM standard (PS3.16, CID 7151 ff.).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from autoliver.artifacts import Record

Colour = tuple[int, int, int]
# How a segmentation stores its segments: a mask for each, or one label map of all.
SegType = Literal["binary", "labelmap"]


class Concept(NamedTuple):
    """A code of a terminology: in dataset.json ["10200004", "SCT", "Liver"].

    Attributes:
        value: The code.
        scheme: The terminology by its DICOM name, "SCT" for SNOMED CT.
        meaning: What the code means.
    """

    value: str
    scheme: str
    meaning: str


ANATOMY = Concept("123037004", "SCT", "Anatomical Structure")
LESION = Concept("49755003", "SCT", "Morphologically Abnormal Structure")
# What 3D Slicer gives to a segment of which nothing is known.
TISSUE = Concept("85756007", "SCT", "Tissue")
RIGHT = Concept("24028007", "SCT", "Right")
LEFT = Concept("7771000", "SCT", "Left")


class SegmentCodes(Record, frozen=True, kw_only=True):
    """What a label stands for.

    Attributes:
        type: What it is.
        category: What kind of thing that is.
        modifier: Side or other detail of `type`; None if there is none.
        region: The organ that it lies in; None if `type` is an organ itself or nothing is known.
        region_modifier: Side of the region; None if there is none.
    """

    type: Concept
    category: Concept = ANATOMY
    modifier: Concept | None = None
    region: Concept | None = None
    region_modifier: Concept | None = None

    @property
    def concepts(self) -> dict[str, Concept]:
        """The codes that are given, by the names of their fields."""
        every = {field: getattr(self, field) for field in self.__struct_fields__}
        return {field: code for field, code in every.items() if code is not None}


UNKNOWN = SegmentCodes(type=TISSUE, category=TISSUE)


class _Part(NamedTuple):
    """Something anatomical that a label may be named after."""

    code: str
    meaning: str
    colour: Colour
    names: str
    paired: bool = False
    organ: bool = True


# Colours are those of 3D Slicer's anatomical colours where it has one.
_PARTS = (
    _Part("10200004", "Liver", (221, 130, 101), "liver, whole liver, liver parenchyma, hepar"),
    _Part("78961009", "Spleen", (157, 108, 162), "spleen"),
    _Part("64033007", "Kidney", (185, 102, 83), "kidney", paired=True),
    _Part("15776009", "Pancreas", (249, 180, 111), "pancreas"),
    _Part("28231008", "Gallbladder", (139, 150, 98), "gallbladder, gall bladder"),
    _Part("69695003", "Stomach", (216, 132, 105), "stomach"),
    _Part("38848004", "Duodenum", (255, 253, 229), "duodenum"),
    _Part("30315005", "Small intestine", (205, 167, 142), "small intestine, small bowel"),
    _Part("71854001", "Colon", (204, 168, 143), "colon"),
    _Part("32849002", "Esophagus", (211, 171, 143), "esophagus"),
    _Part("89837001", "Bladder", (222, 154, 132), "bladder, urinary bladder"),
    _Part("41216001", "Prostate", (230, 158, 140), "prostate"),
    _Part("35039007", "Uterus", (255, 181, 158), "uterus"),
    _Part("23451007", "Adrenal gland", (249, 186, 150), "adrenal gland, adrenal", paired=True),
    _Part("39607008", "Lung", (197, 165, 145), "lung", paired=True),
    _Part("80891009", "Heart", (206, 110, 84), "heart"),
    _Part("12738006", "Brain", (250, 250, 225), "brain"),
    _Part("5366008", "Hippocampus", (220, 160, 30), "hippocampus", paired=True),
    _Part("15825003", "Aorta", (224, 97, 76), "aorta", organ=False),
    _Part("7832008", "Abdominal aorta", (224, 97, 76), "abdominal aorta", organ=False),
    _Part(
        *("64131007", "Inferior vena cava", (0, 151, 206)),
        "inferior vena cava, ivc, postcava",
        organ=False,
    ),
    _Part("32764006", "Portal vein", (70, 90, 220), "portal vein", organ=False),
    _Part("8993003", "Hepatic vein", (0, 131, 226), "hepatic vein, liver vein", organ=False),
    _Part("76015000", "Hepatic artery", (216, 101, 79), "hepatic artery", organ=False),
    _Part("28273000", "Bile duct", (0, 145, 30), "bile duct", organ=False),
    _Part("59820001", "Blood Vessel", (216, 60, 79), "vessel, blood vessel", organ=False),
)


class _Finding(NamedTuple):
    """A lesion that a label may be named after."""

    code: str
    meaning: str
    colour: Colour
    names: str
    hepatic: bool = False


_FINDINGS = (
    _Finding(
        *("108369006", "Neoplasm", (144, 238, 144)),
        "tumor, neoplasm, cancer, malignant tumor, whole tumor, tumor core, enhancing tumor, "
        "non enhancing tumor",
    ),
    _Finding("52988006", "Lesion", (144, 238, 144), "lesion, focal lesion"),
    _Finding("4147007", "Mass", (144, 238, 144), "mass"),
    _Finding("27925004", "Nodule", (144, 238, 144), "nodule"),
    _Finding(
        *("14799000", "Neoplasm, Secondary", (250, 210, 40)),
        "metastasis, metastase, met, secondary",
    ),
    _Finding(
        *("14799000", "Neoplasm, Secondary", (250, 210, 40)),
        "crlm, bclm, colorectal liver metastasis, colorectal liver metastase",
        hepatic=True,
    ),
    _Finding(
        *("25370001", "Hepatocellular carcinoma", (230, 25, 75)),
        "hcc, hepatocellular carcinoma",
        hepatic=True,
    ),
    _Finding(
        *("70179006", "Cholangiocarcinoma", (245, 130, 48)),
        "icc, cholangiocarcinoma, intrahepatic cholangiocarcinoma",
        hepatic=True,
    ),
    _Finding(
        *("278527001", "Focal nodular hyperplasia of liver", (60, 180, 75)),
        "fnh, focal nodular hyperplasia",
        hepatic=True,
    ),
    _Finding("400210000", "Hemangioma", (145, 30, 180), "hemangioma"),
    _Finding("367643001", "Cyst", (70, 200, 240), "cyst, simple cyst"),
    _Finding("1187375007", "Adenoma", (0, 128, 128), "adenoma"),
    _Finding("44132006", "Abscess", (170, 110, 40), "abscess"),
    _Finding("6574001", "Necrosis", (128, 128, 128), "necrosis, necrotic tumor"),
    _Finding("79654002", "Edema", (140, 224, 228), "edema, peritumoral edema"),
    _Finding("75753009", "Blood clot", (170, 0, 60), "thrombus, blood clot"),
)
# Colours for labels that are not known, as far apart as possible.
_OTHER = (
    *((255, 225, 25), (0, 130, 200), (240, 50, 230), (210, 245, 60), (250, 190, 212)),
    *((0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200), (128, 0, 0)),
)

_BRITISH = (("tumour", "tumor"), ("haem", "hem"), ("oesoph", "esoph"), ("oedema", "edema"))
_ADJECTIVES = {"hepatic": "liver", "renal": "kidney", "pancreatic": "pancreas", "splenic": "spleen"}
_SIDES = {"right": RIGHT, "r": RIGHT, "rt": RIGHT, "left": LEFT, "l": LEFT, "lt": LEFT}
_FILLERS = {"of", "in", "the", "a", "other", "all", "any"}
_PART_OF = {name: part for part in _PARTS for name in part.names.split(", ")}
_FINDING_OF = {name: finding for finding in _FINDINGS for name in finding.names.split(", ")}


class Coding(NamedTuple):
    """The codes and the colour of a label.

    Attributes:
        codes: The codes.
        rgb: The colour, 0 to 255.
        known: Whether the codes say more than that it is tissue.
    """

    codes: SegmentCodes
    rgb: Colour
    known: bool = True


def code_labels(
    names: Iterable[str], given: Mapping[str, SegmentCodes] | None = None
) -> dict[str, Coding]:
    """Codes labels by their names, in the forms that people use.

    "kidney_right", "Right kidneys" and "RightKidney" are the same. A lesion lies in the organ that
    its name says ("liver tumour"); without one, in the only organ among the labels.

    Args:
        names: The names of all labels.
        given: Codes for labels of which they are known, from dataset.json.

    Returns:
        Name -> coding, in the order of the names. Labels that are not known are `UNKNOWN`.
    """
    given, names = given or {}, list(names)
    organs = {found.code: found for name in names if (found := _organ(name)) is not None}
    only = next(iter(organs.values())) if len(organs) == 1 else None
    coded, others = {}, 0
    for name in names:
        coding = _structure(name) or _lesion(name, only)
        if coding is None:
            coding = Coding(UNKNOWN, _OTHER[others % len(_OTHER)], known=False)
            others += 1
        coded[name] = Coding(given[name], coding.rgb) if name in given else coding
    return coded


def code_problem(codes: SegmentCodes) -> str:
    """What DICOM cannot hold in codes, in words; empty if nothing."""
    for field, code in codes.concepts.items():
        for part, most in zip(code._fields, (64, 16, 64), strict=True):
            text = getattr(code, part).strip()
            if not text or len(text) > most or "\\" in text or not text.isprintable():
                return (
                    f"{field}: the {part} must have 1 to {most} letters and no backslash, found "
                    f"{text!r}"
                )
    return ""


def _words(name: str) -> Iterator[str]:
    """The words of a name in small letters, American and in the singular, adjectives as organs."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", name)
    for word in apart.casefold().split():
        for british, american in _BRITISH:
            word = word.replace(british, american)
        if word.endswith("sses"):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is", "pancreas")):
            word = word[:-1]
        yield word


def _split_side(words: Iterable[str]) -> tuple[list[str], Concept | None]:
    rest, side = [], None
    for word in words:
        if word in _SIDES and side is None:
            side = _SIDES[word]
        else:
            rest.append(word)
    return rest, side


def _organ(name: str) -> _Part | None:
    part = _PART_OF.get(" ".join(_split_side(_words(name))[0]))
    return part if part is not None and part.organ else None


def _structure(name: str) -> Coding | None:
    """The coding of a name that is that of an organ or a vessel."""
    words, side = _split_side(_words(name))
    part = _PART_OF.get(" ".join(words))
    region = None
    if part is None and words and words[-1] == "vessel" and len(words) == 2:
        region = _PART_OF.get(_ADJECTIVES.get(words[0], words[0]))
        part = _PART_OF["vessel"] if region is not None and region.organ else None
    if part is None or (side is not None and not (region or part).paired):
        return None
    codes = SegmentCodes(
        type=_concept(part),
        modifier=side if region is None else None,
        region=None if region is None else _concept(region),
        region_modifier=None if region is None else side,
    )
    return Coding(codes, part.colour)


def _lesion(name: str, only: _Part | None) -> Coding | None:
    """The coding of a name that is that of a lesion, in an organ or not.

    Args:
        name: The name.
        only: The only organ among the labels, if there is just one.
    """
    words, side = _split_side(_words(name))
    finding = _FINDING_OF.get(" ".join(words))
    region = None
    if finding is None:
        plain = [_ADJECTIVES.get(w, w) for w in words if w not in _FILLERS and not w.isdigit()]
        region = next((_PART_OF[w] for w in plain if w in _PART_OF), None)
        finding = _FINDING_OF.get(" ".join(w for w in plain if w not in _PART_OF))
    if finding is None:
        return None
    region = region or (_PART_OF["liver"] if finding.hepatic else only)
    paired = region is not None and region.paired
    if side is not None and not paired:
        return None
    codes = SegmentCodes(
        type=_concept(finding),
        category=LESION,
        region=None if region is None else _concept(region),
        region_modifier=side,
    )
    return Coding(codes, finding.colour)


def _concept(known: _Part | _Finding) -> Concept:
    return Concept(known.code, "SCT", known.meaning)
