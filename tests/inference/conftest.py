"""The networks that several files decode with."""

import pytest
import torch
from tiny_networks import ARCHS, random_gpt

from nanochat.gpt import GPT


@pytest.fixture(
    scope="session",
    params=[(a, g) for a in ARCHS for g in (4, 2)],
    ids=lambda p: f"{p[0]}-{p[1]}of4",
)
def any_gpt(request) -> GPT:
    arch, groups = request.param
    return random_gpt(arch, n_kv_head=groups)


@pytest.fixture(scope="session")
def gpt() -> GPT:
    return random_gpt()


@pytest.fixture(autouse=True)
def packed(monkeypatch):
    """Weights of networks as small as these would be left as they are."""
    monkeypatch.setattr(
        "nanochat.inference.frozen.PACKING_PAYS", dict.fromkeys((torch.float32, torch.bfloat16), 1)
    )
