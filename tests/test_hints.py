"""Every command and option that a message or a document names is one that there is."""

from pathlib import Path

import pytest
from command_lines import (
    COMMANDS,
    DOTS,
    HOLE,
    misuse,
    problems,
    texts_of_markdown,
    texts_of_project,
    texts_of_python,
)

ROOT = Path(__file__).parents[1]


def test_every_command_and_option_that_is_named_exists() -> None:
    texts = list(texts_of_project(ROOT))
    assert [f"{t.where}: {problem}" for t in texts for problem in problems(t.text)] == []
    # What is known to be there was looked at.
    seen = " ".join(text.text for text in texts)
    for known in (
        "less memory: autoliver plan DATASET --vram GB",
        "Leave out --roi, or name",
        f"autoliver train {HOLE} {HOLE} --fold {HOLE}",
        "autoliver train /data/Dataset020_OurMR 3d_fullres --pretrained LiTS",
    ):
        assert known in seen, known
    shown = [name for name, command in COMMANDS.items() if not command.hidden]
    assert all(f"autoliver {name}" in seen for name in shown)


@pytest.mark.parametrize(
    "text",
    [
        "Check the values: autoliver verify DATASET",
        "'autoliver verify' lists everything.",
        "As `autoliver train` does, or `autoliver plan --vram`.",
        "Make it again with: autoliver plan 'my data' --window -150 250 --preset M (slow).",
        f"Train it (autoliver train {HOLE} 3d_lowres --fold {HOLE}), or leave out --roi.",
        "Written: x\nNext: autoliver predict -i IN -o OUT -m NAME",
        "`autoliver train ... --fold K --device D`, which can be run by hand",
        "Give `--extend N`, `--cache auto|gpu`, `predict --roi auto` or `-m A -m B`.",
        f"flags: --no-{HOLE}",
        "the file that autoliver wrote",
    ],
)
def test_what_fits_is_accepted(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Repair it with: autoliver verify DATASET --mend", "verify has no option --mend"),
        ("`verify --mend` repairs it", "verify has no option --mend"),
        ("Use verify --mend.", "verify has no option --mend"),
        ("Leave out --mend.", "no command has an option --mend"),
        ("Give `--extend N` or `--mend N`.", "no command has an option --mend"),
        ("autoliver repair DATASET", "no command 'autoliver repair'"),
        ("`autoliver repair`", "no command 'autoliver repair'"),
        ("Train it: autoliver train DATASET", "Missing parameter"),
        ("Train it: autoliver train", "Missing parameter"),
        ("autoliver train DATASET CONFIG OTHER", "unexpected extra argument"),
        ("autoliver train DATASET 3d_fulres", "no configuration 3d_fulres"),
        ("autoliver train DATASET 2d --epochs many", "many"),
        ("autoliver plan DATASET --preset huge", "huge"),
        ("autoliver plan DATASET --spacing 1 1", "--spacing"),
        ("autoliver plan DATASET --preset M and look", "unexpected extra argument"),
        ("Use `--cache tape`.", "tape"),
        ("Use `--cache ram|tape`.", "tape"),
        ("`plan --fold 0`", "plan has no option --fold"),
        (f"--without-{HOLE}", "no command has an option --without-"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, words: str) -> None:
    assert words in " ".join(problems(text))


def test_strings_are_read_as_they_will_be_shown() -> None:
    source = """
def f(name, more):
    '''As `autoliver
    verify`.'''
    raise Error(
        f"{name}: bad.",
        hint="Repair it with: autoliver verify "
        f"{name} --mend" + (f" --loud {more or '--inner'}" if more else ""),
    )
"""
    found = [text.text for text in texts_of_python(source, where="x")]
    assert found == [
        "As `autoliver verify`.",
        f"{HOLE}: bad.",
        f"Repair it with: autoliver verify {HOLE} --mend {DOTS} ",
        f" --loud {HOLE}",
        "--inner",
        "",
    ]
    wrong = [problem for text in found for problem in problems(text)]
    assert [problem.split()[-1] for problem in wrong] == ["--mend", "--mend", "--loud", "--inner"]


def test_code_and_backticks_of_a_document_are_read() -> None:
    source = """# autoliver fly

    pip install --fast . && autoliver fly  # autoliver land

Text about autoliver fly, `autoliver
swim --now` and

| `theirs --old` | `ours --new` |

```
torchrun --nproc 2 -m autoliver dive
```
```python
autoliver fly
```
"""
    found = [text.text for text in texts_of_markdown(source, where="x", skipped_cells=1)]
    assert found == ["autoliver fly", "`autoliver dive", "`autoliver swim --now`", "`ours --new`"]


def test_a_command_line_is_tried_without_being_run(tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    assert misuse("demo", ["-o", str(folder)]) is None
    assert misuse("plan", ["DATASET", "--fresh", "-w", str(folder)]) is None
    assert not folder.exists()
