"""A GPT whose weights do not change any more: what decodes, and what a checkpoint is opened as.

The blocks are those of gpt/model.py. Put in for their layers are ones whose weights are cast,
joined and packed once (frozen.py), and attention takes fewer kernels in fp32: a step of decoding is
bound by their number. It can neither be trained nor saved.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from nanochat.gpt import GPT, GPT2, GPTConfig, PlainArch
from nanochat.gpt.attention import Attend
from nanochat.gpt.elementary import norm, rotate
from nanochat.gpt.gpt2 import Affine
from nanochat.gpt.model import MLP, Attention, Linear
from nanochat.inference.frozen import SIZES, FrozenWeight


class FrozenLinear(nn.Module):
    frozen: FrozenWeight

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.shapes = {"weight": tuple(layer.weight.shape)}

    def forward(self, x: Tensor) -> Tensor:
        """x (…, n_in) -> (…, n_out)."""
        return self.frozen.times(x)

    def product(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return self.frozen.times


class FrozenAffine(FrozenLinear):
    """With a bias, which stays a parameter."""

    def __init__(self, layer: Affine) -> None:
        super().__init__(layer)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen.times(x) + self.bias.to(x.dtype)


class FrozenAttention(Attention):
    """Attention whose query, key and value weights are one."""

    frozen: FrozenWeight

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.shapes = {}
        for name in ("c_q", "c_k", "c_v"):
            self.shapes[f"{name}.weight"] = tuple(getattr(self, name).weight.shape)
            delattr(self, name)

    def qkv(
        self, h: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.qkv`, h (B, T, C); q and k are turned and normalised together in fp32."""
        B, T, _ = h.shape
        H, G, D = self.H, self.G, self.D
        qkv = self.frozen.times(h).view(B, T, H + 2 * G, D)
        q, k, v = qkv.split((H, G, G), dim=2)
        # in bf16 every kernel rounds, so these would be other numbers
        fused = h.dtype == torch.float32
        if ve is not None:
            gate = torch.sigmoid(self.ve_gate(h[..., : self.gate_channels])).unsqueeze(-1)
            ve = ve.view(B, T, G, D)
            top = self.gate_max
            v = v.addcmul(gate, ve, value=top) if fused else v + top * gate * ve
        if fused:
            turned = _rotate(qkv[:, :, : H + G], cos, sin)  # (B, T, H + G, D)
            q, k = norm(turned, self.qk_scale).split((H, G), dim=2)
            return q, k, v
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        if self.qk_scale != 1:
            q, k = q * self.qk_scale, k * self.qk_scale
        return q, k, v


class FrozenMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        """On a CPU as many rows at a time as a product takes (frozen.py): what is between the two
        layers is four times as wide, and stays in the cache."""
        rows, most = x.numel() // x.size(-1), SIZES[-1]
        if not x.is_cpu or rows <= most or torch.compiler.is_compiling():
            return super().forward(x)
        parts = x.reshape(rows, -1).split(most)
        return torch.cat([MLP.forward(self, part) for part in parts]).view(x.shape)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate`, or with tables (B, T, 1, D) as `_both_halves` makes them, the same by fewer
    kernels."""
    half = x.size(-1) // 2
    if cos.size(-1) == half:
        return rotate(x, cos, sin)
    return torch.addcmul(x * cos, x.roll(half, -1), sin)


def _both_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (…, D/2) for both halves of the channels, (…, D)."""
    return torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)


class FrozenGPT(GPT):
    """Made `of` a GPT, whose tables it shares, or by `read` from a file. A weight in it is
    `value`."""

    compiles = True  # whether steps of decoding can run compiled

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.join_queries(config)
        for name, module in list(self.named_modules()):
            if isinstance(module, Affine):
                self.set_submodule(name, FrozenAffine(module))
            elif isinstance(module, Linear):
                self.set_submodule(name, FrozenLinear(module))
        self._lambdas: tuple[list[float], list[float]] | None = None  # of the residuals, as numbers

    def join_queries(self, config: GPTConfig) -> None:
        for i, block in enumerate(self.transformer.h):
            block.attn, block.mlp = FrozenAttention(config, i), FrozenMLP(config)

    @classmethod
    def build(cls, config: GPTConfig, **how: Any) -> "FrozenGPT":
        """As `GPT.build`."""
        return cls.of(GPT.build(config, **how))

    @classmethod
    def of(cls, gpt: GPT) -> "FrozenGPT":
        """The network as it is now; `gpt` itself stays as it is, and may not change while this one
        is in use. One that is frozen already is returned."""
        if isinstance(gpt, FrozenGPT):
            return gpt
        with torch.device("meta"):
            frozen = cls(gpt.config)
        frozen.compute_dtype, frozen.attend = gpt.compute_dtype, gpt.attend
        frozen.cos, frozen.sin = gpt.cos, gpt.sin
        frozen._fill(gpt.get_parameter, copy=False)
        return frozen

    @classmethod
    def read(
        cls, config: GPTConfig, read: Callable[[str], Tensor], *, compute_dtype: torch.dtype
    ) -> "FrozenGPT":
        """With weights from `read(name)`, on the device they come on, in no more memory than they
        take in the compute dtype. What was read is copied: it may be mapped from a file."""
        with torch.device("meta"):
            frozen = cls(config)
        frozen.compute_dtype = compute_dtype
        frozen._fill(read, copy=True)
        frozen.cos = torch.empty(0, device=frozen.device)
        frozen.grow_rope(config.sequence_len)
        return frozen

    @torch.no_grad()
    def _fill(self, read: Callable[[str], Tensor], *, copy: bool) -> None:
        """Every weight from `read`. With `copy`, tables are in the compute dtype too."""

        def weight(name: str, shape: Sequence[int]) -> Tensor:
            found = read(name)
            if found.shape != shape:
                wanted = f"the model wants {tuple(shape)}"
                raise ValueError(f"{name} has the shape {tuple(found.shape)}, {wanted}")
            return found

        dtype, room = self.compute_dtype, None
        # no more than one layer exists twice, and the head while little else is there
        for prefix, layer in reversed(self._layers()):
            named = {f"{prefix}.{name}": shape for name, shape in layer.shapes.items()}
            parts = [weight(name, shape).to(dtype) for name, shape in named.items()]
            joined = torch.cat(parts, out=room) if len(parts) > 1 else parts[0]
            layer.frozen = FrozenWeight.of(joined)
            if layer.frozen.weight.is_mkldnn:
                room = joined if len(parts) > 1 else room  # free again, for the next layer's
            elif copy and len(parts) == 1:
                layer.frozen = layer.frozen._replace(weight=joined.clone())
        for name, p in list(self.named_parameters()):
            value = weight(name, p.shape)
            if copy:
                value = value.to(dtype, copy=True)
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))
        if self.config.arch.lambdas and dtype == torch.float32:  # in bf16 they are rounded first
            self._lambdas = self.resid_lambdas.tolist(), self.x0_lambdas.tolist()
        self.eval()

    @torch.no_grad()
    def unpack(self) -> "FrozenGPT":
        """Leave every weight as it is, which compiled steps need; room for one weight meanwhile."""
        for _, layer in self._layers():
            layer.frozen = layer.frozen.unpacked()
        return self

    def value(self, name: str) -> Tensor:
        """The values of a parameter; a copy where it is packed."""
        for prefix, layer in self._layers():
            names = [f"{prefix}.{part}" for part in layer.shapes]
            if name in names:
                return layer.frozen.parts([rows for rows, _ in layer.shapes.values()])[
                    names.index(name)
                ]
        return self.get_parameter(name)

    def _layers(self) -> list[tuple[str, FrozenLinear | FrozenAttention]]:
        """The layers that have a frozen weight, by name."""
        kinds = FrozenLinear, FrozenAttention
        return [(name, m) for name, m in self.named_modules() if isinstance(m, kinds)]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "this network only runs: it cannot be saved; read its checkpoint instead"
        )

    # --- running ---------------------------------------------------------------------------------

    def hidden_cached(
        self,
        idx: Tensor,
        positions: Tensor,
        attends: Sequence[Attend],
        known: int = 0,
        first: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T - known, C) of tokens at `positions` (1 or B, T - known); layer i
        attends by `attends[i]`, which looks up what was kept of the tokens before.

        The first `known` columns of idx (B, T) were seen before: they are there for what a token
        takes from its predecessor. Rows numbered in `first` (n,) have none: there a text begins.
        Of rows `ends` (b,) alone, where given: (b, T - known, C).
        """
        x, bigram = self.embed(idx)
        x, bigram = x[:, known:], None if bigram is None else bigram[:, known:]
        if first is not None:  # as they are embedded without a predecessor
            alone, alone_bigram = self.embed(idx[first, known:])
            x = x.index_copy(0, first, alone)
            if bigram is not None and alone_bigram is not None:
                bigram = bigram.index_copy(0, first, alone_bigram)
        cos, sin = self.cos[0, positions], self.sin[0, positions]  # (1 or B, T - known, 1, D/2)
        if self.compute_dtype == torch.float32:
            cos, sin = _both_halves(cos, sin)
        return self.blocks(x, bigram, idx[:, known:], cos, sin, attends, ends)

    def mixed(self, i: int, x: Tensor, x0: Tensor) -> Tensor:
        if self._lambdas is None:
            return super().mixed(i, x, x0)
        resid, embedding = self._lambdas
        return torch.add(x * resid[i], x0, alpha=embedding[i])

    def loss_sum(self, idx: Tensor, targets: Tensor) -> Tensor:
        return self.losses(idx, targets).sum()


class FrozenGPT2(FrozenGPT, GPT2):
    """Of a GPT-2, whose queries, keys and values are one layer already."""

    def join_queries(self, config: GPTConfig) -> None:
        """Nothing to do."""


FrozenGPT.kinds = {PlainArch: FrozenGPT2}
