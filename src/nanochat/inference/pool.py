"""Cache rows of texts that are finished, for those that go on from them: the next turn of a conversation reads only what is new.

Kept are tokens and rows of the most recent texts, up to a number of bytes. A text that another one goes on from is dropped for it.
"""

from itertools import takewhile

from nanochat.gpt.cache import KVCache

MIN_SHARED = 16  # guess: fewer tokens are read again as cheaply, together with other prompts


class PrefixPool:
    """At most `max_bytes` of finished rows; 0 keeps none. What was not used for longest leaves first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.entries: list[tuple[list[int], KVCache]] = []  # the most recently used last

    def put(self, ids: list[int], cache: KVCache) -> None:
        """Keep `cache`, whose only row holds `ids`."""
        if cache.nbytes() > self.max_bytes:
            return
        for number in reversed(range(len(self.entries))):
            if ids[: len(self.entries[number][0])] == self.entries[number][0]:
                self._remove(number)
        self.entries.append((ids, cache))
        self.bytes += cache.nbytes()
        while self.bytes > self.max_bytes:
            self._remove(0)

    def find(self, prompt: list[int]) -> KVCache | None:
        """A cache of its own with the longest beginning of `prompt` that is here, less its last token; None if there is little."""
        most, number = 0, -1
        for i, (ids, cache) in enumerate(self.entries):
            shared = min(_shared(ids, prompt), len(prompt) - 1)  # what comes next is read off the last token
            if shared > most and cache.can_begin(0, shared):
                most, number = shared, i
        if most < MIN_SHARED:
            return None
        entry = self.entries.pop(number)
        self.entries.append(entry)
        return entry[1].copy_of(0, most)

    def clear(self) -> None:
        self.entries, self.bytes = [], 0

    def _remove(self, number: int) -> None:
        self.bytes -= self.entries.pop(number)[1].nbytes()


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    return n if a[:n] == b[:n] else sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
