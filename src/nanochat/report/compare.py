"""A lineage next to the one before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.report import facts
from nanochat.report.chapter import Chapter, before, chain, find, read_chapter


def comparisons(chapters: Sequence[Chapter], other: str | None, runs: Path) -> list[dict[str, Any]]:
    """Each run of a lineage with another of its phase: `auto`, the one of its name before it; or
    those of the lineage of the run `other`."""
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
