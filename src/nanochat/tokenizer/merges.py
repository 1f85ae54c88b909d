"""Byte-pair merges: learned from text by `rustbpe`, and found again from the tokens that they made.

The rule is the plain one (Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2): merge the
most frequent pair of neighbours everywhere, again and again. Ties go to the pair with the smaller
left id, then the smaller right id, so the result depends on the words and their counts alone, not
on the order of the text. A test compares it with a plain loop.

`tokenizers` has a trainer too, but its ties follow another numbering of the bytes, and it takes
three times as long (measured: experiments/LOG.md).
"""

from collections.abc import Iterable

import rustbpe

from nanochat.tokenizer.words import SPLIT_PATTERN

FIRST_MERGE = 256  # ids below are the bytes themselves


def learn_merges(texts: Iterable[str], number: int) -> list[tuple[int, int]]:
    """The first `number` merges (left id, right id) of well-formed texts; merge k makes id 256 + k.

    They are fewer if every word became one token. Words are counted on all cores.
    """
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), FIRST_MERGE + number, pattern=SPLIT_PATTERN)
    return merges_of({bytes(token): rank for token, rank in trainer.get_mergeable_ranks()})


def merges_of(ranks: dict[bytes, int]) -> list[tuple[int, int]]:
    """The pair of ids that each token from 256 on was merged from.

    It is what all earlier merges leave of the bytes of the token.

    >>> merges_of({**{bytes([b]): b for b in range(256)}, b"ab": 256, b"abc": 257})
    [(97, 98), (256, 99)]
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1])[FIRST_MERGE:]:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) != 2:
            raise ValueError(f"token {rank} ({token!r}) is not a merge of two earlier ones")
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    return merges
