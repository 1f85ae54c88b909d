"""A lineage compared with an earlier one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.report import facts
from nanochat.report.chapter import Chapter, before, chain, find, read_chapter


def comparisons(chapters: Sequence[Chapter], other: str | None, runs: Path) -> list[dict[str, Any]]:
    """Each run of a lineage with an earlier run of the same phase: for `auto` the run of the same
    name before it, else the run of that phase in the lineage of `other`."""
    if other is None:
        return []
    if other == "auto":
        pairs = [(place, one) for one in chapters if (place := before(one, runs))]
        return [facts.compared(read_chapter(place, runs), one) for place, one in pairs]
    old = {one.info.phase: one for one in chain(find(other, runs), runs)}
    return [
        facts.compared(old[one.info.phase], one)
        for one in chapters
        if one.info.phase in old and old[one.info.phase].info.path != one.info.path
    ]
