"""Token after token as text: whole characters only, and nothing that may turn out to be the
beginning of a stop string."""

import codecs
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple


class Fragment(NamedTuple):
    """A piece of a text, whole characters only: `kind` is that of the part it is in, or "mark" for
    a token that opens or closes one."""

    kind: str  # "text" | "python" | "python_output" | "mark"
    text: str


class TextStream:
    """Takes the bytes of one token at a time and gives the text that is certain; its pieces
    together are the whole text.

    Bytes that are no UTF-8 become U+FFFD, exactly as if all tokens were decoded at once. Of several
    stop strings the one that is complete first counts, so that where the tokens are cut makes no
    difference.

    >>> stream = TextStream(("\\nuser:",))
    >>> [stream.feed(piece) for piece in (b"caf\\xc3", b"\\xa9\\nu", b"p\\nuser", b": hm")]
    ['caf', 'é', '\\nup', '']
    >>> stream.stopped
    True
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string
        self._given = 0  # characters
        # characters after each token, where there is a stop string to cut at
        self._ends: list[int] = []

    def feed(self, piece: bytes) -> str:
        """Text that has become certain with the token of these bytes; after `stopped`, the text
        ends with it."""
        new = self._utf8.decode(piece)
        if self.stop:
            self._ends.append(0)  # set below
        return self._more(new)

    def pause(self) -> str:
        """Text that has become certain because another part comes now: a character ends here. A
        stop string may still go on after it."""
        return self._more(self._utf8.decode(b"", True))

    @property
    def held(self) -> str:
        """What may be the beginning of a stop string."""
        return self._held

    def _more(self, new: str) -> str:
        if not self.stop:
            return new
        text = self._held + new
        if self._ends:
            self._ends[-1] = self._given + len(text)
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


class PartStream:
    """The fragments of an answer that may have parts. Stop strings count in its text, from which
    calls of tools are left out: where one begins before a call and may end after it, the call waits
    with it.

    >>> stream = PartStream(("b c",))
    >>> stream.feed(b"a") + stream.feed(b"b ") + stream.enter("python", "<") + stream.feed(b"1")
    [Fragment(kind='text', text='a')]
    >>> stream.enter("text", ">")
    []
    >>> stream.feed(b"c"), stream.stopped, stream.tokens()
    ([], True, 1)
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.kind = "text"
        self._text = TextStream(stop)
        self._other = TextStream()  # of the part being written, where that is no text
        # uncertain, from text that is held on; and how many tokens come before its end
        self._waiting: list[tuple[Fragment, int]] = []
        self._tokens = 0
        self._text_tokens: list[int] = []  # tokens up to each one of text
        self._given_tokens = 0  # tokens up to the last fragment given that is no text

    @property
    def stopped(self) -> bool:
        return self._text.stopped

    def feed(self, piece: bytes) -> list[Fragment]:
        """What has become certain with the token of these bytes."""
        self._tokens += 1
        if self.kind != "text":
            return self._behind(Fragment(self.kind, self._other.feed(piece)))
        self._text_tokens.append(self._tokens)
        return self._release(self._text.feed(piece))

    def enter(self, kind: str, mark: str) -> list[Fragment]:
        """Go into the next part by the token `mark`."""
        found = self._close()
        self._tokens += 1
        self.kind = kind
        return [] if self.stopped else found + self._behind(Fragment("mark", mark))

    def finish(self) -> list[Fragment]:
        """The rest: no token comes any more."""
        if self.stopped:
            return []
        found = self._close()
        rest = self._release(self._text.finish())
        waited, self._waiting = [fragment for fragment, _ in self._waiting], []
        return [*found, *rest, *waited]

    def tokens(self) -> int:
        """How many of the tokens it takes to write what was given before it stopped."""
        text = self._text.tokens()
        return max(self._given_tokens, self._text_tokens[text - 1] if text else 0)

    def _close(self) -> list[Fragment]:
        """End the part being written."""
        if self.kind != "text":
            return self._behind(Fragment(self.kind, self._other.finish()))
        found = self._release(self._text.pause())
        new = len(self._text.held) - sum(len(f.text) for f, _ in self._waiting if f.kind == "text")
        if new > 0:
            self._waiting.append((Fragment("text", self._text.held[-new:]), self._tokens))
        return found

    def _behind(self, fragment: Fragment) -> list[Fragment]:
        """A fragment that is no text, as soon as the text before it is certain."""
        if not fragment.text:
            return []
        if self._waiting:
            self._waiting.append((fragment, self._tokens))
            return []
        self._given_tokens = self._tokens
        return [fragment]

    def _release(self, certain: str) -> list[Fragment]:
        """Fragments of text that has become certain, and of what waited for it."""
        found: list[Fragment] = []
        while self._waiting:
            fragment, tokens = self._waiting[0]
            if fragment.kind == "text" and len(fragment.text) > len(certain):
                self._waiting[0] = (Fragment("text", fragment.text[len(certain) :]), tokens)
                break
            if fragment.kind == "text":
                certain, fragment = (
                    certain[len(fragment.text) :],
                    Fragment("text", certain[: len(fragment.text)]),
                )
            else:
                self._given_tokens = tokens
            found.append(fragment)
            self._waiting.pop(0)
        return [*found, Fragment("text", certain)] if certain else found


def merge_parts(fragments: Iterable[Fragment]) -> list[dict[str, str]]:
    """The parts that fragments make up; a mark begins another one."""
    parts: list[dict[str, str]] = []
    open_part = False
    for kind, text in fragments:
        if kind == "mark":
            open_part = False
        elif open_part:
            parts[-1]["text"] += text
        else:
            parts.append({"type": kind, "text": text})
            open_part = True
    return parts


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, without being all of it."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
