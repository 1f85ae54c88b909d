"""Making a tokenizer from text, and keeping what was made so that the same text and settings never
train twice."""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nanochat.runtime.paths import base_dir
from nanochat.tokenizer.files import load_tokenizer
from nanochat.tokenizer.merges import FIRST_MERGE, learn_merges
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, BPETokenizer, CharTokenizer, Tokenizer
from nanochat.tokenizer.words import well_formed

SMALLEST_VOCAB = FIRST_MERGE + len(SPECIAL_TOKENS)
# What `auto` means. from: nanochat (vocab_size, max_chars, doc_cap); a character table has to see
# every character.
AUTO: dict[str, dict[str, int | None]] = {
    "bpe": {"vocab_size": 32768, "max_chars": 2_000_000_000, "doc_cap": 10_000},
    "char": {"vocab_size": None, "max_chars": None, "doc_cap": None},
}
HASH = "hash.txt"  # of a kept tokenizer, next to its files

log = logging.getLogger("nanochat.data")


class Corpus(Protocol):
    """What is asked of a text source here; `nanochat.datamodules.sources` has them."""

    def documents(self, split: str) -> Iterator[str]: ...
    def manifest(self) -> dict[str, Any]: ...
    def head(self, max_chars: int | None) -> "Corpus": ...


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    max_chars: int | None,
    doc_cap: int | None,
    fewer: bool = False,
) -> BPETokenizer:
    """Byte-level BPE with exactly `vocab_size` ids: bytes, merges, nine specials. Same words and
    counts, same ids.

    max_chars: stop once more than this many characters were read (the document that crosses it
    still counts). doc_cap: only this many characters of each document; None = all. fewer: text that
    runs out of merges makes a smaller vocabulary. ValueError: vocab_size below 265, nothing to
    read, or text that runs out of merges before `vocab_size`.
    """
    if (
        isinstance(vocab_size, bool)
        or not isinstance(vocab_size, int)
        or vocab_size < SMALLEST_VOCAB
    ):
        raise ValueError(
            f"vocab_size={vocab_size} is not a whole number from {SMALLEST_VOCAB} up"
            f" (256 bytes + {len(SPECIAL_TOKENS)} special tokens); try vocab_size=4096"
        )
    wanted = vocab_size - SMALLEST_VOCAB
    merges = learn_merges(limited(texts, max_chars=max_chars, doc_cap=doc_cap), wanted)
    if len(merges) < wanted and not fewer:
        raise _too_large(vocab_size, SMALLEST_VOCAB + len(merges))
    return BPETokenizer(merges)


def _too_large(vocab_size: int, reached: int) -> ValueError:
    return ValueError(
        f"vocab_size={vocab_size:,} is more than this text can fill: at {reached:,} every word in "
        f"it is one token; set vocab_size={reached} or less, or auto, or give more text"
    )


def train_char(
    texts: Iterable[str], *, max_chars: int | None, doc_cap: int | None
) -> CharTokenizer:
    """One id for every character of the texts (limits as in `train_bpe`) in code point order, and
    nine specials."""
    characters: set[str] = set()
    for text in limited(texts, max_chars=max_chars, doc_cap=doc_cap):
        characters.update(text)
    return CharTokenizer("".join(sorted(characters)))


def limited(texts: Iterable[str], *, max_chars: int | None, doc_cap: int | None) -> Iterator[str]:
    """The texts as training reads them: well formed, cut, no more than asked for. ValueError if
    there is nothing."""
    for name, value in (("max_chars", max_chars), ("doc_cap", doc_cap)):
        if value is not None and value < 1:
            raise ValueError(
                f"{name}={value} leaves nothing to read; give a positive number, or null for no "
                "limit"
            )
    read = 0
    for text in texts:
        kept = text if doc_cap is None else text[:doc_cap]
        read += len(kept)
        yield kept if kept.isascii() else well_formed(kept)
        if max_chars is not None and read > max_chars:
            break
    if not read:
        raise ValueError(
            "no text to make a tokenizer from; check that the data config names documents that "
            "exist"
        )


def train_or_load(
    source: Corpus,
    kind: str = "bpe",
    vocab_size: int | str | None = "auto",
    max_chars: int | str | None = "auto",
    doc_cap: int | str | None = "auto",
    path: Path | str | None = None,
    auto_vocab_size: int | None = None,
) -> Tokenizer:
    """The tokenizer of a text source with these settings: from `path`, or as made before, or made
    now and kept.

    `auto` takes the value of AUTO, for the vocabulary `auto_vocab_size` where that is given, or as
    many as a small text can fill. Kept under `base_dir()/tokenizers/<key>`, where the key covers
    the settings and the manifest of what is read (the source's `head`); the folder appears whole or
    not at all. A character table reads the validation documents as well, as it must know every
    character. ValueError for settings as in `train_bpe`, a vocab_size for kind "char", and settings
    that contradict what is in `path`.
    """
    if path is not None:
        return chosen_by_path(Path(path).expanduser(), kind, vocab_size, max_chars, doc_cap)
    fewer = vocab_size == "auto"
    vocab_size, max_chars, doc_cap = resolve_settings(
        kind, vocab_size, max_chars, doc_cap, auto_vocab_size
    )
    folder = cached_folder(source, kind, vocab_size, max_chars, doc_cap)
    if folder.is_dir():
        known = load_tokenizer(folder)
        if (folder / HASH).is_file() and (folder / HASH).read_text(
            encoding="utf-8"
        ).strip() != known.hash:
            raise ValueError(
                f"{folder} is damaged or was changed: not the tokenizer that was trained; delete "
                "this folder to train it again"
            )
        return _as_asked(known, vocab_size, fewer)
    source = source.head(max_chars)
    tokenizer: Tokenizer
    if kind == "char":
        documents: Iterable[str] = itertools.chain(
            source.documents("train"), source.documents("val")
        )
        tokenizer = train_char(documents, max_chars=max_chars, doc_cap=doc_cap)
    else:
        assert vocab_size is not None  # resolve_settings() saw to it
        documents = source.documents("train")
        tokenizer = train_bpe(
            documents, vocab_size, max_chars=max_chars, doc_cap=doc_cap, fewer=fewer
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    tokenizer.save(temporary)
    (temporary / HASH).write_text(f"{tokenizer.hash}\n", encoding="utf-8")
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same tokenizer
            raise
        shutil.rmtree(temporary)
    return _as_asked(tokenizer, vocab_size, fewer)


def _as_asked(tokenizer: Tokenizer, vocab_size: int | None, fewer: bool) -> Tokenizer:
    """The tokenizer; where its text could not fill the vocabulary that is said, or with a size that
    was given is an error."""
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        if not fewer:
            raise _too_large(vocab_size, tokenizer.vocab_size)
        log.info(
            "vocabulary: %s, all that this text can fill (tokenizer.vocab_size=auto would be %s)",
            f"{tokenizer.vocab_size:,}",
            f"{vocab_size:,}",
        )
    return tokenizer


def chosen_by_path(
    path: Path,
    kind: str,
    vocab_size: int | str | None,
    max_chars: int | str | None,
    doc_cap: int | str | None,
) -> Tokenizer:
    """The tokenizer in `path`; ValueError if the settings ask for another one, or for another
    training."""
    tokenizer = load_tokenizer(path)
    if kind != tokenizer.kind:
        raise ValueError(
            f"kind={kind}, but {path} holds a {tokenizer.kind} tokenizer; choose "
            f"tokenizer={tokenizer.kind}"
        )
    if vocab_size not in ("auto", None, tokenizer.vocab_size):
        raise ValueError(
            f"vocab_size={vocab_size}, but the tokenizer in {path} has {tokenizer.vocab_size}; "
            "leave tokenizer.vocab_size=auto"
        )
    for name, value in (("max_chars", max_chars), ("doc_cap", doc_cap)):
        if value not in ("auto", None):
            raise ValueError(
                f"{name}={value} has no effect on the finished tokenizer in {path}; leave "
                f"tokenizer.{name}=auto"
            )
    return tokenizer


def resolve_settings(
    kind: str,
    vocab_size: int | str | None,
    max_chars: int | str | None,
    doc_cap: int | str | None,
    auto_vocab_size: int | None = None,
) -> tuple[int | None, int | None, int | None]:
    """(vocab_size, max_chars, doc_cap) with `auto` worked out; ValueError for what cannot be
    meant."""
    if kind not in AUTO:
        raise ValueError(f"tokenizer kind={kind} is not known; choose bpe or char")
    given = {"vocab_size": vocab_size, "max_chars": max_chars, "doc_cap": doc_cap}
    values: dict[str, int | None] = {}
    for name, value in given.items():
        chosen = AUTO[kind][name] if value == "auto" else value
        if (
            name == "vocab_size"
            and value == "auto"
            and kind == "bpe"
            and auto_vocab_size is not None
        ):
            chosen = auto_vocab_size
        if isinstance(chosen, str | float | bool):
            raise ValueError(f"{name}={value} is not a whole number; give one, or auto")
        values[name] = chosen
    if kind == "char" and values["vocab_size"] is not None:
        raise ValueError(
            f"vocab_size={vocab_size} has no effect with kind=char, which counts characters; set "
            "it to auto"
        )
    if kind == "bpe" and values["vocab_size"] is None:
        raise ValueError(
            "vocab_size=null is not a size for kind=bpe; give a number from 265 up, or auto"
        )
    return values["vocab_size"], values["max_chars"], values["doc_cap"]


def cached_folder(
    source: Corpus, kind: str, vocab_size: int | None, max_chars: int | None, doc_cap: int | None
) -> Path:
    """Where the tokenizer of this source and these settings is kept."""
    key = json.dumps(
        [source.head(max_chars).manifest(), kind, vocab_size, max_chars, doc_cap, FORMAT],
        sort_keys=True,
    )
    return base_dir() / "tokenizers" / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


FORMAT = 1  # of the kept folder and the training rules: a change here trains anew
