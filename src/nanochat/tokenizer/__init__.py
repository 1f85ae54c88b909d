"""Tokenizers: training, encoding, decoding, and their files."""

from nanochat.tokenizer.files import load_tokenizer
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, BPETokenizer, CharTokenizer, Tokenizer
from nanochat.tokenizer.training import train_bpe, train_char, train_or_load

__all__ = [
    "SPECIAL_TOKENS",
    "BPETokenizer",
    "CharTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "train_bpe",
    "train_char",
    "train_or_load",
]
