"""The part of a batch that one of several processes makes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar


class OfSample(Protocol):
    """A dataclass that describes what happens to one sample of a batch."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def sample(self) -> int:
        """Index of the sample in the batch."""


D = TypeVar("D", bound=OfSample)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The samples of a batch that this process makes; other processes make the rest.

    Attributes:
        start: Index of the first sample.
        stop: Index after the last sample.
        whole: Number of samples of the whole batch.
    """

    start: int
    stop: int
    whole: int

    def own(self, draws: Sequence[D]) -> list[D]:
        """Selects the draws for samples of this part and counts their samples from its start."""
        return [
            replace(draw, sample=draw.sample - self.start)
            for draw in draws
            if self.start <= draw.sample < self.stop
        ]
