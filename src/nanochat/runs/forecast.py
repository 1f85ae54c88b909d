"""What a run will take: memory by part, time, cost, disk; and settings that look like a mistake.

Printed with the plan, before anything is allocated. `runs/memory.py` predicts the memory.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from nanochat.datamodules.by_step import DEFAULT_ROWS, share_out
from nanochat.gpt import GPTConfig, counts
from nanochat.gpt.recompute import KINDS
from nanochat.inference.engine import MAX_ROWS
from nanochat.runs.earlier_runs import Earlier, look_back
from nanochat.runs.memory import SPARE, Memory, Prediction, largest_rows
from nanochat.runs.plan import Plan, estimate_seconds
from nanochat.runtime import hardware
from nanochat.runtime.paths import base_dir

KEEPS = 3  # checkpoints at once: checkpoints.keep_last and the best
PROMPT_TOKENS = 32  # guess: of what a sample goes on from
FEW_ROWS = 8  # guess: a micro-batch of fewer leaves a card waiting; then more is recomputed


@dataclass(frozen=True)
class Forecast:
    """Of one process, where nothing else is said; corrected by what earlier runs took."""

    memory: Memory | None  # as predicted, not corrected; None: this run cannot be traced
    limit: int | None  # bytes of the device; None: not known
    checkpointing: str
    device: str
    seconds: float | None  # of training; None: not known
    tokens_per_second: float | None  # of all processes, as predicted, not corrected
    dollars: float | None
    disk: int  # bytes of the checkpoints that are kept
    earlier: Earlier

    @property
    def peak(self) -> int | None:
        return None if self.memory is None else int(self.memory.peak * self.earlier.memory)

    def fits(self) -> bool:
        return bool(self.peak and self.limit and self.peak <= self.limit * (1 - SPARE))

    def rows(self) -> list[tuple[str, str]]:
        """For the table of the plan."""
        found = [*self.of_memory(), ("recomputed", self.checkpointing)]
        found.append(("disk", f"{gb(self.disk)} GB of checkpoints"))
        if self.seconds and self.tokens_per_second:
            rate = self.tokens_per_second * self.earlier.speed
            speed = f"{rate:,.0f} tokens/s, {self.seconds / 3600:,.2f} hours"
            cost = "" if self.dollars is None else f", {self.dollars:,.2f} at this price"
            found.append(("speed", speed + cost))
        if self.earlier.runs:
            found.append(("earlier runs", self.earlier.described()))
        return found

    def of_memory(self) -> list[tuple[str, str]]:
        if self.memory is None:
            return [("memory", "not known: the network or the optimizer computes with values")]
        limit = f" of {gb(self.limit)} GB" if self.limit else ""
        assert self.peak is not None

        def line(parts: dict[str, int]) -> str:
            return ", ".join(f"{name} {gb(size)}" for name, size in parts.items())

        return [
            ("memory", f"about {gb(self.peak)} GB{limit} on {self.device}"),
            ("  always", line(self.memory.always())),
            ("  or in turn", line(self.memory.in_turn())),
        ]

    def notes(self) -> list[str]:
        if self.peak and self.limit and self.peak > self.limit:
            return [
                f"this needs about {gb(self.peak)} GB and {self.device} has {gb(self.limit)}; try "
                "data.rows_per_device=auto, compute.checkpointing=auto or a smaller model"
            ]
        return []


def gb(size: int) -> str:
    """Decimal gigabytes, as memory is sold."""
    return f"{size / 1e9:,.3g}" if size < 1e11 else f"{size / 1e9:,.0f}"


def machine(compute: dict[str, Any], device: hardware.Hardware | None) -> tuple[str, int | None]:
    """Name and bytes of the device that is planned for: the one that is here, in a dry run
    `compute.card`; of its bytes those that the run may take."""
    own = int(compute["memory_gb"] * 1e9) if compute["memory_gb"] else None
    if device:
        return device.name, min(own or device.memory_bytes, device.memory_bytes)
    if compute["card"]:
        card = str(compute["card"])
        return card, own or int(hardware.CARD_MEMORY[card])
    return "a device not known here", own


def written(config: dict[str, Any], context: int) -> list[tuple[int, int]]:
    """(texts at once, tokens) of the samples and evaluations of a run. How long the prompts of an
    evaluation are is not known: a whole context."""
    sample, found = config["sample"], []
    if sample["prompts"] and config["callbacks"].get("sample"):
        texts = min(len(sample["prompts"]), MAX_ROWS)
        found.append((texts, min(context, sample["max_tokens"] + PROMPT_TOKENS)))
    for one in (config["evals"] or {}).values():
        if one and "max_tokens" in one:
            asked = one.get("max_rows") or one.get("rows_per_device")
            found.append((asked or len(one["prompts"]) * one["num_samples"], context))
    return found


def choose(recipe: Any, plan: Plan, sizes: GPTConfig, limit: int | None) -> tuple[Memory, str]:
    """The memory of the run, with the rows of a micro-batch and what is recomputed as set or, where
    they are `auto`, as they fit: as little recomputed as leaves FEW_ROWS rows."""
    config, predictions = recipe.config, recipe.predictions
    asked, kinds = config["data"].get("rows_per_device"), config["compute"]["checkpointing"]
    fixed = None if asked == "auto" else asked
    rows, micro = share_out(plan.batch_tokens, sizes.sequence_len, recipe.world_size, fixed)
    rank_rows, room = rows // recipe.world_size, int((limit or 0) * (1 - SPARE))
    tried: list[tuple[Memory, str]] = []
    for kind in KINDS if kinds == "auto" else (kinds,):
        prediction = predictions.get(kind) or prediction_of(recipe, plan, sizes, kind)
        predictions[kind] = prediction

        def of(rows: int, prediction: Prediction = prediction) -> Memory:
            return prediction.of(rows, rank_rows // rows)

        if asked != "auto":
            tried.append((of(micro), kind))
            if not limit or tried[-1][0].peak <= room:
                return tried[-1]
            continue
        fits = largest_rows(of, room, rank_rows, DEFAULT_ROWS) if limit else micro
        tried.append((of(max(fits, 1)), kind))
        if fits >= min(FEW_ROWS, rank_rows):
            return tried[-1]
    return max(tried, key=lambda one: (one[0].rows, -one[0].peak)) if asked == "auto" else tried[-1]


def prediction_of(recipe: Any, plan: Plan, sizes: GPTConfig, kind: str) -> Prediction:
    """Of a run that recomputes what `kind` says."""
    config, card = recipe.config, on_card(recipe.config)
    return Prediction(
        sizes,
        recipe.build_optimizer(plan),
        dtype=planned_dtype(config, None if config["dry_run"] else recipe.dtype[0]),
        checkpointing=kind,
        compiled=card and config["compute"]["compile"] is not False,
        on_card=card,
        world_size=recipe.world_size,
        sharded=sharded(config, recipe.world_size),
        written=written(config, sizes.sequence_len),
    )


def sharded(config: dict[str, Any], world_size: int) -> str:
    """What of a rank's memory is shared out: every rank updates a share (distributed/sharing.py),
    or also holds no more than one (distributed/fsdp.py)."""
    if world_size == 1:
        return "no"
    return "all" if config["trainer"]["strategy"] == "fsdp" else "optimizer"


def foresee(recipe: Any) -> Forecast:
    """The forecast of a run, from its recipe."""
    config, plan, sizes = recipe.config, recipe.plan, recipe.gpt_config
    compute, here = config["compute"], None if config["dry_run"] else recipe.hardware
    name, limit = machine(compute, here)
    earlier = look_back(base_dir() / "runs", name)
    memory, kind = None, compute["checkpointing"]
    with suppress(RuntimeError, NotImplementedError):  # what tensors without values raise
        memory, kind = choose(recipe, plan, sizes, limit and int(limit / earlier.memory))
    kind = "none" if kind == "auto" else kind
    peak = here.peak_flops if here else hardware.PEAK_FLOPS.get(str(compute["card"]))
    predicted = estimate_seconds(plan, peak, recipe.world_size, compute["expected_mfu"])
    seconds = predicted and predicted / earlier.speed
    price = config["price_per_gpu_hour"]
    state = memory.optimizer * recipe.world_size if memory else 0  # of all ranks
    saved = 4 * counts.parameters(sizes)["total"] + state
    return Forecast(
        memory=memory,
        limit=limit,
        checkpointing=kind,
        device=name,
        seconds=seconds,
        tokens_per_second=plan.tokens / predicted if predicted else None,
        dollars=None
        if price is None or not seconds
        else price * recipe.world_size * seconds / 3600,
        disk=KEEPS * saved,
        earlier=earlier,
    )


def is_foreseen(config: dict[str, Any]) -> bool:
    """Whether the memory of a run is predicted: for a card, where a choice follows from it, and
    where only the plan is wanted. It takes seconds, which a short run on a CPU need not spend."""
    if "rows_per_device" not in config["data"]:
        return False
    chosen = (
        config["compute"]["checkpointing"] != "none" or config["data"]["rows_per_device"] == "auto"
    )
    return on_card(config) or config["dry_run"] or chosen


def on_card(config: dict[str, Any]) -> bool:
    """Whether a run is for a GPU, where it is compiled and bf16."""
    return config["trainer"]["accelerator"] in ("gpu", "cuda")


def planned_dtype(config: dict[str, Any], here: torch.dtype | None) -> torch.dtype:
    """The compute dtype on the machine that is planned for."""
    asked = config["compute"]["precision"]
    if here is not None or asked in hardware.DTYPES:
        return here or hardware.DTYPES[asked]
    return torch.bfloat16 if on_card(config) else torch.float32
