"""What a run will need: memory by part, time, cost, disk. Printed with the plan, before anything is
allocated. `runs/memory.py` predicts the memory.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from nanochat.datamodules.by_step import DEFAULT_ROWS, share_out
from nanochat.gpt import GPTConfig, counts
from nanochat.gpt.recompute import KINDS
from nanochat.runs.memory import SPARE, Memory, largest_rows, predict
from nanochat.runs.plan import Plan, estimate_seconds
from nanochat.runtime import hardware

KEEPS = 3  # checkpoints that exist at once: checkpoints.keep_last and the best
FEW_ROWS = 8  # guess: smaller micro-batches leave a GPU idle; rather recompute more


@dataclass(frozen=True)
class Forecast:
    """The forecast, per process unless a field says otherwise."""

    memory: Memory | None  # None: a part of this run cannot be traced
    limit: int | None  # bytes of memory of the device; None: unknown
    checkpointing: str
    device: str
    seconds: float | None  # seconds of training; None: unknown
    tokens_per_second: float | None  # of all processes
    dollars: float | None
    disk: int  # bytes on disk of the checkpoints that are kept

    def rows(self) -> list[tuple[str, str]]:
        """Rows for the table of the plan."""
        found = [
            ("memory", self.described()),
            ("recomputed", self.checkpointing),
            ("disk", f"{gb(self.disk)} GB of checkpoints"),
        ]
        if self.seconds and self.tokens_per_second:
            speed = f"{self.tokens_per_second:,.0f} tokens/s, {self.seconds / 3600:,.2f} hours"
            cost = "" if self.dollars is None else f", {self.dollars:,.2f} at this price"
            found.append(("speed", speed + cost))
        return found

    def described(self) -> str:
        if self.memory is None:
            return "not known: the network or the optimizer computes with values"
        sizes = self.memory.parts().items()
        parts = ", ".join(f"{name} {gb(size)}" for name, size in sizes if size)
        limit = f" of {gb(self.limit)} GB" if self.limit else ""
        return f"about {gb(self.memory.peak)} GB{limit} on {self.device}: {parts}"

    def notes(self) -> list[str]:
        if self.memory and self.limit and self.memory.peak > self.limit:
            return [
                f"this needs about {gb(self.memory.peak)} GB and {self.device} has "
                f"{gb(self.limit)}; "
                "try data.rows_per_device=auto, compute.checkpointing=auto or a smaller model"
            ]
        return []


def gb(size: int) -> str:
    """Decimal gigabytes, as in data sheets."""
    return f"{size / 1e9:,.3g}" if size < 1e11 else f"{size / 1e9:,.0f}"


def machine(compute: dict[str, Any], device: hardware.Hardware | None) -> tuple[str, int | None]:
    """Name and memory of the device to plan for: the present one, or
    `compute.card` in a dry run."""
    if device:
        return device.name, device.memory_bytes
    if card := compute["card"]:
        return card, int(hardware.CARD_MEMORY[card])
    return "a device not known here", None


def choose(recipe: Any, plan: Plan, sizes: GPTConfig, limit: int | None) -> tuple[Memory, str]:
    """The memory of the run. Where the rows of a micro-batch or the recomputation are `auto`, they
    are chosen to fit, with as little recomputation as allows FEW_ROWS rows."""
    config = recipe.config
    asked, kinds = config["data"].get("rows_per_device"), config["compute"]["checkpointing"]
    fixed = None if asked == "auto" else asked
    rows, micro = share_out(plan.batch_tokens, sizes.sequence_len, recipe.world_size, fixed)
    rank_rows, room = rows // recipe.world_size, int((limit or 0) * (1 - SPARE))
    tried: list[tuple[Memory, str]] = []
    for kind in KINDS if kinds == "auto" else (kinds,):
        memory = predict(
            sizes,
            recipe.build_optimizer(plan),
            rows=micro,
            dtype=planned_dtype(config, None if config["dry_run"] else recipe.dtype[0]),
            checkpointing=kind,
            compiled=on_card(config) and config["compute"]["compile"] is not False,
            head_on_card=on_card(config),
            world_size=recipe.world_size,
            # every rank updates a share (distributed/sharing.py), or holds one
            # (distributed/fsdp.py)
            sharded="all" if config["trainer"]["strategy"] == "fsdp" else "optimizer",
        )
        fits = largest_rows(memory, room, rank_rows, DEFAULT_ROWS) if limit else micro
        wanted = min(FEW_ROWS, rank_rows) if asked == "auto" else micro
        tried.append((memory.of_rows(max(fits, 1) if asked == "auto" else micro), kind))
        if fits >= wanted:
            return tried[-1]
    return max(tried, key=lambda one: (one[0].rows, -one[0].peak)) if asked == "auto" else tried[-1]


def foresee(recipe: Any) -> Forecast:
    """The forecast of a run, from its recipe."""
    config, plan, sizes = recipe.config, recipe.plan, recipe.gpt_config
    compute, here = config["compute"], None if config["dry_run"] else recipe.hardware
    name, limit = machine(compute, here)
    memory, kind = None, compute["checkpointing"]
    with suppress(
        RuntimeError, NotImplementedError
    ):  # raised by operations on tensors without values
        memory, kind = choose(recipe, plan, sizes, limit)
    kind = "none" if kind == "auto" else kind
    peak = here.peak_flops if here else hardware.PEAK_FLOPS.get(compute["card"] or "")
    seconds = estimate_seconds(plan, peak, recipe.world_size, compute["expected_mfu"])
    price = config["price_per_gpu_hour"]
    state = memory.optimizer * recipe.world_size if memory else 0  # of all ranks
    saved = 4 * counts.parameters(sizes)["total"] + state
    return Forecast(
        memory=memory,
        limit=limit,
        checkpointing=kind,
        device=name,
        seconds=seconds,
        tokens_per_second=plan.tokens / seconds if seconds else None,
        dollars=None
        if price is None or not seconds
        else price * recipe.world_size * seconds / 3600,
        disk=KEEPS * saved,
    )


def is_foreseen(config: dict[str, Any]) -> bool:
    """Whether to predict the memory of a run: on a GPU, if a setting is chosen by it, and in a dry
    run. It takes seconds, too long for a short run on a CPU."""
    if "rows_per_device" not in config["data"]:
        return False
    chosen = (
        config["compute"]["checkpointing"] != "none" or config["data"]["rows_per_device"] == "auto"
    )
    return on_card(config) or config["dry_run"] or chosen


def on_card(config: dict[str, Any]) -> bool:
    """Whether a run is for a GPU, where it is compiled and in bf16."""
    return config["trainer"]["accelerator"] in ("gpu", "cuda")


def planned_dtype(config: dict[str, Any], here: torch.dtype | None) -> torch.dtype:
    """The compute dtype on the machine that is planned for."""
    asked = config["compute"]["precision"]
    if here is not None or asked in hardware.DTYPES:
        return here or hardware.DTYPES[asked]
    return torch.bfloat16 if on_card(config) else torch.float32
