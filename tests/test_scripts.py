"""The library in scripts with and without a guard, from stdin, in -c and in -m."""

import subprocess
import sys
from pathlib import Path

import pytest

from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
# Preprocessing starts worker processes, and so does a training whose cases stay on disk.
SCRIPT = f"""
import autoliver

print("begins", flush=True)
autoliver.plan("data/{NAME}", workspace="workspace", preset="tiny", workers=2)
quick = dict(epochs=1, iterations=2, cache="disk", workers=2)
folds = autoliver.train("{NAME}", "2d", folds="all", workspace="workspace", **quick)
print("ends", folds[0].failed)
"""
GUARDED = (
    "def main():" + SCRIPT.replace("\n", "\n    ") + "\nif __name__ == '__main__':\n    main()\n"
)

WAYS = {
    "script without a guard": (["script.py"], SCRIPT),
    "script with a guard": (["script.py"], GUARDED),
    "stdin": (["-"], SCRIPT),
    "-c": (["-c", SCRIPT], SCRIPT),
    "-m": (["-m", "script"], SCRIPT),
}


# The others differ from these in how the module is named alone.
QUICK = {"script without a guard", "stdin", "-c"}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS]
)
def test_workers_do_not_run_the_main_module_again(way: str, tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path / "data", name=NAME, cases=3, seed=1, options=options)
    arguments, source = WAYS[way]
    (tmp_path / "script.py").write_text(source)
    done = subprocess.run(
        [sys.executable, *arguments],
        input=source if arguments == ["-"] else "",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begins", "ends", "False"]
    for trouble in ("Trying again", "cannot be started", "Traceback"):
        assert trouble not in done.stderr
