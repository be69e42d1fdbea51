"""What shards of `evaluate` keep: the scores of each case, and the files that they are of."""

from pathlib import Path
from typing import Any

import msgspec

from autoliver.evaluation.results import CaseScores
from autoliver.io.detached import file_states
from autoliver.shards import KeptStage

_Item = tuple[str, tuple[Path, Path]]


def _name(item: _Item) -> str:
    return item[0]


def _files(item: _Item) -> list[tuple[str, int, int]]:
    return file_states(item[1])


def _to_scores(plain: Any) -> CaseScores:
    return msgspec.convert(plain, CaseScores)


KEPT_SCORES: KeptStage[_Item, CaseScores] = KeptStage(
    name="scores", case=_name, plain=msgspec.to_builtins, result=_to_scores, state=_files
)
