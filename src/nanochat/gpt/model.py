"""The GPT: one network for all eras of nanochat. Read from `GPT.forward` at the end, or from the
top.

    tokens (B, T) -> embed -> n blocks of attention and MLP -> norm -> head -> softcap
        -> logits (B, T, V)

It differs from a GPT-2 by RMSNorm without gains, rotary positions, normalised queries and keys,
relu squared, sliding windows, untied embeddings and no biases. Later eras add cheap paths past the
blocks: the embedding is mixed in again before each, every other layer has value embeddings, a token
sees its predecessor, and a share of the middle layer is taken off the last. `Arch` says which and
with which numbers (facts sheet 0); tensor names are those of nanochat checkpoints (facts sheet
1.2). Comments name the paper that an idea comes from.

The network knows its sizes and the role of each parameter, nothing else. Training and scoring read
whole texts here; inference/ decodes with the same blocks a token at a time.

Letters: B rows, T tokens, C width, H query heads, G key/value heads, D = C / H, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import attention, fp8, loss
from nanochat.gpt.attention import Attend
from nanochat.gpt.config import Arch, GPTConfig
from nanochat.gpt.counts import BIGRAM_ROWS
from nanochat.gpt.elementary import norm, rope_table, rotate
from nanochat.gpt.recompute import recomputed


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, n_in) times weight (n_out, n_in) transposed -> (…, n_out), in the dtype of x."""
    return F.linear(x, weight.to(x.dtype))


class Linear(nn.Linear):
    """x (…, n_in) -> (…, n_out), without a bias.

    Weights are fp32 masters, cast here to the dtype of what comes in: an update of 1e-4 of a weight
    would be rounded away in bf16 (Micikevicius et al. 2018, arXiv:1710.03740). So the compute dtype
    is that of the activations, and there is no autocast (facts sheet 1.8).
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)
        self.multiply = multiply  # or fp8.multiply

    def reset_parameters(self) -> None:
        """Left as allocated: `GPT.init_weights` or a checkpoint fills it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)

    def product(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """What `forward` does with inputs of `dtype`, for many of them: the weight is cast once."""
        weight = self.weight.to(dtype)
        return lambda x: F.linear(x, weight)


class Embedding(nn.Embedding):
    """Token ids (B, T) -> rows of the table (B, T, n_out)."""

    def reset_parameters(self) -> None:
        """As of `Linear`; on the meta device torch's own filling imports its compiler, 2 to 3 s."""


class Attention(nn.Module):
    """Causal attention, (B, T, C) -> (B, T, C). With G < H, H / G query heads share a key head:
    fewer keys to keep when decoding (Ainslie et al. 2023, "GQA", arXiv:2305.13245)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        arch, C, kv = config.arch, config.n_embd, config.n_kv_head * config.head_dim
        self.H, self.G, self.D = config.n_head, config.n_kv_head, config.head_dim
        self.qk_scale = arch.qk_scale
        self.gate_max, self.gate_channels = arch.value_gate_max, arch.value_gate_channels
        # Most layers look back over a part of the text only: the work grows with T * window, and
        # stacked windows still reach far (Beltagy et al. 2020, "Longformer", arXiv:2004.05150). The
        # last layer always has the long one (facts sheet 1.5).
        self.window = config.windows[layer]
        self.c_q, self.c_k, self.c_v = Linear(C, C), Linear(C, kv), Linear(C, kv)
        self.c_proj = Linear(C, C)
        if layer in config.value_layers:
            self.ve_gate = Linear(self.gate_channels, self.G)

    def forward(
        self,
        h: Tensor,
        ve: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        ends: Tensor | None = None,
    ) -> Tensor:
        """h (B, T, C) normalised, ve (B, T, G * D) or None, cos and sin (1, T, 1, D/2) -> (B, T,
        C); only rows `ends` (b,) of it, where given.

        `attend` is a back-end of attention.py, or whatever looks keys and values up elsewhere.
        """
        q, k, v = self.qkv(h, ve, cos, sin)
        q = q if ends is None else q[ends]
        return self.c_proj(attend(q, k, v, self.window).flatten(2))

    def qkv(
        self, h: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward` -> q (B, T, H, D), k and v (B, T, G, D), turned, normalised and scaled."""
        B, T, _ = h.shape
        # one product for the three: larger matrices run nearer to the peak, backward reads h once
        weight = torch.cat((self.c_q.weight, self.c_k.weight, self.c_v.weight))  # (C + 2 G D, C)
        qkv = self.c_q.multiply(h, weight).view(B, T, self.H + 2 * self.G, self.D)
        q, k, v = qkv.split((self.H, self.G, self.G), dim=2)
        if ve is not None:
            # Value embeddings: a table says what a token gives to those that attend to it, whatever
            # its context. Parameters that cost a look-up and no product, and deep layers keep hold
            # of the token itself (Zhou et al. 2024, "Value residual learning", arXiv:2410.17897).
            # The gate lets each key head take as much as it wants here: 0 to gate_max times it.
            gate = torch.sigmoid(self.ve_gate(h[..., : self.gate_channels]))  # (B, T, G)
            v = v + self.gate_max * gate.unsqueeze(-1) * ve.view(B, T, self.G, self.D)
        # QK norm: scores cannot exceed sqrt(D), so no head saturates its softmax and stops learning
        # however large the weights get (Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023,
        # arXiv:2302.05442). A turn changes no length, so this order equals norm before RoPE.
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        if self.qk_scale != 1:
            # lets attention be sharper again: 1.2 makes the bound 1.44 sqrt(D) (facts sheet 1.3)
            q, k = q * self.qk_scale, k * self.qk_scale
        return q, k, v


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.c_fc, self.c_proj = Linear(C, 4 * C), Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) normalised -> (B, T, C)."""
        # relu squared: found to learn faster than GELU at equal compute, and unlike gated units it
        # needs no third matrix (So et al. 2021, "Primer", arXiv:2109.08668)
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, layer), MLP(config)

    def forward(
        self,
        x: Tensor,
        ve: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        ends: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, C), the rest as `Attention.forward` -> (B, T, C), or rows `ends` of it."""
        # The norm comes before each part, not after the sum: the stream x itself is a plain sum, so
        # gradients reach every layer unchanged (Xiong et al. 2020, arXiv:2002.04745).
        y = self.attn(norm(x), ve, cos, sin, attend, ends)
        x = (x if ends is None else x[ends]) + y
        return x + self.mlp(norm(x))


class Transformer(nn.Module):
    """Token embedding and blocks, under the names that nanochat gives them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))


class GPT(nn.Module):
    """Token ids to hidden states, logits or losses. Build one with `GPT.build`, which also fills
    the weights."""

    cos: Tensor  # (1, positions, 1, D/2)
    sin: Tensor

    kinds: ClassVar[dict[type, type]] = {}  # class of an arch -> the network it has instead

    def __new__(cls, config: GPTConfig | None = None, *more: Any) -> "GPT":
        """A network of the kind that `config.arch` names: `GPT(config)` may be a GPT2."""
        return super().__new__(cls.kinds.get(type(config.arch), cls) if config else cls)

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.attend: Attend = attention.sdpa
        self._run_block: Callable = recomputed("none")
        self._trunk: Callable = self._run_trunk
        self._loss_step: Callable = loss.capped_loss_and_grad
        self._compiled_shape: tuple[int, int] | None = None
        self.add_layers(config)
        # tables, not weights: no checkpoint has them
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    def add_layers(self, config: GPTConfig) -> None:
        """The modules and parameters of a network of `config`."""
        arch, C, n = config.arch, config.n_embd, config.n_layer
        if arch.lambdas:
            self.resid_lambdas = nn.Parameter(torch.empty(n))
            self.x0_lambdas = nn.Parameter(torch.empty(n))
        if arch.smear:
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if arch.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))
        if arch.bigram:
            self.bigram_lambdas = nn.Parameter(torch.empty(n))
            self.bigram_embed = nn.ModuleDict(
                {"embed": Embedding(BIGRAM_ROWS * config.vocab_size, C)}
            )
        self.transformer = Transformer(config)
        # Not tied to wte: an embedding is normalised and may be large, a head has to start small,
        # and the two want different learning rates (facts sheet 2.2).
        self.lm_head = Linear(C, config.padded_vocab_size)
        if arch.smear:
            self.smear_gate = Linear(arch.smear_channels, 1)
        if config.value_layers:
            kv = config.n_kv_head * config.head_dim
            self.value_embeds = nn.ModuleDict(
                {str(i): Embedding(config.padded_vocab_size, kv) for i in config.value_layers}
            )

    # --- construction ----------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        config: GPTConfig,
        *,
        seed: int | None = 42,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
    ) -> "GPT":
        """Construct on the meta device, allocate on `device`, fill every weight.

        `seed=None` leaves them for a checkpoint to fill.
        """
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
        """Fill every parameter by the arch's rule (facts sheet 1.7), in nanochat's draw order; a
        parameter that is left out is an error."""
        arch, C, fill = self.config.arch, self.config.n_embd, _Filler(self, generator)
        normal, uniform, done = fill.normal, fill.uniform, fill.done
        # U(-a, a) has the variance a² / 3 = 1 / C: the product with a normalised (C,) has variance
        # 1 at any width. Uniform, since it has no outliers (facts sheet 1.7).
        a = math.sqrt(3 / C)
        normal(self.transformer.wte.weight, arch.embed_std)
        if arch.matrix_init == "uniform":
            # nearly 0, so the first loss is ln V and no token is preferred (facts sheet 1.6)
            normal(self.lm_head.weight, arch.head_std)
        for block in self.transformer.h:
            attn, mlp = block.attn, block.mlp
            if arch.matrix_init == "uniform":
                for layer in (attn.c_q, attn.c_k, attn.c_v):
                    uniform(layer.weight, -a, a)
                fc = a * arch.fc_init_scale
                uniform(mlp.c_fc.weight, -fc, fc)
            else:
                for layer in (attn.c_q, attn.c_k, attn.c_v):
                    normal(layer.weight, fill.fan(layer.weight))
                fill.draw(attn.c_proj.weight)
                normal(mlp.c_fc.weight, fill.fan(mlp.c_fc.weight))
                fill.draw(mlp.c_proj.weight)
            # What writes into the stream starts at 0, so each block starts as the identity: a net
            # of any depth starts as embedding and head, and the rates of one depth suit others
            # (Bachlechner et al. 2020, "ReZero", arXiv:2003.04887; Yang et al. 2022,
            # arXiv:2203.03466).
            done(attn.c_proj.weight).zero_()
            done(mlp.c_proj.weight).zero_()
        if arch.matrix_init != "uniform":
            normal(self.lm_head.weight, arch.head_std)
        if arch.smear:
            uniform(self.smear_gate.weight, 0.0, arch.smear_gate_init)
            done(self.smear_lambda).zero_()  # nothing of the predecessor until it proves useful
        for i in self.config.value_layers:
            uniform(self.value_embeds[str(i)].weight, -a, a)  # of the size of the values they join
        for i in self.config.value_layers:
            # small and positive: a gate starts at about sigmoid(0) = 1/2 of its maximum
            uniform(self.transformer.h[i].attn.ve_gate.weight, 0.0, arch.value_gate_init)
        if arch.lambdas:
            # early layers build on the embedding, later ones on what was made of it
            for p, (first, last) in (
                (self.resid_lambdas, arch.resid_init),
                (self.x0_lambdas, arch.x0_init),
            ):
                # in double precision as nanochat; torch.linspace has another last bit
                n = max(len(p) - 1, 1)
                line = [first + (last - first) * i / n for i in range(len(p))]
                done(p).copy_(torch.tensor(line))
        if arch.backout:
            done(self.backout_lambda).fill_(arch.backout_init)
        if arch.bigram:
            done(self.bigram_embed["embed"].weight).zero_()
            done(self.bigram_lambdas).fill_(0.1)  # from: facts sheet 0, E3 detail
        assert not fill.missing, f"init_weights left garbage in {list(fill.missing.values())}"

    def parameter_roles(self) -> dict[str, str]:
        """Parameter name -> its role, one of the values of ROLES: what the optimizer groups by."""
        return {name: _role(name) for name, _ in self.named_parameters()}

    def whole(self) -> "GPT":
        """This network with all weights in this process, for running: where they are shared out
        over ranks a copy, in which no rank waits for another, else itself. Every rank calls it."""
        if not any(hasattr(p, "full_tensor") for p in self.parameters()):  # a DTensor's method
            return self
        with torch.device("meta"):
            gpt = type(self)(self.config)
        weights = {name: p.detach().full_tensor() for name, p in self.named_parameters()}
        gpt.load_state_dict(weights, strict=True, assign=True)
        gpt.cos, gpt.sin, gpt.attend = self.cos, self.sin, self.attend
        gpt.compute_dtype = self.compute_dtype
        return gpt

    def prepare(
        self,
        *,
        compute_dtype: torch.dtype,
        attention_backend: str = "auto",
        checkpointing: str = "none",
        eight_bits: bool = False,
        compile_for: tuple[int, int] | None = None,
        by_block: bool = False,
    ) -> dict[str, str]:
        """Choose how to compute on the device of the weights; what was chosen and why, for
        printing.

        `compile_for` is the shape (B, T) of the micro-batches to compile for; any other shape runs
        uncompiled. `by_block`: compile each block alone, as where its weights are gathered before
        it. `checkpointing` is one of recompute.KINDS. `eight_bits`: products of the blocks in fp8.
        """
        config, device = self.config, self.device
        self.compute_dtype = compute_dtype
        set_matmul_precision(device)
        name, why = attention.choose(
            attention_backend,
            device,
            compute_dtype,
            H=config.n_head,
            G=config.n_kv_head,
            D=config.head_dim,
            T=config.sequence_len,
            windows=set(config.windows),
        )
        attention.prepare(name, config.sequence_len, set(config.windows), device)
        self.attend = attention.BACKENDS[name]
        self.cos = torch.empty(0, device=device)
        self.grow_rope(config.sequence_len)
        self._run_block = recomputed(checkpointing)
        for layer in self.transformer.h.modules():
            if isinstance(layer, Linear):
                layer.multiply = (
                    fp8.multiply if eight_bits and fp8.takes(layer.weight) else multiply
                )
        self._compiled_shape = compile_for
        if compile_for is not None:
            if by_block:
                for block in self.transformer.h:
                    block.compile(dynamic=False)
            else:
                self._trunk = torch.compile(self._run_trunk, dynamic=False)
            self._loss_step = torch.compile(loss.capped_loss_and_grad, dynamic=False)
        return {
            "attention": f"{name} ({why})",
            "compute dtype": str(compute_dtype).removeprefix("torch.")
            + (" and fp8" if eight_bits else ""),
            "compile": "yes" if compile_for else "no",
        }

    def compile_for(self, rows: int) -> None:
        """Where micro-batches are compiled, those of so many rows from here on."""
        if self._compiled_shape is not None:
            self._compiled_shape = (rows, self._compiled_shape[1])

    def grow_rope(self, length: int) -> None:
        """Make the RoPE tables at least `length` positions long, in the arch's precision."""
        if self.cos.numel() and self.cos.size(1) >= length:
            return
        arch = self.config.arch
        dtypes = {
            "compute": self.compute_dtype,
            "bfloat16": torch.bfloat16,
            "float32": torch.float32,
        }
        self.cos, self.sin = rope_table(
            length, self.config.head_dim, arch.rope_base, dtypes[arch.rope_dtype], self.device
        )

    @property
    def longest(self) -> int | None:
        """Tokens that it can read at most; None: any number, the tables of positions grow."""
        return None

    @property
    def compiled(self) -> bool:
        """Whether `prepare` has had it compiled."""
        return self._compiled_shape is not None

    @property
    def device(self) -> torch.device:
        return self.transformer.wte.weight.device

    # --- forward ---------------------------------------------------------------------------------

    def hidden(self, idx: Tensor) -> Tensor:
        """Token ids (B, T) -> normalised hidden states (B, T, C) in the compute dtype."""
        T = idx.size(1)
        self.grow_rope(T)
        # without gradients a CPU would compile once more for less than it gains
        same_shape = self._compiled_shape == tuple(idx.shape)
        compiled = same_shape and (torch.is_grad_enabled() or idx.is_cuda)
        trunk = self._trunk if compiled else self._run_trunk
        return trunk(idx, self.cos[:, :T], self.sin[:, :T])

    def _run_trunk(self, idx: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x, bigram = self.embed(idx)
        return self.blocks(x, bigram, idx, cos, sin, [self.attend] * self.config.n_layer)

    def embed(self, idx: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token ids (B, T) -> what enters the first block (B, T, C), and in era E3 the rows of each
        pair of tokens (B, T, C). All that looks at the preceding token is here."""
        # normalised at once: rows keep different lengths, and the stream starts with one
        x = norm(self.transformer.wte(idx).to(self.compute_dtype))
        if self.config.arch.smear:
            # Smear: a gated share of the previous token's embedding. Pairs of tokens are the first
            # thing a network learns, and need no attention layer then (facts sheet 1.5, step 2; the
            # token shift of Peng et al. 2023, "RWKV", arXiv:2305.13048).
            channels = x[:, 1:, : self.config.arch.smear_channels]  # (B, T - 1, 24)
            gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(channels))
            x = torch.cat((x[:, :1], x[:, 1:] + gate * x[:, :-1]), dim=1)
        return x, self._bigram_rows(idx).to(x.dtype) if self.config.arch.bigram else None

    def _bigram_rows(self, idx: Tensor) -> Tensor:
        """(B, T) -> (B, T, C): the hashed row of each token and its predecessor; the last row where
        there is none (facts sheet 0, E3 detail)."""
        last = BIGRAM_ROWS * self.config.vocab_size - 1
        index = torch.full_like(idx, last)
        index[:, 1:] = torch.bitwise_xor(36313 * idx[:, 1:], 27191 * idx[:, :-1]) % last
        return self.bigram_embed["embed"](index)

    def run_block(self) -> Callable:
        """`run(block, *args)`: the block, with what `prepare` chose kept for its backward pass."""
        return self._run_block if torch.is_grad_enabled() else recomputed("none")

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
        """x and bigram as `embed` makes them of idx (B, T) -> normalised hidden states (B, T, C).

        cos and sin (1 or B, T, 1, D/2) are of the tokens' positions; layer i attends by
        `attends[i]`. Where only the rows `ends` (b,) are wanted, the last layer makes keys and
        values of all, and the rest of these alone: (b, T, C).
        """
        arch, dtype, n = self.config.arch, x.dtype, self.config.n_layer
        x0, halfway = x, x
        run = self.run_block()
        for i, block in enumerate(self.transformer.h):
            if arch.lambdas:
                x = self.mixed(i, x, x0)
            if bigram is not None:
                x = x + self.bigram_lambdas[i].to(dtype) * bigram
            has_ve = i in self.config.value_layers
            ve = self.value_embeds[str(i)](idx).to(dtype) if has_ve else None  # (B, T, G * D)
            last = ends if i == n - 1 else None
            if last is not None:
                halfway = halfway[last]
            x = run(block, x, ve, cos, sin, attends[i], last)
            if i == n // 2:
                halfway = x
        if arch.backout:
            # Backout: what the first half wrote for later layers to read is in the way of the
            # prediction; a learned share of it is taken off (facts sheet 1.5, step 5).
            x = x - self.backout_lambda.to(dtype) * halfway
        return norm(x)

    def mixed(self, i: int, x: Tensor, x0: Tensor) -> Tensor:
        """What enters block i of the stream x and the embedding x0, (B, T, C) each."""
        # Deep layers reach the token itself without every layer having to carry it, and a block's
        # share of the stream can be weighed (facts sheet 1.5, step 4a).
        return self.resid_lambdas[i].to(x.dtype) * x + self.x0_lambdas[i].to(x.dtype) * x0

    def logits(self, hidden: Tensor) -> Tensor:
        """Softcapped logits (…, V) in fp32 of hidden states (…, C), cut to the unpadded vocabulary.

        The cap, softcap * tanh(z / softcap), keeps the network from lowering its loss by ever
        larger logits, and bounds gradients and rounding (Gemma team 2024, "Gemma 2",
        arXiv:2408.00118).
        """
        z = self.lm_head(hidden)[..., : self.config.vocab_size]
        return loss.capped(z, self.config.arch.softcap)

    def forward(self, idx: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V) in fp32 of every position: for evaluation, not for
        training, where `loss_sum` never holds all of them."""
        return self.logits(self.hidden(idx))

    def loss_sum(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats over the targets that are not -1; idx and targets (B, T) -> 0-d."""
        return self.loss_of(self.hidden(idx), targets)

    def loss_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """`loss_sum` from hidden states (B, T, C)."""
        return loss.head_loss(
            hidden,
            self.lm_head.weight,
            targets,
            softcap=self.config.arch.softcap,
            vocab=self.config.vocab_size,
            step=self._loss_step,
        )

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Loss in nats of every token, (B, T), 0 where the target is -1; without gradients."""
        hidden, config = self.hidden(idx), self.config
        head, softcap = self.lm_head.product(hidden.dtype), config.arch.softcap
        return loss.head_losses(hidden, head, targets, softcap=softcap, vocab=config.vocab_size)


class _Filler:
    """Fills parameters, each once, and knows which are still `missing`."""

    def __init__(self, gpt: GPT, generator: torch.Generator) -> None:
        self.generator = generator
        self.missing = {id(p): name for name, p in gpt.named_parameters()}

    def done(self, p: Tensor) -> Tensor:
        self.missing.pop(id(p))
        return p

    def normal(self, p: Tensor, std: float) -> None:
        if std:
            self.done(p).normal_(0.0, 1.0, generator=self.generator).mul_(std)
        else:
            self.done(p).zero_()

    def uniform(self, p: Tensor, low: float, high: float) -> None:
        if high > low:
            self.done(p).uniform_(low, high, generator=self.generator)
        else:
            self.done(p).fill_(low)

    def draw(self, p: Tensor) -> None:
        """As nanochat's first generation, before it sets the parameter to 0."""
        p.normal_(generator=self.generator)

    @staticmethod
    def fan(p: Tensor) -> float:
        """Standard deviation for a weight (n_out, n_in) by how much goes in and out."""
        n_out, n_in = p.shape
        return min(1.0, math.sqrt(n_out / n_in)) / math.sqrt(n_in)


def set_matmul_precision(device: torch.device) -> None:
    """TF32 for fp32 matrix products on CUDA (facts sheet 1.8); elsewhere PyTorch's own setting."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


# Start of a parameter's name -> its role. Matrices get an update for matrices (Muon); tables, of
# which a batch touches few rows, and scalars get AdamW, each with its own rate (facts sheet 2.2).
ROLES = {
    "transformer.wte": "embedding",
    "transformer.wpe": "embedding",
    "transformer.ln_f": "vector",  # of GPT-2, as its other gains and its biases
    "bigram_embed": "embedding",
    "value_embeds": "value_embedding",
    "lm_head": "head",
    "transformer.h": "matrix",
    "resid_lambdas": "resid_scalar",
    "x0_lambdas": "x0_scalar",
    "bigram_lambdas": "x0_scalar",
    "smear": "gate_scalar",
    "backout": "gate_scalar",
}


def _role(name: str) -> str:
    role = next((role for start, role in ROLES.items() if name.startswith(start)), None)
    assert role is not None, f"parameter {name} has no role; name one in ROLES"
    return role


__all__ = ["GPT", "ROLES", "Arch", "GPTConfig"]
