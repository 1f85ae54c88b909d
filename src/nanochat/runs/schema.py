"""The settings of a training run: key, type and range. `runtime/settings.py` checks
them at composition; it says what the types mean.

The values, each with a line of meaning, are in `conf/*.yaml`. A group that the configs
build (`Built`) has the settings of what it builds. Other commands take some of these groups too
(`commands/schema.py`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from nanochat.runtime.settings import (
    Built,
    Count,
    Decay,
    Portion,
    Positive,
    Seed,
    Setting,
    Settings,
    Temperature,
    TopK,
    locate,
    parameters,
)

# guess: four times the deepest of published models; a mistyped one would build for minutes
MAX_DEPTH = 512
MAX_WIDTH = 2**17  # guess, likewise
MAX_CONTEXT = 2**24  # guess, likewise
MAX_VOCAB = 2**24  # guess, likewise
# one folder under runs/: no way out of it, and nothing that a shell or another system would read
# otherwise
RunName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+=@-]*$",
        max_length=200,
        description=(
            "the name of one folder: letters, digits and _ . + = @ -, not beginning with . or -"
        ),
        examples=["my-run"],
    ),
]
Precision = Literal["auto", "bf16", "fp32"]
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:NUMBER or mps",
        examples=["auto"],
    ),
]
Length = Annotated[int, Field(ge=1, le=MAX_CONTEXT)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


class Paths(Settings):
    hub_dir: str | None


class Model(Settings):
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)]
    aspect_ratio: Width
    head_dim: Annotated[int, Field(ge=2, le=MAX_WIDTH)]
    sequence_len: Length
    n_layer: Annotated[int, Field(ge=1, le=MAX_DEPTH)] | None
    n_head: Width | None
    n_kv_head: Width | None
    n_embd: Width | None


class Compute(Settings):
    precision: Precision
    compile: bool | Literal["auto"]
    attention: Literal["auto", "sdpa", "flex", "flash", "fa3", "fa4", "reference"]
    checkpointing: Literal["none", "attention", "block", "auto"]
    fp8: bool
    # Hydra reads a name of digits as a number
    card: Literal["B200", "H200", "H100", "A100", "L40S", "L4", 5090, 4090, 3090] | None
    memory_gb: Positive | None
    trial: bool | Literal["auto"]
    expected_mfu: Annotated[float, Field(gt=0, le=1)]


class PlanSettings(Settings):
    ratio: Positive | None
    tokens: Positive | None  # so that 1e9 may be typed
    flops: Positive | None
    weight_decay: Decay
    scale: Literal["modern", "classic"]


class SampleSettings(Settings):
    prompts: list[str]
    max_tokens: Count
    temperature: Temperature
    top_k: TopK
    seed: Seed


class OfEval(Settings):
    every: Count | Portion | None = None  # steps, or a share of the run


# name: an evaluation, as in conf/eval
Evals = Annotated[dict, Built(more=OfEval, each=True, null=True)]


class Checkpoints(Settings):
    keep_last: Count | None
    best_metric: str | None  # runs/recipe.py knows what a run logs
    asynchronous: bool


class TokenizerSettings(Settings):
    kind: Literal["bpe", "char"]
    # tokenizer/training.py knows the least
    vocab_size: Annotated[int, Field(le=MAX_VOCAB)] | Literal["auto"] | None
    max_chars: Count | Literal["auto"] | None
    doc_cap: Count | Literal["auto"] | None


class TokenizerChoice(TokenizerSettings):
    auto_vocab_size: Annotated[int, Field(le=MAX_VOCAB)] | None
    path: str | None


class Optim(Settings):
    groups: Annotated[dict, Built("nanochat.optim.groups.options_of", each=True, chosen=True)]
    schedule: Annotated[dict, Built("nanochat.optim.schedules.Schedule")]


def arch_settings(values: Mapping[str, Any], path: str) -> Mapping[str, Setting]:
    """The switches of the architecture that `values` name."""
    return parameters(locate("nanochat.gpt.config.arch_class")(values.get("name")))


ArchChoice = Built("nanochat.runs.schema.arch_settings", chosen=True)
Arch = Annotated[dict, ArchChoice]
Data = Annotated[dict, Built()]
GIVEN_MODULE = (
    "gpt",
    "optim",
    "schedule",
    "total_steps",
    "collector",
    "micro_tokens",
    "clip_norm",
    "start",
)


class Bare(Settings):
    debug: bool
    paths: Paths


class Seeded(Bare):
    seed: Seed


class Train(Seeded):
    """Of every run; the recipe of a phase may add to them."""

    phase: str
    recipe: Annotated[dict, Built(given=("config", "tokenizer_folder"))]
    size: str
    module: Annotated[dict, Built(given=GIVEN_MODULE)]
    run_name: RunName
    init_from: str | None
    inherit: list[str]
    init_optimizer: bool | Literal["auto"]
    resume: Annotated[bool | str, Field(description="false, auto or a run folder")]
    dry_run: bool
    solve: Literal["rows", "depth", "hours"] | None
    price_per_gpu_hour: Positive | None
    budget: Positive | None
    progress: Literal["auto", "bar", "lines", "none"]
    max_steps: Count | None
    batch_tokens: Count | None
    plan: PlanSettings
    log_every: Count
    save_every: Count | None
    eval_every: Count | None
    eval_tokens: Count | None
    eval_at_start: bool
    evals: Evals
    sample_every: Count | None
    sample: SampleSettings
    checkpoints: Checkpoints
    model: Model
    trainer: Annotated[dict, Built("nanochat.runs.trainer.flags", chosen=True)]
    compute: Compute
    arch: Arch
    data: Data
    tokenizer: TokenizerChoice
    optim: Optim
    logger: Annotated[
        dict | None, Built("nanochat.runs.parts.logger_settings", each=True, chosen=True)
    ] = None  # logger=null: none
    callbacks: Annotated[
        dict, Built("nanochat.runs.parts.callback_settings", each=True, chosen=True)
    ]
