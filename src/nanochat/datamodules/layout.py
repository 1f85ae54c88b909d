"""Which conversations make up which row: pure functions of their lengths.

Unlike documents (`packing.py`), a conversation is never cut to fill a row: one that does not fit
goes to another row, and the rest of a row is padding. Only a conversation longer than a whole row
loses its end; the caller cuts and counts it before.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BUFFER = 100  # from: facts sheet 5.8, conversations to choose from


@dataclass(frozen=True)
class Layout:
    """Rows in flat arrays.

    Piece i is tokens start[i] : start[i] + length[i] of conversation item[i], and row r consists of
    the pieces row_start[r] : row_start[r + 1]. item, start, length (P,) and row_start (rows + 1,),
    all int64.
    """

    item: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row_start: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.row_start) - 1


def best_fit_layout(lengths: np.ndarray, capacity: int, buffer: int = BUFFER) -> Layout:
    """Fill each row with the longest of the next `buffer` conversations that still fits, the first
    of equals; a row ends when none fits (facts sheet 5.8).

    `lengths` (n,), none above `capacity` = T + 1.
    """
    assert len(lengths) == 0 or int(lengths.max()) <= capacity
    low = (1 << 32) - 1
    # keys are ordered by length, then by falling position: the last key <= (room, low) is the
    # longest that fits, and the first of equals
    keys = (
        (lengths.astype(np.int64) << 32) | (low - np.arange(len(lengths), dtype=np.int64))
    ).tolist()
    order: list[int] = []  # keys in the order they were placed
    ends = [0]  # number of pieces up to the end of each row
    pool, read, room = sorted(keys[:buffer]), min(buffer, len(keys)), capacity
    while pool:
        at = bisect_right(pool, (room << 32) | low) - 1
        if at < 0:
            ends.append(len(order))
            room = capacity
            continue
        key = pool.pop(at)
        order.append(key)
        room -= key >> 32
        if read < len(keys):
            pool.insert(bisect_right(pool, keys[read]), keys[read])
            read += 1
    if len(order) > ends[-1]:
        ends.append(len(order))
    placed = np.array(order, dtype=np.int64)
    return Layout(
        low - (placed & low), np.zeros_like(placed), placed >> 32, np.array(ends, dtype=np.int64)
    )


def single_layout(lengths: np.ndarray, capacity: int) -> Layout:
    """One conversation per row, in order (facts sheet 5.7)."""
    n = len(lengths)
    return Layout(np.arange(n), np.zeros(n, np.int64), lengths.astype(np.int64), np.arange(n + 1))


def stream_layout(lengths: np.ndarray, capacity: int) -> Layout:
    """All conversations end to end, cut into rows at any token (facts sheet 5.6).

    A row overlaps the next by one token, so that every token but the very first is a target once.
    The last row is filled with padding.
    """
    T = capacity - 1
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (n + 1,)
    total = int(starts[-1])
    rows = -(-max(total - 1, 0) // T)
    item, start, length, ends = [], [], [], [0]
    for row in range(rows):
        begin, end = row * T, min(row * T + capacity, total)
        at = int(np.searchsorted(starts, begin, side="right")) - 1
        while begin < end:
            stop = min(end, int(starts[at + 1]))
            if stop > begin:
                item.append(at)
                start.append(begin - int(starts[at]))
                length.append(stop - begin)
            begin, at = stop, at + 1
        ends.append(len(item))
    return Layout(*(np.array(values, dtype=np.int64) for values in (item, start, length, ends)))


LAYOUTS: dict[str, Callable[[np.ndarray, int], Layout]] = {
    "best_fit": best_fit_layout,
    "single": single_layout,
    "stream": stream_layout,
}
