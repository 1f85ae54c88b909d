"""Byte-pair merges from word counts, vectorised over the places where a pair occurs.

The rule is the plain one (Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2): merge the most frequent pair
of neighbours everywhere, again and again. Ties go to the pair with the smaller left id, then the smaller right id, so
the result depends on the counts alone, not on the order of the text; this is also nanochat's rule.

`tokenizers` has a trainer too. It is not used because it only takes running text, which it splits and counts by
itself at length (measured: 100 MB of prose, V=8192, 35 CPU seconds in all against 11 here), and because its ties follow
another numbering of the bytes. A test holds the merges against it and against a plain loop.

All words lie in one array of symbols; `after` and `before` link the living ones of a word, -1 at its ends. For every
pair the positions of its left symbol are kept, possibly outdated ones too: a symbol that has changed never changes
back, so a position is good exactly if the two symbols still stand there. The heap is lazy in the same way.
"""

import heapq
from collections.abc import Mapping

import numpy as np

FIRST_MERGE = 256  # ids below are the bytes themselves


def learn_merges(counts: Mapping[bytes, int], number: int) -> list[tuple[int, int]]:
    """The first `number` merges (left id, right id) for words with these counts; fewer if every word became one token.

    Merge k makes id 256 + k.
    """
    words = [word for word in counts if len(word) > 1]
    if not words or number <= 0:
        return []
    sizes = np.array([len(word) for word in words])
    ends = np.cumsum(sizes)
    symbols = np.frombuffer(b"".join(words), dtype=np.uint8).astype(np.int32)  # (S,) all bytes of all words
    weights = np.repeat(np.array([counts[word] for word in words], dtype=np.int64), sizes)  # (S,)
    index: type[np.signedinteger] = np.int32 if len(symbols) < 2**31 else np.int64
    after = np.arange(1, len(symbols) + 1, dtype=index)  # (S,)
    after[ends - 1] = -1
    before = np.arange(-1, len(symbols) - 1, dtype=index)  # (S,)
    before[ends - sizes] = -1

    # pair -> weight and positions, where a pair is one number left << 32 | right: it sorts as (left, right) does
    weight_of: dict[int, int] = {}
    places_of: dict[int, np.ndarray] = {}
    lefts = np.flatnonzero(after >= 0).astype(index)
    codes = (symbols[lefts] * 256 + symbols[lefts + 1]).astype(np.uint16)
    for code, weight, places in grouped(codes, weights[lefts], lefts):
        pair = (code >> 8) << 32 | (code & 255)
        weight_of[pair], places_of[pair] = weight, places
    heap = [(-weight, pair) for pair, weight in weight_of.items()]
    heapq.heapify(heap)

    merges: list[tuple[int, int]] = []
    while heap and len(merges) < number:
        negative, pair = heapq.heappop(heap)
        weight = weight_of[pair]
        if weight != -negative:  # outdated: weights only fall, so put it back where it belongs
            if weight > 0:
                heapq.heappush(heap, (-weight, pair))
            continue
        left, right = pair >> 32, pair & 0xFFFFFFFF
        new = FIRST_MERGE + len(merges)
        merges.append((left, right))
        weight_of[pair] = 0

        at = places_of.pop(pair)  # (P,) ascending
        at = at[symbols[at] == left]
        second = after[at]
        good = (second >= 0) & (symbols[second] == right)
        at, second = at[good], second[good]
        if left == right:  # in a run of the same symbol every other place: a a a -> aa a
            at, second = every_other(at, second)
        outer_left, outer_right, weight_at = before[at], after[second], weights[at]
        left_symbols, right_symbols = symbols[outer_left], symbols[outer_right]  # meaningless where there is none (-1)
        has_left, has_right = outer_left >= 0, outer_right >= 0

        symbols[at] = new
        symbols[second] = -1  # dead
        after[at] = outer_right
        before[outer_right[has_right]] = at[has_right]

        # pairs that are gone; the one between two adjacent merges is counted with the first of them
        alone = has_left & (symbols[outer_left] >= 0)
        for symbol, lost, _ in grouped(left_symbols[alone], weight_at[alone], at[alone]):
            if (gone := symbol << 32 | left) != pair:
                weight_of[gone] -= lost
        for symbol, lost, _ in grouped(right_symbols[has_right], weight_at[has_right], at[has_right]):
            if (gone := right << 32 | symbol) != pair:
                weight_of[gone] -= lost
        # pairs that are new; the one between two adjacent merges is counted with the second of them
        previous = before[at[has_left]]
        for symbol, weight, places in grouped(symbols[previous], weight_at[has_left], previous):
            made = symbol << 32 | new
            weight_of[made], places_of[made] = weight, places
            heapq.heappush(heap, (-weight, made))
        alone = has_right & (symbols[outer_right] != new)
        for symbol, weight, places in grouped(symbols[outer_right[alone]], weight_at[alone], at[alone]):
            made = new << 32 | symbol
            weight_of[made], places_of[made] = weight, places
            heapq.heappush(heap, (-weight, made))
    return merges


def every_other(at: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From overlapping places (each one's second symbol is the next one's first) the 1st, 3rd, … of every run."""
    index = np.arange(len(at))
    starts = np.ones(len(at), dtype=bool)
    starts[1:] = second[:-1] != at[1:]
    offset = index - np.maximum.accumulate(np.where(starts, index, 0))
    return at[offset % 2 == 0], second[offset % 2 == 0]


def grouped(keys: np.ndarray, weights: np.ndarray, places: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """(key, sum of weights, places in their order) for every distinct key."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    totals = np.add.reduceat(weights[order], starts)
    spread = places[order]
    begins = starts.tolist()
    pieces = [spread[begin:end] for begin, end in zip(begins, [*begins[1:], len(keys)], strict=True)]
    return list(zip(ordered[starts].tolist(), totals.tolist(), pieces, strict=True))
