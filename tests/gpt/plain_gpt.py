"""The GPT of eras E0 to E6 written out from the facts sheet (0, 1.3 to 1.5), one number at a time,
in float64.

It shares nothing with the network under test: numbers of an era are plain entries of `FACTS`,
weights a dict by tensor name, every attention score is written out, and nothing is batched or
fused. Slow, to be read beside the facts sheet.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nanochat.gpt import GPT, GPTConfig, build_arch

CONF = Path(__file__).parents[2] / "conf"

# Table of section 0: RoPE base, softcap, QK multiplier, S window as (divisor, multiple) or None
# where all layers are full, value gate as (channels, maximum), and which parts there are.
_COLUMNS = ("base", "cap", "qk", "short", "gate", "lambdas", "bigram", "smear", "rope_bf16")
_TABLE = {
    "E0": (1e4, 15, 1.0, None, None, False, False, False, True),
    "E1": (1e4, 15, 1.0, (2, 1), None, True, False, False, True),
    "E2": (1e4, 15, 1.0, (2, 1), (32, 2), True, False, False, True),
    "E3": (1e4, 15, 1.0, (2, 1), (32, 2), True, True, False, True),
    "E4": (1e4, 20, 1.0, (2, 1), (32, 2), True, False, False, False),
    "E5": (1e5, 15, 1.15, (3, 128), (12, 3), True, False, False, False),
    "E6": (1e5, 15, 1.2, (4, 128), (12, 3), True, False, True, False),
}
FACTS = {era: dict(zip(_COLUMNS, row, strict=True)) for era, row in _TABLE.items()}

# The switches that turn conf/arch/modern.yaml into the eras between.
_BETWEEN = {
    "rope_base": 1e4,
    "rope_dtype": "bfloat16",
    "qk_scale": 1.0,
    "short_window_divisor": 2,
    "short_window_multiple": 1,
    "smear": False,
    "backout": False,
    "embed_std": 1.0,
    "fc_init_scale": 1.0,
    "resid_init": [1.0, 1.0],
    "x0_init": [0.0, 0.0],
}
_GATED = {**_BETWEEN, "value_gate_channels": 32, "value_gate_max": 2.0, "value_gate_init": 0.0}
SWITCHES = {
    "E1": {**_BETWEEN, "value_embeds": False},
    "E2": _GATED,
    "E3": {**_GATED, "bigram": True, "x0_init": [0.1, 0.1]},
    "E4": {**_GATED, "softcap": 20.0, "rope_dtype": "compute"},
    "E5": {"qk_scale": 1.15, "short_window_divisor": 3, "smear": False, "backout": False},
}


def yaml(path: str) -> dict:
    """A config file of the project as plain values."""
    return OmegaConf.to_container(OmegaConf.load(CONF / path))


def arch(era: str, **changes):
    """The `Arch` of an era: E0 and E6 as the project's YAML has them."""
    values = (
        yaml("arch/classic.yaml")
        if era == "E0"
        else {**yaml("arch/modern.yaml"), **SWITCHES.get(era, {})}
    )
    return build_arch({**values, **changes})


@dataclass
class Plain:
    """Sizes and numbers the plain version needs; nothing of it comes from the network under
    test."""

    era: str
    T: int
    V: int
    n: int
    H: int
    G: int
    d: int
    facts: dict = field(default_factory=dict)

    def __post_init__(self):
        self.facts = {**FACTS[self.era], **self.facts}
        self.D = self.d // self.H

    def config(self, **changes) -> GPTConfig:
        return GPTConfig(self.T, self.V, self.n, self.H, self.G, self.d, arch(self.era, **changes))

    def window(self, i: int) -> float:
        """Positions before itself that a query of layer i may see; the pattern is SSSL."""
        if self.facts["short"] is None:
            return math.inf
        divisor, multiple = self.facts["short"]
        if i % 4 == 3 or i == self.n - 1:
            return self.T
        return math.ceil(math.ceil(self.T / divisor) / multiple) * multiple

    def has_value(self, i: int) -> bool:
        return self.facts["gate"] is not None and i % 2 == (self.n - 1) % 2


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1.1920929e-07)


def turn(x, base: float, bf16: bool):
    """RoPE of one head (T, D), by minus the angle."""
    T, D = x.shape
    j = torch.arange(D // 2, dtype=torch.float32)
    # fp32, as the table is
    a = torch.outer(torch.arange(T, dtype=torch.float32), 1.0 / base ** (2 * j / D))
    c, s = a.cos(), a.sin()
    if bf16:
        c, s = c.bfloat16(), s.bfloat16()
    c, s = c.double(), s.double()
    first, second = x[:, : D // 2], x[:, D // 2 :]
    return torch.cat((first * c + second * s, -first * s + second * c), dim=1)


def attend_one_head(q, k, v, window: float):
    """(T, D) each; query t sees itself and `window` positions before."""
    T, D = q.shape
    t = torch.arange(T)
    distance = t[:, None] - t[None, :]
    allowed = (distance >= 0) & (distance <= window)
    scores = torch.where(allowed, q @ k.T / math.sqrt(D), -math.inf)
    return torch.softmax(scores, dim=-1) @ v


def plain_logits(p: Plain, w: dict[str, torch.Tensor], row: list[int]) -> torch.Tensor:
    """Logits (T, V) in float64 of one row of token ids."""
    f = p.facts
    w = {name: value.double() for name, value in w.items()}
    ids = torch.tensor(row)
    T = len(row)
    x = rms(w["transformer.wte.weight"][ids])
    if f["smear"]:
        smeared = x.clone()
        for t in range(1, T):
            gate = torch.sigmoid(torch.dot(w["smear_gate.weight"][0], x[t, :24]))
            smeared[t] = x[t] + w["smear_lambda"][0] * gate * x[t - 1]
        x = smeared
    x0 = x
    if f["bigram"]:
        rows = 5 * p.V
        where = [rows - 1] + [
            ((36313 * row[t]) ^ (27191 * row[t - 1])) % (rows - 1) for t in range(1, T)
        ]
        pair = w["bigram_embed.embed.weight"][torch.tensor(where)]
    middle = None
    for i in range(p.n):
        block = f"transformer.h.{i}."
        if f["lambdas"]:
            x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * x0
        if f["bigram"]:
            x = x + w["bigram_lambdas"][i] * pair
        h = rms(x)
        q = (h @ w[block + "attn.c_q.weight"].T).view(T, p.H, p.D)
        k = (h @ w[block + "attn.c_k.weight"].T).view(T, p.G, p.D)
        v = (h @ w[block + "attn.c_v.weight"].T).view(T, p.G, p.D)
        if p.has_value(i):
            channels, most = f["gate"]
            # (T, G)
            gate = most * torch.sigmoid(h[:, :channels] @ w[block + "attn.ve_gate.weight"].T)
            v = v + gate[:, :, None] * w[f"value_embeds.{i}.weight"][ids].view(T, p.G, p.D)
        heads = []
        for head in range(p.H):
            group = head // (p.H // p.G)
            q_head = f["qk"] * rms(turn(q[:, head], f["base"], f["rope_bf16"]))
            k_head = f["qk"] * rms(turn(k[:, group], f["base"], f["rope_bf16"]))
            heads.append(attend_one_head(q_head, k_head, v[:, group], p.window(i)))
        x = x + torch.cat(heads, dim=1) @ w[block + "attn.c_proj.weight"].T
        inner = torch.relu(rms(x) @ w[block + "mlp.c_fc.weight"].T) ** 2
        x = x + inner @ w[block + "mlp.c_proj.weight"].T
        if i == p.n // 2:
            middle = x
    if f["smear"]:  # backout came with smear
        x = x - w["backout_lambda"][0] * middle
    z = (rms(x) @ w["lm_head.weight"].T)[:, : p.V]
    return f["cap"] * torch.tanh(z / f["cap"])


def randomise(gpt: GPT, seed: int = 0) -> GPT:
    """Every parameter drawn so that every part of the network matters: nothing zero, gates and
    logits not flat."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in gpt.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            if "lambda" in name:
                p.copy_(0.6 + 0.3 * noise)
            elif "gate" in name:
                p.copy_(0.7 * noise)
            elif name == "lm_head.weight":
                p.copy_(noise * 8 / p.size(1) ** 0.5)  # logits of about 8 before the cap of 15
            elif "embed" in name or "wte" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / p.size(1) ** 0.5)
    return gpt


def random_gpt(p: Plain, seed: int = 0, **changes) -> GPT:
    """A network of these sizes with random weights, ready to run in fp32 on the CPU."""
    gpt = randomise(GPT.build(p.config(**changes)), seed)
    gpt.prepare(compute_dtype=torch.float32)
    return gpt


def tokens(V: int, B: int, T: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))
