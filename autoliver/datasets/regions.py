"""Regions and the order that they are painted in: does painting give the regions back?

A network predicts each region by itself. To write them into one label map, the regions are painted
one after the other in the order of `labels`, each with its value in `regions_class_order`. Of the
regions that hold a voxel the last one decides what is written, so that this value must belong to
the very same regions.
"""

from collections.abc import Mapping, Sequence

Regions = Mapping[str, tuple[int, ...]]


def painting_problem(regions: Regions, order: object) -> tuple[str, str]:
    """What is wrong with regions and their order, and what to write instead.

    Args:
        regions: Name -> values, without the background, in painting order.
        order: What `regions_class_order` holds.

    Returns:
        The problem and the hint; both "" where painting gives every region back.
    """
    if problem := _regions_problem(regions):
        return problem, "Give each region its own values, all above 0."
    problem = _order_problem(regions, order)
    return (problem, _remedy(regions)) if problem else ("", "")


def painted(regions: Regions, order: Sequence[int]) -> dict[int, int]:
    """Stored value -> the value that painting writes where it was: that of its last region."""
    return {
        value: written
        for group, written in zip(regions.values(), order, strict=True)
        for value in group
    }


def paintable(regions: Regions) -> tuple[list[str], list[int]] | None:
    """An order of the regions and of their values that gives every region back.

    A region may be painted last if no other region tells its values apart. Without these values the
    same is asked of the regions that are left. A region that is taken never stands in the way of
    another one, so that there is nothing to search, however many regions there are.

    Returns:
        Names in painting order and the value of each; None where no order can.
    """
    within = _memberships(regions)
    left = set(within)
    backwards: list[str] = []
    values: dict[str, int] = {}
    # From the back, so that names keep the order that they have as far as it does.
    while len(backwards) < len(regions):
        for name in reversed(list(regions)):
            own = sorted(left.intersection(regions[name]))
            if name not in backwards and len({within[value] for value in own}) <= 1:
                break
        else:
            return None
        backwards.append(name)
        left.difference_update(own)
        if own:
            values[name] = own[0]
    names = backwards[::-1]
    spare = [value for value in sorted(within) if value not in values.values()]
    # A region that others cover: its value appears nowhere, but each has one of its own if it can.
    for name in names:
        if name not in values:
            free = [value for value in spare if value in regions[name]] or spare
            values[name] = free[0] if free else min(regions[name])
            spare = [value for value in spare if value != values[name]]
    return names, [values[name] for name in names]


def _regions_problem(regions: Regions) -> str:
    same: dict[frozenset[int], str] = {}
    for name, group in regions.items():
        if not set(group) - {0}:
            return f"region '{name}' holds nothing but the background"
        if 0 in group:
            return f"region '{name}' holds the background's value 0: {_list(group)}"
        other = same.setdefault(frozenset(group), name)
        if other != name:
            return f"regions '{other}' and '{name}' are equal: {_list(group)}"
    return ""


def _order_problem(regions: Regions, order: object) -> str:
    count = len(regions)
    if not isinstance(order, list | tuple) or len(order) != count:
        return f"regions need regions_class_order, one value for each of {count}, found {order!r}"
    if any(isinstance(value, bool) or not isinstance(value, int) for value in order):
        return f"regions_class_order: expected whole numbers, found {order!r}"
    known = {value for group in regions.values() for value in group}
    if unknown := [value for value in order if value not in known]:
        return (
            f"regions_class_order holds {unknown[0]}, which is in no region; expected values of "
            f"{_list(sorted(known))}"
        )
    # With fewer values than regions, a region that others cover has to share one.
    if len(set(order)) < min(count, len(known)):
        return f"regions_class_order holds a value twice: {order!r}"
    return _lost(regions, order)


def _lost(regions: Regions, order: Sequence[int]) -> str:
    written = painted(regions, order)
    for name, group in regions.items():
        back = tuple(sorted(value for value, new in written.items() if new in group))
        if back != tuple(sorted(group)):
            return (
                f"painted with regions_class_order {list(order)}, region '{name}' "
                f"{_list(sorted(group))} becomes {_list(back) if back else 'empty'}"
            )
    return ""


def _remedy(regions: Regions) -> str:
    found = paintable(regions)
    if found is None:
        return (
            f"No order can give these regions back ({_overlap(regions)}). Add their overlap as a "
            "region of its own, or give the regions other values."
        )
    names, values = found
    if names == list(regions):
        return f'Write "regions_class_order": {values}.'
    return (
        f"List the regions in the order {', '.join(names)}, and write "
        f'"regions_class_order": {values}.'
    )


def _overlap(regions: Regions) -> str:
    """Two regions of which neither holds the other, and which share a value."""
    sets = [(name, set(group)) for name, group in regions.items()]
    for number, (name, group) in enumerate(sets):
        for other, values in sets[number + 1 :]:
            if group & values and group - values and values - group:
                common = _list(sorted(group & values))
                return f"'{name}' and '{other}' overlap in {common}"
    return "they overlap"


def _memberships(regions: Regions) -> dict[int, frozenset[str]]:
    """Value -> the names of the regions that hold it."""
    values = {value for group in regions.values() for value in group}
    return {
        value: frozenset(name for name, group in regions.items() if value in group)
        for value in values
    }


def _list(values: Sequence[int]) -> str:
    return f"[{', '.join(map(str, values))}]"
