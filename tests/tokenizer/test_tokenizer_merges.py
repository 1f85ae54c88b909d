"""Merges against a plain loop."""

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from nanochat.tokenizer.merges import learn_merges, merges_of
from nanochat.tokenizer.words import split_words


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


def counted(texts: list[str]) -> dict[bytes, int]:
    return {
        word.encode(): n
        for word, n in Counter(w for text in texts for w in split_words(text)).items()
    }


@pytest.mark.parametrize("seed", range(60))
def test_merges_are_those_of_the_plain_loop(seed):
    """Few letters and small counts: runs of one symbol, overlaps and ties everywhere."""
    rng = random.Random(seed)
    letters = rng.sample("abcdefghijklmnopqrstuvwxyzäß", rng.randint(1, 4))
    words = [
        "".join(rng.choice(letters) for _ in range(rng.randint(1, 14)))
        for _ in range(rng.randint(1, 60))
    ]
    texts = [word for word in words for _ in range(rng.randint(1, 5))]
    number = rng.choice([5, 40, 10_000])
    merges = learn_merges(texts, number)
    assert merges == plain_merges(counted(texts), number)
    assert merges == learn_merges(reversed(texts), number), "the order of the texts does not matter"


def test_words_are_those_of_the_tokenizer_in_all_of_unicode():
    """The trainer splits with tables of its own Unicode release; the tokenizer's are frozen."""
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    points = random.Random(0).sample(points, 15_000)
    texts = ["".join(points[i : i + 200]) for i in range(0, len(points), 200)]
    assert learn_merges(texts, 20) == plain_merges(counted(texts), 20)


def test_ties_go_to_the_smaller_left_then_right_id():
    assert learn_merges(["zz", "ba", "bc"] * 3, 3) == [(98, 97), (98, 99), (122, 122)]


def test_a_run_is_merged_from_the_left():
    assert learn_merges(["aaa"], 10) == [(97, 97), (256, 97)]
    assert learn_merges(["aaaaa"], 10) == plain_merges({b"aaaaa": 1}, 10)


@pytest.mark.parametrize("texts", [[], ["a"] * 7, [""]])
def test_nothing_to_merge(texts):
    assert learn_merges(texts, 10) == []


def test_the_number_of_threads_changes_nothing():
    code = (
        "import random; from nanochat.tokenizer.merges import learn_merges; rng = random.Random(0);"
        "print(learn_merges([''.join(rng.choices('abcd ', k=300)) for _ in range(300)], 200))"
    )
    outs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    ]
    assert outs[0] == outs[1] and outs[0].count("(") == 200


def test_tokens_that_no_merge_makes_are_named():
    ranks = {**{bytes([b]): b for b in range(256)}, b"abc": 256}
    with pytest.raises(ValueError, match="token 256"):
        merges_of(ranks)
