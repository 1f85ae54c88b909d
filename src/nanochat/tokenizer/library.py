"""A tokenizer of another model, used as it is: `tokenizer.json` in the format of `tokenizers`.

Its ids are kept, whatever their order. `special_tokens.json` beside it says which of its ids have
the part of our special tokens: a bos starts a text, and, where the model chats, an assistant_end
ends an answer. Only byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): there every id is a string of
bytes, as bits per byte and streamed text need it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from nanochat.tokenizer.tokenizer import PRINTABLE, SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.words import well_formed

SPECIALS_FILE = "special_tokens.json"
BYTE_OF = {char: byte for byte, char in enumerate(PRINTABLE)}


class LibraryTokenizer(Tokenizer):
    """`content` is a tokenizer.json, `specials` maps our names of special tokens to its ids; it has
    at least a bos. `vocab_size` is the model's, where that has more rows than the tokenizer has
    tokens.

    ValueError if it is not byte-level BPE, or a special token is not one of its ids.
    """

    kind = "library"

    def __init__(
        self, content: str, specials: dict[str, int], vocab_size: int | None = None
    ) -> None:
        self.content, self.specials = content, dict(specials)
        self._library = _read(content)
        added = self._library.get_added_tokens_decoder()
        vocab = self._library.get_vocab(with_added_tokens=True)
        known = max(vocab.values()) + 1
        self.vocab_size = max(known, vocab_size or 0)
        self._pieces = [b""] * self.vocab_size
        for name, number in vocab.items():
            self._pieces[number] = (
                name.encode()
                if number in added
                else bytes(BYTE_OF[char] for char in name if char in BYTE_OF)
            )
        silent = {number for number, token in added.items() if token.special}
        if wrong := [n for n in self.specials.values() if not 0 <= n < known]:
            raise ValueError(f"its special token {wrong[0]} is not one of its {known:,} ids")
        self.silent = silent | set(self.specials.values())
        self.tokens = self._pieces[: min(self.silent, default=self.vocab_size)]
        self.bos_id = self.specials["<|bos|>"]
        lengths = [0 if n in self.silent else len(piece) for n, piece in enumerate(self._pieces)]
        self.token_bytes = np.array(lengths, dtype=np.int32)  # (V,)
        self.hash = self._hash()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return LibraryTokenizer, (self.content, self.specials, self.vocab_size)

    def _hash(self) -> str:
        rules = [self.kind, self.content, sorted(self.specials.items()), self.vocab_size]
        return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:16]

    def _rules(self) -> list[str]:
        return [self.content]

    def encode_array(self, text: str) -> np.ndarray:
        ids = self._library.encode(well_formed(text), add_special_tokens=False).ids
        encoded = np.array(ids, dtype=np.int32)
        encoded.flags.writeable = False
        return encoded

    def _library_tokenizer(self) -> tokenizers.Tokenizer:
        return self._library

    def to_json(self) -> str:
        return self.content

    def save(self, folder: Path) -> None:
        super().save(folder)
        facts = {"specials": self.specials, "vocab_size": self.vocab_size}
        (Path(folder) / SPECIALS_FILE).write_text(
            json.dumps(facts, indent=2) + "\n", encoding="utf-8"
        )

    def with_chat_tokens(self) -> "LibraryTokenizer":
        """The same with ids for those of our special tokens that it lacks, after all others."""
        library = tokenizers.Tokenizer.from_str(self.content)
        missing = [name for name in SPECIAL_TOKENS if name not in self.specials]
        library.add_special_tokens(
            [tokenizers.AddedToken(name, special=True, normalized=False) for name in missing]
        )
        vocab = library.get_vocab()
        ids = {name: vocab[name] for name in missing}
        return LibraryTokenizer(library.to_str(pretty=False), {**self.specials, **ids})


def _read(content: str) -> tokenizers.Tokenizer:
    kind = json.loads(content)
    if kind["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(kind.get("decoder")):
        raise ValueError("it is not byte-level BPE, the only kind of other models read here")
    library = tokenizers.Tokenizer.from_str(content)
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # a text that has the name of one gets no id of its own
    return library


def load_library(folder: Path) -> LibraryTokenizer:
    """The tokenizer that `LibraryTokenizer.save` wrote into `folder`. ValueError or KeyError for
    other content."""
    facts = json.loads((folder / SPECIALS_FILE).read_text(encoding="utf-8"))
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return LibraryTokenizer(content, facts["specials"], facts["vocab_size"])
