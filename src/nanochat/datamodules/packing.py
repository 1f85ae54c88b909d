"""Which tokens of which documents make up which row: pure functions of document lengths.

A segment is a run of documents that is packed independently of others. A row is T + 1 tokens of it;
the first T are the inputs and the last T the targets. This file works on lengths only, not on
tokens, so that a whole segment is packed in milliseconds and any row can be looked up directly.
Every token of a segment is counted by `Tally` in exactly one of four places:

    tokens_read = tokens_trained + tokens_context + tokens_cropped + tokens_dropped

trained: it is a target. context: it is only an input (the first token of a row, or of a streamed
segment). cropped: the rest of a document that was cut to fill a row. dropped: left over at the end
of a segment.
"""

from bisect import bisect_right
from dataclasses import asdict, astuple, dataclass
from typing import Protocol

import numpy as np

BUFFER_DOCUMENTS = 1000  # from: facts sheet 4.2, documents to choose from
# from: facts sheet 4.2, added at once when fewer than BUFFER_DOCUMENTS are left
REFILL_DOCUMENTS = 128


@dataclass(frozen=True)
class Tally:
    """Counts of documents and tokens of some rows; two tallies can be added."""

    documents_read: int = 0
    tokens_read: int = 0
    tokens_trained: int = 0
    tokens_context: int = 0
    documents_cropped: int = 0
    tokens_cropped: int = 0
    documents_dropped: int = 0
    tokens_dropped: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Pieces:
    """Rows in flat arrays.

    Piece i is tokens `start[i]:start[i] + length[i]` of document `document[i]`; the pieces of one
    row have T + 1 tokens together. All arrays are (P,) int64.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray


class Packing(Protocol):
    """A packed segment."""

    rows: int

    def pieces(self, first: int, last: int) -> Pieces:
        """The pieces of rows first..last-1, in order."""
        ...

    def tally(self, rows: int) -> Tally:
        """The counts of the first `rows` rows. What is left over at the end of the segment is
        counted with its last row."""
        ...


def pack(
    how: str, lengths: np.ndarray, sequence_len: int, *, epoch: int = 0, key: int | None = None
) -> Packing:
    """Pack documents of `lengths` tokens, in this order, into rows of sequence_len + 1 tokens.

    `key` is the seed of what a packing may shuffle (None: no shuffling). ValueError for an unknown
    `how`.
    """
    if how == "best_fit":
        return BestFit(lengths, sequence_len)
    if how == "stream":
        return Stream(lengths, sequence_len, epoch=epoch, key=key)
    raise ValueError(
        f"packing={how} is not known; choose data.packing=best_fit or data.packing=stream"
    )


class BestFit:
    """Every row begins with a document; each place goes to the largest document that fits (facts
    sheet 4.2).

    The choice is among a buffer of at least `buffer` documents, refilled in steps of `refill`
    before each place while the segment has more. Of equally long documents the one read first wins.
    If none fits, the shortest is cropped to fill the row and its rest is discarded. At the end of
    the segment the buffer runs empty; documents of a row that cannot be filled any more are
    dropped.

    A place costs two bisections in a sorted list (about a microsecond); a search through the buffer
    would cost a thousand comparisons.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sequence_len: int,
        buffer: int = BUFFER_DOCUMENTS,
        refill: int = REFILL_DOCUMENTS,
    ):
        capacity = sequence_len + 1
        documents = len(lengths)
        low = (1 << 40) - 1  # the low 40 bits of a key; a segment has fewer documents than that
        # ordered by length, then by *falling* position: the last key <= (room, low) is the largest
        # that fits, and of equals the one read first
        keys = (
            (lengths.astype(np.int64) << 40) | (low - np.arange(documents, dtype=np.int64))
        ).tolist()
        pool: list[int] = []
        order: list[int] = []  # keys in the order they were placed
        ends: list[int] = []  # number of pieces up to the end of row r
        read = 0
        room = capacity
        while True:
            while len(pool) < buffer and read < documents:
                pool += keys[read : read + refill]
                pool.sort()  # the old part is already sorted, which Python's sort uses
                read += refill
            if not pool:
                break
            at = bisect_right(pool, (room << 40) | low) - 1
            if at < 0:  # nothing fits: crop the shortest, the first of equals
                at = bisect_right(pool, pool[0] | low) - 1
            key = pool.pop(at)
            order.append(key)
            room -= key >> 40
            if room <= 0:
                ends.append(len(order))
                room = capacity
        placed = np.array(order, dtype=np.int64)
        self.rows = len(ends)
        self._capacity = capacity
        self._row_start = np.array([0, *ends], dtype=np.int64)  # (rows + 1,)
        used = int(self._row_start[-1])
        self._document = low - (placed & low)  # (placed,)
        self._whole = placed >> 40  # (placed,) full lengths
        self._taken = self._whole[:used].copy()  # (pieces,)
        if self.rows:  # the last piece of a row fills it exactly
            totals = np.add.reduceat(self._taken, self._row_start[:-1])  # (rows,) >= capacity
            self._taken[self._row_start[1:] - 1] -= totals - capacity
        self._read_tokens = np.concatenate([[0], np.cumsum(self._whole)])  # (placed + 1,)

    def pieces(self, first: int, last: int) -> Pieces:
        a, b = int(self._row_start[first]), int(self._row_start[last])
        return Pieces(self._document[a:b], np.zeros(b - a, dtype=np.int64), self._taken[a:b])

    def tally(self, rows: int) -> Tally:
        end = int(self._row_start[rows])
        read = int(self._read_tokens[end])
        cut = self._whole[:end] > self._taken[:end]
        part = Tally(
            documents_read=end,
            tokens_read=read,
            tokens_trained=rows * (self._capacity - 1),
            tokens_context=rows,
            documents_cropped=int(cut.sum()),
            tokens_cropped=read - rows * self._capacity,
        )
        if rows < self.rows:
            return part
        left, tokens = len(self._whole) - end, int(self._read_tokens[-1]) - read
        return part + Tally(
            documents_read=left, tokens_read=tokens, documents_dropped=left, tokens_dropped=tokens
        )


class Stream:
    """All documents end to end. A row overlaps the next by one token, so that every token is a
    target once.

    With a `key`, rows are emitted in shuffled order; otherwise neighbouring rows of one document
    would share a batch. From the second epoch on, the first row begins at a random token below T;
    otherwise one long document would be cut at the same places in every epoch. Tokens before the
    first row and after the last, fewer than 2T, are dropped.
    """

    def __init__(
        self, lengths: np.ndarray, sequence_len: int, *, epoch: int = 0, key: int | None = None
    ):
        self._length = sequence_len
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (documents + 1,)
        total = int(self._starts[-1])
        spare = max(total - 1 - sequence_len, 0)  # the offset must not cost the only row
        self._phase = (
            0 if key is None or epoch == 0 else mix(key, 1) % (min(sequence_len - 1, spare) + 1)
        )
        self.rows = max((total - 1 - self._phase) // sequence_len, 0)
        self._order = np.arange(self.rows) if key is None else permutation(self.rows, mix(key, 2))
        self._total = total

    def pieces(self, first: int, last: int) -> Pieces:
        document: list[int] = []
        start: list[int] = []
        length: list[int] = []
        begins = self._phase + self._order[first:last] * self._length  # (rows,)
        # document of each row's first token
        at = np.searchsorted(self._starts, begins, side="right") - 1
        for begin, d in zip(begins.tolist(), at.tolist(), strict=True):
            end = begin + self._length + 1
            while begin < end:
                stop = min(end, int(self._starts[d + 1]))
                if stop > begin:
                    document.append(d)
                    start.append(begin - int(self._starts[d]))
                    length.append(stop - begin)
                begin, d = stop, d + 1
        return Pieces(
            np.array(document, np.int64), np.array(start, np.int64), np.array(length, np.int64)
        )

    def tally(self, rows: int) -> Tally:
        documents = len(self._starts) - 1
        if rows == self.rows:
            context = min(rows, 1)
            trained = rows * self._length
            if rows:
                a, b = (
                    np.searchsorted(
                        self._starts, [self._phase, self._phase + trained], side="right"
                    )
                    - 1
                )
                unused = documents - int(b - a + 1)
            else:
                unused = documents
            dropped = self._total - trained - context
            return Tally(
                documents,
                self._total,
                trained,
                context,
                documents_dropped=unused,
                tokens_dropped=dropped,
            )
        # first and last target of each row
        begins = self._phase + self._order[:rows] * self._length + 1
        first = np.searchsorted(self._starts, begins, side="right") - 1
        last = np.searchsorted(self._starts, begins + self._length - 1, side="right") - 1
        touched = np.zeros(documents + 1, dtype=np.int64)
        np.add.at(touched, first, 1)
        np.add.at(touched, last + 1, -1)
        seen = int((np.cumsum(touched[:-1]) > 0).sum())
        return Tally(seen, rows * self._length, rows * self._length)


def mix(*values: int) -> int:
    """A 64-bit hash of integers (splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195).

    It is the same on every machine and in every version, which numpy does not guarantee for its
    generators.
    """
    state = 0
    for value in values:
        state = (state ^ (value & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def permutation(n: int, key: int) -> np.ndarray:
    """A shuffled 0..n-1, (n,) int64: the order of the splitmix64 hashes of `key` + i."""
    with np.errstate(over="ignore"):
        state = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mix(key))
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.argsort(state, kind="stable")
