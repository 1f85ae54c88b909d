"""What a run prints about itself: its plan, its optimizer, how it ended and what to type next."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from nanochat import optim
from nanochat.callbacks.report import short_time
from nanochat.gpt import counts
from nanochat.optim import GroupedOptimizer
from nanochat.runtime.plan import Plan

GROUPS = ("embedding", "value_embeddings", "head", "matrices", "scalars")


def console() -> Console:
    """Wide enough that no cell is cut where the output is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=140)


def plan(name: str, plan: Plan, *, batch: str, text: str, machine: tuple[str, float | None] | None) -> None:
    """The derived numbers as a table. `machine` is its name and the expected seconds of training; None for a dry run."""
    config, sizes = plan.config, counts.parameters(plan.config)
    table = Table(title=f"{name}: plan", title_justify="left", show_header=False)
    table.add_row(
        "model",
        f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads of {config.head_dim}, arch {config.arch.name}, "
        f"context {config.sequence_len:,}, vocabulary {config.vocab_size:,}",
    )
    table.add_row("parameters", f"{sizes['total']:,} = " + " + ".join(f"{sizes[k]:,} {k}" for k in GROUPS))
    table.add_row("FLOPs", f"{counts.flops_per_token(config):.4g} per token, {plan.flops:.3g} in all")
    table.add_row("horizon", f"{plan.tokens:,} tokens in {plan.steps:,} steps, from {plan.horizon_source}")
    table.add_row("", f"{plan.tokens / sizes['scaling']:.2f} tokens per scaling parameter (matrices + head)")
    table.add_row("batch", f"{plan.batch_tokens:,} tokens = {batch}")
    table.add_row("rates", f"x {plan.lr_factor:.4f} for the batch size; Muon weight decay {plan.weight_decay:.4g}")
    table.add_row("text", text)
    if machine is not None:
        device, seconds = machine
        table.add_row(
            "time", f"about {short_time(seconds)} of training on {device}" if seconds else f"not known for {device}"
        )
    console().print(table)


def optimizer(optimizer: GroupedOptimizer) -> None:
    """Every parameter with its shape, rule, rate and decay."""
    table = Table(title="optimizer", title_justify="left")
    for column in ("parameter", "shape", "rule", "rate", "weight decay"):
        table.add_column(column)
    for row in optim.table(optimizer):
        table.add_row(*row)
    console().print(table)


def stopped(step: int, steps: int, place: Path) -> None:
    print(f"stopped after step {step:,} of {steps:,}, saved in {place}; the same command with resume=auto goes on")


def finished(
    step: int, seconds: float, ledger: dict[str, int], bpb: float | None, best: tuple[int, float] | None, place: Path
) -> None:
    print("tokens: " + ", ".join(f"{key} {value:,}" for key, value in ledger.items()))
    quality = f"; val bpb {bpb:.4f}" if bpb is not None else ""
    quality += f", best {best[1]:.4f} at step {best[0]:,}" if best else ""
    print(f"trained {step:,} steps in {short_time(seconds)}{quality}")
    print(f"checkpoint: {place}")
    print(f'next: python -m nanochat.sample ckpt="{place}" start="The " num_samples=3')
