"""What holds for every test: one thread, so that a busy machine slows nothing down more than it must."""

import signal
from pathlib import Path

import pytest
import torch

# a shell that starts the tests in the background has them ignore Ctrl-C, and every process they start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors this small are slower on more threads, many times so where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files whose tests are all slow are not even imported for `make check`: gradio alone takes five seconds of every process."""
    if "not slow" in config.option.markexpr and collection_path.suffix == ".py":
        return "\npytestmark = pytest.mark.slow" in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, those of whole runs before all, so that no core waits for one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.parent.name != "train"))
