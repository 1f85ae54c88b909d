"""GPT-2 behind the interface of the GPT: its published weights run and train here (Radford et al.
2019).

    tokens (B, T) -> embed + position -> n blocks of attention and MLP -> norm
        -> the embedding again -> logits (B, T, V)

What differs from model.py is all here: learned positions, LayerNorm with gain and bias, biases
everywhere, GELU, and one table for embedding and head. As switches of `Arch` each of these would be
a branch in code that every era runs. As a separate network it shares everything that does not
depend on them: attention back-ends, loss, construction, decoding. Tensor names are those of the
published files, whose matrices are stored transposed (`interop/huggingface.py`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.attention import Attend
from nanochat.gpt.config import GPTConfig, PlainArch
from nanochat.gpt.model import GPT, Embedding, Linear, _Filler


class Affine(Linear):
    """x (…, n_in) -> (…, n_out): a linear layer with a bias."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.Module):
    """x (…, C) to mean 0 and variance 1, times a gain, plus a bias (Ba et al. 2016,
    arXiv:1607.06450)."""

    def __init__(self, C: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(C)), nn.Parameter(torch.empty(C))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, (x.size(-1),), gain, bias, self.eps)


class GPT2Attention(nn.Module):
    """Causal attention without a window, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.H, self.D = config.n_head, config.head_dim
        self.c_attn, self.c_proj = Affine(C, 3 * C), Affine(C, C)

    def forward(self, h: Tensor, attend: Attend, ends: Tensor | None = None) -> Tensor:
        B, T, _ = h.shape
        q, k, v = self.c_attn(h).view(B, T, 3, self.H, self.D).unbind(2)  # (B, T, H, D) each
        q = q if ends is None else q[ends]
        return self.c_proj(attend(q, k, v, None).flatten(2))


class GPT2MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.c_fc, self.c_proj = Affine(C, 4 * C), Affine(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C). GELU in the tanh approximation, with which GPT-2 was
        trained."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    def __init__(self, config: GPTConfig, eps: float) -> None:
        super().__init__()
        self.ln_1, self.attn = LayerNorm(config.n_embd, eps), GPT2Attention(config)
        self.ln_2, self.mlp = LayerNorm(config.n_embd, eps), GPT2MLP(config)

    def forward(self, x: Tensor, attend: Attend, ends: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C), or rows `ends` of it."""
        y = self.attn(self.ln_1(x), attend, ends)
        x = (x if ends is None else x[ends]) + y
        return x + self.mlp(self.ln_2(x))


class GPT2Transformer(nn.Module):
    """Embeddings, blocks and last norm, under the names of the published files."""

    def __init__(self, config: GPTConfig, eps: float) -> None:
        super().__init__()
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = Embedding(config.sequence_len, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config, eps) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps)


class TiedHead(NamedTuple):
    """The embedding used as the head: the interface of `Linear` over a weight (Vp,
    C) of another module."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def product(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        weight = self.weight.to(dtype)
        return lambda x: F.linear(x, weight)


class GPT2(GPT):
    """GPT-2, with `config.arch` a `PlainArch`. `cos` and `sin` hold the position indices instead of
    angles: (1, positions, 1, 1)."""

    def add_layers(self, config: GPTConfig) -> None:
        assert isinstance(config.arch, PlainArch)
        self.transformer = GPT2Transformer(config, config.arch.norm_eps)  # type: ignore[assignment]

    @property
    def lm_head(self) -> TiedHead:
        return TiedHead(self.transformer.wte.weight)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal with the arch's standard deviation; smaller for matrices that write
        into the residual stream, since 2 n of them add up (Radford et al. 2019, section
        2.3). Biases 0, gains 1."""
        config, fill = self.config, _Filler(self, generator)
        assert isinstance(config.arch, PlainArch)
        std = config.arch.init_std
        for name, p in self.named_parameters():
            if p.ndim > 1:
                into_stream = name.endswith("c_proj.weight")
                fill.normal(p, std / math.sqrt(2 * config.n_layer) if into_stream else std)
            else:
                fill.done(p).fill_(float(".ln_" in name and name.endswith("weight")))

    def parameter_roles(self) -> dict[str, str]:
        tables = ("transformer.wte", "transformer.wpe")
        return {
            name: "vector" if p.ndim == 1 else "embedding" if name.startswith(tables) else "matrix"
            for name, p in self.named_parameters()
        }

    @property
    def longest(self) -> int | None:
        return self.config.sequence_len

    def grow_rope(self, length: int) -> None:
        """ValueError for more positions than were learned; learned positions cannot be extended."""
        known = self.config.sequence_len
        if length > known:
            raise ValueError(f"{length:,} tokens are more than the {known:,} positions of a GPT-2")
        if not self.cos.numel():
            self.cos = self.sin = torch.arange(known, device=self.device)[None, :, None, None]

    def embed(self, idx: Tensor) -> tuple[Tensor, None]:
        """Token ids (B, T) -> their embeddings (B, T, C), without positions."""
        return self.transformer.wte(idx).to(self.compute_dtype), None

    def blocks(
        self,
        x: Tensor,
        bigram: Tensor | None,
        idx: Tensor,
        cos: Tensor,
        sin: Tensor,
        attends: Sequence[Attend],
        ends: Tensor | None = None,
    ) -> Tensor:
        """As `GPT.blocks`; cos (1 or B, T, 1, …) holds the position indices."""
        layers: Any = self.transformer
        x = x + layers.wpe(cos[:, :, 0, 0]).to(x.dtype)
        run = self.run_block()
        for i, (block, attend) in enumerate(zip(layers.h, attends, strict=True), 1):
            x = run(block, x, attend, ends if i == len(attends) else None)
        return layers.ln_f(x)


GPT.kinds[PlainArch] = GPT2
