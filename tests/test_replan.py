"""Planning again: options that are kept, changed and forgotten, and what that changes."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from command_lines import misuse
from commands import run, told
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.cli.options import DEFAULT_WORKSPACE
from autoliver.datasets.cases import read_dataset
from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.io.files import read_label, write_label
from autoliver.models.files import FoldFolder
from autoliver.pipeline.data import plan_command, planned_dataset
from autoliver.planning.plan import LikeOptions, Plan, PlanOptions
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.options import TrainingOptions
from autoliver.workspace import DatasetFolder, Workspace

CT, MR = "Dataset001_Phantom CT", "Dataset002_PhantomMR"
ASKED = ("--preset", "tiny", "--vram", "4", "--no-batch-cap", "--window", "-150", "250")
OPTIONS = PlanOptions(preset="tiny", vram_gb=4.0, batch_cap=False, window_hu=(-150.0, 250.0))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT set with a blank in its name and an MR set in data/, both planned in workspace/."""
    folder = tmp_path_factory.mktemp("first")
    for number, name in enumerate((CT, MR)):
        options = PhantomOptions(
            contrast="CT" if name == CT else "T2",
            shape_zyx=(16, 32, 32),
            spacing_mm=(8.0, 6.0, 6.0),
        )
        write_phantom_dataset(folder / "data", name=name, cases=2, seed=number, options=options)
    run("plan", folder / "data" / CT, *ASKED, "-w", folder / "workspace")
    run("plan", folder / "data" / MR, "-w", folder / "workspace")
    return folder


@pytest.fixture
def own(first: Path, tmp_path: Path) -> Path:
    """A copy of that workspace to change."""
    return Path(shutil.copytree(first / "workspace", tmp_path / "workspace"))


def plan_in(workspace: Path, name: str = CT, file: str = "plan.json") -> Plan:
    return Plan.load(workspace / name / file)


def shown(*arguments: object) -> str:
    """What a command prints on stdout."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_options_a_plan_is_made_as_before_and_says_so(own: Path) -> None:
    before = (own / CT / "plan.json").read_bytes()
    text = told("plan", CT, "-w", own)
    line = "As in the previous plan: --preset tiny --vram 4 --no-batch-cap --window -150 250"
    assert [each for each in text.splitlines() if each.startswith("As in")] == [
        f"{line} (--fresh discards this)."
    ]
    assert (own / CT / "plan.json").read_bytes() == before
    assert plan_in(own).asked == OPTIONS
    assert "changed" not in shown("plan", CT, "-w", own)
    assert "As in" not in told("plan", MR, "-w", own)  # made with the defaults


def test_an_option_that_is_given_changes_that_one_and_keeps_the_others(own: Path) -> None:
    text = told("plan", CT, "--vram", 5, "--batch-cap", "-w", own)
    assert "As in the previous plan: --preset tiny --window -150 250 (" in text
    assert plan_in(own).asked == OPTIONS.replace(vram_gb=5.0, batch_cap=True)
    assert plan_in(own).vram_gb == 5.0
    run("plan", CT, "--preset", "default", "-w", own)
    assert plan_in(own).asked == OPTIONS.replace(vram_gb=5.0, batch_cap=True, preset="default")
    assert plan_in(own).configurations["2d"].network.features[0] == 32


def test_fresh_forgets_what_is_not_given(own: Path) -> None:
    assert "As in" not in told("plan", CT, "--vram", 5, "--fresh", "-w", own)
    assert plan_in(own).asked == PlanOptions(vram_gb=5.0)
    run("plan", CT, "--fresh", "-w", own)
    assert plan_in(own).asked == PlanOptions()


def test_the_library_keeps_options_as_the_command_does(own: Path) -> None:
    assert autoliver.plan(CT, workspace=own).asked == OPTIONS
    assert autoliver.plan(CT, workspace=own, preset="M").asked == OPTIONS.replace(preset="M")
    assert autoliver.plan(CT, workspace=own, preset="M", fresh=True).asked == PlanOptions(
        preset="M"
    )
    with pytest.raises(OptionError, match="presett"):
        autoliver.plan(CT, workspace=own, presett="M")
    like = autoliver.plan(MR, like=CT, workspace=own, spacing="target")
    assert like.like == LikeOptions(spacing="target")
    assert autoliver.plan(MR, like=CT, workspace=own).like == LikeOptions(spacing="target")


def test_a_refused_option_says_that_it_may_be_kept(own: Path) -> None:
    with pytest.raises(OptionError, match="no CT channel") as caught:
        run("plan", MR, "--window", -150, 250, "-w", own)
    assert "--fresh" in caught.value.hint


def test_what_differs_is_shown_with_the_runs_that_depend_on_it(own: Path) -> None:
    plan, folder = plan_in(own), DatasetFolder(own / CT)
    for tag, digest in (("", plan.digest()), ("long", plan.digest()), ("older", "0" * 12)):
        options = TrainingOptions(made_from={"plan": digest}, epochs=1)
        begun = folder.run("2d", tag=tag)
        options.save(begun.options)
        begun.fold("all").mkdir()
        FoldFolder(begun.fold("all")).resume.touch()  # it has made a step
    (own / CT / "runs/2d+damaged").mkdir()
    (own / CT / "runs/2d+damaged/options.json").write_text("{")
    same = run("plan", CT, "-w", own)
    assert (same["changes"], same["stale_runs"]) == ([], [])
    for form in ("json", "text"):
        folder.plan.write_bytes(plan.to_bytes())
        words = ("plan", CT, "--preset", "default", "--window", -100, 240, "-w", own)
        if form == "json":
            found = run(*words)
            changes = {
                (c["configuration"], c["decision"]): (c["before"], c["now"])
                for c in found["changes"]  # type: ignore[attr-defined]
            }
            assert changes["", "preset"] == ("tiny", "default")
            assert changes["", "CT window"] == ("CT -150 to 250", "CT -100 to 240")
            assert changes["2d", "network"][0].startswith("unet 8-")
            assert changes["2d", "network"][1].startswith("unet 32-")
            assert found["stale_runs"] == ["2d", "2d+long"]
        else:
            text = shown(*words)
            table = text[text.index("changed") : text.index("Written: ")]
            rows = [line.split() for line in table.splitlines()]
            assert ["all", "preset", "tiny", "->", "default"] in rows
            assert "cannot be resumed: 2d, 2d+long. " in table
    with pytest.raises(ArtifactError, match="started with another plan"):
        run("train", CT, "2d", "--fold", "all", "-w", own)


def test_a_spacing_is_kept_and_what_another_one_changes_is_shown(own: Path) -> None:
    asked = PlanOptions(preset="tiny", spacing_mm=(8.0, 4.0, 4.0))
    words = ("--preset", "tiny", "--spacing", "8", "4", "4")
    text = shown("plan", CT, "--fresh", *words, "-w", own)
    assert plan_in(own).asked == asked
    made = (own / CT / "plan.json").read_bytes()
    # The next command uses this plan, and so do the commands before it.
    following = text[text.index("Next: ") :].removeprefix("Next: autoliver ").strip()
    name, *rest = shlex.split(following)
    assert (name, rest[0]) == ("train", CT)
    assert misuse(name, rest) is None
    run("preprocess", CT, rest[1], "-w", own)
    assert (own / CT / "plan.json").read_bytes() == made
    # Planned again, it stays; and what another spacing changes is shown with what it was.
    said = told("plan", CT, "-w", own)
    assert f"As in the previous plan: {' '.join(words)} (--fresh discards this)." in said
    assert (own / CT / "plan.json").read_bytes() == made
    again = shown("plan", CT, "-w", own)
    assert again[again.index("Written: ") :] == text[text.index("Written: ") :]
    assert "changed" not in again
    other = ("plan", CT, "--spacing", 8, 6, 6, "-w", own)
    changes = {
        (c["configuration"], c["decision"]): (c["before"], c["now"])
        for c in run(*other)["changes"]  # type: ignore[attr-defined]
    }
    assert changes["2d", "spacing"] == ("4 x 4 mm", "6 x 6 mm")
    assert changes["3d_fullres", "spacing"] == ("8 x 4 x 4 mm", "8 x 6 x 6 mm")
    assert plan_in(own).asked == asked.replace(spacing_mm=(8.0, 6.0, 6.0))
    assert "As in the previous plan: --preset tiny (" in told(*other)


def test_the_hint_to_plan_again_repeats_all_options_and_can_be_pasted(
    own: Path, first: Path
) -> None:
    label = next((first / "data" / CT / "labelsTr").iterdir())
    before, volume = label.read_bytes(), read_label(label)
    volume.array[:, 0] = 0
    write_label(label, volume.array[0], volume.geometry)
    try:
        with pytest.raises(ArtifactError, match="made from another dataset") as caught:
            run("preprocess", CT, "2d", "-w", own)
        command = caught.value.hint.removeprefix("Make it again with: ")
        words = ("autoliver", "plan", CT, *ASKED, "-w", str(own))
        assert shlex.split(command) == [*words]
        assert misuse("plan", shlex.split(command)[2:]) is None
        run(*shlex.split(command)[1:])
        assert plan_in(own).asked == OPTIONS
        run("preprocess", CT, "2d", "-w", own)
    finally:
        label.write_bytes(before)


def test_a_dataset_that_was_moved_is_named_by_its_path(own: Path, first: Path) -> None:
    folder, dataset = DatasetFolder(own / MR), read_dataset(first / "data" / MR)
    known = shlex.split(plan_command(folder, dataset, ("--preset", "M")))
    assert known == ["autoliver", "plan", MR, "--preset", "M", "-w", str(own)]
    moved = dataset.replace(folder="/elsewhere/my data")
    assert "plan '/elsewhere/my data' -w" in plan_command(folder, moved)
    unplanned = DatasetFolder(own / "Dataset003_New")
    assert f"plan {moved.replace(folder='/x').folder} -w" in plan_command(
        unplanned, moved.replace(folder="/x")
    )


def test_the_workspace_that_is_taken_unasked_is_not_named(first: Path) -> None:
    dataset = read_dataset(first / "data" / MR)
    for root in (DEFAULT_WORKSPACE, autoliver.api.WORKSPACE, DEFAULT_WORKSPACE.absolute()):
        assert plan_command(DatasetFolder(root / MR), dataset) == f"autoliver plan {dataset.folder}"


def test_a_plan_like_another_is_made_as_before(own: Path) -> None:
    like = ("plan", MR, "--like", CT, "-w", own)
    file = "plan@Phantom-CT.json"
    run(*like, "--spacing", 9, 7, 6.5)
    asked = LikeOptions(spacing="fixed", spacing_mm=(9.0, 7.0, 6.5))
    assert plan_in(own, MR, file).like == asked
    assert plan_in(own, MR, file).asked is None
    assert "As in the previous plan: --spacing 9 7 6.5 (" in told(*like)
    assert plan_in(own, MR, file).like == asked
    found = run(*like, "--like-spacing", "target")
    changes = {(c["configuration"], c["decision"]) for c in found["changes"]}  # type: ignore[attr-defined]
    assert {("", "spacing as"), ("3d_fullres", "spacing")} <= changes
    assert plan_in(own, MR, file).like == LikeOptions(spacing="target")
    run(*like, "--fresh")
    assert plan_in(own, MR, file).like == LikeOptions()
    with pytest.raises(OptionError, match="lacks --spacing"):
        run(*like, "--like-spacing", "fixed")


def test_the_hint_to_plan_like_another_again_repeats_its_spacing(own: Path) -> None:
    run("plan", MR, "--like", CT, "--spacing", 9, 7, 6.5, "-w", own)
    run("plan", CT, "--preset", "default", "--spacing", 9, 8, 8, "-w", own)
    with pytest.raises(ArtifactError, match="made like another") as caught:
        run("train", MR, "2d", "--like", CT, "--fold", "all", "-w", own)
    line = caught.value.hint.removeprefix("Plan again with: ").partition(" (runs")[0]
    words = ["plan", MR, "--like", CT, "--spacing", "9", "7", "6.5", "-w", str(own)]
    assert shlex.split(line)[1:] == words
    run(*words)
    assert plan_in(own, MR, "plan@Phantom-CT.json").like == LikeOptions(
        spacing="fixed", spacing_mm=(9.0, 7.0, 6.5)
    )


@pytest.mark.parametrize("option", [("--preset", "M"), ("--vram", 4), ("--no-batch-cap",)])
def test_options_of_the_source_are_refused_for_a_plan_like_it(own: Path, option: tuple) -> None:
    result = CliRunner().invoke(app, [*map(str, ("plan", MR, "--like", CT, *option, "-w", own))])
    assert result.exit_code == 1
    assert "are the source's" in str(result.exception)


def test_a_plan_that_cannot_be_read_is_replaced_and_that_is_said(own: Path) -> None:
    (own / CT / "plan.json").write_text("{")
    with pytest.raises(AutoliverError, match="not valid JSON") as caught:
        planned_dataset(Workspace(own), CT)
    assert f"autoliver plan '{CT}'" in caught.value.hint
    assert "cannot be read and is replaced" in told("plan", CT, "-w", own)
    assert plan_in(own).asked == PlanOptions()


def test_a_plan_of_an_earlier_version_keeps_its_preset_and_its_runs(own: Path) -> None:
    path = own / CT / "plan.json"
    before = plan_in(own)
    fields = json.loads(path.read_text())
    del fields["asked"]
    path.write_text(json.dumps(fields))
    assert plan_in(own).digest() == before.digest()
    assert "--preset tiny --vram 4 (" in told("plan", CT, "-w", own)
    assert plan_in(own).asked == PlanOptions(preset="tiny", vram_gb=4.0)


def test_a_plan_is_not_made_like_itself(first: Path, own: Path) -> None:
    for source in (MR, "PhantomMR", "2", first / "data" / MR):
        with pytest.raises(
            OptionError, match="is the plan of Dataset002_PhantomMR itself"
        ) as caught:
            run("plan", MR, "--like", source, "-w", own)
        assert "another dataset or model" in caught.value.hint
    assert not list((own / MR).glob("plan@*"))
    run("plan", MR, "--like", CT, "-w", own)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--spacing", "1", "1", "1"),
            "--spacing 1 1 1: the median case gets 288 times the voxels",
        ),
        (("--spacing", "8", "1", "1"), "gets 36 times"),
        (("--spacing", "4", "3", "3.1"), ""),
        (("--spacing", "16", "12", "12"), ""),
        (("--vram", "1e9"), "--vram 1e+09: no GPU has so many GB"),
        (("--vram", "1000"), ""),
    ],
)
def test_what_is_hardly_meant_is_warned_of(
    options: tuple[str, ...], words: str, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("plan", MR, "--preset", "tiny", *options, "-w", own)
    said = [record.getMessage() for record in caplog.records]
    assert [words in one for one in said] == ([True] if words else [])
