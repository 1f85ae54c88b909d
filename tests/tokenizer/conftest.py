"""One tokenizer trained on real text and its twin in tiktoken, for the whole folder."""

import inspect
import pydoc_data.topics
import textwrap
import unicodedata

import pytest
import tiktoken

from nanochat.tokenizer import BPETokenizer, train_bpe
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.words import SPLIT_PATTERN

CORPUS = [
    *pydoc_data.topics.topics.values(),
    inspect.getsource(textwrap),
    inspect.getsource(inspect),
    *SAMPLES.values(),
]


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    return train_bpe(CORPUS, 3000, max_chars=None, doc_cap=None)


@pytest.fixture(scope="session")
def tiktoken_twin(bpe):
    """tiktoken on the same byte strings: an independent splitter and merger."""
    return tiktoken.Encoding(
        "twin",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(bpe.tokens)},
        special_tokens=bpe.specials,
    )


@pytest.fixture(scope="session")
def assigned() -> list[str]:
    """Every character Python's Unicode knows, without surrogates."""
    return [
        chr(point)
        for point in range(0x110000)
        if unicodedata.category(chr(point)) not in ("Cn", "Cs")
    ]
