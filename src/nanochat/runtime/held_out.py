"""The split of a text by its content: it does not change when other texts are added, and exact
copies get the same split."""

import hashlib


def is_held_out(text: str, fraction: float) -> bool:
    """Whether `text` is for validation or testing: its hash (blake2b) is in the lowest `fraction`
    of all hashes."""
    code = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(code, "big") < fraction * 2**64
