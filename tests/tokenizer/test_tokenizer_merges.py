"""Merges against a plain loop and against the trainer of `tokenizers`."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from nanochat.tokenizer.merges import learn_merges
from nanochat.tokenizer.tokenizer import PRINTABLE
from nanochat.tokenizer.words import SPLIT_PATTERN, split_words


def plain_merges(counts: dict[bytes, int], number: int) -> list[tuple[int, int]]:
    """The textbook: count all pairs, merge the best from left to right, start again."""
    words = [(list(word), count) for word, count in counts.items()]
    merges: list[tuple[int, int]] = []
    for _ in range(number):
        pairs: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        new = 256 + len(merges)
        merges.append(best)
        for ids, _ in words:
            at = 0
            while at < len(ids) - 1:
                if (ids[at], ids[at + 1]) == best:
                    ids[at : at + 2] = [new]
                at += 1
    return merges


@pytest.mark.parametrize("seed", range(30))
def test_merges_are_those_of_the_plain_loop(seed):
    """Few letters and small counts: runs of one symbol, overlaps and ties everywhere."""
    rng = random.Random(seed)
    letters = bytes(rng.sample(range(256), rng.randint(1, 4)))
    counts = {
        bytes(rng.choice(letters) for _ in range(rng.randint(1, 14))): rng.randint(1, 5)
        for _ in range(rng.randint(1, 60))
    }
    number = rng.choice([5, 40, 10_000])
    assert learn_merges(counts, number) == plain_merges(counts, number)


def test_ties_go_to_the_smaller_left_then_right_id():
    assert learn_merges({b"zz": 3, b"ba": 3, b"bc": 3}, 3) == [(98, 97), (98, 99), (122, 122)]


def test_the_order_of_the_words_does_not_matter():
    words = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    assert learn_merges(words, 12) == learn_merges(dict(reversed(words.items())), 12)


def test_a_run_is_merged_from_the_left():
    assert learn_merges({b"aaa": 1}, 10) == [(97, 97), (256, 97)]
    assert learn_merges({b"aaaaa": 1}, 10) == plain_merges({b"aaaaa": 1}, 10)


@pytest.mark.parametrize("counts", [{}, {b"a": 7}, {b"": 1}])
def test_nothing_to_merge(counts):
    assert learn_merges(counts, 10) == []


def test_merges_are_those_of_the_library_trainer():
    """Its ties follow its own order of the bytes, the same as ours for visible ASCII: so the text has nothing else."""
    rng = random.Random(0)
    text = "".join(rng.choice("aaabbcdefgh!") for _ in range(60_000))
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=256 + 500, initial_alphabet=list(PRINTABLE), show_progress=False)
    )
    vocab = library.get_vocab()
    theirs = sorted((name for name, number in vocab.items() if number >= 256), key=vocab.__getitem__)
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in learn_merges({word.encode(): n for word, n in Counter(split_words(text)).items()}, 500):
        tokens.append(tokens[left] + tokens[right])
    assert [token.decode() for token in tokens[256:]] == theirs
