"""The settings every command has, with their types, so that a word of no effect or of the wrong kind is refused when composed.

The values are in `conf/*.yaml`. A group whose keys depend on what was chosen (data, optim, arch, logger, callbacks, tokenizer) is checked
by the class or function that it builds.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class Paths:
    hub_dir: str | None = MISSING


@dataclass
class Model:
    depth: int = MISSING
    aspect_ratio: int = MISSING
    head_dim: int = MISSING
    sequence_len: int = MISSING
    n_layer: int | None = MISSING
    n_head: int | None = MISSING
    n_kv_head: int | None = MISSING
    n_embd: int | None = MISSING


@dataclass
class Trainer:
    accelerator: str = MISSING
    devices: int = MISSING
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    compile: Any = MISSING  # bool | "auto"
    attention: str = MISSING
    gradient_clip_val: float | None = MISSING
    expected_mfu: float = MISSING


@dataclass
class Plan:
    ratio: float | None = MISSING
    tokens: float | None = MISSING  # so that 1e9 may be typed
    flops: float | None = MISSING
    weight_decay: float = MISSING
    scale: str = MISSING


@dataclass
class Sample:
    prompts: list[str] = MISSING
    max_tokens: int = MISSING
    temperature: float = MISSING
    top_k: int | None = MISSING
    seed: int = MISSING


@dataclass
class Samples(Sample):
    num_samples: int = MISSING


@dataclass
class TaskEvals:
    split: str | None = MISSING
    every: int | None = MISSING
    limit: int | None = MISSING
    max_tokens: int = MISSING
    of: Any = MISSING  # name: a task, as in conf/task


@dataclass
class Checkpoints:
    keep_last: int | None = MISSING
    best_metric: str = MISSING


@dataclass
class Bare:
    debug: bool = MISSING
    paths: Paths = field(default_factory=Paths)


@dataclass
class Command(Bare):
    seed: int = MISSING


@dataclass
class Train(Command):
    phase: str = MISSING
    module: Any = MISSING
    run_name: str = MISSING
    init_from: str | None = MISSING
    inherit: list[str] = MISSING
    init_optimizer: Any = MISSING  # bool | "auto"
    resume: Any = MISSING  # false | auto | a folder
    dry_run: bool = MISSING
    progress: str = MISSING
    max_steps: int | None = MISSING
    batch_tokens: int | None = MISSING
    plan: Plan = field(default_factory=Plan)
    log_every: int = MISSING
    save_every: int | None = MISSING
    eval_every: int | None = MISSING
    eval_tokens: int | None = MISSING
    eval_at_start: bool = MISSING
    tasks: TaskEvals = field(default_factory=TaskEvals)
    sample_every: int | None = MISSING
    sample: Sample = field(default_factory=Sample)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    model: Model = field(default_factory=Model)
    trainer: Trainer = field(default_factory=Trainer)
    arch: Any = MISSING
    data: Any = MISSING
    tokenizer: Any = MISSING
    optim: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = None
    # of phase rl
    task: Any = None
    val_task: Any = None
    algo: Any = None
    rewards: Any = None
    rollout: Any = None
    pass_at_k: Any = None
    preflight: Any = None
    force: bool = False


@dataclass
class Length:
    sequence_len: int | None = MISSING


@dataclass
class LoadsCheckpoint(Command):
    ckpt: str = MISSING
    device: str = MISSING
    precision: str = MISSING


@dataclass
class SampleCommand(LoadsCheckpoint):
    start: str = MISSING
    num_samples: int = MISSING
    max_tokens: int = MISSING
    temperature: float = MISSING
    top_k: int | None = MISSING


@dataclass
class Cli(LoadsCheckpoint):
    prompt: str | None = MISSING
    system: str | None = MISSING
    max_tokens: int | None = MISSING
    temperature: float = MISSING
    top_k: int | None = MISSING
    top_p: float | None = MISSING
    min_p: float | None = MISSING
    repetition_penalty: float | None = MISSING
    stop: Any = MISSING  # a text or a list of texts
    tools: bool = MISSING
    python: bool = MISSING
    seed: Any = MISSING  # a number or null
    compile: bool = MISSING


@dataclass
class Limits:
    request_bytes: int = MISSING
    queue: int = MISSING
    prefix_bytes: int = MISSING
    requests_per_minute: int | None = MISSING


@dataclass
class Chat(Bare):
    ckpt: Any = MISSING  # one, or several: ckpt=A ckpt=B
    device: str = MISSING
    precision: str = MISSING
    host: str = MISSING
    port: int = MISSING
    api_key: str | None = MISSING
    open: bool = MISSING
    page: bool = MISSING
    compare: bool = MISSING
    store: str | None = MISSING
    gpus: int = MISSING
    max_rows: int = MISSING
    compile: bool = MISSING
    max_tokens: int = MISSING
    temperature: float = MISSING
    top_k: int | None = MISSING
    top_p: float | None = MISSING
    min_p: float | None = MISSING
    repetition_penalty: float | None = MISSING
    python: bool = MISSING
    log_conversations: bool = MISSING
    cors: list[str] = MISSING
    limits: Limits = field(default_factory=Limits)


@dataclass
class Bench(Command):
    ckpt: str | None = MISSING
    device: str = MISSING
    precision: str = MISSING
    vocab_size: int = MISSING
    prompt_tokens: int = MISSING
    decode_tokens: int = MISSING
    batches: Any = MISSING  # a number or a list of them
    temperature: float = MISSING
    repeats: int = MISSING
    compile: bool = MISSING
    model: Model = field(default_factory=Model)
    arch: Any = MISSING


@dataclass
class Evaluate(LoadsCheckpoint):
    evals: Any = MISSING  # names in a list, or with commas
    data: Any = None
    eval_tokens: int | None = MISSING
    rows_per_device: int = MISSING
    split: str = MISSING
    limit: int | None = MISSING
    max_tokens: int = MISSING
    model: Length = field(default_factory=Length)
    sample: Samples = field(default_factory=Samples)


@dataclass
class Data(Command):
    data: Any = MISSING
    tokenizer: Any = MISSING
    show: str = MISSING
    step: int = MISSING
    rows: int | None = MISSING
    ckpt: str | None = MISSING
    batch_tokens: int = MISSING
    model: Length = field(default_factory=Length)


@dataclass
class Tokenizer(Command):
    data: Any = MISSING
    kind: str = MISSING
    vocab_size: Any = MISSING  # a number or auto, like the next two
    max_chars: Any = MISSING
    doc_cap: Any = MISSING
    out: str | None = MISSING
    model: Length = field(default_factory=Length)


def unknown_keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Keys of a composed config that its schema does not have (`+key=…` adds any)."""
    schema, found = OmegaConf.get_type(cfg), []
    known = {f.name for f in fields(schema)} | {"hydra"} if is_dataclass(schema) else None
    for key in map(str, cfg):
        name = f"{prefix}{key}"
        if known is not None and key not in known:
            found.append(name)
        elif (
            not OmegaConf.is_missing(cfg, key)
            and isinstance(node := cfg._get_node(key), DictConfig)
            and not node._is_none()
        ):
            found += unknown_keys(node, f"{name}.")
    return found


def register() -> None:
    """Make the schemas known to Hydra as `schema_COMMAND`."""
    store = ConfigStore.instance()
    for name, schema in {
        "train": Train,
        "sample": SampleCommand,
        "cli": Cli,
        "chat": Chat,
        "bench": Bench,
        "evaluate": Evaluate,
        "data": Data,
        "tokenizer": Tokenizer,
    }.items():
        store.store(name=f"schema_{name}", node=schema)
