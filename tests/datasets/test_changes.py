from typing import Any

import pytest

from autoliver.datasets.cases import Case, Dataset, FileContent, Labels
from autoliver.datasets.changes import describe_changes


def case(name: str, *, image: str = "", label: str | None = "1", **changes: Any) -> Case:
    contents = [FileContent(kind="image", name=f"{name}.nii", size=1, hash=image or f"of {name}")]
    if label is not None:
        contents.append(FileContent(kind="label", name=f"{name}.nrrd", size=1, hash=label))
    return Case(
        **{"name": name, "images": (name,), "patient": name, "contents": tuple(contents)},
        **{"files": "known", **changes},
    )


LABELS = Labels(values={"background": (0,), "liver": (1,)})
BEFORE = Dataset(
    name="D",
    folder="/d",
    channel_names=("CT",),
    labels=LABELS,
    cases=tuple(case(name) for name in "abc"),
)


def now(*cases: Case, **changes: Any) -> Dataset:
    return BEFORE.replace(**({"cases": cases} if cases else {}), **changes)


A, B, C = BEFORE.cases


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (now(), ""),
        (now(folder="/elsewhere", name="E", from_workspace="../E"), ""),
        (now(A, B, C, case("d")), "4 cases, 3 when planned: d is new"),
        (now(A), "1 case, 3 when planned: b, c are gone"),
        (now(A, B, case("d"), case("e")), "4 cases, 3 when planned: d, e are new, c is gone"),
        (now(A, B, case("x", image="of c")), "c is now called x"),
        (now(A, B, case("c", label="2")), "label of c has changed"),
        (now(A, B, case("c", label=None)), "label of c is gone"),
        (now(A, B, case("c", label="")), "label of c cannot be read"),
        (now(A, B, case("c", image="other")), "image of c has changed"),
        (now(A, B, case("c", origin="pseudo")), "origin of c: pseudo; when planned: real"),
        (
            now(A, B, case("c", annotated={"liver": "none"})),
            "annotated of c: liver none; when planned: none",
        ),
        (
            now(labels=Labels(values={**LABELS.values, "lesion": (2, 3)})),
            "labels: background 0, liver 1, lesion 2+3; when planned: background 0, liver 1",
        ),
        (now(channel_names=("T1", "T2")), "channel_names: T1+T2; when planned: CT"),
        (
            now(*(case(name, label="2") for name in "abcd")),
            "4 cases, 3 when planned: d is new; label of a has changed; label of b has changed"
            " and 1 more",
        ),
    ],
)
def test_what_differs_is_said(after: Dataset, words: str) -> None:
    assert describe_changes(BEFORE, after) == words


def test_a_dataset_planned_before_contents_were_kept() -> None:
    old = BEFORE.replace(cases=tuple(case.replace(contents=()) for case in BEFORE.cases))
    assert "earlier version" in describe_changes(old, BEFORE)
