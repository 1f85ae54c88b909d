"""Tokenizers: text to ids and back, and the two files of a saved tokenizer.

Ids 0 … V-10 stand for byte strings (kind "bpe": ids 0-255 are the bytes in order, then the merges
in training order) or for characters (kind "char": in code point order). The last nine ids are the
special tokens. Encoding text never produces special ids, even if the text contains their names:
only the code that lays out documents and conversations inserts them.

Text is split into words, and the ids of words seen before are kept in a dictionary. Bulk encoding
is therefore one regular expression and one dictionary look-up per word. Only new words go through
the merges, in `tokenizers`.

Files: `tokenizer.json` is in the format of `tokenizers`. That library loads it and gives the same
ids with `encode_special_tokens = True`; by default it would turn the text "<|bos|>" into the
special token. `token_bytes.npy` holds the int32 byte length of every token in raw text (0 for
specials), the denominator of bits per byte.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from nanochat.tokenizer.unicode16 import UNICODE_VERSION
from nanochat.tokenizer.words import SPLIT_PATTERN, split_words, well_formed

# from: nanochat; in the order of their ids
SPECIAL_TOKENS = (
    "<|bos|>",  # starts every document and conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the tool …
    "<|python_end|>",
    "<|output_start|>",  # … and gets its result
    "<|output_end|>",
)
TOKENIZER_FILE, TOKEN_BYTES_FILE = "tokenizer.json", "token_bytes.npy"
CACHED_WORDS = 500_000  # guess: about 0.1 GB; 100 MB of English prose have 200,000 distinct words
CACHED_WORD_LENGTH = 64  # guess: longer words rarely occur twice


class Tokenizer(ABC):
    """The common base of both kinds. `tokens` are the byte strings of ids 0 … V-10. The word cache
    is not pickled."""

    kind: ClassVar[str]
    # ids of a conversation up to the answer, of a tokenizer with a template of its own
    template: Callable[[list[dict[str, Any]], bool], list[int]] | None = None

    def __init__(self, tokens: Sequence[bytes]):
        self.tokens = list(tokens)
        self.vocab_size = len(self.tokens) + len(SPECIAL_TOKENS)
        self.specials = {name: len(self.tokens) + k for k, name in enumerate(SPECIAL_TOKENS)}
        self.bos_id = self.specials["<|bos|>"]
        # (V,)
        self.token_bytes = np.array(
            [len(t) for t in self.tokens] + [0] * len(SPECIAL_TOKENS), dtype=np.int32
        )
        self.hash = self._hash()
        self._pieces = [*self.tokens, *(name.encode() for name in SPECIAL_TOKENS)]

    def _hash(self) -> str:
        """16 hex digits over everything that determines the ids: not the library version, not the
        file layout."""
        digest = hashlib.sha256(json.dumps([self.kind, *self._rules(), *SPECIAL_TOKENS]).encode())
        for token in self.tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()[:16]

    @abstractmethod
    def _rules(self) -> list[str]:
        """What determines the ids besides kind, tokens and specials."""

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """Ids of `text` as a read-only int32 array (n,), built without Python integers; token
        shards are made with it.

        Special ids never occur. A lone surrogate is encoded as U+FFFD. Kind "char" raises
        ValueError for an unknown character.
        """

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as a list, equal to `encode_array`. Uses one core; to use more, split the
        texts over processes."""
        return self.encode_array(text).tolist()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids` (list, array or CPU tensor), with specials as their names. ValueError for
        an id outside 0 … V-1."""
        numbers = np.asarray(ids if hasattr(ids, "__array__") else list(ids)).ravel()
        if numbers.size and (
            numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= self.vocab_size
        ):
            wrong = next(
                n
                for n in numbers.tolist()
                if not isinstance(n, int) or not 0 <= n < self.vocab_size
            )
            raise ValueError(
                f"id {wrong} is not in this vocabulary; ids go from 0 to {self.vocab_size - 1}"
            )
        return b"".join(map(self._pieces.__getitem__, numbers.tolist()))

    def piece(self, token: int) -> bytes:
        """Bytes of one id from 0 to V-1, without a check: for text that grows token by token."""
        return self._pieces[token]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @abstractmethod
    def _library_tokenizer(self) -> tokenizers.Tokenizer:
        """The same tokenizer as a `tokenizers` object, without the specials."""

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        library = self._library_tokenizer()
        added = [
            tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS
        ]
        library.add_special_tokens(added)
        return library.to_str(pretty=False)

    def save(self, folder: Path) -> None:
        """Write both files into `folder`, each under a temporary name first, so that no process
        reads half a file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TOKENIZER_FILE, TOKEN_BYTES_FILE):
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            with temporary.open("wb") as file:
                if name == TOKENIZER_FILE:
                    file.write(self.to_json().encode())
                else:
                    np.save(file, self.token_bytes)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, hash={self.hash})"


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding. `merges[k]` is the pair (left id, right id) that makes id 256
    + k."""

    kind = "bpe"

    def __init__(self, merges: Sequence[tuple[int, int]]):
        self.merges = [(int(left), int(right)) for left, right in merges]
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            tokens.append(tokens[left] + tokens[right])
        super().__init__(tokens)
        self._model = self._library_model()
        self._ids_of_word = WordCache(self._model)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return BPETokenizer, (self.merges,)

    def _rules(self) -> list[str]:
        return [SPLIT_PATTERN, UNICODE_VERSION]

    def encode_array(self, text: str) -> np.ndarray:
        try:
            words = split_words(text)
        except UnicodeEncodeError:
            words = split_words(well_formed(text))
        return np.frombuffer(b"".join(map(self._ids_of_word.__getitem__, words)), dtype=np.int32)

    def _library_model(self) -> models.BPE:
        names = [printable(token) for token in self.tokens]
        vocab = {name: number for number, name in enumerate(names)}
        # ignore_merges: a word that is itself a token becomes that token, as in tiktoken; it is
        # also slightly faster
        return models.BPE(
            vocab, [(names[left], names[right]) for left, right in self.merges], ignore_merges=True
        )

    def _library_tokenizer(self) -> tokenizers.Tokenizer:
        library = tokenizers.Tokenizer(self._library_model())
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        library.decoder = decoders.ByteLevel()
        return library


class WordCache(dict[str, bytes]):
    """word -> its ids as the bytes of an int32 array, computed at the first look-up."""

    def __init__(self, model: models.BPE):
        super().__init__()
        self.model = model

    def __missing__(self, word: str) -> bytes:
        found = self.model.tokenize(printable(word.encode()))
        ids = np.array([token.id for token in found], dtype=np.int32).tobytes()
        if len(word) <= CACHED_WORD_LENGTH and len(self) < CACHED_WORDS:
            self[word] = ids
        return ids


class CharTokenizer(Tokenizer):
    """One token per character. `characters` holds them in code point order."""

    kind = "char"

    def __init__(self, characters: str):
        self.characters = characters
        super().__init__([char.encode() for char in characters])
        self._id_of_point = {ord(char): number for number, char in enumerate(characters)}

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return CharTokenizer, (self.characters,)

    def _rules(self) -> list[str]:
        return []

    def encode_array(self, text: str) -> np.ndarray:
        points = np.frombuffer(well_formed(text).encode("utf-32-le"), dtype=np.uint32)
        distinct, where = np.unique(points, return_inverse=True)
        try:
            ids = [self._id_of_point[point] for point in distinct.tolist()]
        except KeyError as missing:
            char = chr(missing.args[0])
            raise ValueError(
                f"character {char!r} (U+{ord(char):04X}) is not among the {len(self.characters)} "
                "characters this"
                " tokenizer was made from; make it from text that has it, or use tokenizer.kind=bpe"
            ) from None
        encoded = np.array(ids, dtype=np.int32)[where]
        encoded.flags.writeable = False
        return encoded

    def _library_tokenizer(self) -> tokenizers.Tokenizer:
        vocab = {char: number for number, char in enumerate(self.characters)}
        library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
        library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
        return library


# `tokenizers` requires a name for unknown tokens; this one is in no vocabulary, so that library
# raises too
UNKNOWN = "<|unknown|>"


def _printable_bytes() -> str:
    """256 printable characters, one per byte: GPT-2's alphabet, in which `tokenizers` writes bytes.

    Bytes that are printable in Latin-1 stand for themselves; the others map to U+0100 and up, in
    order.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in shown else next(hidden)) for byte in range(256))


PRINTABLE = _printable_bytes()


def printable(raw: bytes) -> str:
    """Bytes as `tokenizers` writes them, one printable character each."""
    return raw.decode("latin-1").translate(PRINTABLE)
