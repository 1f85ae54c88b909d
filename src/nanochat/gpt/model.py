"""The GPT: one backbone for all eras of nanochat. It knows its sizes and the role of each parameter, nothing else.

Tensor names are those of nanochat checkpoints (facts sheet 1.2). Weights are fp32 masters; a linear layer casts its weight to
the dtype of what comes in, so the compute dtype is a property of the activations and there is no autocast (facts sheet 1.8).
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import attention, loss
from nanochat.gpt.config import Arch, GPTConfig
from nanochat.gpt.counts import BIGRAM_ROWS
from nanochat.gpt.frozen import Frozen

NORM_EPS = torch.finfo(torch.float32).eps  # from: facts sheet 1.3, what rms_norm uses without an eps


def norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """RMSNorm over the last axis without a gain, times `scale`."""
    plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if plain and not torch.compiler.is_compiling():
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # the same by half as many kernels
        squared = torch.addcmul(_constant(NORM_EPS / scale**2), length, length, value=1 / (x.size(-1) * scale**2))
        return x * squared.rsqrt_()
    x = F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)
    return x if scale == 1 else x * scale


@functools.cache
def _constant(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE by *minus* the angle, nanochat's convention (facts sheet 1.3). x (B, T, heads, D), cos and sin (1, T, 1, D/2).

    Or both (B, T, 1, D), as `whole_turn` makes them: fewer kernels, where each of them counts.
    """
    half = x.size(-1) // 2
    if cos.size(-1) > half:
        return torch.addcmul(x * cos, x.roll(half, -1), sin).to(x.dtype)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1).to(x.dtype)


def whole_turn(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (…, D/2) as `rotate` takes them for both halves at once, (…, D)."""
    return torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)


def set_matmul_precision(device: torch.device) -> None:
    """TF32 for fp32 matrix products on CUDA (facts sheet 1.8); everywhere else PyTorch's own setting stays."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


class Linear(nn.Linear):
    """A linear layer without bias whose fp32 weight follows the dtype of its input."""

    frozen: Frozen | None = None  # see GPT.frozen

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) if self.frozen is None else self.frozen.times(x)

    def product(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """What `forward` does with inputs of `dtype`, for many of them: the weight is cast once."""
        if self.frozen is not None:
            return self.frozen.times
        weight = self.weight.to(dtype)
        return lambda x: F.linear(x, weight)

    def freezes(self) -> dict[str, int]:
        """The parameters that are frozen as one weight, one below the other, and how many rows each has."""
        return {"weight": self.out_features}


class Embedding(nn.Embedding):
    """Left as allocated: `init_weights` or a checkpoint fills it. On the meta device torch's own filling imports its compiler, 2 to 3 s."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    frozen: Frozen | None = None  # see GPT.frozen

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        d, kv = config.n_embd, config.n_kv_head * config.head_dim
        self.H, self.G, self.D = config.n_head, config.n_kv_head, config.head_dim
        self.qk_scale, self.gate_max, self.gate_channels = (
            config.arch.qk_scale,
            config.arch.value_gate_max,
            config.arch.value_gate_channels,
        )
        self.window = config.windows[layer]
        self.c_q, self.c_k, self.c_v, self.c_proj = Linear(d, d), Linear(d, kv), Linear(d, kv), Linear(d, d)
        if layer in config.value_layers:
            self.ve_gate = Linear(self.gate_channels, self.G)

    def forward(self, h: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, attend: attention.Attend) -> Tensor:
        B, T, _ = h.shape
        # one product for the three: larger matrices run nearer to the peak, and backward reads h once
        qkv = F.linear(h, self.qkv_weight(h.dtype)) if self.frozen is None else self.frozen.times(h)
        qkv = qkv.view(B, T, self.H + 2 * self.G, self.D)
        fused = (
            self.frozen is not None and h.dtype == torch.float32
        )  # a step of decoding is bound by the number of kernels
        q, k, v = qkv.split((self.H, self.G, self.G), dim=2)
        if ve is not None:
            gate = torch.sigmoid(self.ve_gate(h[..., : self.gate_channels])).unsqueeze(-1)  # (B, T, G, 1)
            ve = ve.view(B, T, self.G, self.D)
            v = v + self.gate_max * gate * ve if not fused else v.addcmul(gate, ve, value=self.gate_max)
        if not fused:
            q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
            if self.qk_scale != 1:
                q, k = q * self.qk_scale, k * self.qk_scale
        else:
            qk = norm(rotate(qkv[:, :, : self.H + self.G], cos, sin), self.qk_scale)
            q, k = qk.split((self.H, self.G), dim=2)
        return self.c_proj(attend(q, k, v, self.window).reshape(B, T, self.H * self.D))

    def qkv_weight(self, dtype: torch.dtype) -> Tensor:
        return torch.cat((self.c_q.weight, self.c_k.weight, self.c_v.weight)).to(dtype)  # (C + 2 G D, C)

    def freezes(self) -> dict[str, int]:
        """As `Linear.freezes`."""
        kv = self.G * self.D
        return {"c_q.weight": self.H * self.D, "c_k.weight": kv, "c_v.weight": kv}


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Linear(config.n_embd, 4 * config.n_embd), Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, attend: attention.Attend) -> Tensor:
        x = x + self.attn(norm(x), ve, cos, sin, attend)
        return x + self.mlp(norm(x))


class Transformer(nn.Module):
    """Token embedding and blocks, under the names that nanochat gives them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))


class GPT(nn.Module):
    """Token ids to hidden states, logits or losses. Build one with `GPT.build`, which also fills the weights."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, arch, d, n = config, config.arch, config.n_embd, config.n_layer
        self.compute_dtype = torch.float32
        self.attend: attention.Attend = attention.sdpa
        self._loss_step: Callable = loss.capped_loss_and_grad
        self._trunk: Callable = self._forward_trunk
        self._compiled_shape: tuple[int, int] | None = None
        self._only_runs = False
        self._lambdas: tuple[list[float], list[float]] | None = None  # of the residuals, while they cannot change
        if arch.lambdas:
            self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.empty(n)), nn.Parameter(torch.empty(n))
        if arch.smear:
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if arch.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))
        if arch.bigram:
            self.bigram_lambdas = nn.Parameter(torch.empty(n))
            self.bigram_embed = nn.ModuleDict({"embed": Embedding(BIGRAM_ROWS * config.vocab_size, d)})
        self.transformer = Transformer(config)
        self.lm_head = Linear(d, config.padded_vocab_size)
        if arch.smear:
            self.smear_gate = Linear(arch.smear_channels, 1)
        if config.value_layers:
            kv = config.n_kv_head * config.head_dim
            self.value_embeds = nn.ModuleDict(
                {str(i): Embedding(config.padded_vocab_size, kv) for i in config.value_layers}
            )
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    # --- construction ------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        config: GPTConfig,
        *,
        seed: int | None = 42,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
    ) -> "GPT":
        """Construct on the meta device, allocate on `device`, fill every weight (`seed=None` leaves them for a checkpoint to fill)."""
        with torch.device("meta"):
            gpt = cls(config)
        gpt.to_empty(device=device)
        gpt.compute_dtype = compute_dtype
        gpt.grow_rope(config.sequence_len)
        if seed is not None:
            gpt.init_weights(torch.Generator(device=device).manual_seed(seed))
        return gpt

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every parameter by the arch's rule (facts sheet 1.7), in nanochat's draw order; one left out is an error."""
        arch, d = self.config.arch, self.config.n_embd
        missing = {id(p): name for name, p in self.named_parameters()}

        def done(p: Tensor) -> Tensor:
            missing.pop(id(p))
            return p

        def normal(p: Tensor, std: float) -> None:
            done(p).normal_(0.0, 1.0, generator=generator).mul_(std) if std else done(p).zero_()

        def uniform(p: Tensor, low: float, high: float) -> None:
            done(p).uniform_(low, high, generator=generator) if high > low else done(p).fill_(low)

        def fan(p: Tensor) -> float:
            return min(1.0, math.sqrt(p.size(0) / p.size(1))) / math.sqrt(p.size(1))

        a = math.sqrt(3 / d)
        normal(self.transformer.wte.weight, arch.embed_std)
        if arch.matrix_init == "uniform":
            normal(self.lm_head.weight, arch.head_std)
        for block in self.transformer.h:
            attn, mlp = block.attn, block.mlp
            if arch.matrix_init == "uniform":
                for layer in (attn.c_q, attn.c_k, attn.c_v):
                    uniform(layer.weight, -a, a)
                uniform(mlp.c_fc.weight, -a * arch.fc_init_scale, a * arch.fc_init_scale)
            else:
                for layer in (attn.c_q, attn.c_k, attn.c_v, mlp.c_fc):
                    normal(layer.weight, fan(layer.weight))
            done(attn.c_proj.weight).zero_()
            done(mlp.c_proj.weight).zero_()
        if arch.matrix_init != "uniform":
            normal(self.lm_head.weight, arch.head_std)
        if arch.smear:
            uniform(self.smear_gate.weight, 0.0, arch.smear_gate_init)
            done(self.smear_lambda).zero_()
        for i in self.config.value_layers:
            uniform(self.value_embeds[str(i)].weight, -a, a)
        for i in self.config.value_layers:
            uniform(self.transformer.h[i].attn.ve_gate.weight, 0.0, arch.value_gate_init)
        if arch.lambdas:
            for p, (first, last) in ((self.resid_lambdas, arch.resid_init), (self.x0_lambdas, arch.x0_init)):
                done(p).copy_(torch.linspace(first, last, len(p)) if len(p) > 1 else torch.tensor([first]))
        if arch.backout:
            done(self.backout_lambda).fill_(arch.backout_init)
        if arch.bigram:
            done(self.bigram_embed["embed"].weight).zero_()
            done(self.bigram_lambdas).fill_(0.1)  # from: facts sheet 0, E3 detail
        assert not missing, f"init_weights left garbage in {list(missing.values())}"

    def parameter_roles(self) -> dict[str, str]:
        """Parameter name -> role: embedding, value_embedding, head, matrix, resid_scalar, x0_scalar or gate_scalar."""
        return {name: _role(name) for name, _ in self.named_parameters()}

    def prepare(
        self, *, compute_dtype: torch.dtype, attention_backend: str = "auto", compile_for: tuple[int, int] | None = None
    ) -> dict[str, str]:
        """Choose how to compute on the device the weights are on; returns what was chosen and why, for printing.

        `compile_for` is the shape (B, T) of the micro-batches to compile for; any other shape runs uncompiled.
        """
        config, device = self.config, self.device
        self.compute_dtype = compute_dtype
        set_matmul_precision(device)
        name, why = attention.choose(
            attention_backend, device, compute_dtype,
            H=config.n_head, G=config.n_kv_head, D=config.head_dim, T=config.sequence_len, windows=set(config.windows),
        )  # fmt: skip
        attention.prepare(name, config.sequence_len, set(config.windows), device)
        self.attend = attention.BACKENDS[name]
        self.cos = torch.empty(0, device=device)
        self.grow_rope(config.sequence_len)
        self._compiled_shape = compile_for
        if compile_for is not None:
            self._trunk = torch.compile(self._forward_trunk, dynamic=False)
            self._loss_step = torch.compile(loss.capped_loss_and_grad, dynamic=False)
        return {
            "attention": f"{name} ({why})",
            "compute dtype": str(compute_dtype).removeprefix("torch."),
            "compile": "yes" if compile_for else "no",
        }

    def grow_rope(self, length: int) -> None:
        """Make the cos/sin tables at least `length` positions long; computed in fp32, stored in the arch's precision."""
        if self.cos.numel() and self.cos.size(1) >= length:
            return
        arch, D, device = self.config.arch, self.config.head_dim, self.device
        dtype = {"compute": self.compute_dtype, "bfloat16": torch.bfloat16, "float32": torch.float32}[arch.rope_dtype]
        # a quotient, as nanochat has it: base ** (-c) is another number in the last bit for 20 of 64 c, and far positions show it
        frequency = 1.0 / arch.rope_base ** (torch.arange(0, D, 2, dtype=torch.float32, device=device) / D)  # (D/2,)
        angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)  # (length, D/2)
        self.cos, self.sin = angle.cos().to(dtype)[None, :, None, :], angle.sin().to(dtype)[None, :, None, :]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, no weight may change: what forward makes of weights alone (casts, the q, k, v product) is made once and kept."""
        if self._only_runs:
            yield
            return
        layers = self._freezing()
        try:
            with torch.no_grad():
                for _, layer in layers:
                    parts = [layer.get_parameter(name).to(self.compute_dtype) for name in layer.freezes()]
                    layer.frozen = Frozen.of(torch.cat(parts) if len(parts) > 1 else parts[0])
            self._freeze_lambdas()
            yield
        finally:
            self._lambdas = None
            for _, layer in layers:
                layer.frozen = None

    @torch.no_grad()
    def only_run(self, read: Callable[[str], Tensor] | None = None, *, by_rows: bool = False) -> "GPT":
        """Freeze it for good, in no more memory than its weights take in the compute dtype; it cannot be trained any more.

        `read(name)` gives the weights of one that has none yet, on their device. `by_rows` leaves all of them as they are, which compiled
        steps want and others do not; it may be asked for later, and takes room for one weight meanwhile. What is packed is no parameter any
        more, but None; `value` has it.
        """

        def weight(name: str) -> Tensor:
            old = self.value(name)
            new = old if read is None else read(name)
            if new.shape != old.shape:
                raise ValueError(f"{name} has the shape {tuple(new.shape)}, the model wants {tuple(old.shape)}")
            return new.detach().to(self.compute_dtype)

        def own(x: Tensor) -> Tensor:
            return x if read is None else x.clone()  # what was read may lie in a file

        def put(name: str, value: Tensor | None) -> None:
            module, _, leaf = name.rpartition(".")
            new = None if value is None else nn.Parameter(value, requires_grad=False)
            setattr(self.get_submodule(module), leaf, new)

        left = dict.fromkeys(name for name, _ in self.named_parameters())
        room = None  # to join q, k and v of every layer in, where they are packed afterwards
        # no more than one layer exists twice, and the head while little else is there
        for prefix, layer in reversed(self._freezing()):
            rows = {f"{prefix}.{name}": n for name, n in layer.freezes().items()}
            parts = [weight(name) for name in rows]
            joined = torch.cat(parts, out=room) if len(parts) > 1 else parts[0]
            layer.frozen = Frozen.of(joined, by_rows)
            if layer.frozen.weight.is_mkldnn:
                room = joined if len(parts) > 1 else room
                values: Sequence[Tensor | None] = [None] * len(parts)
            else:
                layer.frozen = layer.frozen._replace(weight=own(joined) if len(parts) == 1 else joined)
                values = layer.frozen.parts(list(rows.values()))
            for name, value in zip(rows, values, strict=True):
                put(name, value)
                left.pop(name, None)
        for name in left:
            put(name, own(weight(name)))
        self._only_runs = True
        self._freeze_lambdas()
        self.cos = torch.empty(0, device=self.device)
        self.grow_rope(self.config.sequence_len)
        return self.eval()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module. RuntimeError where weights are packed: some would be missing."""
        if self._only_runs and self.lm_head.weight is None:
            raise RuntimeError(
                "this network only runs: its weights are packed and cannot be saved; read its checkpoint"
            )
        return super().state_dict(*args, **kwargs)

    def value(self, name: str) -> Tensor:
        """The values of a parameter, also of one that is packed (see `only_run`)."""
        for prefix, layer in self._freezing() if self._only_runs else ():
            names = [f"{prefix}.{part}" for part in layer.freezes()]
            if name in names and layer.frozen is not None:
                return layer.frozen.parts(list(layer.freezes().values()))[names.index(name)]
        return self.get_parameter(name)

    @property
    def device(self) -> torch.device:
        return self.transformer.wte.weight.device

    def _freeze_lambdas(self) -> None:
        if self.config.arch.lambdas and self.compute_dtype == torch.float32:  # in bf16 they are rounded first
            self._lambdas = self.resid_lambdas.tolist(), self.x0_lambdas.tolist()

    def _freezing(self) -> list[tuple[str, "Linear | Attention"]]:
        """The layers that freeze something, by name."""
        return [
            (name, module)
            for name, module in self.named_modules()
            if isinstance(module, Linear | Attention) and not name.endswith((".c_q", ".c_k", ".c_v"))
        ]

    # --- forward -----------------------------------------------------------------------------------------------

    def hidden(self, idx: Tensor) -> Tensor:
        """Token ids (B, T) -> normalised hidden states (B, T, C) in the compute dtype."""
        T = idx.size(1)
        self.grow_rope(T)
        # without gradients a CPU would compile once more for less than it gains
        compiled = self._compiled_shape == tuple(idx.shape) and (torch.is_grad_enabled() or idx.is_cuda)
        trunk = self._trunk if compiled else self._forward_trunk
        return trunk(idx, self.cos[:, :T], self.sin[:, :T])

    def hidden_cached(
        self, idx: Tensor, positions: Tensor, attends: Sequence[attention.Attend], known: int = 0, first: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states (B, T - known, C) of tokens at `positions` (1 or B, T - known); layer i attends by `attends[i]`.

        The first `known` columns of idx (B, T) were seen before: they are there for what their successor takes from its predecessor.
        Rows that `first` (B,) marks have none: there the token after them begins a text.
        """
        cos, sin = self.cos[0, positions], self.sin[0, positions]  # (1 or B, T - known, 1, D/2)
        if self.compute_dtype == torch.float32:
            cos, sin = whole_turn(cos, sin)
        return self._forward_trunk(idx, cos, sin, attends, known, first)

    def _forward_trunk(
        self, idx: Tensor, cos: Tensor, sin: Tensor, attends: Sequence[attention.Attend] | None = None, known: int = 0,
        first: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        arch, dtype, n = self.config.arch, self.compute_dtype, self.config.n_layer
        x = norm(self.transformer.wte(idx).to(dtype))  # (B, T, C)
        if first is not None:
            x[:, :known] = x[:, :known].masked_fill(first[:, None, None], 0)
        if arch.smear:
            x = self._smear(x)
        bigram = self._bigram_rows(idx, dtype, first) if arch.bigram else None
        if known:
            idx, x, bigram = idx[:, known:], x[:, known:], None if bigram is None else bigram[:, known:]
        x0, halfway = x, x
        for i, block in enumerate(self.transformer.h):
            if arch.lambdas and self._lambdas:
                x = torch.add(x * self._lambdas[0][i], x0, alpha=self._lambdas[1][i])
            elif arch.lambdas:
                x = self.resid_lambdas[i].to(dtype) * x + self.x0_lambdas[i].to(dtype) * x0
            if bigram is not None:
                x = x + self.bigram_lambdas[i].to(dtype) * bigram
            ve = self.value_embeds[str(i)](idx).to(dtype) if i in self.config.value_layers else None
            x = block(x, ve, cos, sin, self.attend if attends is None else attends[i])
            if i == n // 2:
                halfway = x
        if arch.backout:
            x = x - self.backout_lambda.to(dtype) * halfway
        return norm(x)

    def _smear(self, e: Tensor) -> Tensor:
        """Add a gated share of the previous token's embedding (facts sheet 1.5, step 2). e (B, T, C)."""
        gate = self.smear_lambda.to(e.dtype) * torch.sigmoid(
            self.smear_gate(e[:, 1:, : self.config.arch.smear_channels])
        )
        return torch.cat((e[:, :1], e[:, 1:] + gate * e[:, :-1]), dim=1)

    def _bigram_rows(self, idx: Tensor, dtype: torch.dtype, first: Tensor | None) -> Tensor:
        rows = BIGRAM_ROWS * self.config.vocab_size
        index = torch.full_like(idx, rows - 1)
        index[:, 1:] = torch.bitwise_xor(36313 * idx[:, 1:], 27191 * idx[:, :-1]) % (
            rows - 1
        )  # from: facts sheet 0, E3 detail
        if first is not None:
            index[first] = rows - 1
        return self.bigram_embed["embed"](index).to(dtype)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits (B, T, V) in fp32 of every position: for evaluation and sampling, not for training."""
        return self.logits(self.hidden(idx))

    def logits(self, hidden: Tensor) -> Tensor:
        """Softcapped logits (…, V) in fp32 of hidden states (…, C), cut to the unpadded vocabulary."""
        z = self.lm_head(hidden)[..., : self.config.vocab_size]
        return loss.capped(z, self.config.arch.softcap)

    def loss_sum(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats over the targets that are not -1; idx and targets (B, T)."""
        if self._only_runs:
            return self.losses(idx, targets).sum()
        return loss.head_loss(
            self.hidden(idx), self.lm_head.weight, targets,
            softcap=self.config.arch.softcap, vocab=self.config.vocab_size, step=self._loss_step,
        )  # fmt: skip

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Loss in nats of every token, (B, T), 0 where the target is -1."""
        hidden, config = self.hidden(idx), self.config
        head = self.lm_head.product(hidden.dtype)
        return loss.head_losses(hidden, head, targets, softcap=config.arch.softcap, vocab=config.vocab_size)


# start of a parameter's name -> its role
ROLES = {
    "transformer.wte": "embedding", "bigram_embed": "embedding", "value_embeds": "value_embedding", "lm_head": "head",
    "transformer.h": "matrix", "resid_lambdas": "resid_scalar", "x0_lambdas": "x0_scalar", "bigram_lambdas": "x0_scalar",
    "smear": "gate_scalar", "backout": "gate_scalar",
}  # fmt: skip


def _role(name: str) -> str:
    role = next((role for start, role in ROLES.items() if name.startswith(start)), None)
    assert role is not None, f"parameter {name} has no role; name one in ROLES"
    return role


__all__ = ["GPT", "ROLES", "Arch", "GPTConfig"]
