"""Locks of a folder for one kind of work, and of a moment's work."""

import errno
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from autoliver.errors import AutoliverError, MachineError
from autoliver.locks import Holder, in_turn, one_at_a_time, only_one, only_one_kind

WHAT = "others are at work"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "beside", "free"),
    [
        ("a.json", "11", (), True),  # the same work
        ("a.json", "22", (), False),
        ("b.json", "22", (), True),  # on something else
        ("b.json", "22", ("a.json",), False),
        ("b.json", "11", ("a.json",), True),
        ("a", "22", (), True),
        (".json", "22", (), True),
    ],
)
def test_work_of_one_kind(
    name: str, kind: str, beside: tuple[str, ...], free: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with only_one_kind(folder, "a.json", "11", WHAT):
        before = names(folder)
        if free:
            with only_one_kind(folder, name, kind, WHAT, beside=beside):
                assert len(names(folder)) == 2 * len(before)
        else:
            with (
                pytest.raises(AutoliverError, match=f"{folder}: {WHAT} by process") as caught,
                only_one_kind(folder, name, kind, WHAT, beside=beside),
            ):
                pytest.fail("it was let in")
            assert "Wait until it has ended" in caught.value.hint
        assert names(folder) == before
    assert not folder.exists()


def test_a_lock_whose_process_is_gone_holds_nothing(tmp_path: Path) -> None:
    script = f"""
        import os
        from pathlib import Path
        from autoliver.locks import only_one_kind
        with only_one_kind(Path({str(tmp_path)!r}), "a", "11", "x"):
            os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert len(names(tmp_path)) == 2
    with only_one_kind(tmp_path, "a", "22", WHAT):
        pass
    assert names(tmp_path) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    """Four processes count to 100 in a file, which loses counts without the lock."""
    script = f"""
        from pathlib import Path
        from autoliver.locks import one_at_a_time
        folder = Path({str(tmp_path)!r})
        for _ in range(100):
            with one_at_a_time(folder):
                file = folder / "count"
                number = int(file.read_text()) if file.exists() else 0
                file.write_text(str(number + 1))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    work = [subprocess.Popen(command) for _ in range(4)]
    assert [each.wait() for each in work] == [0] * 4
    assert (tmp_path / "count").read_text() == "400"
    with one_at_a_time(tmp_path):
        pass


BOOT = 1_700_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="has no such numbers of processes")
@pytest.mark.parametrize(
    ("state", "begun_s", "alive"),
    [
        ("S", 100.0, True),
        ("R", 100.0, True),
        ("Z", 100.0, False),  # it has ended
        ("S", 5000.0, False),  # another process has got its number since
    ],
)
def test_whether_a_holder_lives_is_read_from_the_table_of_processes(
    state: str, begun_s: float, alive: bool, tmp_path: Path
) -> None:
    ticks = int(begun_s * os.sysconf("SC_CLK_TCK"))
    fields = [state, *["0"] * 18, str(ticks), "0"]
    (tmp_path / "self").mkdir()
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "stat").write_text(f"77 (a ) name) {' '.join(fields)}\n")
    (tmp_path / "stat").write_text(f"cpu 1 2 3\nbtime {BOOT}\n")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(BOOT + 1000))
    here = Holder(host=socket.gethostname(), process=77, since=since)
    assert here.is_alive(tmp_path) is alive
    for ticks_ago, same in ((0, True), (500, False)):  # whatever the clocks say
        known = here.replace(begun=ticks - ticks_ago, since="2001-01-01 00:00:00")
        assert known.is_alive(tmp_path) is (same and state != "Z")
    assert here.replace(process=78).is_alive(tmp_path) is False
    assert here.replace(host="elsewhere").is_alive(tmp_path) is None


def test_processes_that_give_a_lock_back_and_take_it_at_once(tmp_path: Path) -> None:
    """Each is let in or told who is, even while the lock and its folder come and go."""
    path = tmp_path / "folder" / ".lock"
    script = f"""
        from pathlib import Path
        from autoliver.errors import AutoliverError
        from autoliver.locks import only_one
        inside, path, been = Path({str(tmp_path)!r}) / "inside", Path({str(path)!r}), 0
        for _ in range(150):
            try:
                with only_one(path, "it is being done"):
                    inside.touch(exist_ok=False)
                    inside.unlink()
                    been += 1
            except AutoliverError as error:
                assert f"{{path.parent}}: it is being done by" in str(error), error
        assert been
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    work = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [each.communicate()[1] for each in work]
    assert [each.returncode for each in work] == [0] * 3, told
    assert not path.exists()


@pytest.mark.parametrize("lock", [only_one, in_turn])
@pytest.mark.parametrize("step", ["looked at", "locked"])
def test_a_folder_that_another_process_removes_is_made_again(
    lock: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mkdir finds it and then does not, or it goes before the lock's file is made."""
    folder, make, times = tmp_path / "folder", Path.mkdir, iter(range(3))

    def made(path: Path, *words: Any, **options: Any) -> None:
        make(path, *words, **options)
        if path == folder and next(times, None) is not None:
            folder.rmdir()
            if step == "looked at":
                raise FileExistsError(errno.EEXIST, "File exists", str(folder))

    monkeypatch.setattr(Path, "mkdir", made)
    with lock(folder / ".lock", "it is being done"):
        assert names(folder)


@pytest.mark.parametrize("lock", [only_one, in_turn])
@pytest.mark.parametrize("kind", ["file", "dangling link", "file above"])
def test_what_is_in_the_way_of_the_folder_is_told(lock: Any, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if kind == "dangling link":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        folder.touch()
    path = (folder / "deeper" if kind == "file above" else folder) / ".lock"
    with pytest.raises(MachineError, match="cannot be written"), lock(path, "it is being done"):
        pytest.fail("it was let in")
