"""The settings of every command: key, type and range. Those of a training run are in
`runs/schema.py`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from nanochat.runs.schema import (
    MAX_VOCAB,
    Arch,
    ArchChoice,
    Bare,
    Data,
    Device,
    Evals,
    Length,
    Model,
    Precision,
    Seeded,
    TokenizerChoice,
    TokenizerSettings,
    Train,
)
from nanochat.runtime.settings import (
    Built,
    Count,
    MinP,
    Penalty,
    Positive,
    Ranks,
    Seed,
    Settings,
    Temperature,
    TopK,
    TopP,
    Whole,
    locate,
)


class OnlyLength(Settings):
    sequence_len: Length


class LoadsCheckpoint(Seeded):
    ckpt: str
    device: Device
    precision: Precision
    force: bool


class SampleCommand(LoadsCheckpoint):
    start: str
    num_samples: Count
    max_tokens: Count
    temperature: Temperature
    top_k: TopK


class Cli(LoadsCheckpoint):
    prompt: str | None
    system: str | None
    max_tokens: Count | None
    temperature: Temperature
    top_k: TopK
    top_p: TopP
    min_p: MinP
    repetition_penalty: Penalty
    stop: list[str] | str | None
    tools: bool
    python: bool
    seed: Seed | None  # type: ignore[assignment]  # null: another each time
    compile: bool


class Limits(Settings):
    request_bytes: Count
    queue: Whole
    prefix_bytes: Whole
    requests_per_minute: Count | None


class Chat(Bare):
    ckpt: list[str] | str
    device: Device
    precision: Precision
    force: bool
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=0, le=65535)]
    api_key: str | None
    open: bool
    page: bool
    compare: bool
    store: str | None
    gpus: Ranks
    max_rows: Count
    compile: bool
    max_tokens: Count
    temperature: Temperature
    top_k: TopK
    top_p: TopP
    min_p: MinP
    repetition_penalty: Penalty
    python: bool
    log_conversations: bool
    cors: list[str]
    limits: Limits


class Bench(Seeded):
    ckpt: str | None
    device: Device
    precision: Precision
    vocab_size: Annotated[int, Field(ge=265, le=MAX_VOCAB)]
    prompt_tokens: Count
    decode_tokens: Count
    batches: Count | list[Count]
    temperature: Temperature
    repeats: Count
    compile: bool
    model: Model
    arch: Arch


class EvaluateCommand(LoadsCheckpoint):
    ckpt: list[str] | str  # type: ignore[assignment]
    evals: Evals
    data: Annotated[dict | None, Built()] = None
    limit: Count | None
    processes: Count
    overlap: bool
    show: Literal["items"] | None
    out: str | None
    eval_tokens: Count | None
    rows_per_device: Count
    model: OnlyLength


class DataCommand(Seeded):
    data: Data
    tokenizer: TokenizerChoice
    show: Literal["stats", "batch", "ledger", "download"]
    step: Whole
    rows: Count | None
    ckpt: str | None
    batch_tokens: Count
    model: OnlyLength


class TokenizerCommand(Seeded, TokenizerSettings):
    data: Data
    out: str | None
    model: OnlyLength


class Import(Bare):
    src: str
    out: str
    arch: Annotated[dict | None, ArchChoice] = None
    chat_tokens: bool
    tokenizer_dir: str | None


class ExportCommand(Bare):
    ckpt: list[str] | str | None
    out: str | None
    format: Literal["hf", "nanochat", "archive"]
    portable: bool
    dtype: Literal["stored", "fp32", "bf16"]
    interpreter: str | None
    peer: str | None
    verify: str | None
    push: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", description="ORG/NAME")] | None
    private: bool
    confirm: bool
    trainer: bool
    force: bool


class Runs(Bare):
    name: str | None
    format: Literal["table", "json"]
    delete: str | list[str] | None
    archive: str | list[str] | None
    archive_dir: str
    force: bool
    confirm: bool


class ReportCommand(Bare):
    run: str
    out: str | None
    compare: str | None
    price_per_hour: Positive | None
    watch: bool
    every: Count
    ask: str | list[str] | None
    device: Device
    precision: Precision


class Stages(Settings):
    stages: dict[str, str | dict]


class Pipeline(Bare):
    pipeline: Stages
    words: list[str]
    start: str | None
    dry_run: bool


COMMANDS: dict[str, type[Settings]] = {
    "train": Train,
    "sample": SampleCommand,
    "cli": Cli,
    "chat": Chat,
    "bench": Bench,
    "evaluate": EvaluateCommand,
    "data": DataCommand,
    "tokenizer": TokenizerCommand,
    "import": Import,
    "export": ExportCommand,
    "runs": Runs,
    "report": ReportCommand,
    "pipeline": Pipeline,
}


def settings_of(command: str, values: Mapping[str, Any]) -> type[Settings]:
    """The settings of a command for these values. Those of a training run come from its recipe,
    which adds those of its phase."""
    recipe = values.get("recipe")
    name = recipe.get("_target_") if command == "train" and isinstance(recipe, Mapping) else None
    try:
        return locate(str(name)).settings if name else COMMANDS[command]
    except (ValueError, AttributeError):  # reported by the check of `recipe`
        return COMMANDS[command]


# earlier name -> new name of a setting, for the error that gives the new one
RENAMED = {
    "train": {
        "tasks": "evals.tasks",
        "pass_at_k": "evals.pass_at_k",
        "val_task": "evals.pass_at_k.task",
    },
    "evaluate": {
        **{name: f"evals.tasks.{name}" for name in ("split", "max_tokens")},
        "sample": "evals.sample",
    },
}
