import importlib.util
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autoliver.artifacts import read_json
from autoliver.errors import ArtifactError, AutoliverError
from autoliver.parallel import case_bar, case_workers, window_bars


def test_workers_are_spawned_processes_and_keep_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "only_in_this_process", ModuleType("only_in_this_process"))
    with case_workers(2, 5) as executor:
        assert executor is not None
        assert list(executor.map(math.factorial, range(5))) == [1, 1, 2, 6, 24]
        found = executor.submit(importlib.util.find_spec, "only_in_this_process")
        assert found.result() is None
        assert executor.submit(os.getpid).result() != os.getpid()


@pytest.mark.parametrize(("wanted", "cases"), [(1, 10), (4, 1), (0, 0)])
def test_one_process_is_enough_for_one_case(wanted: int, cases: int) -> None:
    with case_workers(wanted, cases) as executor:
        assert executor is None


def map_in_workers(function: Callable[[Any], object], values: Sequence[object]) -> list[object]:
    with case_workers(2, len(values)) as executor:
        assert executor is not None
        return list(executor.map(function, values))


def test_a_killed_worker_is_told_with_what_to_do() -> None:
    with pytest.raises(AutoliverError, match="worker process was killed") as caught:
        map_in_workers(signal.raise_signal, [signal.SIGKILL] * 4)
    assert "--workers 1" in caught.value.hint


def test_an_error_of_a_worker_keeps_its_kind_and_hint(tmp_path: Path) -> None:
    read = partial(read_json, hint="Make it again.")
    with pytest.raises(ArtifactError, match="no such file") as caught:
        map_in_workers(read, [tmp_path / "a.json", tmp_path / "b.json"])
    assert caught.value.hint == "Make it again."


def test_bars_say_what_is_done_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(case_bar("verify", 3)("abc")) == ["a", "b", "c"]
    with window_bars(2) as start:
        for name in ("case_1", "case_2"):
            tick = start(name, 4)
            for _ in range(4):
                tick()
    out, err = capsys.readouterr()
    assert out == ""
    assert "verify: 100%" in err
    assert "3/3" in err
    assert "predict case_2 (2/2)" in err
    assert "4/4" in err


def test_no_bar_for_no_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(case_bar("verify", 0)([])) == []
    assert capsys.readouterr().err == ""
