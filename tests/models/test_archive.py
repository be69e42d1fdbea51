import hashlib
import json
import os
import pickle
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoliver.datasets.cases import Labels
from autoliver.errors import ArtifactError, ModelError
from autoliver.inference.model import load_model
from autoliver.models.archive import Archive, open_archive, write_archive
from autoliver.models.archive_zip import is_archive
from autoliver.models.files import FoldModel, MemberFiles, ModelFiles
from autoliver.models.selection import Chosen, CleaningRule, Selection
from autoliver.networks.checkpoint import save_weights

torch.set_num_threads(1)
CPU = torch.device("cpu")
RUN = "runs/3d_fullres"
WEIGHTS = f"{RUN}/fold_0/weights.safetensors"
INFO = f"{RUN}/fold_0/model.json"

Entries = list[tuple[zipfile.ZipInfo, bytes]]


@pytest.fixture
def files(save) -> ModelFiles:
    """Two folds of one run."""
    folds = (save("fold_0", seed=1), save("fold_1", seed=2))
    return ModelFiles(name="Toy", members=(MemberFiles(folds=folds),))


@pytest.fixture
def archive(files: ModelFiles, tmp_path: Path) -> Path:
    path = tmp_path / "toy.autoliver"
    write_archive(path, files)
    return path


def weights_of(files: ModelFiles) -> list[dict[str, torch.Tensor]]:
    model = load_model(files, device=CPU)
    return [
        network.state_dict()
        for member in model.members
        for part in (member, member.previous)
        if part is not None
        for network in part.networks
    ]


def same(one: ModelFiles, other: ModelFiles) -> bool:
    pairs = zip(weights_of(one), weights_of(other), strict=True)
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def rewrite(path: Path, change: Callable[[Entries], object]) -> None:
    """Writes the zip again after `change` has worked on its entries."""
    with zipfile.ZipFile(path) as source:
        entries = [(info, source.read(info)) for info in source.infolist()]
    change(entries)
    path.unlink()
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as target:
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for info, content in entries:
            target.writestr(info, content)


def edit(path: Path, name: str, change: Callable[[dict], object], *, state: bool = True) -> None:
    """Changes a JSON entry, and unless told otherwise what the manifest states of it."""

    def work(entries: Entries) -> None:
        found = {info.filename: content for info, content in entries}
        value = json.loads(found[name])
        change(value)
        found[name] = json.dumps(value).encode()
        if state and name != "manifest.json":
            manifest = json.loads(found["manifest.json"])
            for entry in manifest["entries"]:
                if entry["name"] == name:
                    entry["size"] = len(found[name])
                    entry["sha256"] = hashlib.sha256(found[name]).hexdigest()
            found["manifest.json"] = json.dumps(manifest).encode()
        entries[:] = [(zipfile.ZipInfo(at), content) for at, content in found.items()]

    rewrite(path, work)


def stated(manifest: dict, name: str) -> dict:
    return next(entry for entry in manifest["entries"] if entry["name"] == name)


def test_what_comes_out_is_what_went_in(files: ModelFiles, archive: Path) -> None:
    opened = open_archive(archive)
    assert same(opened.files(), files)
    assert same(opened.files("1"), ModelFiles(name="", members=(part(files, 1),)))
    assert opened.files().name == "toy.autoliver (3d_fullres)"
    manifest = opened.manifest
    assert (manifest.name, manifest.dataset) == ("Dataset009_Toy", "Dataset009_Toy")
    assert (manifest.channel_names, manifest.modality, manifest.training_cases) == (
        ("T1",),
        "MR",
        1,
    )
    with zipfile.ZipFile(archive) as raw:
        assert raw.namelist()[:2] == ["manifest.json", "model.json"]
        assert raw.testzip() is None
        for entry in manifest.entries:
            content = raw.read(entry.name)
            assert (entry.size, entry.sha256) == (
                len(content),
                hashlib.sha256(content).hexdigest(),
            )
    assert not list(archive.parent.glob(".*"))


def part(files: ModelFiles, index: int) -> MemberFiles:
    return MemberFiles(folds=(files.members[0].folds[index],))


def test_the_same_model_gives_the_same_bytes_also_from_an_archive(
    files: ModelFiles, archive: Path, tmp_path: Path
) -> None:
    write_archive(tmp_path / "again.autoliver", files)
    assert (tmp_path / "again.autoliver").read_bytes() == archive.read_bytes()
    write_archive(tmp_path / "copy.autoliver", open_archive(archive).files("1"))
    copy = open_archive(tmp_path / "copy.autoliver")
    assert same(copy.files(), open_archive(archive).files("1"))
    assert copy.selection.members == (Chosen(run="3d_fullres", folds=("1",)),)


def test_names_of_cases_stay_at_home_unless_wanted(
    files: ModelFiles, archive: Path, tmp_path: Path
) -> None:
    assert b"case_1" not in archive.read_bytes()
    write_archive(tmp_path / "named.autoliver", files, case_names=True)
    assert (tmp_path / "named.autoliver").read_bytes().count(b"case_1") == 2


def test_a_selection_keeps_its_reasons_and_rules(files: ModelFiles, tmp_path: Path) -> None:
    rule = CleaningRule(labels=("liver",), keep="largest")
    selection = Selection(
        dataset="Dataset009_Toy",
        members=(Chosen(run="2d", folds=("0",)),),
        cleaning=(rule,),
        scores={"2d": 0.5},
        why=("It was better.",),
    )
    chosen = ModelFiles(name="Toy", members=files.members, cleaning=(rule,), selection=selection)
    write_archive(tmp_path / "a.autoliver", chosen)
    opened = open_archive(tmp_path / "a.autoliver")
    assert opened.files().cleaning == (rule,)
    assert opened.selection == selection.replace(
        members=(Chosen(run="3d_fullres", folds=("0", "1")),)
    )


@pytest.fixture
def cascade(save, plan, tmp_path: Path) -> ModelFiles:
    """A cascade whose first stage is also a member of its own, with another fold."""
    runs = tmp_path / "Dataset009_Toy/runs"
    for seed, name in enumerate(("fold_0", "fold_1")):
        save(name, seed=seed)
    shutil.move(runs / "3d_fullres", runs / "3d_lowres+long")
    second = plan.configurations["3d_fullres"]
    network = second.network.replace(in_channels=3)  # liver and tumour of the first stage as well
    second = second.replace(previous_stage="3d_lowres", network=network)
    folder = save("fold_0", seed=5, configurations={"3d_fullres": second})
    info = FoldModel.load(folder / "model.json")
    info.replace(previous_run="3d_lowres+long").save(folder / "model.json")
    low = tuple(runs / "3d_lowres+long" / name for name in ("fold_0", "fold_1"))
    members = (MemberFiles(folds=(folder,), previous=low[:1]), MemberFiles(folds=low[1:]))
    return ModelFiles(name="Toy", members=members)


def test_a_cascade_brings_its_first_stage(cascade: ModelFiles, tmp_path: Path) -> None:
    path = tmp_path / "cascade.autoliver"
    write_archive(path, cascade)
    files = open_archive(path).files()
    assert same(files, cascade)
    assert [place.at for place in files.members[0].previous] == ["runs/3d_lowres+long/fold_0"]
    alone = ModelFiles(name="Toy", members=(MemberFiles(folds=cascade.members[0].folds),))
    with pytest.raises(ModelError, match=r"3d_lowres model .* is missing"):
        write_archive(path, alone)
    assert same(open_archive(path).files(), cascade)


def test_an_archive_is_extracted_as_a_models_folder(
    files: ModelFiles, archive: Path, tmp_path: Path
) -> None:
    opened = open_archive(archive)
    opened.extract(tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert found == {entry.name for entry in opened.manifest.entries}
    for fold in files.members[0].folds:
        one = (tmp_path / "out" / RUN / fold.name / "weights.safetensors").read_bytes()
        assert one == (fold / "weights.safetensors").read_bytes()


def test_a_broken_model_is_not_written(files: ModelFiles, save, tmp_path: Path) -> None:
    target = tmp_path / "x.autoliver"
    weights = files.members[0].folds[1] / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match=r"fold_1/weights\.safetensors: damaged"):
        write_archive(target, files)
    weights.unlink()
    with pytest.raises(ModelError, match=r"fold_1/weights\.safetensors: there is no such"):
        write_archive(target, files)
    weights.write_bytes(content)
    labels = Labels(values={"background": (0,), "liver": (1,), "cyst": (2,)})
    folds = (*files.members[0].folds, save("fold_2", labels=labels))
    with pytest.raises(ModelError, match="fold_2 was trained with another plan"):
        write_archive(target, ModelFiles(name="Toy", members=(MemberFiles(folds=folds),)))
    (folds[0] / "model.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        write_archive(target, files)
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def entry(name: str, content: bytes = b"x") -> tuple[zipfile.ZipInfo, bytes]:
    return zipfile.ZipInfo(name), content


def link(entries: Entries) -> None:
    entries[-1][0].external_attr = (stat.S_IFLNK | 0o777) << 16


def compress(entries: Entries) -> None:
    entries[-1][0].compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.append(entry("../evil.json")), "'../evil.json' has a path that leads out"),
        (lambda e: e.append(entry("runs/../../evil")), "leads out"),
        (lambda e: e.append(entry("/etc/passwd")), "'/etc/passwd' has a path that leads out"),
        (lambda e: e.append(entry("runs\\..\\evil")), "leads out"),
        (lambda e: e.append(entry("C:/evil")), "leads out"),
        (lambda e: e.append(entry(WEIGHTS)), f"'{WEIGHTS}' occurs twice"),
        (lambda e: e.append(entry("Model.json")), "'Model.json' occurs twice"),
        (lambda e: e.append(entry("manifest.json")), "'manifest.json' occurs twice"),
        (lambda e: e.append(entry("note.txt")), "holds 'note.txt', which has no place"),
        (lambda e: e.append(entry("runs/")), "holds 'runs/', which has no place"),
        (lambda e: e.append(entry("runs/.x/fold_0/model.json")), "which has no place"),
        (lambda e: e.append(entry("runs/x/fold_0/model.json")), "manifest.json does not state"),
        (lambda e: e.pop(), "lacks 'runs/3d_fullres/fold_1/weights.safetensors', which its"),
        (lambda e: e.__setitem__(1, entry("model.json")), "'model.json' has 1 bytes, manifest"),
        (link, "weights.safetensors' is a link"),
        (compress, "weights.safetensors' is compressed"),
    ],
)
def test_a_zip_with_other_entries_than_stated_is_refused(
    archive: Path, change: Callable[[Entries], object], words: str
) -> None:
    rewrite(archive, change)
    with pytest.raises(ModelError) as caught:
        open_archive(archive)
    assert words in caught.value.problem
    assert caught.value.problem.startswith(str(archive))
    assert "Copy it again" in caught.value.hint


def test_a_file_cut_short_anywhere_is_refused(archive: Path) -> None:
    content = archive.read_bytes()
    for length in (60, 1000, len(content) // 2, len(content) - 30, len(content) - 1):
        archive.write_bytes(content[:length])
        with pytest.raises(ModelError, match="cut short or damaged"):
            open_archive(archive)


def test_one_changed_byte_never_goes_unnoticed(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    generator = torch.Generator().manual_seed(0)
    reference = weights_of(open_archive(archive).files())
    facts = open_archive(archive).manifest.replace(name="", dataset="")
    broken = tmp_path / "broken.autoliver"
    refused = 0
    for at in torch.randint(len(content), (60,), generator=generator).tolist():
        broken.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        try:
            opened = open_archive(broken)
            weights = weights_of(opened.files())
        except ModelError:
            refused += 1
            continue
        # Dates and the like: nothing that matters.
        assert opened.manifest.replace(name="", dataset="") == facts
        for one, other in zip(weights, reference, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)
    assert refused > 50


def test_a_small_zip_does_not_become_a_large_one(archive: Path) -> None:
    content = archive.read_bytes()
    start = content.rindex(b"manifest.json") - 46  # its entry in the directory at the end
    assert content[start : start + 4] == b"PK\x01\x02"

    def state_in_directory(size: int, offset: int = 0) -> None:
        changed = bytearray(content)
        for name in (WEIGHTS, WEIGHTS.replace("fold_0", "fold_1")):
            at = content.rindex(name.encode(), start) - 46
            changed[at + 20 : at + 28] = size.to_bytes(4, "little") * 2
            changed[at + 42 : at + 46] = offset.to_bytes(4, "little")
        archive.write_bytes(changed)

    # Each would fit into the file, both together only if they overlapped.
    for size, offset in ((len(content) * 2 // 3, 0), (2**31, 0), (100, 2**31)):
        state_in_directory(size, offset)
        with pytest.raises(ModelError, match="its entries state more bytes than it has"):
            open_archive(archive)
    archive.write_bytes(content)
    edit(archive, "manifest.json", lambda value: stated(value, WEIGHTS).update(size=10**12))
    with pytest.raises(ModelError, match=r"has \d+ bytes, manifest\.json states 1000000000000"):
        open_archive(archive)


def test_checksums_are_compared(archive: Path) -> None:
    edit(archive, INFO, lambda value: value.update(epochs=9), state=False)
    with pytest.raises(ModelError):
        open_archive(archive)
    edit(archive, INFO, lambda value: value.update(epochs=1), state=True)
    open_archive(archive)

    def other_sum(manifest: dict) -> None:
        stated(manifest, INFO)["sha256"] = "0" * 64

    edit(archive, "manifest.json", other_sum)
    with pytest.raises(ModelError, match=r"fold_0/model\.json: damaged: its checksum is not what"):
        open_archive(archive)


def test_weights_that_are_not_the_recorded_ones_are_noticed_when_read(archive: Path) -> None:
    def swap(entries: Entries) -> None:
        last = len(entries) - 1
        content = entries[last][1]
        entries[last] = (entries[last][0], content[:-4] + b"\0\0\0\1")

    rewrite(archive, swap)
    opened = open_archive(archive)
    with pytest.raises(ModelError, match=r"fold_1/weights\.safetensors: damaged: its checksum"):
        load_model(opened.files(), device=CPU)
    load_model(opened.files("0"), device=CPU)

    def recorded(value: dict) -> None:
        value["weights_sha256"] = "0" * 64

    edit(archive, INFO, recorded)
    with pytest.raises(ModelError, match=r"model\.json recorded"):
        open_archive(archive)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("manifest.json", {"schema": 2, "autoliver": "9.9"}, "schema 2 by autoliver 9.9"),
        (INFO, {"schema": 2, "autoliver": "9.9"}, "schema 2 by autoliver 9.9"),
        ("manifest.json", {"kind": "plan"}, "expected a file of kind 'export', found 'plan'"),
        ("manifest.json", {"more": 1}, "more"),
        ("model.json", {"members": []}, "members: found [], expected at least one run"),
        (
            "model.json",
            {"members": [{"run": "2d", "folds": ["0"]}]},
            "incomplete: it lacks runs/2d/fold_0/model.json",
        ),
        (
            "model.json",
            {"members": [{"run": "3d_fullres", "folds": ["0", "3"]}]},
            "lacks runs/3d_fullres/fold_3/model.json",
        ),
        (
            "model.json",
            {"members": [{"run": "3d_fullres", "folds": ["0"]}]},
            "no member of its model uses runs/3d_fullres/fold_1",
        ),
        ("model.json", {"members": [{"run": "../../x", "folds": ["0"]}]}, "without slashes"),
        (INFO, {"previous_run": "../../.."}, "previous_run: found '../../..', expected a name"),
        (INFO, {"configuration": "2d", "fold": 3}, "fold"),
        (INFO, {"configuration": "3d_lowres"}, "configuration: found '3d_lowres'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    archive: Path, name: str, change: dict, words: str
) -> None:
    edit(archive, name, lambda value: value.update(change))
    with pytest.raises(ModelError) as caught:
        open_archive(archive)
    assert words in caught.value.problem
    assert ("Update autoliver" in caught.value.hint) == ("schema" in change)
    assert "autoliver train" not in caught.value.hint


def test_what_is_no_export_is_told_apart(archive: Path, save, tmp_path: Path) -> None:
    other = tmp_path / "nnunet.zip"
    with zipfile.ZipFile(other, "w") as target:
        target.writestr("Dataset001_X/nnUNetTrainer__nnUNetPlans__2d/plans.json", "{}")
    with pytest.raises(ModelError, match="a zip, but not a model that autoliver") as caught:
        open_archive(other)
    assert "autoliver import FILE" in caught.value.hint
    for path in (save("fold_7") / "weights.safetensors", tmp_path / "empty"):
        path.touch()
        assert not is_archive(path)
        with pytest.raises(ModelError, match=r"(weights\.safetensors|empty): not a model"):
            open_archive(path)
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match="there is no such file"):
            open_archive(path)
    assert is_archive(archive)


class Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("how", ["pickle", "torch", "entry"])
def test_a_pickle_is_never_loaded(archive: Path, tmp_path: Path, how: str) -> None:
    flag = tmp_path / "flag"
    content = pickle.dumps(Evil(flag))
    if how == "torch":
        torch.save(Evil(flag), tmp_path / "evil.pth")
        content = (tmp_path / "evil.pth").read_bytes()
    if how == "entry":
        rewrite(archive, lambda entries: entries.append(entry("weights.pkl", content)))
    else:
        replace_weights(archive, content)
    with pytest.raises(ModelError):
        load_model(open_archive(archive).files(), device=CPU)
    assert not flag.exists()
    pickle.loads(pickle.dumps(Evil(flag)))
    assert flag.exists()  # it would have been noticed


def replace_weights(path: Path, content: bytes) -> None:
    """Other weights of fold 0, with all checksums as they should be."""
    digest = hashlib.sha256(content).hexdigest()

    def work(entries: Entries) -> None:
        for index, (info, _) in enumerate(entries):
            if info.filename == WEIGHTS:
                entries[index] = (zipfile.ZipInfo(WEIGHTS), content)

    def state(manifest: dict) -> None:
        stated(manifest, WEIGHTS).update(size=len(content), sha256=digest)

    rewrite(path, work)
    edit(path, "manifest.json", state)
    edit(path, INFO, lambda value: value.update(weights_sha256=digest))


def test_weights_of_another_network_are_refused_by_name(
    archive: Path, plan, tmp_path: Path
) -> None:
    spec = plan.configurations["3d_fullres"].network
    save_weights(tmp_path / "w.safetensors", {"x": torch.zeros(2)}, spec=spec)
    replace_weights(archive, (tmp_path / "w.safetensors").read_bytes())
    opened: Archive = open_archive(archive)
    with pytest.raises(ModelError, match=r"toy\.autoliver/runs/.*is missing"):
        load_model(opened.files(), device=CPU)
