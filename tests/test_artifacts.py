import errno
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from autoliver.artifacts import (
    Artifact,
    Record,
    check_chain,
    digest,
    grown,
    replacing,
    save_growing,
    write_bytes,
)
from autoliver.errors import ArtifactError, AutoliverError
from autoliver.system import exchange


class Leaf(Record, frozen=True, kw_only=True):
    shape: tuple[int, ...]


class Tree(Artifact, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "tree"

    leaf: Leaf
    height_mm: float | None = None


TREE = Tree(made_from={"seed": "abc"}, leaf=Leaf(shape=(1, 2)), height_mm=0.1)


def test_load_gives_what_was_saved(tmp_path: Path) -> None:
    TREE.save(tmp_path / "tree.json")
    assert Tree.load(tmp_path / "tree.json") == TREE


def test_what_was_written_last_is_read_again_only_if_another_has_replaced_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tree.json"
    assert grown(Tree, path) is None
    save_growing(TREE, path)
    assert grown(Tree, path) is TREE
    assert grown(Tree, tmp_path / "other.json") is None
    state = path.stat()
    write_bytes(path, path.read_bytes())  # of the same size, and of the same time
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert grown(Tree, path) is None
    save_growing(TREE, path)
    path.unlink()
    assert grown(Tree, path) is None


def test_file_starts_with_kind_schema_version_and_origin(tmp_path: Path) -> None:
    TREE.save(tmp_path / "tree.json")
    words = (tmp_path / "tree.json").read_text().split('"')[1::2]
    assert words[0] == "kind"
    assert [w for w in words if w in ("kind", "schema", "autoliver", "made_from", "leaf")] == [
        "kind",
        "schema",
        "autoliver",
        "made_from",
        "leaf",
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"tree"', '"bush"', ("'tree'", "'bush'")),
        ('"schema": 1', '"schema": 7', ("schema 7",)),
        ('"height_mm": 0.1', '"height_mm": "tall"', ("$.height_mm", "str")),
        ('"height_mm"', '"heigth_mm"', ("heigth_mm",)),
        ("{", "", ("not valid JSON",)),
    ],
)
def test_a_wrong_file_is_refused_and_the_field_is_named(
    tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "tree.json"
    TREE.save(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ArtifactError) as caught:
        Tree.load(path, mend="autoliver grow")
    assert str(path) in caught.value.problem
    assert "autoliver grow" in caught.value.hint
    for word in words:
        assert word in caught.value.problem


def test_digest_ignores_key_order_and_origin() -> None:
    assert digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
    assert TREE.digest() == TREE.replace(made_from={}).digest()
    assert TREE.digest() != TREE.replace(height_mm=0.2).digest()


def test_chain_names_the_input_that_changed() -> None:
    check_chain(TREE, {"seed": "abc"}, where="tree.json", mend="grow")
    with pytest.raises(ArtifactError, match=r"another seed \(abc then, xyz now\)"):
        check_chain(TREE, {"seed": "xyz"}, where="tree.json", mend="grow")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def write_and_fail() -> None:
        with replacing(path) as beside:
            beside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    def fill() -> None:
        with replacing(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AutoliverError, match="No space left") as caught:
        fill()
    assert "Free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_digest_in_memory_is_that_of_the_file(tmp_path: Path) -> None:
    whole = TREE.replace(height_mm=8)
    whole.save(tmp_path / "tree.json")
    assert Tree.load(tmp_path / "tree.json").digest() == whole.digest()
    assert whole.digest() == TREE.replace(height_mm=8.0).digest() != TREE.digest()


def test_a_field_that_a_later_version_adds_does_not_change_the_digest():
    class Inner(Record, frozen=True, kw_only=True):
        size: int

    class LaterInner(Record, frozen=True, kw_only=True):
        size: int
        names: tuple[str, ...] = ()

    class Now(Artifact, frozen=True, kw_only=True):
        KIND: ClassVar[str] = "now"
        parts: dict[str, Inner]

    class Later(Artifact, frozen=True, kw_only=True):
        KIND: ClassVar[str] = "now"
        parts: dict[str, LaterInner]
        more: dict[str, int] = msgspec.field(default_factory=dict)

    now, later = Now(parts={"a": Inner(size=3)}), Later(parts={"a": LaterInner(size=3)})
    assert now.digest() == later.digest()
    assert later.replace(more={"b": 1}).digest() != later.digest()
    assert Later(parts={"a": LaterInner(size=3, names=("x",))}).digest() != later.digest()
    assert Now(parts={"a": Inner(size=4)}).digest() != now.digest()


def test_a_field_that_does_not_count_is_kept_and_changes_no_digest(tmp_path: Path) -> None:
    class Part(Record, frozen=True, kw_only=True):
        NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"note"})
        size: int
        note: str = ""

    class Whole(Artifact, frozen=True, kw_only=True):
        KIND: ClassVar[str] = "whole"
        NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"author"})
        parts: dict[str, Part]
        author: str = ""

    plain = Whole(parts={"a": Part(size=3)})
    noted = Whole(parts={"a": Part(size=3, note="seen")}, author="me")
    assert noted.digest() == plain.digest()
    assert Whole(parts={"a": Part(size=4, note="seen")}, author="me").digest() != plain.digest()
    noted.save(tmp_path / "whole.json")
    assert Whole.load(tmp_path / "whole.json") == noted


def test_a_folder_is_replaced_in_one_step(tmp_path: Path) -> None:
    """At no time is there neither the old nor the new one."""
    path = tmp_path / "model"
    for name in ("old", "new"):
        with replacing(path) as beside:
            beside.mkdir()
            (beside / name).touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "other"
    other.mkdir()
    if exchange(path, other):
        assert (other / "new").exists()
        assert list(path.iterdir()) == []
        assert not exchange(path, tmp_path / "nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="exchanges folders on Linux alone")
def test_a_killed_replacement_leaves_one_of_both(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from autoliver.artifacts import replacing\n"
        "while True:\n"
        " with replacing(Path(sys.argv[1])) as beside:\n"
        "  beside.mkdir(); (beside / 'whole').touch()\n"
        "  print('.', flush=True)"
    )
    path = tmp_path / "model"
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            for _ in range(100):
                process.stdout.readline()
            process.kill()
        assert (path / "whole").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="cannot tell whether a process lives")
def test_what_a_dead_process_left_half_written_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from autoliver.artifacts import replacing\n"
        "with replacing(Path(sys.argv[1])) as beside:\n"
        " beside.write_text('half'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "plan.json")], check=True)
    [left] = tmp_path.iterdir()
    head, process = left.name.partition(".partial.")[0].rsplit("-", 1)
    elsewhere = tmp_path / f".0123abcd-00000000-{process}.partial.old"
    others = {
        "living": tmp_path / f"{head}-{os.getppid():x}.partial.living",
        "of another machine": elsewhere.with_suffix(".young"),
        "without an owner": tmp_path / ".0123abcd.partial.plan.json",
        "no partial": tmp_path / f"{head}-{process}.json",
    }
    for path in (*others.values(), elsewhere):
        path.touch()
    own = tmp_path / f"{head}-{os.getpid():x}.partial.of an earlier process of this number"
    own.touch()
    os.utime(elsewhere, (time.time() - 2 * 86_400,) * 2)
    with replacing(tmp_path / "first.json") as beside:
        beside.write_bytes(b"not yet")
        others["of this process"] = beside
        # By another way to the same folder, as another thread may write.
        write_bytes(tmp_path / ".." / tmp_path.name / "other.json", b"whole")
        assert set(tmp_path.iterdir()) == {*others.values(), tmp_path / "other.json"}


@pytest.mark.parametrize("dies", ["before", "between", "after"])
def test_a_folder_is_replaced_in_two_steps_where_two_cannot_be_exchanged(
    dies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it dies, either the old folder or the new one is there after the next try."""
    monkeypatch.setattr("autoliver.artifacts.exchange", lambda *_: False)
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    script = f"""
        import os
        from pathlib import Path
        from autoliver import artifacts
        path = Path({str(path)!r})
        artifacts.exchange = lambda *_: False
        replace, done = Path.replace, []
        def dying(self, target):
            if {dies!r} == "before" or ({dies!r} == "between" and done):
                os._exit(0)
            done.append(replace(self, target))
        Path.replace = dying
        artifacts._remove = lambda path: done and os._exit(0)
        with artifacts.replacing(path, alone=True) as beside:
            beside.mkdir()
            (beside / "new").touch()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ZeroDivisionError), replacing(path, alone=True):
        1 / 0  # noqa: B018
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in path.iterdir()] == ["new" if dies == "after" else "old"]
    with replacing(path, alone=True) as beside:
        beside.mkdir()
        (beside / "newest").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in path.iterdir()] == ["newest"]
