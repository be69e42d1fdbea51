"""A copy of the package that a test may add to, as a developer would, and run on its own."""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import autoliver

PACKAGE = Path(autoliver.__file__).parent


class CopiedPackage:
    """The package in another folder.

    Args:
        folder: Where the copy goes.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.package = folder / "autoliver"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))

    def add(self, name: str, text: str) -> None:
        """Adds a file of the package."""
        path = self.package / name
        assert not path.exists()
        path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        """Changes the one place of a file that holds `old`."""
        path = self.package / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    @property
    def changed(self) -> set[str]:
        """The files that differ from the package or were added to it."""
        files = (path.relative_to(self.package) for path in self.package.rglob("*.py"))
        return {
            str(name)
            for name in files
            if not (PACKAGE / name).exists()
            or not filecmp.cmp(PACKAGE / name, self.package / name, shallow=False)
        }

    def run(self, *arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Runs a command of the copy."""
        done = self.python("-m", "autoliver", *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def python(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Runs Python with the copy and the modules of the tests."""
        tests = Path(__file__).parent
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": f"{self.root}{os.pathsep}{tests}"},  # noqa: TID251
            capture_output=True,
            text=True,
            check=False,
        )
