"""Checkpoints in the original's layout, written as the original writes them: `torch.save`, a meta
file, a pickled tiktoken encoding."""

import json
import pickle
import sys
from pathlib import Path

import tiktoken
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.config import build_arch
from nanochat.interop.eras import preset
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS
from nanochat.tokenizer.training import train_bpe
from nanochat.tokenizer.words import SPLIT_PATTERN

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "parity"))
from golden_eras import KEPT, PATTERN, SIZES, fixed_ids, fixed_weights


def network(era: str, **sizes: int) -> GPT:
    """The GPT of an era at the golden sizes, filled with the golden weights."""
    switches = {**preset(era), **({} if era == "classic" else {"window_pattern": PATTERN})}
    gpt = GPT.build(GPTConfig(**{**SIZES, **sizes}, arch=build_arch(switches)), seed=None)
    shapes = {name: tuple(p.shape) for name, p in gpt.state_dict().items()}
    gpt.load_state_dict(fixed_weights(shapes))
    return gpt


TEXT = [
    "the a of and to in river stone house light, it's 2024 and the rivers ran over the stones"
] * 20


def encoding(vocab_size: int = SIZES["vocab_size"]) -> tiktoken.Encoding:
    tokens = [bytes([b]) for b in range(256)]
    if vocab_size > 265:
        tokens = train_bpe(TEXT, vocab_size=vocab_size, max_chars=None, doc_cap=None).tokens
    specials = {name: len(tokens) + k for k, name in enumerate(SPECIAL_TOKENS)}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding(
        name="rustbpe", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


def write(
    root: Path,
    era: str = "modern",
    *,
    group: str = "base_checkpoints",
    tag: str = "d4",
    step: int = 10,
    prefix: str = "",
    vocab_size: int = SIZES["vocab_size"],
    tokenizer: Path | None = None,
    **meta: object,
) -> Path:
    """Write one checkpoint in the original's layout below `root`; returns its folder."""
    gpt = network(era, vocab_size=vocab_size)
    folder = root / group / tag
    folder.mkdir(parents=True, exist_ok=True)
    weights = {prefix + name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    weights[prefix + "transformer.wte.weight"] = weights[
        prefix + "transformer.wte.weight"
    ].bfloat16()
    torch.save(weights, folder / f"model_{step:06d}.pt")
    sizes = {
        **SIZES,
        "vocab_size": vocab_size,
        **({} if era == "classic" else {"window_pattern": PATTERN}),
    }
    content = {
        "step": step,
        "val_bpb": None,
        "model_config": sizes,
        "loop_state": {"min_val_bpb": float("inf")},
        **meta,
    }
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(content))
    place = tokenizer or root / "tokenizer"
    place.mkdir(parents=True, exist_ok=True)
    (place / "tokenizer.pkl").write_bytes(pickle.dumps(encoding(vocab_size), protocol=4))
    return folder


__all__ = ["KEPT", "SIZES", "TEXT", "encoding", "fixed_ids", "network", "write"]
