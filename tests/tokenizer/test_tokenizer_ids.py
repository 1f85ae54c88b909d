"""The ids against tiktoken's and against those of the library that loads the file, and the way
back."""
# ruff: noqa: RUF001

import random
import time

import numpy as np
import pytest
import tiktoken
import tokenizers

from nanochat.tokenizer import SPECIAL_TOKENS, train_char
from nanochat.tokenizer.unicode16 import LETTERS, NUMBERS, SPACES
from nanochat.tokenizer.words import ranges, split_words, well_formed

NASTY = [
    "",
    " ",
    "\n",
    "\r\n\r\n  \r\n x",
    "  two  spaces   and\ttabs \t\t x \n\n\t\n y  ",
    "It's we'LL they'VE o'clock 'tis 'Start 're''s '' 'ſ 'ſtop l'eau I'M",
    "1 12 123 1234 12345 3.14159 ½ Ⅷ ٣٤٥٦ 一二三 1️⃣2",
    "a'b\"c«d»e—f…g!!!\n\n???\r\n... \n!?",
    " !x !x  !x\t!x\u00a0!x\u3000x\u2003y",
    "안녕하세요 세계! \u1112\u1161\u11ab",
    "漢字かな交じり文、テスト。",
    "שָׁלוֹם عَلَيْكُم हिन्दी ไทย ქართული",
    "e\u0301\u0301 a\u0308 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d",
    "😀👍🏽👩‍👩‍👧‍👦🇰🇷🏴󠁧󠁢󠁥󠁮󠁧󠁿 x😀y 😀 z",
    "\x00\x01\x1f\x7f\x80\x85\x9f\u200b\u200d\u2028\u2029\ufeff\ufffe\uffff",
    "𝒳𝓎𝟘𝟙𝟚 𐍈 𠀀𠀁 \U0010ffff\U000f0000 \U0001e950",
    "<|bos|><|user_start|> <|output_end|>",
    "def f(x):\n    return x  # done\n\n\n\nclass A:\n\tpass\n",
    " " * 1000 + "x" + " " * 1000,
    "\n" * 1000,
    "=" * 999 + "a" * 1001 + "ab" * 500,
]


def random_texts(assigned: list[str], number: int, seed: int = 0) -> list[str]:
    """Texts that mix all characters with those on which the split turns."""
    rng = random.Random(seed)
    pools = [
        list("'sStTlLvVeErRdDmMſ"),
        list(" \t\n\r\u00a0\u2003\u3000\x0b\x0c\x85\u2028"),
        list("abcXYZéßñ0123456789²Ⅷ٣"),
        list(".,;:!?-_()[]{}'\"`~@#$%^&*+=|\\/<>"),
        list("😀👍🏽‍❤️\U0001f1f0\U0001f1f7𝒳𝟘𠀀"),
        list("\u0300\u0301\u0345\u200d\u200c\ufe0f\u0000\u001b\ufffd"),
        list("가각힣漢字かなабвאבגกข"),
        assigned,
        [chr(point) for point in (0x378, 0xE000, 0xFDD0, 0xFFFF, 0x1FFFE, 0x3FFFF, 0x10FFFF)],
    ]
    texts = []
    for _ in range(number):
        chosen = rng.sample(pools, rng.randint(1, 4))
        texts.append("".join(rng.choice(rng.choice(chosen)) for _ in range(rng.randint(1, 60))))
    return texts


def library_twin(tokenizer) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True
    return library


@pytest.mark.parametrize("text", NASTY)
def test_ids_are_those_of_tiktoken_on_nasty_text(bpe, tiktoken_twin, text):
    ids = bpe.encode(text)
    assert ids == tiktoken_twin.encode_ordinary(text)
    assert ids == library_twin(bpe).encode(text).ids
    assert bpe.decode(ids) == text


def test_ids_are_those_of_tiktoken_on_random_unicode(bpe, tiktoken_twin, assigned):
    texts = random_texts(assigned, 4000)
    assert [bpe.encode(text) for text in texts] == tiktoken_twin.encode_ordinary_batch(
        texts, num_threads=1
    )


def test_ids_are_those_of_the_library_that_loads_the_file(bpe, assigned):
    texts = random_texts(assigned, 1000, seed=1)
    assert [bpe.encode(text) for text in texts] == [
        found.ids for found in library_twin(bpe).encode_batch(texts)
    ]


def test_every_assigned_character_alone_and_between_letters(bpe, tiktoken_twin, assigned):
    text = "".join(f"{char}x {char}\n" for char in assigned[::9])
    assert bpe.encode(text) == tiktoken_twin.encode_ordinary(text)


@pytest.mark.parametrize(
    ("name", "table"), [(r"\p{L}", LETTERS), (r"\p{N}", NUMBERS), (r"\s", SPACES)]
)
def test_frozen_classes_are_those_of_tiktoken(name, table, assigned):
    """A newer Unicode in tiktoken may only add characters that were not assigned before."""
    engine = tiktoken.Encoding(
        "c", pat_str=name, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    everything = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    theirs = set(engine.decode(engine.encode_ordinary(everything)))
    ours = {chr(point) for first, last in ranges(table) for point in range(first, last + 1)}
    assert ours <= theirs
    assert not (theirs - ours) & set(assigned)


def test_words_joined_are_the_text(assigned):
    for text in [*NASTY, *random_texts(assigned, 500, seed=2)]:
        assert "".join(split_words(text)) == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("\ud83d\ude00", "😀"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00b", "\ufffdb"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
    ],
)
def test_surrogates_join_or_become_the_replacement_character(bpe, tiktoken_twin, text, meant):
    assert well_formed(text) == meant
    assert bpe.encode(text) == bpe.encode(meant) == tiktoken_twin.encode_ordinary(text)
    assert train_char([meant], max_chars=None, doc_cap=None).encode(text) == train_char(
        [text], max_chars=None, doc_cap=None
    ).encode(meant)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["ab", "e", "漢字", "1", "!?", "😀👍🏽", "\n", "\t ", "qwertyuiop"]
)
def test_a_megabyte_without_a_space_takes_seconds_at_most(bpe, tiktoken_twin, unit):
    text = unit * (1_000_000 // len(unit.encode()))
    began = time.perf_counter()
    ids = bpe.encode(text)
    assert time.perf_counter() - began < 5  # takes 0.4 s; a quadratic way takes minutes
    assert bpe.decode(ids) == text
    short = unit * 3000
    assert bpe.encode(short) == tiktoken_twin.encode_ordinary(short)


def test_a_megabyte_of_spaces(bpe):
    """Not against tiktoken, whose regex engine overflows its stack here."""
    text = "x" + " " * 1_000_000 + "\n" + " " * 1000 + "x"
    assert split_words(text) == ["x", " " * 1_000_000 + "\n", " " * 999, " x"]
    assert bpe.decode(bpe.encode(text)) == text


def test_text_never_gives_special_ids(bpe):
    for name in SPECIAL_TOKENS:
        for text in (name, f"a{name}b", name * 3, f" {name}\n"):
            assert max(bpe.encode(text)) < bpe.vocab_size - len(SPECIAL_TOKENS)
            assert bpe.decode(bpe.encode(text)) == text


def test_specials_are_the_last_nine_ids_and_decode_to_their_names(bpe):
    assert list(bpe.specials.values()) == list(range(bpe.vocab_size - 9, bpe.vocab_size))
    assert bpe.bos_id == bpe.vocab_size - 9
    assert (
        bpe.decode([bpe.bos_id, *bpe.encode("hi"), bpe.specials["<|assistant_end|>"]])
        == "<|bos|>hi<|assistant_end|>"
    )


def test_the_first_256_ids_are_the_bytes(bpe):
    assert bpe.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert bpe.decode_bytes(range(256)) == bytes(range(256))
    assert bpe.token_bytes[:256].tolist() == [1] * 256


def test_ids_of_any_bytes_decode(bpe, tiktoken_twin):
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, bpe.vocab_size, rng.integers(1, 50))
        assert bpe.decode_bytes(ids) == tiktoken_twin.decode_bytes(ids.tolist())
        assert bpe.decode(ids) == tiktoken_twin.decode(ids.tolist())
        assert bpe.token_bytes[ids].sum() == len(bpe.decode_bytes(ids[ids < bpe.bos_id]))


def test_decode_takes_lists_arrays_and_tensors(bpe):
    torch = pytest.importorskip("torch")
    ids = bpe.encode("the same text")
    for given in (ids, tuple(ids), np.array(ids, dtype=np.uint16), torch.tensor(ids), iter(ids)):
        assert bpe.decode(given) == "the same text"
    assert bpe.decode([]) == ""


@pytest.mark.parametrize("wrong", [-1, 3000, 10**9])
def test_an_id_outside_the_vocabulary_is_named(bpe, wrong):
    with pytest.raises(ValueError, match=f"id {wrong} .* from 0 to 2999"):
        bpe.decode([1, wrong])


def test_encode_array_and_encode_agree(bpe):
    array = bpe.encode_array("Once upon a time")
    assert array.dtype == np.int32
    assert array.tolist() == bpe.encode("Once upon a time")
