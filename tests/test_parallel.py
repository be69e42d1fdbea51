import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info

from autoliver.errors import AutoliverError, DatasetError
from autoliver.memory import cgroup_bytes, default_memory_gb, free_gb
from autoliver.parallel import CaseMapper, CasePool, Limits, Need, cores

# In a file of its own, since worker processes import it.
WORK = """
import os, signal, time
from pathlib import Path
from autoliver.errors import DatasetError

def work(task):
    number, what, folder = task
    with Path(folder, f"{number}.log").open("a") as log:
        log.write(f"{os.getpid()} ")
    begun = Path(folder, f"{number}.begun")
    first = not begun.exists()
    begun.touch()
    if what == "always" or (what == "once" and first):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "memory" and first:
        raise MemoryError
    if what == "bug" and first:
        os._exit(3)
    if what == "refuse":
        raise DatasetError(f"case_{number} is bad.", hint="Mend it.")
    time.sleep(0.02 * (number % 3))
    return number, os.getpid()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    (tmp_path / "autoliver_test_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    import autoliver_test_work  # type: ignore[import-not-found]

    yield autoliver_test_work.work
    del sys.modules["autoliver_test_work"]


def blas_threads(_: object) -> set[int]:
    """The threads of numpy's matrix products in this process."""
    return {each["num_threads"] for each in threadpool_info() if each["internal_api"] == "openblas"}


def pool(workers: int = 2, memory_gb: float = 100.0, gb: float = 0.1, **more: Any) -> CasePool:
    return CasePool(
        what="stage",
        limits=Limits(workers=workers, memory_gb=memory_gb),
        need=lambda task: Need(name=f"case_{task[0]}", gb=gb),
        **more,
    )


def tasks(folder: Path, count: int, **what: str) -> list[tuple[int, str, str]]:
    return [(n, what.get(f"n{n}", "fine"), str(folder)) for n in range(count)]


def times_run(folder: Path, number: int) -> int:
    return len((folder / f"{number}.log").read_text().split())


def test_results_come_in_order_from_several_processes(work: Any, tmp_path: Path) -> None:
    results = list(pool().map(work, tasks(tmp_path, 7)))
    assert [number for number, _ in results] == list(range(7))
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize("workers", [1, 3])
def test_any_executor_and_one_process_give_the_same(
    work: Any, tmp_path: Path, workers: int
) -> None:
    mapper: CaseMapper = pool(workers)
    ours = [number for number, _ in mapper.map(work, tasks(tmp_path, 4))]
    with ThreadPoolExecutor(2) as executor:
        mapper = executor
        assert [number for number, _ in mapper.map(work, tasks(tmp_path, 4))] == ours


@pytest.mark.parametrize("how", ["once", "memory", "bug"])
def test_a_killed_case_is_tried_again_alone(
    work: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with caplog.at_level(logging.WARNING):
        results = list(pool().map(work, tasks(tmp_path, 8, n2=how)))
    assert [number for number, _ in results] == list(range(8))
    assert times_run(tmp_path, 2) == 2
    # What was finished is not done again: at most what was in work beside it.
    assert sum(times_run(tmp_path, n) for n in range(8)) <= 10
    told = {"once": "killed", "memory": "out of memory", "bug": "exit code 3"}[how]
    assert told in caplog.text
    assert "case_2" in caplog.text
    assert "0.1 GB" in caplog.text
    assert "case_7" not in caplog.text


def test_two_killed_cases_do_not_stop_the_others(work: Any, tmp_path: Path) -> None:
    results = list(pool(3).map(work, tasks(tmp_path, 12, n0="once", n6="once")))
    assert [number for number, _ in results] == list(range(12))


@pytest.mark.parametrize("gb", [0.1, 90.0])
def test_a_case_that_is_killed_alone_is_named_with_its_need(
    work: Any, tmp_path: Path, gb: float
) -> None:
    with pytest.raises(AutoliverError, match=r"case_1: .*killed.* alone.*free") as caught:
        list(pool(gb=gb).map(work, tasks(tmp_path, 5, n1="always")))
    assert f"needs about {gb:.1f} GB" in caught.value.problem
    assert times_run(tmp_path, 1) == 2


def test_errors_of_a_case_are_its_own(work: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="case_3 is bad") as caught:
        list(pool().map(work, tasks(tmp_path, 20, n3="refuse")))
    assert caught.value.hint == "Mend it."
    assert not (tmp_path / "19.log").exists()


def test_want_of_memory_in_this_process_is_told(work: Any, tmp_path: Path) -> None:
    with pytest.raises(AutoliverError, match=r"case_1: memory ran out .* 0\.1 GB"):
        list(pool(1).map(work, tasks(tmp_path, 3, n1="memory")))


@pytest.mark.parametrize(("memory_gb", "processes"), [(100, 4), (3.6, 3), (2.5, 2), (1.1, 1)])
def test_memory_limits_the_number_of_workers(
    work: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    memory_gb: float,
    processes: int,
) -> None:
    with caplog.at_level(logging.WARNING):
        results = list(pool(4, memory_gb, gb=1.0).map(work, tasks(tmp_path, 12)))
    assert len({process for _, process in results}) <= processes
    said = f"stage: {processes} instead of 4 processes: case_0 needs about 1.0 GB" in caplog.text
    assert said == (processes < 4)


def test_light_work_stays_in_this_process(work: Any, tmp_path: Path) -> None:
    results = list(pool(0, light=True).map(work, tasks(tmp_path, 4)))
    assert {process for _, process in results} == {os.getpid()}


def test_an_abandoned_stage_ends_its_workers(work: Any, tmp_path: Path) -> None:
    results = pool().map(work, tasks(tmp_path, 9))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_every_control_group_above_counts(tmp_path: Path) -> None:
    stat = "anon 5\ninactive_file 30\n"
    write_group(tmp_path / "job", memory__max="100\n", memory__current="60\n", memory__stat=stat)
    write_group(
        tmp_path / "job/step", memory__max="max\n", memory__current="60\n", memory__stat=stat
    )
    assert list(cgroup_bytes("0::/job/step\n", tmp_path)) == [100 - 60 + 30]
    assert list(cgroup_bytes("0::/of/the/host\n", tmp_path)) == []


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    write_group(
        tmp_path / "memory",
        memory__limit_in_bytes="1000\n",
        memory__usage_in_bytes="1200\n",
        memory__stat="total_inactive_file 100\n",
    )
    assert list(cgroup_bytes("9:name=x:/\n4:cpu,memory:/a/b\n", tmp_path)) == [0]


def test_this_machine_has_memory() -> None:
    assert 0 < free_gb() < 1e5
    assert 0.5 <= default_memory_gb() <= max(0.5, free_gb())


@pytest.mark.parametrize(("asked", "expected"), [(None, max(1, cores() // 2)), (3, 3)])
def test_workers_share_the_cores_among_the_threads_of_their_libraries(
    asked: int | None, expected: int
) -> None:
    found = list(pool(workers=2, threads=asked).map(blas_threads, [(0,), (1,)]))
    assert set().union(*found) <= {expected}
    assert any(found)
