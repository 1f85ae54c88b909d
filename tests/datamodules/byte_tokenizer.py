"""The smallest tokenizer there is, a token a byte: what these tests say does not depend on a
vocabulary."""

import time

import numpy as np


class ByteTokenizer:
    kind = "bpe"
    vocab_size = 265
    bos_id = 256
    hash = "b" * 16

    def encode_array(self, text: str):
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def decode(self, ids) -> str:
        return b"".join(bytes([i]) if i < 256 else b"<|bos|>" for i in ids).decode(
            "utf-8", "replace"
        )


class SlowTokenizer(ByteTokenizer):
    """Takes its time, so that there is a middle to be killed in."""

    def encode_array(self, text: str):
        time.sleep(0.004)
        return super().encode_array(text)
