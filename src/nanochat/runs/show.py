"""What a run prints about itself: its plan, its optimizer, how it ended and what to type next."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nanochat import optim
from nanochat.callbacks.report import short_time
from nanochat.datamodules.chat import Share
from nanochat.gpt import counts
from nanochat.inference.sampling import Sampling
from nanochat.optim import GroupedOptimizer
from nanochat.rl.preflight import Finding
from nanochat.runs.plan import Plan

GROUPS = ("embedding", "value_embeddings", "head", "matrices", "scalars")


def console() -> Console:
    """A console wide enough that no cell is cut when the output is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=140)


def planned(
    name: str,
    plan: Plan,
    *,
    batch: str,
    text: str,
    machine: tuple[str, float | None] | None,
    groups: dict[str, dict[str, Any]],
    schedule: str = "",
    forecast: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print the derived numbers as a table, then the notes.

    `machine` is its name and the expected seconds of training; None for a dry run. `groups` are the
    optimizer's, from which the table shows the rates and decays that the plan scales.
    """
    config, sizes = plan.config, counts.parameters(plan.config)
    table = Table(title=f"{name}: plan", title_justify="left", show_header=False)
    table.add_row(
        "model",
        f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads of "
        f"{config.head_dim}, arch {config.arch.name}, "
        f"context {config.sequence_len:,}, vocabulary {config.vocab_size:,}",
    )
    table.add_row(
        "parameters", f"{sizes['total']:,} = " + " + ".join(f"{sizes[k]:,} {k}" for k in GROUPS)
    )
    table.add_row(
        "FLOPs", f"{counts.flops_per_token(config):.4g} per token, {plan.flops:.3g} in all"
    )
    table.add_row(
        "horizon", f"{plan.tokens:,} tokens in {plan.steps:,} steps, from {plan.horizon_source}"
    )
    table.add_row(
        "", f"{plan.tokens / sizes['scaling']:.2f} tokens per scaling parameter (matrices + head)"
    )
    table.add_row("batch", f"{plan.batch_tokens:,} tokens = {batch}")
    table.add_row("rates", rates_of(plan, groups))
    table.add_row("schedule", schedule)
    table.add_row("text", text)
    if machine is not None:
        device, seconds = machine
        table.add_row(
            "time",
            f"about {short_time(seconds)} of training on {device}"
            if seconds
            else f"not known for {device}",
        )
    for row in forecast:
        table.add_row(*row)
    console().print(table)
    for note in notes:
        print(f"note: {note}")


def rates_of(plan: Plan, groups: dict[str, dict[str, Any]]) -> str:
    """How the plan scales the rates and decays of the optimizer's groups."""
    scaled = (
        [f"x {plan.lr_factor:.4f} for the batch size"]
        if any(group.get("scale_batch", True) for group in groups.values())
        else []
    )
    rules = {group["rule"] for group in groups.values() if group.get("weight_decay") == "auto"}
    decays = [f"{rule.capitalize()} weight decay {plan.weight_decay:.4g}" for rule in sorted(rules)]
    return "; ".join(scaled + decays) or "as the optimizer's groups have them"


def rl_plan(recipe: Any) -> None:
    """Print the plan of a run of reinforcement learning, from its `RLRecipe`."""
    config, plan, algorithm, rollout = (
        recipe.gpt_config,
        recipe.plan,
        recipe.algorithm,
        recipe.config["rollout"],
    )
    sizes = counts.parameters(config)
    table = Table(
        title=f"{recipe.config['run_name']}: plan", title_justify="left", show_header=False
    )
    table.add_row(
        "model",
        f"{config.n_layer} layers, width {config.n_embd}, arch {config.arch.name}, context "
        f"{config.sequence_len:,}, "
        f"{sizes['total']:,} parameters; from {recipe.config['init_from']}",
    )
    table.add_row(
        "task",
        f"{len(recipe.data.task):,} questions of {recipe.data.task.name}; held out: "
        + (f"{recipe.val_task.name}, {len(recipe.val_task):,}" if recipe.val_task else "none"),
    )
    table.add_row(
        "steps",
        (
            f"{plan.steps:,} optimizer steps, {algorithm.updates} per rollout, from "
            f"{plan.horizon_source}"
        ),
    )
    table.add_row(
        "rollout",
        (
            f"{rollout['questions']} questions x {rollout['samples']} answers of up to "
            f"{rollout['max_tokens']} tokens; "
        )
        + sampled(recipe.sampling),
    )
    table.add_row(
        "algorithm",
        f"{algorithm.name}: "
        + ", ".join(
            f"{field.name} {getattr(algorithm, field.name)}"
            for field in fields(algorithm)
            if field.name != "name"
        ),
    )
    table.add_row(
        "rewards",
        " + ".join(f"{reward.weight:g} x {name}" for name, reward in recipe.rewards.of.items()),
    )
    console().print(table)


def sampled(sampling: Sampling) -> str:
    """The settings that restrict sampling.

    >>> sampled(Sampling(top_k=50))
    'temperature 1.0, top_k 50'
    """
    given = {key: getattr(sampling, key) for key in ("top_k", "top_p", "min_p")}
    return ", ".join(
        [
            f"temperature {sampling.temperature}",
            *(f"{key} {value}" for key, value in given.items() if value is not None),
        ]
    )


def findings(finding: Finding) -> None:
    """Print the results of the checks before the start, and the decision."""
    table = Table(title="go or no-go", title_justify="left")
    for column in ("check", "verdict", "found", "advice"):
        table.add_column(column)
    for check in finding.checks:
        table.add_row(
            check.what,
            check.verdict.upper() if check.verdict == "stop" else check.verdict,
            check.found,
            check.advice,
        )
    console().print(table)
    stops = ", ".join(check.what for check in finding.stops)
    print(f"recommendation: no-go, because of {stops}" if stops else "recommendation: go")


def inherited(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print each setting that a run inherits from its parent, with value and source."""
    table = Table(title="inherited", title_justify="left")
    for column in ("setting", "value", "source"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def shares(shares: Sequence[Share], utilisation: float, dropped: int) -> None:
    """Print the parts of a mixture of tasks, in conversations and trained tokens, and
    what is lost."""
    table = Table(title="mixture", title_justify="left")
    for column in (
        "task",
        "conversations",
        "share",
        "trained tokens",
        "share",
        "lost",
        "repeats",
        "bad, left out",
    ):
        table.add_column(column, justify="left" if column == "task" else "right")
    conversations, targets = (
        sum(share.conversations for share in shares),
        sum(share.trained for share in shares),
    )
    for share in shares:
        part, tokens = share.conversations / max(conversations, 1), share.trained / max(targets, 1)
        counts = (
            f"{share.conversations:,}",
            f"{part:.1%}",
            f"{share.trained:,}",
            f"{tokens:.1%}",
            f"{share.lost:,}",
        )
        table.add_row(share.task, *counts, str(share.repeat), f"{share.bad:,}")
    table.add_row(
        "together",
        f"{conversations:,}",
        "",
        f"{targets:,}",
        "",
        f"{sum(share.lost for share in shares):,}",
        "",
        "",
    )
    console().print(table)
    left_out = (
        f"; {dropped:,} conversations without a target within a row left out" if dropped else ""
    )
    print(f"rows are {utilisation:.1%} full{left_out}")


def skipped_mid(phase: str | None) -> None:
    if phase == "base":
        print(
            "note: init_from is a base checkpoint, which was not trained on conversations: SFT "
            "then teaches format and content at "
            "once. That needs a large mixture; with a small one run +phase=mid first"
        )


def warm_start(taken: int, parameters: int) -> None:
    rest = (
        ""
        if taken == parameters
        else f"; the others start at zero: {parameters - taken} have another rule"
    )
    print(f"optimizer: the parent's moments for {taken} of {parameters} parameters{rest}")


def optimizer(optimizer: GroupedOptimizer) -> None:
    """Print every parameter with its shape, rule, rate and decay."""
    table = Table(title="optimizer", title_justify="left")
    for column in ("parameter", "shape", "rule", "rate", "weight decay"):
        table.add_column(column)
    for row in optim.table(optimizer):
        table.add_row(*row)
    console().print(table)


def stopped(step: int, steps: int, place: Path) -> None:
    print(
        f"stopped after step {step:,} of {steps:,}, saved in {place}; the same command with "
        "resume=auto continues"
    )


def gain(before: dict[str, float], after: dict[str, float], title: str) -> None:
    """Print the answers to held-out questions before and after a run."""
    table = Table(title=title, title_justify="left")
    for column in ("right", "before", "after"):
        table.add_column(column, justify="left" if column == "right" else "right")
    for key, value in after.items():
        name = key.removeprefix("val/")
        if name.startswith("pass@") or name == "greedy_accuracy":
            what = (
                "the likeliest answer"
                if name == "greedy_accuracy"
                else f"one of {name.removeprefix('pass@')} sampled"
            )
            table.add_row(
                what, f"{before[key]:.1%}" if key in before else "not asked", f"{value:.1%}"
            )
    console().print(table)


def accuracies(metrics: dict[str, float]) -> None:
    """Print the accuracy on each task, if tasks were evaluated."""
    asked = {
        key.removeprefix("val/").removesuffix("_accuracy"): value
        for key, value in metrics.items()
        if key.endswith("_accuracy") and key != "val/greedy_accuracy"
    }
    if not asked:
        return
    table = Table(title="answers", title_justify="left")
    for column in ("task", "right"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, value in asked.items():
        table.add_row(name, f"{value:.1%}")
    console().print(table)


def finished(
    step: int,
    seconds: float,
    ledger: dict[str, int],
    metrics: dict[str, float],
    best: tuple[int, float] | None,
    place: Path,
    *,
    chats: bool,
) -> None:
    bpb = metrics.get("val/bpb")
    print("tokens: " + ", ".join(f"{key} {value:,}" for key, value in ledger.items()))
    quality = f"; val bpb {bpb:.4f}" if bpb is not None else ""
    quality += f", best {best[1]:.4f} at step {best[0]:,}" if best else ""
    print(f"trained {step:,} steps in {short_time(seconds)}{quality}")
    accuracies(metrics)
    print(f"checkpoint: {place}")
    print(
        f'next: python -m nanochat.cli ckpt="{place}"'
        if chats
        else f'next: python -m nanochat.sample ckpt="{place}" start="The " num_samples=3'
    )
