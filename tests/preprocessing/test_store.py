import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.errors import ArtifactError, DatasetError, MachineError
from autoliver.io.volume import Geometry
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, Plan
from autoliver.preprocessing.case import CaseProperties, Preprocessed
from autoliver.preprocessing.store import (
    finished_cases,
    open_store,
    read_case,
    store_key,
    write_case,
)

SHAPE = (40, 70, 50)
PATCH = (32, 48, 48)
LOCATIONS = {1: np.array([[1, 2, 3], [4, 5, 6]], np.int32), 2: np.empty((0, 3), np.int32)}


def make_case(name="case_1", channels=2, labelled=True):
    rng = np.random.default_rng(0)
    properties = CaseProperties(
        name=name,
        modality="CT",
        geometry=Geometry(shape_zyx=(50, 80, 60), spacing_mm=(1.5, 1.0, 0.7)),
        transpose_forward=(0, 1, 2),
        box=((0, 50), (5, 75), (4, 54)),
        shape_zyx=SHAPE,
        spacing_mm=(1.9, 1.0, 0.7),
    )
    label = rng.integers(-1, 3, (1, *SHAPE)).astype(np.int16) if labelled else None
    image = rng.normal(size=(channels, *SHAPE)).astype(np.float32)
    return Preprocessed(image=image, label=label, properties=properties)


def write(folder, case, patch=PATCH):
    write_case(folder, case, LOCATIONS, patch_shape=patch)


def make_plan(**changes):
    def field(name, value):
        return changes.pop(name, value)

    stats = IntensityStats(
        mean=1.0,
        median=1.0,
        std=field("std", 2.0),
        min=0.0,
        max=9.0,
        percentile_00_5=0.0,
        percentile_99_5=8.0,
    )
    normalization = field("normalization", ("ct",))
    configuration = Configuration(
        spacing_mm=field("spacing_mm", (1.0, 1.0, 1.0)),
        median_shape=(32.0, 32.0, 32.0),
        patch_shape=field("patch_shape", (32, 32, 32)),
        batch_size=field("batch_size", 2),
        batch_dice=False,
        normalization=normalization,
        mask_norm=field("mask_norm", (False,)),
        normalize_after_resampling=field("normalize_after_resampling", False),
        average=field("average", "logits"),
        network=UNetSpec(
            in_channels=1,
            out_channels=2,
            features=field("features", (4, 8)),
            strides=((1, 1, 1), (2, 2, 2)),
            kernels=((3, 3, 3), (3, 3, 3)),
            blocks_encoder=(2, 2),
            blocks_decoder=(2,),
        ),
    )
    return Plan(
        dataset=field("dataset", "Dataset999_Test"),
        preset="default",
        vram_gb=8.0,
        channel_names=("CT",),
        modality="CT",
        labels=Labels(values=field("values", {"background": (0,), "liver": (1,)})),
        file_ending=".nii.gz",
        transpose_forward=field("transpose", (0, 1, 2)),
        transpose_backward=(0, 1, 2),
        intensities=(stats,),
        configurations={"3d_fullres": configuration},
    )


def key(**changes):
    return store_key(make_plan(**changes), "3d_fullres")


@pytest.mark.parametrize("patch", [PATCH, (64, 48), (1, 1, 1), (300, 300, 300)])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_was_written_is_read(tmp_path, patch, channels):
    case = make_case(channels=channels)

    write(tmp_path, case, patch)
    stored = read_case(tmp_path, "case_1")

    assert stored.properties == case.properties
    assert stored.image.shape == case.image.shape
    assert stored.image.dtype == np.float32
    assert stored.label.dtype == np.int16
    np.testing.assert_array_equal(stored.image[:], case.image)
    np.testing.assert_array_equal(stored.label[:], case.label)
    assert stored.facts == CaseFacts(name="case_1", patient="case_1")
    facts = CaseFacts(name="case_1", patient="anna", annotated={"tumour": "absent"})
    assert read_case(tmp_path, "case_1", facts).facts == facts
    assert set(stored.locations) == {1, 2}
    np.testing.assert_array_equal(stored.locations[1], LOCATIONS[1])
    assert stored.locations[2].shape == (0, 3)


@pytest.mark.parametrize(
    "part",
    [
        np.s_[:, 3:35, 10:58, 1:49],
        np.s_[1:2, 7, :, :],
        np.s_[0, 39:40, 69:70, 49:50],
        np.s_[:, 12:13],
    ],
)
def test_slices_equal_those_of_the_array(tmp_path, part):
    case = make_case()
    write(tmp_path, case)

    stored = read_case(tmp_path, "case_1")

    np.testing.assert_array_equal(stored.image[part], case.image[part])


def test_a_case_without_a_label_has_none(tmp_path):
    write(tmp_path, make_case(labelled=True))
    write(tmp_path, make_case(labelled=False))

    assert read_case(tmp_path, "case_1").label is None
    assert set(finished_cases(tmp_path)) == {"case_1"}


def test_an_unchanged_case_is_written_as_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, make_case())

    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_case_is_finished_when_its_json_is_there(tmp_path):
    assert set(finished_cases(tmp_path / "nowhere")) == set()
    open_store(tmp_path, key="abc", dataset="LiTS")
    for name in ("case_1", "case_2", "with.dots"):
        write(tmp_path, make_case(name))
    assert set(finished_cases(tmp_path)) == {"case_1", "case_2", "with.dots"}

    (tmp_path / "case_2.json").unlink()

    assert set(finished_cases(tmp_path)) == {"case_1", "with.dots"}
    with pytest.raises(ArtifactError, match=r"case_2\.json: there is no such file") as caught:
        read_case(tmp_path, "case_2")
    assert caught.value.hint == "Make it again with: autoliver preprocess LiTS"


@pytest.mark.parametrize(
    "part", ["case_1.image.b2nd", "case_1.label.b2nd", "case_1.npz", "case_1.json"]
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_named_and_made_again(tmp_path, part, share):
    open_store(tmp_path, key="abc", dataset="LiTS")
    write(tmp_path, make_case())
    path = tmp_path / part
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    assert set(finished_cases(tmp_path)) == set()
    with pytest.raises(ArtifactError, match="case_1") as caught:
        read_case(tmp_path, "case_1")
    assert "autoliver preprocess LiTS" in caught.value.hint

    write(tmp_path, make_case())
    np.testing.assert_array_equal(read_case(tmp_path, "case_1").image[:], make_case().image)


@pytest.mark.parametrize("part", ["case_1.image.b2nd", "case_1.npz"])
def test_overwritten_bytes_are_named(tmp_path, part):
    open_store(tmp_path, key="abc", dataset="LiTS")
    write(tmp_path, make_case())
    path = tmp_path / part
    path.write_bytes(bytes(path.stat().st_size))

    with pytest.raises(ArtifactError, match="damaged") as caught:
        read_case(tmp_path, "case_1")
    assert "autoliver preprocess LiTS" in caught.value.hint


def test_a_missing_part_is_as_bad_as_a_short_one(tmp_path):
    write(tmp_path, make_case())
    (tmp_path / "case_1.label.b2nd").unlink()

    assert set(finished_cases(tmp_path)) == set()


def test_an_interrupted_rewrite_is_not_finished(tmp_path):
    write(tmp_path, make_case())
    (tmp_path / "case_1.label.b2nd").unlink()
    # The disk refuses the label: there is a folder in its place.
    (tmp_path / "case_1.label.b2nd").mkdir()
    (tmp_path / "case_1.label.b2nd" / "x").touch()

    with pytest.raises(MachineError, match=r"case_1\.label\.b2nd: cannot be written"):
        write(tmp_path, make_case())

    assert set(finished_cases(tmp_path)) == set()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_store_of_other_settings_is_refused(tmp_path):
    folder = tmp_path / "store"
    open_store(folder, key="aaa", dataset="LiTS")
    open_store(folder, key="aaa", dataset="LiTS")

    with pytest.raises(
        ArtifactError, match=r"another preprocessing \(aaa then, bbb now\)"
    ) as caught:
        open_store(folder, key="bbb", dataset="LiTS")

    assert "autoliver preprocess LiTS" in caught.value.hint
    assert json.loads((folder / "store.json").read_bytes())["kind"] == "store"


def test_a_case_cannot_take_the_stores_own_name(tmp_path):
    open_store(tmp_path, key="aaa", dataset="LiTS")

    with pytest.raises(DatasetError, match="store"):
        write(tmp_path, make_case("store"))


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": (1.0, 1.0, 2.0)},
        {"transpose": (1, 0, 2)},
        {"normalization": ("zscore",)},
        {"mask_norm": (True,)},
        {"normalize_after_resampling": True},
        {"std": 3.0},
        {"values": {"background": (0,), "liver": (1,), "tumour": (2,)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_what_shapes_the_data(change):
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 9},
        {"average": "probabilities"},
        {"patch_shape": (16, 16, 16)},
        {"features": (8, 16)},
        {"dataset": "Other"},
        {"values": {"background": (0,), "Leber": (1,)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_stays_when_nothing_of_the_data_changes(change):
    assert key(**change) == key()


def test_the_dataset_statistics_matter_only_to_ct():
    assert key(normalization=("zscore",), std=3.0) == key(normalization=("zscore",))


def test_only_the_blocks_of_a_slice_are_read(tmp_path):
    # Damage far away from the slice does not show; where it is decompressed it does.
    case = make_case(channels=1)
    smooth = np.sin(np.arange(case.image.size, dtype=np.float32) // 7).reshape(case.image.shape)
    write(tmp_path, dataclasses.replace(case, image=smooth))
    path = tmp_path / "case_1.image.b2nd"
    content = bytearray(path.read_bytes())
    part = slice(len(content) // 2, len(content) * 3 // 4)
    content[part] = b"\xff" * (part.stop - part.start)
    path.write_bytes(bytes(content))

    stored = read_case(tmp_path, "case_1")

    np.testing.assert_array_equal(stored.image[:, :8, :8, :8], smooth[:, :8, :8, :8])
    with pytest.raises(ArtifactError, match="case case_1 is damaged"):
        stored.image[:]


def test_the_module_does_not_need_blosc2_to_be_imported():
    source = Path(__file__).parents[2] / "autoliver/preprocessing/store.py"

    assert "\nimport blosc2" not in source.read_text()


def test_open_cases_hold_no_files_open(tmp_path):
    write(tmp_path, make_case())
    before = len(list(Path("/proc/self/fd").iterdir()))
    cases = [read_case(tmp_path, "case_1") for _ in range(20)]
    parts = [case.image[:, :4, :4, :4] for case in cases]

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(np.array_equal(part, parts[0]) for part in parts)


def test_a_stored_array_can_be_pickled(tmp_path):
    write(tmp_path, make_case())
    image = read_case(tmp_path, "case_1").image

    again = pickle.loads(pickle.dumps(image))

    np.testing.assert_array_equal(again[:], image[:])
