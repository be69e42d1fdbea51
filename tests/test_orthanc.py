"""From a PACS and back (docs/dicom.md), with a real server: Orthanc and the tools of dcmtk."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pydicom
import pytest
from small_models import SaveFold, plan, save

from autoliver.io.dicom.drawn import read_drawn
from autoliver.io.files import read_label
from autoliver.planning.plan import Plan

__all__ = ["plan", "save"]  # fixtures

REAL = Path(__file__).parents[2] / "shared/data/dicom_ct20slice"
PLUGINS = Path("/usr/share/orthanc/plugins")
NEEDED = ("Orthanc", "storescu", "movescu")
pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.skipif(
        any(shutil.which(tool, path="/usr/bin:/usr/sbin:/usr/local/bin") is None for tool in NEEDED)
        or not (PLUGINS / "libOrthancDicomWeb.so").exists(),
        reason="needs Orthanc with DICOMweb and dcmtk (Debian: orthanc, orthanc-dicomweb, dcmtk)",
    ),
    pytest.mark.skipif(not REAL.is_dir(), reason=f"needs {REAL}"),
]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class Server:
    http: int
    dicom: int
    back: int

    def get(self, path: str) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}", headers={"Accept": "application/dicom+json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def push(self, *files: Path) -> None:
        # -R: what these files need, such as segmentations and JPEG 2000 (-xv).
        where = ("127.0.0.1", str(self.dicom))
        run("storescu", "-R", "-xv", "-aec", "ORTHANC", *where, *map(str, files))

    def fetch(self, study: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        run(
            *("movescu", "+xv", "-S", "-aet", "HERE", "-aem", "HERE", "-aec", "ORTHANC"),
            *("+P", str(self.back), "-od", str(folder), "-k", "0008,0052=STUDY"),
            *("-k", f"0020,000D={study}", "127.0.0.1", str(self.dicom)),
        )


def run(*words: str) -> None:
    found = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An empty server on free ports of this machine alone."""
    ports = Server(http=free_port(), dicom=free_port(), back=free_port())
    settings = {
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "HttpPort": ports.http,
        "DicomPort": ports.dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "DicomModalities": {"here": ["HERE", "127.0.0.1", ports.back]},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    program = shutil.which("Orthanc", path="/usr/bin:/usr/sbin:/usr/local/bin")
    with (tmp_path / "orthanc.log").open("w") as log:
        process = subprocess.Popen(
            [str(program), str(tmp_path / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    ports.get("/system")
                    break
                except (urllib.error.URLError, OSError):
                    log_so_far = (tmp_path / "orthanc.log").read_text()
                    assert process.poll() is None, log_so_far
                    assert time.monotonic() < until, log_so_far
                    time.sleep(0.2)
            yield ports
        finally:
            process.terminate()
            process.wait(30)


def ct_model(save: SaveFold, plan: Plan) -> Path:
    """An untrained model of CT on coarse voxels."""
    coarse = plan.configurations["3d_fullres"].replace(
        spacing_mm=(4.0, 12.0, 12.0), normalization=("ct",)
    )
    changes = {
        "channel_names": ("CT",),
        "modality": "CT",
        "configurations": {"3d_fullres": coarse},
    }
    return save("fold_0", **changes).parent


def test_from_a_pacs_and_back(server: Server, tmp_path: Path, save: SaveFold, plan: Plan) -> None:
    source = sorted(REAL.glob("*.dcm"))
    study = pydicom.dcmread(source[0], stop_before_pixels=True).StudyInstanceUID
    server.push(*source)
    server.fetch(study, tmp_path / "in" / "patient")
    assert len(list((tmp_path / "in" / "patient").iterdir())) == len(source)

    done = commands.run(
        *("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-w", tmp_path / "w"),
        *("-m", ct_model(save, plan), "--format", "dicom-seg", "--no-mirror", "--step", 1.0),
    )
    (seg,) = map(Path, done["segmentations"])
    server.push(seg)

    (series,) = server.get(f"/dicom-web/studies/{study}/series?Modality=SEG")
    sent = pydicom.dcmread(seg)
    assert series["0020000E"]["Value"] == [sent.SeriesInstanceUID]
    every = server.get(f"/dicom-web/studies/{study}/series")
    assert sorted(one["00080060"]["Value"][0] for one in every) == ["CT", "SEG"]
    assert len(server.get("/studies")) == 1

    # What comes back is what was sent, and shows the label map.
    server.fetch(study, tmp_path / "again")
    (back,) = [p for p in (tmp_path / "again").iterdir() if sent.SOPInstanceUID in p.name]
    (label_map,) = map(Path, done["files"])
    labels = read_label(label_map)
    values = {"liver": 1, "tumour": 2}
    for drawn in read_drawn(back, labels.geometry):
        assert (drawn.mask == (labels.array[0] == values[drawn.name])).all()
