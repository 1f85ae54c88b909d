"""Networks for the tests of decoding: one with random weights per arch, one that follows a script,
and the plain way to decode."""

import math
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nanochat.gpt import GPT, Arch, GPTConfig, build_arch
from nanochat.inference.cache import KVCache
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.tokenizer import BPETokenizer

TOKENIZER = BPETokenizer([])  # 256 bytes and the specials
V, T = TOKENIZER.vocab_size, 48
SPECIAL = TOKENIZER.specials
CLASSIC = OmegaConf.to_container(
    OmegaConf.load(Path(__file__).parents[2] / "conf/arch/classic.yaml")
)
ARCHS = {
    "modern": Arch(short_window_multiple=1),  # S layers see 12 tokens back
    "classic": build_arch(CLASSIC),
    "bigram": Arch(
        short_window_multiple=1, bigram=True, smear=False, backout=False, value_gate_channels=32
    ),
}
# 1, 3, 17, 7, 31 tokens
PROMPTS = [[5], [1, 2, 3], list(range(60, 77)), [9, 8, 7, 6, 5, 4, 3], list(range(100, 131))]


def random_gpt(arch: str = "modern", seed: int = 0, std: float = 0.4, **sizes) -> GPT:
    config = GPTConfig(
        **{
            "sequence_len": T,
            "vocab_size": V,
            "n_layer": 4,
            "n_head": 4,
            "n_kv_head": 2,
            "n_embd": 32,
            "arch": ARCHS[arch],
            **sizes,
        }
    )
    gpt = GPT.build(config)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, std, generator=drawn)
    return gpt


def cache_of(gpt: GPT, rows: int, **how) -> KVCache:
    """A cache of the network's weights as they are now."""
    return KVCache(FrozenGPT.of(gpt), rows, **how)


STOPS = (SPECIAL["<|assistant_end|>"], SPECIAL["<|bos|>"])


def plain_greedy(gpt: GPT, prompt: list[int], max_tokens: int) -> list[int]:
    """The definition: the whole text through the network for every token. For a network whose
    weights stay as they are."""
    return list(_plain_greedy(gpt, tuple(prompt), max_tokens))


@lru_cache
@torch.no_grad()
def _plain_greedy(gpt: GPT, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    text = list(prompt)
    while len(text) < min(T, len(prompt) + max_tokens):
        token = int(gpt(torch.tensor([text]))[0, -1].argmax())
        if token in STOPS:
            break
        text.append(token)
    return text[len(prompt) :]


def chain(*pieces: str) -> dict[int, int]:
    """token -> the token that the network then wants: the specials and bytes of `pieces` in order,
    each token at most once."""
    ids = [
        i
        for piece in pieces
        for i in ([SPECIAL[piece]] if piece in SPECIAL else TOKENIZER.encode(piece))
    ]
    assert len(set(ids)) == len(ids)
    return dict(pairwise(ids))


class Scripted(FrozenGPT):
    """What comes next is decided by the last token alone."""

    script: dict[int, int]

    def blocks(self, x, bigram, idx, cos, sin, attends, ends=None):
        idx = idx if ends is None else idx[ends]
        return torch.tensor([[self.script.get(t, ord("?")) for t in row] for row in idx.tolist()])[
            ..., None
        ]

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0], V).float()


def scripted(script: dict[int, int]) -> Scripted:
    gpt = Scripted.build(GPTConfig(T, V, 2, 2, 2, 32))
    gpt.script = script
    return gpt


def plain_distribution(
    logits: torch.Tensor, sampling: Sampling, seen: set[int]
) -> dict[int, float]:
    """The definition of sampling, in float64: token -> probability of what the settings leave of
    logits (V,)."""
    z = logits.double().tolist()
    penalty = sampling.repetition_penalty or 1
    z = [
        (v / penalty if v > 0 else v * penalty) if token in seen else v for token, v in enumerate(z)
    ]
    order = sorted(range(len(z)), key=lambda token: -z[token])[: sampling.top_k]
    weights = [math.exp((z[token] - z[order[0]]) / sampling.temperature) for token in order]
    p = {token: weight / sum(weights) for token, weight in zip(order, weights, strict=True)}
    before = dict(zip(order, [0, *accumulate(p.values())], strict=False))  # how much is likelier
    kept = [token for token in order if before[token] < (sampling.top_p or 2)]
    kept = [token for token in kept if p[token] >= (sampling.min_p or 0) * p[order[0]]]
    return {token: p[token] / sum(p[other] for other in kept) for token in kept}
