"""Sizes and architecture switches of the GPT. Plain numbers, stored in every checkpoint; nothing is
implied by code.

The tensor names of nanochat checkpoints stayed the same while their maths changed, so every number
that differs between the eras E0 (classic) to E6 (modern) is a field of `Arch` (facts sheet, section
0).
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

FORMAT_VERSION = 1
VOCAB_MULTIPLE = (
    64  # from: facts sheet 1.1, rows of wte and lm_head are padded to a multiple of this
)
MAX_SOFTCAP = 40.0  # exp(-2 * 40) is still a normal fp32 number, on which gpt/loss.py relies
# Ranges of what a user can set, checked with the other settings (runtime/settings.py). Guess: a
# factor of 100 and more beyond every era.
Count = Annotated[int, Field(ge=1, le=2**20)]
Std = Annotated[float, Field(ge=0, le=100)]
Scale = Annotated[float, Field(ge=-100, le=100)]
Windows = Annotated[
    str,
    Field(
        pattern=r"^[SLsl]+$",
        description="letters S and L, one for each layer in turn",
        examples=["SSSL"],
    ),
]


@dataclass(frozen=True)
class Arch:
    """What a block contains and with which numbers. Defaults are era E6; `conf/arch/*.yaml` spells
    each era out."""

    name: str = "modern"  # of the era
    width_rule: Literal["round_up", "plain"] = (
        "round_up"  # width to whole heads; plain: heads = ceil(width / head_dim)
    )
    rope_base: Annotated[float, Field(ge=1, le=1e12)] = 100_000.0  # of the frequencies
    rope_dtype: Literal["compute", "bfloat16", "float32"] = (
        "compute"  # precision of the cos/sin table
    )
    qk_scale: Annotated[float, Field(gt=0, le=100)] = 1.2  # multiplies the normalised q and k
    softcap: Annotated[float, Field(gt=0, le=MAX_SOFTCAP)] | None = (
        15.0  # logits = softcap * tanh(z / softcap); null: z itself, which llama.cpp computes
    )
    window_pattern: Windows = "SSSL"  # tiled over the layers; the last layer is always L
    short_window_divisor: Count = (
        4  # S = sequence_len / divisor, rounded up to short_window_multiple
    )
    short_window_multiple: Count = 128  # tokens
    long_window_limited: bool = (
        True  # L is a window of sequence_len (E1 and later) instead of no limit at all (E0)
    )
    lambdas: bool = True  # x = resid[i] * x + x0[i] * x0 before every block
    value_embeds: bool = True  # a value embedding in every other layer
    value_gate_channels: Count = 12  # channels of the input that its gate reads
    value_gate_max: Std = 3.0  # the most a gate lets through
    smear: bool = True  # a token sees some of the one before it
    smear_channels: Count = 24  # channels of the input that its gate reads
    backout: bool = True  # the middle layer is taken off the last
    bigram: bool = False  # era E3 only: hashed bigram embedding
    embed_std: Std = 0.8  # of the embedding at the start
    head_std: Std = 0.001  # of the head at the start
    matrix_init: Literal["uniform", "fan"] = (
        "uniform"  # U(-a, a), a = sqrt(3 / width); fan: N(0, s^2) by fan in, out
    )
    fc_init_scale: Std = 0.4  # of the MLP's first matrix
    resid_init: tuple[Scale, Scale] = (1.15, 1.05)  # first and last layer, linear between
    x0_init: tuple[Scale, Scale] = (0.20, 0.05)  # likewise
    value_gate_init: Std = 0.02  # U(0, this)
    smear_gate_init: Std = 0.02  # U(0, this)
    backout_init: Scale = 0.2  # weight of what is taken off

    def __post_init__(self) -> None:
        object.__setattr__(self, "resid_init", tuple(self.resid_init))
        object.__setattr__(self, "x0_init", tuple(self.x0_init))
        object.__setattr__(self, "window_pattern", self.window_pattern.upper())
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise ValueError(
                f"window_pattern={self.window_pattern!r} may hold only the letters S and L; try "
                "SSSL or L"
            )
        if self.softcap is not None and not 0 < self.softcap <= MAX_SOFTCAP:
            raise ValueError(
                f"arch.softcap={self.softcap} must be above 0 and at most {MAX_SOFTCAP:g}; "
                "nanochat's are 15 and 20"
            )
        for name, choices in (
            ("width_rule", ("round_up", "plain")),
            ("matrix_init", ("uniform", "fan")),
            ("rope_dtype", ("compute", "bfloat16", "float32")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"arch.{name}={getattr(self, name)!r} is not known; choose from "
                    f"{', '.join(choices)}"
                )


@dataclass(frozen=True)
class PlainArch:
    """Switches of a network that has none of nanochat's: GPT-2 (gpt/gpt2.py). What it lacks is no
    field."""

    name: str = "gpt2"
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5  # added to the variance in every norm
    init_std: Std = 0.02  # of every matrix at the start

    width_rule: ClassVar[str] = "plain"
    softcap: ClassVar[float | None] = None
    lambdas: ClassVar[bool] = False
    value_embeds: ClassVar[bool] = False
    value_gate_channels: ClassVar[int] = 0
    smear: ClassVar[bool] = False
    smear_channels: ClassVar[int] = 0
    backout: ClassVar[bool] = False
    bigram: ClassVar[bool] = False


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of one GPT. `sequence_len` is the training length T; `vocab_size` the tokenizer's,
    without padding."""

    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    arch: Arch | PlainArch = field(default_factory=Arch)

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.n_embd % self.n_head:
            near = [h for h in range(1, self.n_embd + 1) if self.n_embd % (2 * h) == 0]
            best = min(near, key=lambda h: abs(h - self.n_head), default=1)
            raise ValueError(
                f"model.n_embd={self.n_embd} does not divide into n_head={self.n_head} heads; try "
                f"model.n_head={best}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head size {self.head_dim} (n_embd={self.n_embd} / n_head={self.n_head}) is odd, "
                f"RoPE turns pairs; try model.n_embd={self.n_head * (self.head_dim + 1)}"
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"model.n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}"
            )
        if self.arch.value_embeds and self.n_embd < self.arch.value_gate_channels:
            raise ValueError(
                f"model.n_embd={self.n_embd} is less than the {self.arch.value_gate_channels} "
                "channels of a value gate"
            )
        if self.arch.smear and self.n_embd < self.arch.smear_channels:
            raise ValueError(
                f"model.n_embd={self.n_embd} is less than the {self.arch.smear_channels} channels "
                "of the smear gate"
            )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def value_layers(self) -> tuple[int, ...]:
        """Layers with a value embedding: every other one, counted back from the last (facts sheet
        1.2)."""
        return tuple(
            i
            for i in range(self.n_layer)
            if self.arch.value_embeds and i % 2 == (self.n_layer - 1) % 2
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Left window of each layer: a query sees itself and this many tokens before it; None is
        all of them."""
        T, arch = self.sequence_len, self.arch
        if isinstance(arch, PlainArch):
            return (None,) * self.n_layer
        short = (
            math.ceil(math.ceil(T / arch.short_window_divisor) / arch.short_window_multiple)
            * arch.short_window_multiple
        )
        long = T if arch.long_window_limited else None
        pattern = arch.window_pattern
        letters = [pattern[i % len(pattern)] for i in range(self.n_layer - 1)] + ["L"]
        return tuple(short if letter == "S" else long for letter in letters)

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, "model_type": "nanochat", **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "GPTConfig":
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"config.json has format_version={version}, this code reads {FORMAT_VERSION}; use "
                "a matching nanochat"
            )
        sizes = {f.name: data[f.name] for f in fields(cls) if f.name != "arch"}
        return cls(**sizes, arch=build_arch(data["arch"]))


def arch_class(name: Any) -> type[Arch] | type[PlainArch]:
    """The class of the switches of an architecture of this name."""
    return PlainArch if name == "gpt2" else Arch


def build_arch(values: dict[str, Any]) -> Arch | PlainArch:
    """Switches from plain values; one that does not exist is an error, a missing one keeps its
    default."""
    kind = arch_class(values.get("name"))
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"arch.{unknown[0]} is not a switch of the GPT; there are: {', '.join(sorted(known))}"
        )
    return kind(**values)


def from_depth(
    depth: int,
    *,
    vocab_size: int,
    sequence_len: int = 2048,
    arch: Arch | PlainArch | None = None,
    aspect_ratio: int = 64,
    head_dim: int = 128,
    n_layer: int | None = None,
    n_head: int | None = None,
    n_kv_head: int | None = None,
    n_embd: int | None = None,
) -> GPTConfig:
    """Sizes from the one dial: width = aspect_ratio * depth in heads of `head_dim`; a size that is
    given wins (facts sheet 1.1).

    >>> c = from_depth(20, vocab_size=32768)
    >>> (c.n_embd, c.n_head)
    (1280, 10)
    """
    arch = arch or Arch()
    if depth < 1:
        raise ValueError(f"model.depth={depth} must be at least 1")
    if head_dim < 2 or head_dim % 2:
        raise ValueError(
            f"model.head_dim={head_dim} must be even, RoPE turns pairs; try "
            f"model.head_dim={max(2, head_dim + 1)}"
        )
    layers = n_layer or depth
    width = n_embd or aspect_ratio * depth
    if arch.width_rule == "round_up" and n_embd is None:
        width = math.ceil(width / head_dim) * head_dim
    heads = n_head or max(1, math.ceil(width / head_dim))
    return GPTConfig(sequence_len, vocab_size, layers, heads, n_kv_head or heads, width, arch)
