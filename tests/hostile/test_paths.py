"""Pipes, devices, folders, links and odd names in the place of every path of every command."""

import os
import random
import re
from collections.abc import Iterator

import pytest
from command_lines import COMMANDS
from hostile.paths import PLACES, TEXTS, THINGS, Paths, Trial, options_of_paths, trials

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
ALL = list(trials())
# Members of kinds that were once bad: tracebacks, and what was taken as if nothing were wrong.
FOUND = {
    ("predict", "--model"): ("a name of bytes",),
    ("report", "--images"): ("noise", "a folder of pipes"),
    ("status", "--workspace"): ("a full device", "noise"),
    ("clean", "--workspace"): ("a blank",),
    ("evaluate", "--workspace"): ("a pipe",),
    ("convert", "output"): ("a place among images",),
    ("verify", "--fix"): ("a place among images",),
    ("predict", "--output"): ("a place among images",),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    made = Paths(tmp_path_factory.mktemp("hostile"))
    yield made
    made.close()


def bad(paths: Paths, chosen: list[Trial]) -> list[str]:
    """Those that end neither in a right result nor in one error."""
    judged = map(paths.run, chosen)
    return [f"{one.member}: {one.verdict}: {one.output[-400:]}" for one in judged if not one.good]


def test_every_option_that_takes_a_path_has_a_place() -> None:
    assert options_of_paths() == {(place.command, place.option) for place in PLACES}
    for command, texts in TEXTS.items():
        known = {option.opts[0] for option in COMMANDS[command].params}
        assert texts <= known, command
    assert len(ALL) > 2000


def test_what_was_once_bad(paths: Paths) -> None:
    chosen = [
        trial
        for trial in ALL
        if trial.thing.name in FOUND.get((trial.place.command, trial.place.option), ())
    ]
    assert len(chosen) >= 8
    assert bad(paths, chosen) == []


def test_a_sample_ends_in_a_result_or_one_error(paths: Paths) -> None:
    assert bad(paths, random.Random(20261127).sample(ALL, 8)) == []


@pytest.mark.slow
@pytest.mark.parametrize("thing", [thing.name for thing in THINGS])
def test_the_whole_table(paths: Paths, thing: str) -> None:
    assert bad(paths, [trial for trial in ALL if trial.thing.name == thing]) == []


def test_an_error_shows_the_name_and_not_its_bytes(paths: Paths) -> None:
    name = "a name with an escape"
    (trial,) = [t for t in ALL if t.thing.name == name and t.place.option == "--lesions"]
    outcome = paths.run(trial)
    assert outcome.verdict == "refused"
    assert re.search(r"a\\x1b\[31mb: the name holds", outcome.output)
    assert "\x1b" not in outcome.output
