"""Bytes of text per token, compared with GPT-2's and GPT-4's encodings. More bytes per token mean
more text in a sequence."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from nanochat.tokenizer.tokenizer import Tokenizer

Counter = Callable[[str], int]
STORE = "https://openaipublic.blob.core.windows.net"
# name -> (tiktoken's name, the files it downloads); from: tiktoken's public encodings
ENCODINGS = {
    "GPT-2": ("gpt2", ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json")),
    "GPT-4": ("cl100k_base", ("encodings/cl100k_base.tiktoken",)),
}


def _counter(encoding: Any) -> Counter:
    return lambda text: len(encoding.encode_ordinary(text))


def reference_encodings() -> tuple[dict[str, Counter], str | None]:
    """Counters of the reference encodings by name, and a line that names those that are missing.

    A counter maps a text to its number of tokens. The network is never used: only files that
    `tiktoken` has already downloaded to its cache count.
    """
    try:
        import tiktoken
    except ImportError:
        return {}, "GPT-2 and GPT-4 are not shown: tiktoken is not installed (pip install tiktoken)"
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    kept = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    found: dict[str, Counter] = {}
    for name, (encoding_name, files) in ENCODINGS.items():
        if all(
            (kept / hashlib.sha1(f"{STORE}/{file}".encode()).hexdigest()).is_file()
            for file in files
        ):
            encoding = tiktoken.get_encoding(encoding_name)
            found[name] = _counter(encoding)
    missing = [name for name in ENCODINGS if name not in found]
    if not missing:
        return found, None
    names = " and ".join(missing)
    fetch = "; ".join(f"tiktoken.get_encoding('{ENCODINGS[name][0]}')" for name in missing)
    return (
        found,
        (
            f'{names} not shown: no files in {kept} (with a network: python -c "import tiktoken; '
            f'{fetch}")'
        ),
    )


def compression_table(
    tokenizer: Tokenizer, texts: dict[str, str], references: dict[str, Counter]
) -> Table:
    """A table with one row per text: bytes, tokens, bytes per token; and, for each reference, its
    bytes per token and the share of tokens that ours saves."""
    table = Table(
        "text",
        *(("bytes", "tokens", "bytes/token")),
        title=f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens",
    )
    for name in references:
        table.add_column(name)
        table.add_column("ours saves")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, text in texts.items():
        size = len(text.encode("utf-8", "replace"))
        try:
            ours = len(tokenizer.encode_array(text))
        except ValueError:  # a character tokenizer without some of these characters
            table.add_row(name, f"{size:,}", "unknown characters")
            continue
        cells = [name, f"{size:,}", f"{ours:,}", f"{size / max(ours, 1):.2f}"]
        for count in references.values():
            theirs = count(text)
            cells += [f"{size / max(theirs, 1):.2f}", f"{(theirs - ours) / max(theirs, 1):+.1%}"]
        table.add_row(*cells)
    return table


def first_characters(documents: Iterable[str], characters: int) -> str:
    """The first whole documents of a corpus, until they have at least `characters` characters
    together."""
    taken: list[str] = []
    size = 0
    for document in documents:
        taken.append(document)
        size += len(document)
        if size >= characters:
            break
    return "\n".join(taken)
