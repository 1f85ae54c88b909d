"""Cache rows of finished texts, for texts that continue them: the next turn of a conversation only
reads what is new.

Kept are tokens and rows of the most recent texts, up to a number of bytes. A text that another one
goes on from is dropped for it.
"""

from typing import NamedTuple

import numpy as np

from nanochat.inference.cache import KVCache

MAX_ENTRIES = 256  # guess: what is looked through in 0.1 ms (measured)
MIN_SHARED = 16  # guess: fewer tokens are read again as cheaply, together with other prompts


class PrefixPool:
    """At most `max_bytes` of finished rows; 0 keeps none. The least recently used row leaves
    first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        # tokens as the bytes of int32, which compare much faster than lists; the most recently used
        # last
        self.entries: list[tuple[bytes, KVCache]] = []

    def put(self, ids: list[int], cache: KVCache) -> None:
        """Keep `cache`; its only row holds `ids`."""
        if cache.nbytes() > self.max_bytes:
            return
        new = _bytes(ids)
        for number in reversed(range(len(self.entries))):
            if new.startswith(self.entries[number][0]):
                self._remove(number)
        self.entries.append((new, cache))
        self.bytes += cache.nbytes()
        while self.bytes > self.max_bytes or len(self.entries) > MAX_ENTRIES:
            self._remove(0)

    def find(self, prompt: list[int]) -> "Found | None":
        """The longest kept prefix of `prompt`, at most up to its last token; None if it is too
        short to pay. Nothing is copied yet."""
        wanted = _bytes(prompt[:-1])  # what comes next is read off the last token
        most, number = MIN_SHARED - 1, -1
        for i, (ids, cache) in enumerate(self.entries):
            longer = 4 * (most + 1)
            if len(ids) < longer or not wanted.startswith(ids[:longer]):
                continue
            shared = _shared(ids, wanted)
            if cache.can_begin(0, shared):
                most, number = shared, i
        if number < 0:
            return None
        entry = self.entries.pop(number)
        self.entries.append(entry)
        return Found(entry[1], most)

    def clear(self) -> None:
        self.entries, self.bytes = [], 0

    def _remove(self, number: int) -> None:
        self.bytes -= self.entries.pop(number)[1].nbytes()


class Found(NamedTuple):
    """The first `tokens` of the only row of `cache`, which belongs to the pool."""

    cache: KVCache
    tokens: int

    def copy(self) -> KVCache:
        return self.cache.copy_of(0, self.tokens)


def _bytes(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def _shared(a: bytes, b: bytes) -> int:
    """The number of tokens in the common prefix."""
    n = min(len(a), len(b)) // 4
    different = np.frombuffer(a, np.int32, n) != np.frombuffer(b, np.int32, n)
    return int(different.argmax()) if different.any() else n
