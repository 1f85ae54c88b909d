"""Training limits, wrong inputs, files, and the store of trained tokenizers."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tokenizers

from nanochat.runtime.paths import base_dir
from nanochat.tokenizer import load_tokenizer, train_bpe, train_char, train_or_load

TEXT = "the cat sat on the mat, the dog sat on the log. " * 20


class Source:
    """A text source of fixed documents that counts how often it is read."""

    name = "fixed"

    def __init__(self, train=(TEXT,), val=("Ω",)):
        self.texts = {"train": list(train), "val": list(val)}
        self.reads = 0

    def documents(self, split):
        self.reads += 1
        yield from self.texts[split]

    def manifest(self):
        return {"texts": self.texts}

    def head(self, max_chars):
        return self


@pytest.fixture(autouse=True)
def _own_base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))


def bpe(texts, vocab_size=280, max_chars=None, doc_cap=None, **options):
    return train_bpe(texts, vocab_size, max_chars=max_chars, doc_cap=doc_cap, **options)


def test_smallest_vocabulary_is_bytes_and_specials():
    tokenizer = bpe([TEXT], 265)
    assert tokenizer.vocab_size == 265
    assert tokenizer.encode("né") == [110, 195, 169]


@pytest.mark.parametrize("vocab_size", [100, 264, 0, -5, 4096.5, True])
def test_vocab_size_below_265_is_one_clear_line(vocab_size):
    with pytest.raises(ValueError, match=rf"vocab_size={vocab_size} .*265.* try vocab_size=4096"):
        bpe([TEXT], vocab_size)


def test_too_little_text_names_the_size_that_works():
    with pytest.raises(ValueError, match="set vocab_size=") as caught:
        bpe([TEXT], 4096)
    possible = int(str(caught.value).split("set vocab_size=")[1].split()[0])
    assert bpe([TEXT], possible).vocab_size == possible
    with pytest.raises(ValueError, match=f"set vocab_size={possible} or less"):
        bpe([TEXT], possible + 1)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_empty_corpus(texts):
    with pytest.raises(ValueError, match="no text to make a tokenizer from"):
        bpe(texts)
    with pytest.raises(ValueError, match="no text to make a tokenizer from"):
        train_char(texts, max_chars=None, doc_cap=None)


@pytest.mark.parametrize("limits", [{"max_chars": 0}, {"doc_cap": 0}, {"doc_cap": -1}])
def test_limits_that_leave_nothing(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        bpe([TEXT], **limits)


def test_max_chars_keeps_the_document_that_crosses_it():
    texts = ["ab" * 50, "cd" * 50, "ef" * 50, "gh" * 50]
    # 100 is not more than 100
    assert train_char(texts, max_chars=100, doc_cap=None).characters == "abcd"
    assert train_char(texts, max_chars=101, doc_cap=None).characters == "abcd"
    assert train_char(texts, max_chars=201, doc_cap=None).characters == "abcdef"
    assert train_char(texts, max_chars=None, doc_cap=None).characters == "abcdefgh"


def test_doc_cap_cuts_each_document():
    assert train_char(["abcdef", "xyz"], max_chars=None, doc_cap=2).characters == "abxy"


def test_texts_are_not_read_beyond_max_chars():
    def texts():
        yield TEXT
        yield TEXT
        raise AssertionError("read too far")

    bpe(texts(), max_chars=len(TEXT))


def test_what_stops_the_reading_stops_the_training():
    def texts():
        yield TEXT
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        bpe(texts())


def test_saved_is_loaded(tmp_path):
    tokenizer = bpe([TEXT, "naïve café 漢字 😀"], 290)
    tokenizer.save(tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "token_bytes.npy",
        "tokenizer.json",
    ]
    loaded = load_tokenizer(tmp_path / "t")
    assert (loaded.kind, loaded.hash, loaded.tokens, loaded.specials) == (
        "bpe",
        tokenizer.hash,
        tokenizer.tokens,
        tokenizer.specials,
    )
    lengths = np.load(tmp_path / "t" / "token_bytes.npy")
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(token) for token in tokenizer.tokens] + [0] * 9
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    assert library.encode("the naïve cat 😀").ids == loaded.encode("the naïve cat 😀")
    assert library.get_vocab_size() == tokenizer.vocab_size
    assert library.token_to_id("<|bos|>") == tokenizer.bos_id
    assert library.decode(loaded.encode("the naïve cat 😀")) == "the naïve cat 😀"


def test_merges_as_strings_load_too(tmp_path):
    """The form of `tokenizers` before 0.20."""
    tokenizer = bpe([TEXT])
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).hash == tokenizer.hash


def test_hash_is_stable():
    """Written down once: another value means that shards and checkpoints made before no longer
    match."""
    assert bpe([TEXT]).hash == "78d36ae4393837d0"
    assert train_char([TEXT], max_chars=None, doc_cap=None).hash == "57d382a082bcf5a5"
    assert bpe([TEXT], 281).hash != bpe([TEXT]).hash


def test_pickle_keeps_the_ids():
    for tokenizer in (bpe([TEXT]), train_char([TEXT], max_chars=None, doc_cap=None)):
        tokenizer.encode(TEXT)
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.hash == tokenizer.hash
        assert copy.encode(TEXT) == tokenizer.encode(TEXT)


def test_files_that_do_not_load(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")
    bpe([TEXT]).save(tmp_path / "a")
    bpe([TEXT], 281).save(tmp_path / "b")

    shutil.copy(tmp_path / "b" / "token_bytes.npy", tmp_path / "a" / "token_bytes.npy")
    with pytest.raises(ValueError, match="does not match"):
        load_tokenizer(tmp_path / "a")
    (tmp_path / "a" / "token_bytes.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path / "a")
    (tmp_path / "a" / "token_bytes.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no token_bytes\.npy"):
        load_tokenizer(tmp_path / "a")

    good = (tmp_path / "b" / "tokenizer.json").read_text()
    other = json.loads(good)
    other["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    swapped = json.loads(good)
    swapped["model"]["merges"] = swapped["model"]["merges"][::-1]
    for content in (
        good[: len(good) // 2],
        "[]",
        "{}",
        '{"model": {"type": "Unigram"}}',
        json.dumps(other),
        json.dumps(swapped),
    ):
        (tmp_path / "b" / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a nanochat tokenizer"):
            load_tokenizer(tmp_path / "b")


def test_char_is_one_id_per_character(tmp_path):
    tokenizer = train_char(["hello\n", "wörld 😀"], max_chars=None, doc_cap=None)
    assert tokenizer.characters == "".join(sorted(set("hello\nwörld 😀")))
    assert tokenizer.vocab_size == len(tokenizer.characters) + 9
    ids = tokenizer.encode("hold 😀\n")
    assert [tokenizer.characters[number] for number in ids] == list("hold 😀\n")
    assert tokenizer.decode(ids) == "hold 😀\n"
    assert tokenizer.decode([tokenizer.bos_id, *ids[:1]]) == "<|bos|>h"
    assert tokenizer.token_bytes[ids].tolist() == [1, 1, 1, 1, 1, 4, 1]
    assert tokenizer.encode("") == []

    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.hash) == ("char", tokenizer.hash)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("hold 😀\n").ids == ids
    assert library.decode(ids) == "hold 😀\n"


def test_char_names_an_unknown_character():
    tokenizer = train_char(["abc"], max_chars=None, doc_cap=None)
    with pytest.raises(ValueError, match=r"'z' \(U\+007A\) is not among the 3 characters"):
        tokenizer.encode("abz")
    with pytest.raises(ValueError, match="'<'"):
        tokenizer.encode("<|bos|>")


def test_train_or_load_trains_once():
    source = Source()
    first = train_or_load(source, "bpe", 280)
    assert source.reads == 1
    again = train_or_load(source, "bpe", 280)
    assert source.reads == 1
    assert again.hash == first.hash
    train_or_load(source, "bpe", 281)
    train_or_load(Source(train=[TEXT, "more"]), "bpe", 280)
    folders = list((base_dir() / "tokenizers").iterdir())
    assert len(folders) == 3
    assert all(not folder.name.startswith(".") for folder in folders)


def test_two_processes_that_train_the_same_agree():
    class Slow(Source):
        def documents(self, split):
            self.made_meanwhile = train_or_load(Source(), "bpe", 280)
            yield from super().documents(split)

    slow = Slow()
    assert train_or_load(slow, "bpe", 280).hash == slow.made_meanwhile.hash
    assert len(list((base_dir() / "tokenizers").iterdir())) == 1


def test_char_table_covers_the_validation_text():
    tokenizer = train_or_load(Source(), "char")
    assert "Ω" in tokenizer.characters


def test_path_is_loaded_and_must_agree(tmp_path):
    bpe([TEXT]).save(tmp_path)
    assert train_or_load(Source(), "bpe", path=tmp_path).vocab_size == 280
    assert train_or_load(Source(), "bpe", 280, path=str(tmp_path)).vocab_size == 280
    with pytest.raises(ValueError, match="choose tokenizer=bpe"):
        train_or_load(Source(), "char", path=tmp_path)
    with pytest.raises(ValueError, match=r"leave tokenizer\.vocab_size=auto"):
        train_or_load(Source(), "bpe", 300, path=tmp_path)
    with pytest.raises(ValueError, match=r"leave tokenizer\.doc_cap=auto"):
        train_or_load(Source(), "bpe", doc_cap=100, path=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wordpiece"}, "choose bpe or char"),
        ({"kind": "char", "vocab_size": 100}, "vocab_size=100 has no effect with kind=char"),
        ({"kind": "bpe", "vocab_size": None}, "vocab_size=null"),
        ({"kind": "bpe", "vocab_size": 100}, "265"),
        ({"kind": "bpe", "vocab_size": "many"}, "vocab_size=many is not a whole number"),
        ({"kind": "bpe", "max_chars": 1e6}, "max_chars=1000000.0 is not a whole number"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        train_or_load(Source(), **settings)
