"""The share of a batch that one of several processes makes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar


class OfSample(Protocol):
    """A dataclass that says what happens to one sample of a batch."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def sample(self) -> int:
        """Index in the batch."""


D = TypeVar("D", bound=OfSample)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The samples of a batch that this process makes; others make the rest of it.

    Attributes:
        start: Index of the first one.
        stop: Index after the last one.
        whole: Size of the batch.
    """

    start: int
    stop: int
    whole: int

    def own(self, draws: Sequence[D]) -> list[D]:
        """Of what was drawn for a batch, that of this part, its samples counted from the start."""
        return [
            replace(draw, sample=draw.sample - self.start)
            for draw in draws
            if self.start <= draw.sample < self.stop
        ]
