"""A page in a real browser: keys, numbers, widths, print, and no word on the console."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser
from report_trees import EVIL, trained

import autoliver
from autoliver.evaluation.results import Scores
from autoliver.models.files import FoldFolder

_FIRST = ".case .slices"
_SLIDER = ".case input[type=range]"
_DRAWN = "return !document.querySelector('.case canvas').hidden"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, folder = trained(tmp_path_factory.mktemp("page"))
    return autoliver.report(data, workspace=folder.path.parent).path


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def ink(window: Browser) -> str:
    """What the first canvas shows, as text."""
    return str(window.run("return document.querySelector('.case canvas').toDataURL()"))


def test_slices_are_chosen_by_keys(window: Browser, page: Path) -> None:
    window.open(page, width=1400)
    assert window.run(_DRAWN) is False, "decoded before it is looked at"
    window.click("#first tbody a")
    window.until(_DRAWN)
    focused = f"return document.activeElement === document.querySelector('{_SLIDER}')"
    assert window.run(focused), "the slider takes the keys after one click"
    seen = {}
    for keys in (("home",), ("right",), ("down",), ("end",), ("left",)):
        window.press(_SLIDER, *keys)
        text = window.run(f"return document.querySelector('{_FIRST} output').textContent")
        seen[keys] = (text, ink(window))
    # Labels fill slices 2 to 8 of 9, and one on either side is shown.
    assert [text for text, _ in seen.values()] == [
        *("slice 1", "slice 2", "slice 1", "slice 9", "slice 8")
    ]
    pictures = dict(seen.values())
    assert len(set(pictures.values())) == 4, "every slice looks different"
    assert window.complaints() == []


def test_outlines_can_be_left_out(window: Browser, page: Path) -> None:
    window.open(page, width=1400)
    window.click("#first tbody a")
    window.until(_DRAWN)
    before = ink(window)
    window.click(f"{_FIRST} input[type=checkbox]")
    without = ink(window)
    assert without != before
    window.click(f"{_FIRST} input[type=checkbox]")
    assert ink(window) == before
    labels = window.run(
        f"return [...document.querySelector('{_FIRST} select')].map(each => each.textContent)"
    )
    assert labels == ["all labels", "liver", "tumour <i>"]


def test_the_numbers_that_are_shown_are_those_of_the_scores(window: Browser, page: Path) -> None:
    window.open(page, width=1400)
    script = """
        const caption = [...document.querySelectorAll('caption')]
          .find(each => each.textContent === 'Dice of held-out cases');
        return [...caption.parentNode.tBodies[0].rows].map(
          row => [...row.cells].map(cell => cell.innerText.trim()));
    """
    shown = window.run(script)
    run = page.parent / "runs" / "2d"
    scores = [Scores.load(FoldFolder(run / f"fold_{n}").scores) for n in (0, 1)]
    for label, _cases, *cells in shown:
        each = [s.summary[label].metrics["dice"].mean for s in scores]
        assert cells[:3] == [f"{value:.3f}" for value in (*each, sum(each) / 2)]
        every = [case.labels[label].dice for s in scores for case in s.cases]
        pooled = sum(every) / len(every)
        assert cells[3].startswith(f"{pooled:.3f} ± ")
    assert EVIL in window.run("return document.body.innerText")


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_its_window(window: Browser, page: Path, width: int, dark: bool) -> None:
    window.open(page, width=width, dark=dark)
    assert window.run("return document.documentElement.scrollWidth") <= width
    ground = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    assert window.complaints() == []


def test_outliers_are_printed_with_a_slice(window: Browser, page: Path) -> None:
    window.open(page, width=1400)
    assert window.printed().startswith(b"%PDF")
    window.devtools("Emulation.setEmulatedMedia", media="print")
    shown = window.run(
        "return [...document.querySelectorAll('.case')].map(each => [each.matches('.outlier'), "
        "each.offsetHeight > 0, each.querySelector('.poster').getBoundingClientRect().height > 0, "
        "each.querySelector('.controls').offsetHeight])"
    )
    window.devtools("Emulation.setEmulatedMedia", media="")
    assert any(outlier for outlier, *_ in shown)
    assert all(
        seen == outlier == poster and not controls for outlier, seen, poster, controls in shown
    )
