"""Rows by number: the tokens of row r of an endless training stream, independent of earlier
accesses.

The shards of an epoch, in order in the first epoch and shuffled in later ones, are taken in
segments: one shard, or several small neighbours together. The documents of a segment are shuffled
and packed (`packing`), and the rows of the segments follow one another, epoch after epoch. Row r
therefore depends on (manifest, tokenizer, seed, r) alone, and only on shards up to its segment:
training starts when the first is ready. The sizes of packed segments are kept in a journal, so that
access to a distant row packs only one segment.
"""

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from nanochat.datamodules.journal import Journal, digest
from nanochat.datamodules.packing import Packing, Tally, mix, pack, permutation
from nanochat.datamodules.shards import Shard, ShardError, ShardFolder, ShardSpec

# guess: smaller parts (bytes on disk) are packed together; more documents fit better, fewer let
# training start sooner
SEGMENT_BYTES = 8 * 2**20
OPEN_SEGMENTS = 3  # guess: a batch is in one or two
# version of segments, shuffling and packing: a change here changes every batch
PLAN = 1


@dataclass
class Segment:
    """A packed segment over open shards. Document d of the packing is document `index[d]` of shard
    `shard[d]`."""

    epoch: int
    shards: list[Shard]
    shard: np.ndarray  # (documents,) int64
    index: np.ndarray  # (documents,) int64
    packing: Packing

    def gather(self, first: int, last: int) -> np.ndarray:
        """Tokens of rows first..last-1, joined: ((last - first) * (T + 1),)."""
        pieces = self.packing.pieces(first, last)
        shard = self.shard[pieces.document]
        begin = pieces.start.copy()
        for s, opened in enumerate(self.shards):
            mine = shard == s
            begin[mine] += opened.offsets[self.index[pieces.document[mine]]]
        tokens = [opened.tokens for opened in self.shards]
        spans = zip(shard.tolist(), begin.tolist(), (begin + pieces.length).tolist(), strict=True)
        return np.concatenate([tokens[s][a:b] for s, a, b in spans])

    def documents(self, row: int) -> list[tuple[str, int, int]]:
        """(document, start, length) of each piece of a row. A document is named PART#NUMBER, its
        number within part and split."""
        pieces = self.packing.pieces(row, row + 1)
        found = zip(
            pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True
        )
        return [
            (f"{self.shards[self.shard[d]].name}#{self.index[d]}", start, length)
            for d, start, length in found
        ]


class Rows:
    """The rows of one split: endless, or, with `shuffle=False` for validation, one epoch in the
    order of the source."""

    def __init__(
        self,
        folder: ShardFolder,
        split: str,
        *,
        sequence_len: int,
        packing: str,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.folder = folder
        self.specs = folder.specs[split]
        self.split = split
        self.sequence_len = sequence_len
        self.packing = packing
        self.seed = seed
        self.shuffle = shuffle
        # raises here for an unknown packing
        pack(packing, np.zeros(0, dtype=np.int64), sequence_len)
        if not self.specs:
            raise ValueError(
                f"{folder.source.name} has no {split} documents; check data.path, data.split or "
                "data.num_shards"
            )
        self._journal = Journal(folder.folder / "segments.jsonl")
        # (epoch, number in the epoch, shards) of each segment
        self._plan: list[tuple[int, int, list[ShardSpec]]] = []
        self._tallies: list[Tally] = []
        self._begin = [0]  # first row of each segment, and one past the last known
        self._open: OrderedDict[int, Segment] = OrderedDict()

    # ---- segments

    def epoch_segments(self, epoch: int) -> list[list[ShardSpec]]:
        """The shards of each segment of an epoch. Depends on the manifest only, so it is known
        before any shard is built."""
        specs = self.specs
        if self.shuffle and epoch > 0:
            specs = [specs[i] for i in permutation(len(specs), mix(self.seed, epoch, 1))]
        groups: list[list[ShardSpec]] = [[]]
        size = 0
        for spec in specs:
            if size >= SEGMENT_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(spec)
            size += spec.part.size
        if size < SEGMENT_BYTES // 2 and len(groups) > 1:
            # a small rest is packed with the group before it
            groups[-2:] = [groups[-2] + groups[-1]]
        return groups

    def first_shards(self) -> list[ShardSpec]:
        """The shards that the first row needs."""
        return self.epoch_segments(0)[0]

    def _describe(self, n: int) -> tuple[int, int, list[ShardSpec]]:
        while len(self._plan) <= n:
            epoch = self._plan[-1][0] + 1 if self._plan else 0
            self._plan += [(epoch, i, specs) for i, specs in enumerate(self.epoch_segments(epoch))]
        return self._plan[n]

    def segment(self, n: int) -> Segment:
        """Segment n of the endless sequence, opened and packed; waits for its shards."""
        if n in self._open:
            self._open.move_to_end(n)
            return self._open[n]
        epoch, i, specs = self._describe(n)
        shards = [self.folder.open(spec) for spec in specs]
        lengths = [shard.lengths for shard in shards]
        which = np.repeat(np.arange(len(shards)), [len(x) for x in lengths])  # (documents,)
        # (documents,)
        index = np.concatenate([np.arange(len(x)) for x in lengths]).astype(np.int64)
        every = np.concatenate(lengths)
        key = mix(self.seed, epoch, 2, i) if self.shuffle else None
        if key is not None:
            order = permutation(len(every), key)
            which, index, every = which[order], index[order], every[order]
        packing = pack(self.packing, every, self.sequence_len, epoch=epoch, key=key)
        self._open[n] = Segment(epoch, shards, which, index, packing)
        while len(self._open) > OPEN_SEGMENTS:
            self._open.popitem(last=False)
        return self._open[n]

    def _tally(self, n: int) -> Tally:
        """Counts of the whole segment n, from the journal if it was packed before."""
        while len(self._tallies) <= n:
            m = len(self._tallies)
            epoch, i, specs = self._describe(m)
            place = [self.seed, epoch, i] if self.shuffle else None
            key = digest(
                [PLAN, self.packing, self.sequence_len, place, [spec.stem for spec in specs]]
            )
            known = self._journal.get(key)
            if known is None:
                packing = self.segment(m).packing
                known = astuple(packing.tally(packing.rows))
                self._journal.put(key, known)
            self._tallies.append(Tally(*known))
        return self._tallies[n]

    # ---- rows

    def locate(self, row: int) -> tuple[int, int]:
        """(segment, row within it) of a row. IndexError past the end of validation; ValueError if
        an epoch has no row."""
        assert row >= 0
        while self._begin[-1] <= row:
            n = len(self._begin) - 1
            epoch, i, _ = self._describe(n)
            if epoch > 0 and (i == 0 and self._begin[n] == 0):
                raise ValueError(self._too_little())
            if epoch > 0 and not self.shuffle:
                raise IndexError(row)
            self._begin.append(self._begin[n] + self._tally(n).tokens_trained // self.sequence_len)
        n = bisect_right(self._begin, row) - 1
        return n, row - self._begin[n]

    def _too_little(self) -> str:
        tally = self.epoch_tally()
        more = self.folder.source.more(self.split, tally.documents_read)
        return (
            f"the {self.split} split has {tally.tokens_read:,} tokens in {tally.documents_read:,} "
            "documents, less than "
            f"a row of {self.sequence_len:,} + 1; {more}, or lower model.sequence_len"
        )

    def epoch_tally(self) -> Tally:
        """Counts of one epoch (the first); waits for all shards."""
        segments = len(self.epoch_segments(0))
        return sum((self._tally(n) for n in range(segments)), Tally())

    def total(self, at_most: int | None = None) -> int:
        """Rows of the first epoch, counted only up to `at_most`. ValueError if there is none."""
        rows = 0
        for n in range(len(self.epoch_segments(0))):
            rows += self._tally(n).tokens_trained // self.sequence_len
            if at_most is not None and rows >= at_most:
                return at_most
        if rows == 0:
            raise ValueError(self._too_little())
        return rows

    def gather(self, first: int, last: int) -> np.ndarray:
        """Tokens of rows first..last-1: (last - first, T + 1), in the shards' dtype."""
        found: list[np.ndarray] = []
        row = first
        while row < last:
            n, inside = self.locate(row)
            stop = min(last, self._begin[n + 1])
            found.append(self.segment(n).gather(inside, inside + stop - row))
            row = stop
        tokens = np.concatenate(found)
        if len(tokens) and (worst := int(tokens.max())) >= self.folder.tokenizer.vocab_size:
            raise self._foreign(range(first, last), worst)
        return tokens.reshape(last - first, self.sequence_len + 1)

    def _foreign(self, rows: range, worst: int) -> ShardError:
        """The error for a token outside the vocabulary, naming its file."""
        opened = [shard for row in rows for shard in self.segment(self.locate(row)[0]).shards]
        name = next(shard.name for shard in opened if worst in shard.tokens)
        stems = [spec.stem for spec in self.specs if spec.part.name == name]
        return ShardError(
            f"the token shard {self.folder.folder / stems[0]}.bin holds the token {worst:,}, and "
            "the vocabulary has "
            f"{self.folder.tokenizer.vocab_size:,}: it is damaged; delete it, and it is rebuilt"
        )

    def epoch(self, row: int) -> int:
        return self._describe(self.locate(row)[0])[0]

    def documents(self, row: int) -> list[tuple[str, int, int]]:
        n, inside = self.locate(row)
        return self.segment(n).documents(inside)

    def tally(self, rows: int) -> tuple[Tally, int, int]:
        """Counts of the first `rows` rows; the number of targets that are repeats (epochs after the
        first); the number of epochs begun."""
        if rows == 0:
            return Tally(), 0, 0
        n, inside = self.locate(rows - 1)
        whole = sum((self._tally(m) for m in range(n)), Tally())
        repeated = sum(self._tally(m).tokens_trained for m in range(n) if self._describe(m)[0] > 0)
        part = self.segment(n).packing.tally(inside + 1)
        epoch = self._describe(n)[0]
        return whole + part, repeated + (part.tokens_trained if epoch > 0 else 0), epoch + 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a loader process maps the files itself
