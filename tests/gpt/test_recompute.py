"""What a backward pass computes again is what the forward pass had: losses and
gradients bit for bit."""

import pytest
import torch

from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.gpt.recompute import KINDS, recomputed
from nanochat.runs.memory import Alive


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arch", ["modern", "classic", "gpt2"])
def test_recomputing_changes_no_bit_and_keeps_less(arch: str, dtype: torch.dtype) -> None:
    built = build_arch(compose_choice("arch", arch))
    gpt = GPT.build(from_depth(3, vocab_size=64, sequence_len=256, head_dim=32, arch=built))
    gpt.prepare(compute_dtype=dtype, attention_backend="sdpa")
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.05, generator=drawn)
    idx = torch.randint(0, 64, (2, 256), generator=drawn)
    found, peaks = [], []
    for kind in KINDS:
        gpt._run_block = recomputed(kind)
        gpt.zero_grad()
        with Alive() as alive:
            loss = gpt.loss_sum(idx, idx)
        peaks.append(alive.now)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in gpt.parameters())])
    for values in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], values, strict=True))
    assert peaks[0] > peaks[1] > peaks[2]
    if arch != "gpt2":  # whose GELU keeps less than relu squared and norms of q and k
        assert peaks[0] > 1.5 * peaks[1] > 2 * peaks[2]
