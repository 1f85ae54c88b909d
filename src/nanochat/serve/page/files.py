"""A text file that the browser read, as part of a message. The file itself is never sent here."""

from typing import Any

from nanochat.serve.page.rows import fenced
from nanochat.serve.page.store import shortened
from nanochat.serve.service import MAX_CHARACTERS

ATTACHED = MAX_CHARACTERS // 2  # guess: characters of a file; a conversation may have twice as many


def quoted(file: Any) -> str:
    """The text of {name, bytes, text}, with its name, as it goes into a message. ValueError of one
    line."""
    if not isinstance(file, dict) or not isinstance(file.get("text"), str | None):
        raise ValueError("this is not a file; choose one")
    name, size, text = shortened(str(file.get("name"))), file.get("bytes"), file.get("text")
    if type(size) is not int or size > 4 * ATTACHED or len(text or "") > ATTACHED:
        size = (
            f"{len(text):,} characters"
            if text
            else f"{size:,} bytes"
            if type(size) is int
            else "no size"
        )
        raise ValueError(
            f"{name} has {size}; at most {ATTACHED:,} characters can be attached: paste the part "
            "that matters"
        )
    if text is None or "\0" in text:
        raise ValueError(f"{name} is not text in UTF-8; only that can be attached")
    if not text.strip():
        raise ValueError(f"{name} is empty; there is nothing to attach")
    return f"{name}:\n{fenced(text.rstrip())}\n"
