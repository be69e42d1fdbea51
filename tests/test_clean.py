"""`clean`: what nothing uses is listed and removed on demand; all else stays bit by bit."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.errors import DatasetError
from autoliver.locks import only_one
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
HOURS = 3600.0


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that was preprocessed, planned with another spacing and preprocessed again."""
    folder = tmp_path_factory.mktemp("first")
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(folder / "data", name=NAME, cases=2, seed=0, options=options)
    work = ("-w", folder / "workspace")
    run("plan", folder / "data" / NAME, "--preset", "tiny", *work)
    run("preprocess", NAME, *work)
    run("plan", NAME, "--spacing", 8, 7, 7, *work)
    run("preprocess", NAME, "2d", *work)
    return folder


@pytest.fixture
def own(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first / "workspace", tmp_path / "workspace", symlinks=True))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(workspace: Path, *more: object) -> dict[str, str]:
    """Path -> kind of what `clean` lists."""
    found = run("clean", *more, "-w", workspace)["leftovers"]
    return {str(Path(e["path"]).relative_to(workspace)): e["kind"] for e in found}  # type: ignore[attr-defined]


def partial(path: Path, *, hours: float = 2) -> Path:
    """What an interrupted command has left some hours ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    then = time.time() - hours * HOURS
    os.utime(path, (then, then))
    return path


def old_stores(workspace: Path) -> set[str]:
    used = run("preprocess", NAME, "2d", "-w", workspace)["stores"]
    keys = {Path(folder).name for folder in used.values()}  # type: ignore[attr-defined]
    return {p.name for p in (workspace / NAME / "store").iterdir()} - keys


def test_old_stores_are_listed_and_removed_on_demand(own: Path) -> None:
    old = old_stores(own)
    assert old
    expected = {f"{NAME}/store/{key}": "store" for key in old}
    before = contents(own)
    assert leftovers(own) == leftovers(own, NAME) == leftovers(own, "1") == expected
    text = CliRunner().invoke(app, ["clean", NAME, "-w", str(own)]).stdout
    assert f"autoliver clean {NAME} --yes -w {own}" in text
    assert "no plan has its settings any more" in text
    assert contents(own) == before
    size = sum(p.stat().st_size for key in old for p in (own / NAME / "store" / key).rglob("*"))
    done = run("clean", NAME, "--yes", "-w", own)
    assert done["removed"]
    assert size <= done["bytes"] <= size + 8192 * len(old)  # type: ignore[operator]
    gone = tuple(f"{NAME}/store/{key}/" for key in old)
    assert contents(own) == {k: v for k, v in before.items() if not k.startswith(gone)}
    assert leftovers(own) == {}
    assert "holds nothing that is not used" in CliRunner().invoke(app, ["clean", "-w", own]).stdout
    # What was removed is made again when it is needed.
    run("plan", NAME, "--fresh", "--preset", "tiny", "-w", own)
    run("preprocess", NAME, "-w", own)
    assert old <= {p.name for p in (own / NAME / "store").iterdir()}


def test_what_a_killed_removal_has_left_is_removed_at_once(own: Path) -> None:
    command = (
        "import os, shutil, sys\n"
        "shutil.rmtree = lambda path: os._exit(9)\n"
        "from autoliver.__main__ import main\n"
        "main()\n"
    )
    old = set(leftovers(own))
    words = ["clean", "--yes", "-w", str(own)]
    assert subprocess.run([sys.executable, "-c", command, *words], check=False).returncode == 9
    there = leftovers(own)
    assert sorted(there.values()) == ["partial", *["store"] * (len(old) - 1)]
    run("clean", "--yes", "-w", own)
    assert leftovers(own) == {}
    assert not list(own.rglob(".*partial*"))


def test_a_store_of_a_plan_like_another_is_used(own: Path) -> None:
    old = old_stores(own)
    plan = own / NAME / "plan.json"
    run("plan", NAME, "--fresh", "--preset", "tiny", "-w", own)
    (own / NAME / "plan@LiTS.json").write_bytes(plan.read_bytes())
    run("plan", NAME, "--spacing", 8, 7, 7, "-w", own)
    assert not {f"{NAME}/store/{key}" for key in old} & set(leftovers(own))


def test_stores_stay_if_it_is_not_sure_that_nothing_uses_them(own: Path, first: Path) -> None:
    (key, *_) = old_stores(own)
    (own / NAME / "store/mine").mkdir()  # not made by this package
    link = own / NAME / "store/linked"
    link.symlink_to(first / "workspace" / NAME / "store" / key)
    assert not {f"{NAME}/store/mine", f"{NAME}/store/linked"} & set(leftovers(own))
    damaged = own / NAME / "plan@Other.json"
    damaged.write_text("{")
    found = run("clean", "-w", own)
    assert found["leftovers"] == []
    assert "a plan is unreadable" in " ".join(found["kept"])  # type: ignore[arg-type]
    damaged.unlink()
    # A training may be reading the store.
    fold = own / NAME / "runs/2d/fold_0"
    fold.mkdir(parents=True)
    (fold / "progress.jsonl").touch()
    found = run("clean", "-w", own)
    assert found["leftovers"] == []
    assert "within the last hour" in " ".join(found["kept"])  # type: ignore[arg-type]
    (fold / "model.json").touch()  # it has ended
    assert len(leftovers(own)) >= 1


def test_stores_stay_while_a_translation_may_need_them(own: Path) -> None:
    """One that is being learnt says what it needs only after it has preprocessed its images."""
    old = old_stores(own)
    folder = own / "synthesis/CT-to-MR"
    with only_one(folder / ".fit.lock", "it is being learnt"):
        found = run("clean", "--yes", "-w", own)
        assert found["leftovers"] == []
        assert "the translation CT-to-MR is being learnt" in str(found["kept"])
    (folder / "synthesizer.json").parent.mkdir()
    (folder / "synthesizer.json").write_text('{"kind": "synthesizer"')
    found = run("clean", "--yes", "-w", own)
    assert found["leftovers"] == []
    assert "synthesizer.json" in str(found["kept"])
    (folder / "synthesizer.json").unlink()
    assert {Path(name).name for name in leftovers(own)} == old


def test_unfinished_writes(own: Path) -> None:
    run("clean", "--yes", "-w", own)
    old = [
        partial(own / NAME / "runs/2d/fold_0/.0123abcd.partial.resume.pt"),
        partial(own / "models/.0123abcd.partial.Liver/runs/2d/weights.safetensors").parents[2],
    ]
    for folder in (old[1] / "runs/2d", old[1] / "runs", old[1]):
        os.utime(folder, (1, 1))
    young = partial(own / NAME / ".0123abcd.partial.plan.json", hours=0.1)
    mine = partial(own / NAME / "runs/2d/fold_0/notes.partial.txt")
    data = partial(own / "raw/imagesTr/.0123abcd.partial.a.nii.gz")  # a user's dataset beside
    (own / "raw/dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
    found = run("clean", "-w", own)
    paths = {entry["path"] for entry in found["leftovers"]}  # type: ignore[attr-defined]
    assert paths == {str(path) for path in old}
    assert "may still be written: 1." in " ".join(found["kept"])  # type: ignore[arg-type]
    done = autoliver.clean(workspace=own, yes=True)
    assert (done.removed, len(done.leftovers)) == (True, 2)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in (young, mine, data))


def test_label_maps_of_an_older_first_stage(own: Path) -> None:
    run("clean", "--yes", "-w", own)
    cascade = own / NAME / "runs/3d_cascade"
    for digest in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        partial(cascade / "previous" / digest / "case.b2nd")
    assert leftovers(own) == {}  # which one is used is not known
    (cascade / "options.json").write_text(json.dumps({"made_from": {"first stage": "b" * 12}}))
    assert leftovers(own) == {f"{NAME}/runs/3d_cascade/previous/{'a' * 12}": "first stage"}
    run("clean", "--yes", "-w", own)
    assert [path.name for path in (cascade / "previous").iterdir()] == ["b" * 12]


def test_a_dataset_that_is_not_there(own: Path, first: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        run("clean", "Phantm", "-w", own)
    assert caught.value.hint == f"Did you mean {NAME}?"
    assert leftovers(own, first / "data" / NAME) == leftovers(own)
    empty = own / "empty"
    assert run("clean", "-w", empty)["leftovers"] == []
    assert not empty.exists()


def test_what_is_found_prints_on_a_few_lines(own: Path) -> None:
    for number in range(200):
        partial(own / NAME / f".{number:08x}.partial.file")
    for made in (
        autoliver.clean(workspace=own),
        autoliver.plan(NAME, workspace=own),
        autoliver.verify(NAME, workspace=own),
    ):
        assert len(repr(made)) < 80 * 15
        assert repr(made).startswith(f"{type(made).__name__}(")
        assert "array" not in repr(made)
