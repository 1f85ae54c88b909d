"""A tokenizer from the files in its folder, whatever its kind."""

import json
from pathlib import Path

import numpy as np

from nanochat.tokenizer.library import SPECIALS_FILE, load_library
from nanochat.tokenizer.tokenizer import (
    TOKEN_BYTES_FILE,
    TOKENIZER_FILE,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    printable,
)
from nanochat.tokenizer.words import SPLIT_PATTERN


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer saved in `folder`.

    FileNotFoundError if a file is missing. ValueError if `tokenizer.json` has another format, or if
    `token_bytes.npy` belongs to another tokenizer.
    """
    folder = Path(folder)
    for name in (TOKENIZER_FILE, TOKEN_BYTES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; give a folder that a nanochat tokenizer was saved in"
            )
    try:
        if (folder / SPECIALS_FILE).is_file():
            return load_library(folder)
        tokenizer = tokenizer_from_json((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        message = (
            f"{folder / TOKENIZER_FILE} is not a nanochat tokenizer ({reason}); train one again"
        )
        raise ValueError(message) from error
    try:
        lengths = np.load(folder / TOKEN_BYTES_FILE, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{folder / TOKEN_BYTES_FILE} cannot be read ({error}); save the tokenizer again"
        ) from error
    if not isinstance(lengths, np.ndarray) or not np.array_equal(lengths, tokenizer.token_bytes):
        raise ValueError(
            f"{folder / TOKEN_BYTES_FILE} does not match {TOKENIZER_FILE} in the same folder "
            "(other byte lengths); copy both files from the same folder"
        )
    return tokenizer


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote as `text`; ValueError or KeyError for other content."""
    content = json.loads(text)
    model = content["model"]
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    specials = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    tokenizer: Tokenizer
    if model["type"] == "BPE":
        id_of = {name: number for number, name in enumerate(names)}
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        tokenizer = BPETokenizer([(id_of[left], id_of[right]) for left, right in pairs])
        expected = {printable(token): number for number, token in enumerate(tokenizer.tokens)}
    elif model["type"] == "WordLevel":
        tokenizer = CharTokenizer("".join(names))
        expected = {char: number for number, char in enumerate(tokenizer.characters)}
    else:
        raise ValueError(f"its model is {model['type']}")
    if tokenizer.kind == "bpe" and content["pre_tokenizer"]["pretokenizers"][0]["pattern"] != {
        "Regex": SPLIT_PATTERN
    }:
        raise ValueError("it has another split pattern")
    if model["vocab"] != expected:
        raise ValueError("its ids are not the bytes, then the merges in order")
    if specials != tokenizer.specials:
        raise ValueError("its special tokens are not the last nine ids")
    return tokenizer
