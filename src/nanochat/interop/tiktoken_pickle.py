"""Reading the original's `tokenizer.pkl` without executing anything in it (facts sheet 3.3).

The file is a pickle of one `tiktoken.Encoding`. The unpickler here accepts that one name and
replaces it by an inert class. Any other name, and therefore any code, is refused before it is
looked up.
"""

import io
import pickle
from pathlib import Path
from typing import Any

from nanochat.tokenizer.merges import FIRST_MERGE, merges_of
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, BPETokenizer
from nanochat.tokenizer.words import SPLIT_PATTERN

MAX_BYTES = 64 * 2**20  # guess: the file of 65,536 tokens has 0.85 MB


class _Encoding:
    """Replaces `tiktoken.Encoding`: stores its state and does nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _OnlyEncoding(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no nanochat tokenizer does")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_tokenizer(path: Path) -> BPETokenizer:
    """The tokenizer in a `tokenizer.pkl`. ValueError that names the file for any other content;
    nothing in it is executed."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; a nanochat tokenizer has under {MAX_BYTES:,}")
    try:
        found = _OnlyEncoding(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle raises many exception types
        raise ValueError(
            f"{path} is not a nanochat tokenizer: {str(error) or type(error).__name__}"
        ) from error
    try:
        return _checked(found)
    except ValueError as error:
        raise ValueError(f"{path} is not a nanochat tokenizer: {error}") from error


def _checked(found: Any) -> BPETokenizer:
    state = found.state if isinstance(found, _Encoding) else None
    if not isinstance(state, dict):
        raise ValueError("it holds no encoding")
    ranks, specials = state.get("mergeable_ranks"), state.get("special_tokens")
    if not isinstance(ranks, dict) or not all(
        type(k) is bytes and type(v) is int for k, v in ranks.items()
    ):
        raise ValueError("mergeable_ranks is not a dictionary of byte strings and numbers")
    if state.get("pat_str") != SPLIT_PATTERN:
        raise ValueError("it has another split pattern")
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < FIRST_MERGE:
        raise ValueError("its ranks are not 0, 1, 2 …")
    if any(ranks.get(bytes([byte])) != byte for byte in range(FIRST_MERGE)):
        raise ValueError("its first 256 tokens are not the bytes")
    if specials != {name: len(ranks) + k for k, name in enumerate(SPECIAL_TOKENS)}:
        raise ValueError("its special tokens are not nanochat's nine, after all others")
    return BPETokenizer(merges_of(ranks))
