"""The networks of the tests of decoding, which reinforcement learning decodes with too."""

import pytest
from tiny_networks import ARCHS, random_gpt

from nanochat.gpt import GPT


@pytest.fixture(scope="session", params=list(ARCHS))
def any_gpt(request) -> GPT:
    return random_gpt(request.param, std=0.2)  # with logits of the size of a trained one


@pytest.fixture(scope="session")
def gpt() -> GPT:
    return random_gpt()
