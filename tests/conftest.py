"""What holds for every test: one thread, so that a busy machine slows nothing down more than it must."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors this small are slower on more threads, many times so where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
