"""Lesion or not, decided for all classes of lesions together.

Where the classes share the probability of a lesion, each of them may be less probable than the
organ around it although their sum is not. So a voxel is a lesion where the sum of its classes is
the most probable label; its class is the most probable one among them.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


@contextlib.contextmanager
def raised(scores: Array, rows: Sequence[int], *, logits: bool = True) -> Iterator[None]:
    """A block in which the rows of classes are raised as by `with_union`, in place.

    Args:
        scores: (k, ...); as before after the block.
        rows: The rows of the classes; empty for none.
        logits: As for `with_union`.
    """
    if not rows:
        yield
        return
    before = scores[list(rows)]
    scores[list(rows)] = with_union(scores, rows, logits=logits)
    try:
        yield
    finally:
        scores[list(rows)] = before


def with_union(scores: Array, rows: Sequence[int], *, logits: bool) -> Array:
    """Raises the rows of classes so that the highest of them has the score of their union.

    The same is added to all classes of a voxel, so their order stays.

    Args:
        scores: (k, ...), logits or probabilities of a softmax; not changed.
        rows: The rows of the classes.
        logits: Whether the scores are logits.

    Returns:
        (classes, ...): the raised rows.
    """
    own = scores[list(rows)]
    highest = own.max(axis=0)
    union = np.log(np.exp(own - highest).sum(axis=0)) + highest if logits else own.sum(axis=0)
    raised: Array = own + (union - highest).astype(own.dtype)
    return raised
