r"""Text to words: the split that comes before byte-pair merging. No merge ever crosses the border
of a word.

The pattern is nanochat's (GPT-4's, but numbers in groups of at most two digits). Python's own `re`
runs it, several times faster than the libraries' engines because it can use plain character sets:
the pattern is compiled with `\p{L}`, `\p{N}` and `\s` spelled out from the frozen tables of
`unicode16`. There are two such compilations, one for pure ASCII text and one for the basic plane.
`re` is slow with sets that reach beyond the basic plane, so for the rest (emoji, rare scripts)
every character up there is represented by one of the same class, and the cuts found are applied to
the text itself.
"""

import functools
import re
from itertools import accumulate, pairwise

import numpy as np

from nanochat.tokenizer.unicode16 import LETTERS, NUMBERS, SPACES

# from: nanochat, identical in all its generations; as `tiktoken` and `tokenizers` write it
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| "
    r"?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
BASIC_PLANE = 0x10000  # from: Unicode, the first 65,536 code points


def well_formed(text: str) -> str:
    """`text` as it would be in UTF-16 and back: surrogate pairs become their character, a lone
    surrogate U+FFFD.

    Such strings come from broken JSON escapes; they have no UTF-8. `tiktoken` has the same rule.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split_words(text: str) -> list[str]:
    """The words of a well-formed text; joined again they are the text. UnicodeEncodeError if it has
    surrogates.

    >>> split_words("It's 2024,  isn't it?")
    ['It', "'s", ' ', '20', '24', ',', ' ', ' isn', "'t", ' it', '?']
    """
    if text.isascii():
        return compiled_pattern(0x80).findall(text)
    basic = compiled_pattern(BASIC_PLANE)
    if len(text.encode("utf-16-le")) == 2 * len(text):  # nothing beyond the basic plane
        return basic.findall(text)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)  # (characters,)
    stand_in = stand_ins()[points].astype("<u2").tobytes().decode("utf-16-le")
    cuts = accumulate(map(len, basic.findall(stand_in)), initial=0)
    return [text[start:end] for start, end in pairwise(cuts)]


@functools.cache
def compiled_pattern(limit: int) -> re.Pattern[str]:
    r"""The split pattern for text whose code points are all below `limit`.

    `(?i:…)` is spelled out: `s` has a third form, the long s (U+017F); the other letters have only
    their two cases.
    """
    letters, numbers, spaces = (char_set(table, limit) for table in (LETTERS, NUMBERS, SPACES))
    long_s = "\\u017f" if limit > 0x17F else ""
    return re.compile(
        rf"'(?:[sdmtSDMT{long_s}]|[lL][lL]|[vV][eE]|[rR][eE])"
        rf"|[^\r\n{letters}{numbers}]?+[{letters}]+"
        rf"|[{numbers}]{{1,2}}"
        rf"| ?[^{spaces}{letters}{numbers}]++[\r\n]*"
        rf"|[{spaces}]*[\r\n]"
        rf"|[{spaces}]+(?![^{spaces}])"
        rf"|[{spaces}]+"
    )


def char_set(table: str, limit: int) -> str:
    """The inside of a `re` character set for the ranges of `table` below `limit`."""
    kept = [(first, min(last, limit - 1)) for first, last in ranges(table) if first < limit]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in kept)


def ranges(table: str) -> list[tuple[int, int]]:
    """A table of `unicode16` as (first, last) code points, both inclusive."""
    ends = [entry.split("-") for entry in table.split()]
    return [(int(end[0], 16), int(end[-1], 16)) for end in ends]


@functools.cache
def stand_ins() -> np.ndarray:
    """For every code point one of the basic plane in the same class (0x110000,): itself, or a
    letter, digit or sign."""
    table = np.full(0x110000, ord("!"), dtype=np.uint16)
    for classes, char in ((LETTERS, "a"), (NUMBERS, "0"), (SPACES, "\t")):
        for first, last in ranges(classes):
            table[first : last + 1] = ord(char)
    table[:BASIC_PLANE] = np.arange(BASIC_PLANE)
    return table
