"""The cos and sin table to the last bit: an fp32 frequency is 1 / base ** (2j / D), and far
positions multiply its last bit."""

import numpy as np
import pytest
import torch
from tests.gpt.plain_gpt import arch

from nanochat.gpt import GPT, GPTConfig


@pytest.mark.parametrize(("era", "base"), [("E0", 1e4), ("E6", 1e5)])
def test_the_table_is_that_of_fp32_quotients(era, base):
    gpt = GPT.build(GPTConfig(2048, 64, 1, 1, 1, 128, arch(era, rope_dtype="float32")), seed=None)
    # every operation in double, then rounded to fp32
    channels = [float(np.float32(2 * j / 128)) for j in range(64)]
    frequency = np.array([np.float32(1.0 / float(np.float32(base**c))) for c in channels])
    negative = np.array([np.float32(base**-c) for c in channels])
    assert (frequency != negative).sum() > 10  # written the other way it is another table
    for t in (0, 1, 7, 1000, 2047):
        angle = torch.from_numpy(np.float32(t) * frequency)
        assert torch.equal(gpt.cos[0, t, 0], angle.cos()), t
        assert torch.equal(gpt.sin[0, t, 0], angle.sin()), t
