"""Small checkpoints of any era with weights that are not their start, which
would hide most mistakes."""

from pathlib import Path

import pytest
import torch

from nanochat.checkpoint import folder
from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.interop.eras import preset
from nanochat.tokenizer import train_bpe

TEXT = ["What is two plus two? It is 4. Be brief. hello world, the rivers ran over <|bos|> stones"]


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe(TEXT * 5, 290, max_chars=None, doc_cap=None)


@pytest.fixture(scope="session")
def make(tokenizer, tmp_path_factory):
    """`make(arch, phase)`: the folder of a checkpoint, made once."""
    made: dict[tuple[str, str], Path] = {}

    def checkpoint(arch: str = "modern", phase: str = "sft", **switches) -> Path:
        key = (arch, f"{phase}{sorted(switches.items())}")
        if key not in made:
            made[key] = tmp_path_factory.mktemp(arch) / "step_000007"
            sizes = {"vocab_size": tokenizer.vocab_size, "sequence_len": 192, "head_dim": 64}
            chosen = build_arch({**preset(arch), **switches})
            gpt = GPT.build(from_depth(3, n_kv_head=1, n_embd=128, arch=chosen, **sizes), seed=1)
            draw = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for p in gpt.parameters():
                    p.add_(torch.randn(p.shape, generator=draw) * (0.08 if p.ndim > 1 else 0.3))
            lineage = {"step": 7, "config": {"phase": phase, "run_name": "tiny"}}
            folder.save(made[key], gpt.state_dict(), gpt.config, tokenizer, lineage)
        return made[key]

    return checkpoint
