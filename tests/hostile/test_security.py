"""What the package never does, and what data bring that could run, lead elsewhere or not end."""

import ast
import csv
import functools
import io
import json
import os
import resource
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest
from commands import run
from small_models import SaveFold, plan, save

from autoliver.artifacts import csv_text, json_value
from autoliver.datasets.cases import read_dataset
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, ModelError
from autoliver.models.archive import fit_for_name
from autoliver.networks.checkpoint import load_weights
from autoliver.nnunet.folder import open_runs
from autoliver.nnunet.model import read_nnunet_model
from autoliver.nnunet.pickles import read_pickle
from autoliver.training.progress import read_progress
from autoliver.values import name_problem

__all__ = ["plan", "save"]
PACKAGE = Path(__file__).parents[2] / "autoliver"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# What runs code or a shell, and the only places where it may stand.
RUNS: dict[str, tuple[str, ...]] = {
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    "os.system": (),
    "os.popen": (),
    "pickle.load": (),
    "pickle.loads": (),
    "pickle.Unpickler": (),
    "marshal.loads": (),
    "shelve.open": (),
    "yaml.load": (),
    "numpy.load": (),
    "tempfile.mktemp": (),
    "tempfile.mkstemp": (),
    "tempfile.NamedTemporaryFile": (),
    "csv.writer": ("artifacts.py",),
    "csv.DictWriter": (),
    "json.load": (),
    # By a process of our own; to see whether a key is there twice; of weights that were just made.
    "json.loads": ("artifacts.py", "networks/checkpoint.py", "pipeline/run/fold_queue.py"),
}


@functools.cache
def _calls() -> list[tuple[str, str, ast.Call]]:
    """File, name of what is called, and call, of all calls in the package."""
    return [
        (path.relative_to(PACKAGE).as_posix(), _dotted(node.func), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_nothing_runs_code_or_a_shell() -> None:
    found = [(file, name) for file, name, _ in _calls() if name in RUNS and file not in RUNS[name]]
    assert found == []


def test_no_call_goes_through_a_shell() -> None:
    shells = [
        (file, name)
        for file, name, node in _calls()
        for keyword in node.keywords
        if keyword.arg == "shell" or (keyword.arg == "executable" and "Popen" in name)
    ]
    assert shells == []


def test_pickles_are_read_only_by_torch_without_code_or_if_trusted() -> None:
    loads = [(file, node) for file, name, node in _calls() if name == "torch.load"]
    assert len(loads) >= 4
    for file, node in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        allowed = "False" if file == "nnunet/checkpoint.py" else "True"  # --trust
        assert given["weights_only"] == allowed, file


def test_numpy_reads_no_objects() -> None:
    for file, name, node in _calls():
        if name == "np.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle", "False") == "False", file


def test_folders_for_temporary_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    finally:
        os.umask(old)
    assert not [name for _, name, _ in _calls() if name.startswith("tempfile.mk")]


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "\t=x", " =x", "\r=x", "=HYPERLINK(1)"])
def test_no_cell_is_run_by_a_spreadsheet(name: str) -> None:
    rows = [["case", name], [name, -1.5], [f"{name},x\n", None], ["-1.5", 3]]
    read = list(csv.reader(io.StringIO(csv_text(rows))))
    assert [row[1] for row in read[1:]] == ["-1.5", "", "3"]
    assert read[3][0] == "-1.5"
    for cell in (read[0][1], read[1][0], read[2][0]):
        assert cell[0] == "'"
        assert "\n" not in cell


NAMES = [
    "../../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    " ",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "x" * 300,
    "é" * 200,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_part_of_a_path(name: str) -> None:
    assert name_problem(name)
    assert not fit_for_name(name)


def test_names_that_are_a_part_of_a_path() -> None:
    for name in ("case_1", "Toy 1 (a)", "ä", "x..y", "-x", "=1", "x" * 236):
        assert name_problem(name) == ""


@pytest.mark.parametrize("name", ["../../../x", "..", "a\\..\\b", "a\nb", " "])
def test_a_case_in_a_table_is_no_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "dataset": {name: {"images": ["a.nii.gz"], "label": "a.nii.gz"}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DatasetError, match="a case is named"):
        read_dataset(tmp_path)


def test_two_files_of_one_name_are_two_cases(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.nii.gz").write_bytes(b"x")
    description = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "numTraining": 2,
        "training": [
            {"image": f"{folder}/x.nii.gz", "label": f"{folder}/x.nii.gz"} for folder in "ab"
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DatasetError, match="two images are named x"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("depth", [500, 990, 1_100, 100_000])
def test_json_of_any_depth_ends_in_a_value_or_an_error(depth: int) -> None:
    for start, end in (("[", "]"), ('{"a":', "}")):
        content = (start * depth + "1" + end * depth).encode()
        assert "nested too deeply" in _refusal(content) or depth < 1_000


def _refusal(content: bytes) -> str:
    try:
        json_value(content, where="x.json")
    except ArtifactError as error:
        return error.problem
    return "none"


def test_keys_that_repeat_are_refused_at_once() -> None:
    many = ",".join(f'"k{number}": 1' for number in range(200_000))
    assert len(json_value(f"{{{many}}}".encode(), where="x.json")) == 200_000
    with pytest.raises(ArtifactError, match=r"x\.json: the key 'k7' is there twice"):
        json_value(f'{{{many}, "k7": 2}}'.encode(), where="x.json")


@pytest.mark.parametrize("digits", [4_000, 5_000, 1_000_000])
def test_numbers_of_any_length(digits: int) -> None:
    for content in (b"9" * digits, b"-" + b"9" * digits, b"0." + b"9" * digits):
        assert _refusal(content).startswith(("x.json: ", "none"))


def test_weights_that_are_a_link_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("Dataset001_X/T__P__2d/fold_0/checkpoint_final.pth")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ModelError, match="a link"), open_runs(path):
        pass


@pytest.mark.parametrize(
    "name", ["/x/plans.json", "../x/plans.json", "a/../../plans.json", "C:\\plans.json", "\\x"]
)
def test_absolute_paths_and_those_that_lead_out_of_a_zip(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(ModelError, match="a path outside the zip"), open_runs(path):
        pass


def test_a_bomb_in_a_zip_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Dataset001_X/T__P__2d/plans.json", b" " * (65 * 2**20))
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelError, match="Nothing was unpacked"), open_runs(path):
        pass


@pytest.mark.parametrize("name", ["../../../x", "/tmp/x", "..\\x", "."])
def test_an_export_for_nnunet_stays_in_its_folder(
    save: SaveFold, tmp_path: Path, name: str
) -> None:
    save("fold_0", dataset=name)
    before = set(tmp_path.rglob("*"))
    where = ("--format", "nnunet", "-w", tmp_path)
    run("export", tmp_path / "Dataset009_Toy/runs/3d_fullres", tmp_path / "a/b/out", *where)
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "a") for path in new)


def test_a_file_of_weights_is_not_told_what_to_build(save: SaveFold) -> None:
    path = save("fold_0") / "weights.safetensors"
    content = path.read_bytes()
    changed = content.replace(b'\\"kind\\":\\"unet\\"', b'\\"kind\\":\\"exec\\"')
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(AutoliverError, match="exec"):
        load_weights(path)


# Pickles that nnU-Net v1 would run, or that ask for more memory than there is.
BOMBS = {
    "a place in a table of 2^31": b"I1\nr\xff\xff\xff\x7f.",
    "a place in a table of 2^62": b"I1\np4611686018427387904\n.",
    "a negative place": b"I1\np-1\n.",
    "a frame of 2^64": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a text of 2^63": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"x.",
    "bytes of 2^31": b"\x80\x03B\xff\xff\xff\x7fx.",
    "a number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "an array of another size": b"cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\n"
    b"(Vf8\nI0\nI1\ntR(I99\ntVC\ntR.",
    "os.system": b"cos\nsystem\n(Vtrue\ntR.",
    "builtins.eval": b"cbuiltins\neval\n(V1\ntR.",
    "an attribute of what is known": b"\x80\x04\x8c\x0bcollections\x8c\x10OrderedDict.clear\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "an object outside": b"Pfile\n.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_runs_or_grows_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        read_pickle(path)
    assert caught.value.problem.startswith(f"{path}: ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_what_fuzzing_found_in_a_line_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"epoch": "\xb9"}\n' + b"[" * 100_000 + b"\n{}\n")
    assert read_progress(path) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("architecture", "arch_kwargs", "norm_op_kwargs"), 7),
        (("architecture", "arch_kwargs", "nonlin_kwargs"), [1]),
        (("architecture", "arch_kwargs", "strides"), [[1, 1, 1], [0, 2, 2]]),
        (("resampling_fn_data_kwargs",), None),
        (("resampling_fn_seg_kwargs",), 0.5),
    ],
)
def test_what_fuzzing_found_in_plans_of_nnunet(
    save: SaveFold, tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    save("fold_0")
    out = tmp_path / "out"
    where = ("--format", "nnunet", "-w", tmp_path)
    run("export", tmp_path / "Dataset009_Toy/runs/3d_fullres", out, *where)
    (path,) = out.rglob("plans.json")
    plans = json.loads(path.read_text())
    inner = plans["configurations"]["3d_fullres"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(plans))
    with pytest.raises(ModelError, match=place[-1]):
        read_nnunet_model(out)
