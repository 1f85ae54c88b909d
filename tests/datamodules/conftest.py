import os
import random
from pathlib import Path

import pytest

WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture(autouse=True)
def _own_base(tmp_path, monkeypatch):
    """Nothing is written outside the test's folder, and no mirror is used unless a test asks for
    it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)


MIRROR = os.environ.get("NANOCHAT_HUB_DIR", "")  # read before the fixture above hides it


@pytest.fixture
def mirror(monkeypatch) -> Path:
    """The local mirror of real data, or a skip."""
    if not MIRROR:
        pytest.skip("needs a local mirror of the data sets, named by NANOCHAT_HUB_DIR")
    monkeypatch.setenv("NANOCHAT_HUB_DIR", MIRROR)
    return Path(MIRROR)


def documents(count: int, seed: int = 0, mean: int = 60) -> list[str]:
    """Texts of very different lengths, no two the same."""
    draw = random.Random(seed)
    return [
        f"{seed}:{i} " + " ".join(draw.choices(WORDS, k=int(draw.expovariate(4 / mean)) + 1))
        for i in range(count)
    ]


@pytest.fixture
def texts():
    return documents
