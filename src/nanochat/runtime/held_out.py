"""Which side of a split a text is on, by what it says: it stays there whatever else arrives, and an exact copy of it lands there too."""

import hashlib


def is_held_out(text: str, fraction: float) -> bool:
    """Whether `text` is for validation or testing: its hash (blake2b) is in the lowest `fraction` of all hashes."""
    code = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(code, "big") < fraction * 2**64
