import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def benchmarks(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_our_side_of_a_row(tmp_path):
    output = tmp_path / "result.json"
    done = benchmarks("--quick", "--no-peer", "--only", "cubic", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| cubic |")
    (row,) = json.loads(output.read_text())["rows"]
    assert row["peer"] is None
    assert row["ours"]["seconds"] > 0
    # The image alone is 1.3 MB; Python and numpy some tens.
    assert 20 < row["ours"]["peak_mb"] < 400
    assert row["targets"]["speed >= 10"] is None


def test_missing_data_are_a_reason_not_an_error(tmp_path):
    done = benchmarks("--quick", "--no-peer", "--only", "plan", "--shared", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"skipped: {tmp_path}/oracle/planner is missing" in done.stdout


def test_a_failing_row_ends_with_exit_code_1(tmp_path):
    empty = tmp_path / "oracle/planner/Dataset004_Hippocampus"
    empty.mkdir(parents=True)
    rows = ("plan", "cubic")
    done = benchmarks("--quick", "--no-peer", "--only", *rows, "--shared", tmp_path)
    assert done.returncode == 1
    assert "| plan | FAILED: " in done.stdout
    assert "| cubic | (20, 128, 128)" in done.stdout


def test_missing_peer_is_said_at_once(tmp_path):
    done = benchmarks("--peer", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "tools/peer-nnunet" in done.stderr


def test_two_checkouts_are_compared(tmp_path):
    # The other one is this one with a resampling that takes a second longer.
    other = tmp_path / "other"
    for folder in ("autoliver", "benchmarks"):
        shutil.copytree(ROOT / folder, other / folder)
    slow = other / "autoliver/preprocessing/resample.py"
    text = slow.read_text()
    head = text[: text.index("def resample_image(")]
    body = text[len(head) :].replace("def resample_image(", "def _resample_image(", 1)
    slow.write_text(
        f"{head}{body}\n\ndef resample_image(*words, **options):\n    import time\n\n"
        "    time.sleep(1)\n    return _resample_image(*words, **options)\n"
    )
    command = [sys.executable, "-m", "benchmarks.revisions", str(other)]
    words = ["--quick", "--repeats", "1", "--only", "cubic"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    name, before, now, *_ = cells
    assert name == "cubic"
    assert float(before) > 1 > float(now)


def test_memory_of_a_process_tree(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.measure import Call, run

    script = tmp_path / "work.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "held = bytearray(60_000_000)\n"
        "if len(sys.argv) == 1:\n"
        "    children = [subprocess.Popen([sys.executable, __file__, '-']) for _ in range(2)]\n"
        "    [child.wait() for child in children]\n"
        "else:\n"
        "    time.sleep(1.5)\n"
    )
    one = run(Call(command=(sys.executable, str(script), "-"), settings={}, log=tmp_path / "log"))
    three = run(Call(command=(sys.executable, str(script)), settings={}, log=tmp_path / "log"))
    assert 57 < one.peak_mb < 110
    assert 170 < three.peak_mb < 300


def test_processor_time_of_what_outlives_its_parent(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.measure import Call, run

    script = tmp_path / "work.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "if len(sys.argv) == 1:\n"
        "    subprocess.Popen([sys.executable, __file__, '-'])\n"
        "else:\n"
        "    while time.process_time() < 1: pass\n"
    )
    found = run(Call(command=(sys.executable, str(script)), settings={}, log=tmp_path / "log"))
    assert 0.9 < found.cpu_seconds < 2


def test_a_misspelt_way_of_tuning_is_refused(tmp_path):
    words = ["-m", "benchmarks.transfer.forgetting", tmp_path, "--ways", "as it is;as it was"]
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--ways: 'as it was' is none of as it is; a third of the rate;" in done.stderr
    assert not any(tmp_path.iterdir())
