"""Rows of conversations against a plain, slow definition of each layout."""

import numpy as np
import pytest

from nanochat.datamodules.layout import BUFFER, best_fit_layout, single_layout, stream_layout


def lengths(n: int, high: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, high + 1, n)


def plain_best_fit(sizes: list[int], capacity: int, buffer: int) -> list[list[int]]:
    """The facts sheet's rule, word by word: the largest of the buffer that fits, the first of
    equals; else the row is done."""
    waiting, pool, rows = list(enumerate(sizes)), [], []
    row, room = [], capacity
    while waiting or pool:
        while waiting and len(pool) < buffer:
            pool.append(waiting.pop(0))
        fitting = [entry for entry in pool if entry[1] <= room]
        if not fitting:
            rows.append(row)
            row, room = [], capacity
            continue
        best = max(fitting, key=lambda entry: (entry[1], -entry[0]))
        pool.remove(best)
        row.append(best[0])
        room -= best[1]
    return [*rows, row] if row else rows


@pytest.mark.parametrize(
    ("n", "high", "capacity"),
    [(0, 5, 8), (1, 8, 8), (40, 8, 8), (300, 30, 33), (500, 9, 65), (257, 65, 65)],
)
def test_best_fit_is_the_plain_rule(n: int, high: int, capacity: int) -> None:
    sizes = lengths(n, high)
    found = best_fit_layout(sizes, capacity)
    rows = [
        found.item[a:b].tolist()
        for a, b in zip(found.row_start[:-1], found.row_start[1:], strict=True)
    ]
    assert rows == plain_best_fit(sizes.tolist(), capacity, BUFFER)
    assert sorted(found.item.tolist()) == list(range(n)), "each conversation once, none lost"
    assert (found.length == sizes[found.item]).all() and not found.start.any(), "none is cut"
    assert all(sizes[row].sum() <= capacity for row in rows)


def test_single_gives_each_its_own_row() -> None:
    found = single_layout(np.array([3, 9, 2]), 10)
    assert (
        found.rows == 3 and found.item.tolist() == [0, 1, 2] and found.length.tolist() == [3, 9, 2]
    )


@pytest.mark.parametrize(
    ("sizes", "T"), [([5, 3, 9, 2], 4), ([2], 8), ([17], 4), ([4, 4, 4], 4), ([2, 2, 2, 3], 4)]
)
def test_stream_makes_every_token_but_the_first_a_target_once(sizes: list[int], T: int) -> None:
    tokens = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
    found = stream_layout(np.array(sizes), T + 1)
    targets = []
    for a, b in zip(found.row_start[:-1], found.row_start[1:], strict=True):
        row = [
            (int(i), int(s) + k)
            for i, s, n in zip(found.item[a:b], found.start[a:b], found.length[a:b], strict=True)
            for k in range(n)
        ]
        assert len(row) <= T + 1
        targets += row[1:]
    assert targets == tokens[1:]
