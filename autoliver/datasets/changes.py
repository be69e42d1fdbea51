"""Describes the differences between an earlier and the current state of a dataset."""

from collections.abc import Iterator, Sequence

from autoliver.datasets.cases import Case, Dataset, FileContent, labels_for
from autoliver.values import counted

_SHOWN = 3  # number of differences, or of cases, that are named in one message
_ABOUT_A_CASE = ("patient", "modality", "origin", "annotated", "lesion_classes", "source")
_ABOUT_A_DATASET = ("channel_names", "layout", "file_ending", "lesion_class_names")


def describe_changes(before: Dataset, now: Dataset, *, then: str = "when planned") -> str:
    """Describes the first few differences, without a full stop at the end; "" if there are none.

    Args:
        before: The earlier dataset, with the contents of its files.
        now: The current dataset, with the contents of its files.
        then: Words for the time or place of `before`.
    """
    if any(case.files and not case.contents for case in before.cases):
        return "it was planned by an earlier version, which did not keep hashes of its files"
    found = [*_of_cases(before, now, then), *_of_labels(before, now, then)]
    for what in _ABOUT_A_DATASET:
        had, has = getattr(before, what), getattr(now, what)
        if had != has:
            found.append(f"{what}: {_words(has)}; {then}: {_words(had)}")
    return _first(found, "; ")


def without_added(before: Dataset, now: Dataset) -> Dataset | None:
    """Returns the current dataset without the cases that were added; None if more has changed.

    Args:
        before: The earlier dataset, with the contents of its files.
        now: The current dataset, with the contents of its files.
    """
    names = {case.name for case in before.cases}
    cases = tuple(case for case in now.cases if case.name in names)
    rest = now.replace(cases=cases, labels=labels_for(now.labels, cases))
    return rest if rest.digest() == before.digest() else None


def _of_cases(before: Dataset, now: Dataset, then: str) -> Iterator[str]:
    had = {case.name: case for case in before.cases}
    has = {case.name: case for case in now.cases}
    new, gone = [n for n in has if n not in had], [n for n in had if n not in has]
    renamed = list(_renamed([had[name] for name in gone], [has[name] for name in new]))
    new = [name for name in new if name not in (n for _, n in renamed)]
    gone = [name for name in gone if name not in (n for n, _ in renamed)]
    if new or gone:
        what = [f"{_first(names, ', ')} {_is(names)} {how}" for names, how in _both(new, gone)]
        yield f"{counted(len(has), 'case')}, {len(had)} {then}: {', '.join(what)}"
    for name, other in renamed:
        yield f"{name} is now called {other}"
    for name in had:
        if name in has:
            yield from _of_case(had[name], has[name], then)


def _both(new: Sequence[str], gone: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    if new:
        yield new, "new"
    if gone:
        yield gone, "gone"


def _renamed(gone: Sequence[Case], new: Sequence[Case]) -> Iterator[tuple[str, str]]:
    """Yields the old and new name of new cases whose files are those of a case that is gone."""
    names = {_hashes(case.contents): case.name for case in gone if case.contents}
    for case in new:
        old = names.pop(_hashes(case.contents), None)
        if old is not None:
            yield old, case.name


def _of_case(had: Case, has: Case, then: str) -> Iterator[str]:
    for kind in ("image", "label"):
        old = [content for content in had.contents if content.kind == kind]
        new = [content for content in has.contents if content.kind == kind]
        if _hashes(old) != _hashes(new):
            yield f"{kind} of {had.name} {_how(old, new)}"
        elif old != new:
            names = _first([content.name for content in new], ", ")
            old_names = _first([content.name for content in old], ", ")
            yield f"{kind} of {had.name}: {names}; {then}: {old_names}"
    for what in _ABOUT_A_CASE:
        if getattr(had, what) != getattr(has, what):
            words, old_words = _words(getattr(has, what)), _words(getattr(had, what))
            yield f"{what} of {had.name}: {words}; {then}: {old_words}"


def _how(old: Sequence[FileContent], new: Sequence[FileContent]) -> str:
    if not old or not new:
        return "is new" if new else "is gone"
    if any(not content.hash for content in new):
        return "cannot be read"
    return "has changed"


def _of_labels(before: Dataset, now: Dataset, then: str) -> Iterator[str]:
    if before.labels == now.labels:
        return
    had, has = (
        _words(dataset.labels.values)
        + (f", ignore {dataset.labels.ignore}" if dataset.labels.ignore is not None else "")
        for dataset in (before, now)
    )
    if had == has and not now.labels.has_unions:  # told by the `annotated` of cases
        return
    if had == has:  # only the order of names, or the order in which regions are painted, differs
        had, has = str(before.labels), str(now.labels)
    yield f"labels: {has}; {then}: {had}"


def _hashes(contents: Sequence[FileContent]) -> tuple[tuple[str, str], ...]:
    return tuple((content.kind, content.hash) for content in contents)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, tuple):
        return "+".join(str(item) for item in value)
    return str(value)


def _first(what: Sequence[str], between: str) -> str:
    more = len(what) - _SHOWN
    return between.join(what[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
