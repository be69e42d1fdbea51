"""Runs commands in forks of one process that has imported everything.

Reads a JSON object per line and answers each with one:
{"start": arguments, "output": file, "folder": folder, "control": file or null} -> {"process"}
{"wait": process, "seconds", "stopped": whether that counts} -> {"code", "signal", "state"}
"""

import contextlib
import json
import os
import pkgutil
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import forked

# What modules of the package import while they work.
_LOADED = (
    *("SimpleITK", "nibabel", "scipy.ndimage", "scipy.stats", "PIL.Image", "torch", "blosc2"),
    *("cc3d", "pydicom", "highdicom", "safetensors.torch", "threadpoolctl", "zoneinfo"),
    *(
        "pydantic",
        "pydantic.type_adapter",
        "typer._adapters",
        "acvl_utils.morphology.morphology_helper",
    ),
    *("skimage.measure", "skimage.morphology", "multiprocessing.synchronize", "encodings.cp437"),
)
_LOOK_S = 0.005


def main() -> None:
    import torch

    import autoliver

    own = [m.name for m in pkgutil.walk_packages(autoliver.__path__, "autoliver.")]
    for name in (*_LOADED, *(name for name in own if "__main__" not in name)):
        with contextlib.suppress(ImportError):
            __import__(name)

    torch.set_num_threads(1)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        asked = json.loads(line)
        answer = {"process": _started(asked)} if "start" in asked else _waited(asked)
        print(json.dumps(answer), flush=True)  # noqa: T201


def _started(asked: dict[str, Any]) -> int:
    process = os.fork()
    if not process:
        _be(asked)
    return process


def _waited(asked: dict[str, Any]) -> dict[str, Any]:
    process, until = asked["wait"], time.monotonic() + asked["seconds"]
    options = os.WNOHANG | (os.WUNTRACED if asked["stopped"] else 0)
    state = "ended"
    while True:
        done, status = os.waitpid(process, options)
        if done and os.WIFSTOPPED(status):
            return {"code": None, "signal": None, "state": "stopped"}
        if done:
            break
        if time.monotonic() > until:
            if asked["stopped"]:
                return {"code": None, "signal": None, "state": "runs"}
            state = "late"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            until += 1e9
        time.sleep(_LOOK_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # workers of one that was killed
    return {
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "state": state,
    }


def _be(asked: dict[str, Any]) -> None:
    """Becomes the program with these arguments."""

    def program() -> None:
        if asked["control"]:
            with Path(asked["control"]).open("r+b") as file:
                file.write(struct.pack("q", os.getpid()))
        from autoliver.__main__ import main as run

        run()

    forked.become(asked["start"], output=asked["output"], folder=asked["folder"], program=program)


if __name__ == "__main__":
    main()
