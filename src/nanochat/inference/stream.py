"""Token after token as text: whole characters only, and nothing that may turn out to be the beginning of a stop string."""

import codecs
from bisect import bisect_left


class TextStream:
    """Takes the bytes of one token at a time and gives the text that is certain; its pieces together are the whole text.

    Bytes that are no UTF-8 become U+FFFD, exactly as if all tokens were decoded at once. Of several stop strings the one that is complete
    first counts, so that where the tokens are cut makes no difference.

    >>> stream = TextStream(("\\nuser:",))
    >>> [stream.feed(piece) for piece in (b"caf\\xc3", b"\\xa9\\nu", b"p\\nuser", b": hm")], stream.stopped
    (['caf', 'é', '\\nup', ''], True)
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string
        self._given = 0  # characters
        self._ends: list[int] = []  # characters after each token, where there is a stop string to cut at

    def feed(self, piece: bytes) -> str:
        """Text that has become certain with the token of these bytes; after `stopped`, the text ends with it."""
        new = self._utf8.decode(piece)
        if not self.stop:
            return new
        text = self._held + new
        self._ends.append(self._given + len(text))
        found = [(at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            certain, self._held, self.stopped = min(found)[1], "", True
        else:
            certain = len(text) - max(_overlap(text, stop) for stop in self.stop)
            self._held = text[certain:]
        self._given += certain
        return text[:certain]

    def finish(self) -> str:
        """The rest of the text: no token comes any more."""
        if self.stopped:
            return ""
        rest, self._held = self._held + self._utf8.decode(b"", True), ""
        return rest

    def tokens(self) -> int:
        """How many of the tokens it takes to write what was given before it stopped."""
        return bisect_left(self._ends, self._given) + 1 if self._given else 0


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, without being all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
