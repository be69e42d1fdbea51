"""What pages say is what the artefacts hold, whatever is missing, and nothing in them runs."""

import contextlib
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_lines import commands_in, misuse
from pages import Page
from report_trees import EVIL, GRID, LABELS, NAME, label_of, planned, trained, write_fold

import autoliver
from autoliver.datasets.cases import Labels
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.evaluation.report.page import MOST_BYTES
from autoliver.evaluation.report.page import Page as Values
from autoliver.evaluation.report.tables import POOLED
from autoliver.evaluation.results import COLUMNS, Scores
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.locks import only_one
from autoliver.models.files import FoldFolder
from autoliver.parallel import Limits
from autoliver.pipeline.reporting.dataset import dataset_chapter
from autoliver.pipeline.reporting.shown import MapFile, Shown, fitted
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import FAILED, add_to_log
from autoliver.transfer.table import Transfer, Transferred, TransferTable
from autoliver.workspace import DatasetFolder, RunFolder, Workspace


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetFolder]:
    """A dataset with a run of two folds; tests must not change it."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: tuple[Path, DatasetFolder], tmp_path: Path) -> tuple[Path, DatasetFolder]:
    """The same in another place, to be changed."""
    shutil.copytree(whole[0].parent, tmp_path / "copy")
    for file in (tmp_path / "copy" / "work").rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(whole[0].parent), str(tmp_path / "copy")), "utf-8")
    return tmp_path / "copy" / NAME, DatasetFolder(tmp_path / "copy" / "work" / NAME)


@pytest.fixture(scope="module")
def page(whole: tuple[Path, DatasetFolder]) -> Page:
    """The page of the whole dataset."""
    return page_of(whole[1])


def page_of(folder: DatasetFolder) -> Page:
    made = autoliver.report(folder.name, workspace=folder.path.parent)
    assert made.path == folder.path / "report.html"
    return Page(made.path.read_bytes())


def test_the_numbers_are_those_of_the_artefacts(
    whole: tuple[Path, DatasetFolder], page: Page
) -> None:
    folds = [0, 1]
    scores = [
        Scores.load(FoldFolder(whole[1].path / "runs" / "2d" / f"fold_{n}").scores) for n in folds
    ]
    for caption, field in {"Dice": "dice", "HD95 mm": "hd95_mm", "NSD": "nsd"}.items():
        found = page.numbers(f"{caption} of held-out cases")
        assert list(found) == list(LABELS)[1:]
        for label, row in found.items():
            each = [s.summary[label].metrics[field].mean for s in scores]
            assert [row["fold 0"], row["fold 1"]] == each
            assert row["mean of folds"] == pytest.approx(np.mean(each), abs=1e-12)
            every = [getattr(c.labels[label], field) for s in scores for c in s.cases]
            known = [value for value in every if value is not None]
            assert row[POOLED] == pytest.approx(np.mean(known), abs=1e-12)
            deviation = f"± {np.std(known, ddof=1):.{COLUMNS[field].decimals}f}"
            rows = page.tables[f"{caption} of held-out cases"]
            assert deviation in next(r[-1][0] for r in rows if r[0][0] == label)
    cases = page.numbers("Dice of every case, the lowest mean first")
    assert len(cases) == 6
    for case in (case for s in scores for case in s.cases):
        for label, score in case.labels.items():
            assert cases[case.name][label] == score.dice
    means = [row["mean of labels"] for row in cases.values()]
    assert means == sorted(means, key=lambda value: value or 0.0)
    runs = page.numbers("Runs")
    assert [runs[f"2d, fold {n}"]["mean Dice"] for n in folds] == [s.mean["dice"] for s in scores]


def test_every_case_is_shown_and_outliers_come_first(page: Page) -> None:
    viewers = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert len(viewers) == 6
    assert all(len(v["layers"]) == 2 and v["labels"] == list(LABELS)[1:] for v in viewers)
    head, *rows = page.tables["Unlike the others, or worst"]
    assert [text for text, _ in head] == ["case", "why"]
    lowest = list(page.numbers("Dice of every case, the lowest mean first"))[:3]
    assert {row[0][0] for row in rows} >= set(lowest)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert [i for i in page.ids if i.startswith("case-")] == [
        i for n in range(6) for i in (f"case-{n}", f"case-{n}-poster")
    ]


def test_nothing_of_the_data_runs_or_is_fetched(page: Page) -> None:
    assert [kind for kind, _ in page.scripts].count("") == 1
    assert EVIL in page.text
    assert "tumour <i>" in page.text
    assert "i" not in page.tags
    assert "b" not in page.tags
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert all(link.startswith("#") for link in page.links)


def test_the_same_inputs_give_the_same_bytes(whole: tuple[Path, DatasetFolder]) -> None:
    made = [autoliver.report(NAME, workspace=whole[1].path.parent) for _ in range(2)]
    first = made[0].path.read_bytes()
    assert made[1].path.read_bytes() == first
    assert made[0].size == len(first) <= MOST_BYTES


def test_the_commands_that_repeat_it_can_be_typed(page: Page) -> None:
    lines = [line for line in page.text.splitlines() if line.startswith("autoliver ")]
    assert [line.split()[1] for line in lines] == ["plan", "train"]
    for line in lines:
        (words,) = commands_in(line)
        assert misuse(words[0], words[1:]) is None, line
    for option in ("--epochs 4", "--iterations 10", "--augment none", "--seed 3", "--fold 0,1"):
        assert option in lines[1]


@pytest.mark.parametrize("share", [0.25, 0.02])
def test_a_page_is_no_larger_than_it_may_be(
    whole: tuple[Path, DatasetFolder], share: float
) -> None:
    chapter = dataset_chapter(Workspace(whole[1].path.parent), whole[1])
    bare = Values(title="T", notes=(), sections=chapter.sections)
    without = len(fitted(bare, ()))
    full = len(fitted(bare, chapter.shown))
    most = without + 25_000 + int(share * (full - without))
    content = fitted(bare, chapter.shown, most_bytes=most)
    assert len(content) <= most
    page = Page(content)
    shown = sum(kind == "application/json" for kind, _ in page.scripts)
    assert shown < 6
    assert page.text.count("the page would be larger than") == 6 - shown


def remove(name: str) -> Callable[[Path, DatasetFolder], None]:
    def change(_data: Path, folder: DatasetFolder) -> None:
        for path in sorted(folder.path.glob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def damage(name: str) -> Callable[[Path, DatasetFolder], None]:
    def change(_data: Path, folder: DatasetFolder) -> None:
        (folder.path / name).write_text('{"kind": "nonsense"')

    return change


def move_images(data: Path, _folder: DatasetFolder) -> None:
    data.rename(data.with_name("elsewhere"))


def lose_one(data: Path, _folder: DatasetFolder) -> None:
    (data / "imagesTr" / "case_001_0000.nii.gz").unlink()


def two_runs(data: Path, folder: DatasetFolder) -> None:
    for run in ("2d+other", "2d@Source"):
        write_fold(folder, data, 0, run=run)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove("runs"), "The dataset"),
        (remove("verify.json"), "The dataset"),
        (remove("fingerprint.json"), "The dataset"),
        (remove("folds.json"), "2d, fold 1"),
        (remove("plan.json"), "2d, fold 1"),
        (remove("runs/2d/options.json"), "2d, fold 1"),
        (remove("runs/2d/fold_1"), "2d, fold 0"),
        (remove("runs/2d/fold_*/progress.jsonl"), "2d, fold 0"),
        (remove("runs/2d/fold_1/model.json"), "interrupted"),
        (damage("runs/2d/options.json"), "options.json"),
        (damage("runs/2d/fold_0/progress.jsonl"), "2d, fold 0"),
        (remove("runs/2d/fold_1/validation"), "2d, fold 1"),
        (remove("runs/2d/fold_0/validation/*.nii.gz"), "No slices"),
        (damage("verify.json"), "verify.json"),
        (damage("plan.json"), "plan.json"),
        (damage("runs/2d/fold_1/validation/scores.json"), "scores.json"),
        (damage("model.json"), "model.json"),
        (move_images, "does not exist any more"),
        (lose_one, "No slices"),
        (two_runs, "Scores of 2d+other"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__qualname__", ""),
)
def test_what_is_missing_is_left_out_or_said(
    copy: tuple[Path, DatasetFolder],
    change: Callable[[Path, DatasetFolder], None],
    says: str,
) -> None:
    change(*copy)
    page = page_of(copy[1])
    assert says in page.text
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_a_dataset_that_is_only_planned_shows_references(tmp_path: Path) -> None:
    _data, folder = planned(tmp_path, cases=3)
    page = page_of(folder)
    viewers = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert [len(viewer["layers"]) for viewer in viewers] == [1, 1, 1]
    assert "Plan of 2d" in page.tables


def test_regions_are_told(tmp_path: Path) -> None:
    labels: dict[str, object] = {"background": 0, "whole": [1, 2], "core": 2}
    more = {"regions_class_order": [1, 2]}
    _data, folder = planned(tmp_path, cases=2, labels=labels, more=more)
    assert "regions, which may overlap" in page_of(folder).text


def write_bad_line(run: RunFolder) -> None:
    path = FoldFolder(run.fold(1)).progress
    first, *others = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([first, '{"epoch": 1, "st', *others[1:], ""]), "utf-8")


def fail(run: RunFolder) -> None:
    (run.fold(1) / "model.json").unlink()
    add_to_log(FoldFolder(run.fold(1)).log, f"{FAILED}CUDA out of memory <b>")


@contextlib.contextmanager
def training(run: RunFolder) -> Iterator[None]:
    (run.fold(1) / "model.json").unlink()
    with only_one(run.lock(1), "fold 1 is being trained"):
        yield


@contextlib.contextmanager
def validating(run: RunFolder) -> Iterator[None]:
    with only_one(run.lock(1), "fold 1 is being trained"):
        yield


@contextlib.contextmanager
def queued(run: RunFolder) -> Iterator[None]:
    shutil.rmtree(run.fold(1))
    with only_one(run.user("me"), "trains", parts=("0", "1")):
        yield


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda _: None, "finished"),
        (lambda run: (run.fold(1) / "model.json").unlink(), "interrupted"),
        (fail, "failed: CUDA out of memory <b>"),
        (training, "training"),
        (validating, "validating"),
        (queued, "queued"),
    ],
)
def test_the_state_of_a_fold_is_that_of_status(
    copy: tuple[Path, DatasetFolder], change: Callable[[RunFolder], object], state: str
) -> None:
    run = RunFolder(copy[1].path / "runs" / "2d")
    locks = set(run.path.rglob("*.lock"))
    with contextlib.ExitStack() as stack:
        if isinstance(made := change(run), contextlib.AbstractContextManager):
            stack.enter_context(made)
            locks = set(run.path.rglob("*.lock"))
        states = {row[0][0]: row[1][0] for row in page_of(copy[1]).tables["Runs"][1:]}
        assert set(run.path.rglob("*.lock")) == locks
    assert states == {"2d, fold 0": "finished", "2d, fold 1": state}


def test_epochs_behind_a_damaged_line_are_told(copy: tuple[Path, DatasetFolder]) -> None:
    write_bad_line(RunFolder(copy[1].path / "runs" / "2d"))
    page = page_of(copy[1])
    runs = page.numbers("Runs")
    assert [runs[f"2d, fold {n}"]["epochs"] for n in (0, 1)] == [4, 3]
    assert "1 line cannot be read" in page.text


def test_a_transfer_is_told_weight_by_weight(copy: tuple[Path, DatasetFolder]) -> None:
    data, folder = copy
    write_fold(folder, data, 0, run="2d@CT")
    write_fold(folder, data, 0, run="2d@CT+scratch")
    weights = (
        Transferred(name="stem", action="adapted", parameters=9, taken=9, how="summed <b>"),
        Transferred(name="head", action="reset", parameters=3, taken=0),
    )
    table = TransferTable(weights=weights, ignored=("old",), labels={"liver": "liver", "b": ""})
    Transfer(
        source="CT/2d",
        found="/somewhere",
        share=1.0,
        mirror_axes=(0,),
        augment="default",
        table=table,
    ).save(folder.path / "runs" / "2d@CT" / "transfer.json")
    page = page_of(folder)
    gain = page.numbers(f"Dice of held-out cases with and without transfer; {POOLED}")["liver"]
    assert gain["transferred"] == gain["from scratch"]
    assert gain["difference"] == 0.0
    assert page.numbers("Every weight")["stem"]["from the source"] == 9
    assert page.numbers("What became of the weights")["reset"]["parameters"] == 3


def test_an_imported_model_has_a_page(copy: tuple[Path, DatasetFolder]) -> None:
    model = copy[1].path.parent / "models" / "Theirs"
    shutil.copytree(copy[1].path / "runs", model / "runs")
    shutil.rmtree(model / "runs" / "2d" / "fold_1")
    (model / "runs" / "2d" / "options.json").unlink()
    autoliver_made = {"kind": "selection", "schema": 1, "autoliver": "0.1.0", "made_from": {}}
    selection = autoliver_made | {"dataset": "X", "members": [{"run": "2d", "folds": ["0"]}]}
    (model / "model.json").write_text(json.dumps(selection))
    made = autoliver.report("Theirs", workspace=copy[1].path.parent)
    page = Page(made.path.read_bytes())
    assert made.path == model / "report.html"
    assert "was imported" in page.text
    assert "Plan of 2d" in page.tables


def test_options_of_runs_are_told(copy: tuple[Path, DatasetFolder]) -> None:
    options = TrainingOptions(
        epochs=7, mirror=False, patch=(32, 32), lr=0.5, heads="reset", pretrained="Other"
    )
    options.save(copy[1].path / "runs" / "2d" / "options.json")
    line = next(x for x in page_of(copy[1]).text.splitlines() if x.startswith("autoliver train"))
    (words,) = commands_in(line)
    assert misuse(words[0], words[1:]) is None, line
    for option in ("--no-mirror", "--patch 32,32", "--lr 0.5", "--reset-heads"):
        assert option in line


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Images, and two folders of predictions; the last case of the first one is half as large."""
    images, a, b = (tmp_path / name for name in ("images", "A", "B"))
    for number in range(8):
        name, label = f"case_{number}", label_of(number)
        write_image(images / f"{name}_0000.nii.gz", (label * 50).astype(np.int16)[None], GRID)
        write_label(b / f"{name}.nii.gz", label, GRID)
        if number == 7:
            label[4:] = 0
        write_label(a / f"{name}.nii.gz", label, GRID)
        spread = np.full(label.shape, 0.9 if number == 6 else 0.1 + 0.001 * number, np.float32)
        write_image(a / f"{name}_uncertainty.nii.gz", spread[None], GRID)
    return images, a, b


def test_predictions_without_a_reference(folders: tuple[Path, Path, Path]) -> None:
    images, a, _b = folders
    made = autoliver.report(prediction=a, images=images)
    page = Page(made.path.read_bytes())
    assert made.path == a / "report.html"
    assert set(made.outliers) == {"case_6", "case_7"}
    volumes = page.numbers("Volume of every case")
    voxels = {name: np.count_nonzero(label_of(int(name[-1])) == 1) for name in volumes}
    for name in list(volumes)[:7]:
        assert volumes[name]["label_1 ml"] == pytest.approx(voxels[name] * 7.5 / 1000)
    assert volumes["case_6"]["mean uncertainty"] == pytest.approx(0.9, abs=1e-6)
    assert sum(kind == "application/json" for kind, _ in page.scripts) == 8


def test_predictions_with_a_reference_and_with_kept_scores(
    folders: tuple[Path, Path, Path],
) -> None:
    images, a, b = folders
    before = sorted(path.name for path in a.iterdir())
    made = autoliver.report(prediction=a, images=images, reference=b, output=a.parent / "r.html")
    assert sorted(path.name for path in a.iterdir()) == before
    computed = Page(made.path.read_bytes())
    scores = autoliver.evaluate(a, b)
    kept = Page(autoliver.report(prediction=a, images=images).path.read_bytes())
    caption = "Scores: mean (95 % interval by resampling patients)"
    for page in (computed, kept):
        found = page.numbers(caption)["label_1"]["Dice"]
        assert found == pytest.approx(scores.summary["label_1"].metrics["dice"].mean, abs=1e-12)
    assert "From scores.json" in kept.text
    assert "Computed for this page" in computed.text


@pytest.mark.parametrize("referred", [True, False])
def test_two_folders_are_compared(folders: tuple[Path, Path, Path], referred: bool) -> None:
    images, a, b = folders
    output = a.parent / "compared.html"
    truth = a.parent / "truth"
    shutil.copytree(b, truth)
    made = autoliver.report(
        prediction=(a, b), images=images, reference=truth if referred else None, output=output
    )
    page = Page(output.read_bytes())
    assert made.outliers[0] == "case_7"
    viewers = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    styles = [layer["style"] for layer in viewers[0]["layers"]]
    assert styles == ([*(["reference"] if referred else []), "prediction", "second"])
    if referred:
        found = page.numbers("Dice of every case, B - A")
        assert found["case_0"]["label_1"] == 0.0
        assert (found["case_7"]["label_1"] or 0) > 0.2


def test_pictures_of_one_slice(tmp_path: Path) -> None:
    flat = Geometry(shape_zyx=(1, 20, 30), spacing_mm=(999.0, 1.0, 1.0))
    for number in range(2):
        label = np.zeros((1, 20, 30), np.uint8)
        label[0, 4:12, 5 : 15 + number] = 1
        write_label(tmp_path / "p" / f"c{number}.png", label, flat)
        write_image(tmp_path / "i" / f"c{number}_0000.png", (label * 200)[None], flat)
    made = autoliver.report(prediction=tmp_path / "p", images=tmp_path / "i")
    page = Page(made.path.read_bytes())
    viewers = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert [viewer["slices"] for viewer in viewers] == [[1], [1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prediction": "a"}, "no such folder"),
        ({"prediction": ("b", "b"), "output": "x.html"}, "given twice"),
        ({"prediction": ("b", "c", "b")}, "output is missing|given 3 times"),
        ({"prediction": ("b", "c")}, "output is missing"),
        ({"images": "b"}, "belongs to predictions"),
        ({"dataset": "Nothing"}, "no planned dataset"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "c"):
        write_label(tmp_path / name / "case.nii.gz", label_of(0), GRID)
    with pytest.raises(AutoliverError, match=words) as caught:
        autoliver.report(**arguments)  # type: ignore[arg-type]
    assert caught.value.hint


def test_a_dataset_without_a_plan_is_refused_with_the_command(tmp_path: Path) -> None:
    from report_trees import write_dataset

    data = write_dataset(tmp_path, cases=2)
    with pytest.raises(DatasetError, match="not planned") as caught:
        autoliver.report(data, workspace=tmp_path / "work")
    assert "autoliver plan" in caught.value.hint


def test_hundreds_of_cases_and_fifty_labels(copy: tuple[Path, DatasetFolder]) -> None:
    files = FoldFolder(copy[1].path / "runs" / "2d" / "fold_0")
    scores = Scores.load(files.scores)
    names = {"background": (0,), **{f"organ {n}": (n + 1,) for n in range(50)}}
    one = scores.cases[0]
    score = one.labels["liver"]
    cases = [
        one.replace(
            name=f"many_{n:03d}",
            labels={
                label: score.replace(dice=0.9 - 0.001 * m - (0.5 if n == 321 else 0.0002 * n))
                for m, label in enumerate(list(names)[1:])
            },
        )
        for n in range(500)
    ]
    Scores.of(cases, labels=Labels(values=names), options=scores.options).save(files.scores)
    remove("runs/2d/fold_1")(*copy)
    made = autoliver.report(NAME, workspace=copy[1].path.parent)
    page = Page(made.path.read_bytes())
    assert made.size <= MOST_BYTES
    assert made.outliers[0] == "many_321"
    assert made.cases <= 20
    assert len(page.tables["Dice of every case, the lowest mean first"]) == 501
    rows = page.tables["Dice of every case, the lowest mean first"]
    assert [text for text, _ in rows[0]][-2:] == ["lowest", "label"]


def test_values_that_do_not_belong_together_are_refused() -> None:
    from autoliver.pipeline.reporting.report import ReportRequest

    with pytest.raises(OptionError, match="--reference"):
        ReportRequest(reference=Path("x"))
    assert replace(ReportRequest(), dataset="LiTS").dataset == "LiTS"


def test_cases_that_do_not_fit_are_shown_without_slices(
    whole: tuple[Path, DatasetFolder],
) -> None:
    chapter = dataset_chapter(Workspace(whole[1].path.parent), whole[1])
    bare = Values(title="T", notes=(), sections=chapter.sections)
    page = Page(fitted(bare, chapter.shown, limits=Limits(memory_gb=1e-6)))
    assert not [kind for kind, _ in page.scripts if kind == "application/json"]
    assert page.text.count("to show its slices it needs about") == len(chapter.shown)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.0, 1.0, 3.0)])
def test_slices_take_little_more_memory_than_the_image(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    shape = (192, 256, 256)
    label = np.zeros(shape, np.uint8)
    label[20:60, 50:150, 60:160] = 1
    grid = Geometry(shape_zyx=shape, spacing_mm=spacing)
    rng = np.random.default_rng(0)
    image = rng.normal(40, 20, (1, *shape)).astype(np.int16)
    write_image(tmp_path / "image.nii", image, grid)
    maps = []
    for style in ("reference", "prediction"):
        write_label(tmp_path / f"{style}.nii", label, grid)
        maps.append(MapFile(title=style, style=style, path=tmp_path / f"{style}.nii"))
    shown = Shown(
        anchor="a",
        name="a",
        images=(tmp_path / "image.nii",),
        maps=tuple(maps),
        labels=Labels(values={"background": (0,), "liver": (1,)}),
        is_ct=True,
    )
    bare = Values(title="T", notes=(), sections=())
    fitted(bare, (shown,))  # modules that are imported when they are needed
    tracemalloc.start()
    content = fitted(bare, (shown,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert b"application/json" in content
    # Parts of files, and what is drawn, take the same whatever the size is.
    assert peak <= 1.1 * np.prod(shape) * 4 + 2e7
