"""`solve=`: the plan the other way round. Which rows of a micro-batch, which depth or how many
hours are the most that a card and a budget allow. It plans; nothing is trained."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from nanochat.runs.forecast import Forecast, gb
from nanochat.runs.recipe import build_recipe

DEPTHS = range(2, 66, 2)  # guess: even ones as in conf/model, to twice the deepest of them


def check(config: dict[str, Any], typed: Callable[[str], list[str]]) -> None:
    """ValueError for what cannot be solved, or not together. `typed` gives the words of the command
    line that set a key."""
    solve, budget, price = (config[key] for key in ("solve", "budget", "price_per_gpu_hour"))
    if solve is None:
        if budget is not None:
            raise ValueError(
                f"budget={budget:g} has no effect without solve=depth or solve=hours; add one of "
                "them"
            )
        return
    if not config["dry_run"]:
        raise ValueError(f"solve={solve} plans and trains nothing; add dry_run=true")
    if config["phase"] != "base" and (solve != "rows" or config["phase"] == "rl"):
        raise ValueError(
            f"solve={solve} is for phase base; phase {config['phase']} takes its sizes from a "
            "checkpoint and its length from its data"
        )
    if budget is not None and (solve == "rows" or price is None):
        raise ValueError(
            "solve=rows does not depend on a budget; drop budget"
            if solve == "rows"
            else f"budget={budget:g} needs a price; add price_per_gpu_hour=…"
        )
    if solve == "hours" and budget is None:
        raise ValueError("solve=hours needs a budget and a price; add budget=…")
    found_by = {
        "rows": (r"data\.rows_per_device",),
        "depth": ("model", "init_from"),
        "hours": ("max_steps", r"plan\.tokens", r"plan\.flops"),
    }
    for key in found_by[solve]:
        if words := typed(key):
            raise ValueError(f"solve={solve} finds it, so {words[0]} has no effect; drop one")


def solved(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The config with what was found, and a line that says it."""
    find = {"rows": _rows, "depth": _depth, "hours": _hours}
    found, line = find[config["solve"]](config)
    return found, f"solve={config['solve']}: {line}"


def forecast_of(config: dict[str, Any]) -> Forecast:
    recipe = build_recipe(deepcopy(config))
    recipe.check()
    return recipe.forecast


def _needs_limit(forecast: Forecast, what: str) -> None:
    if forecast.limit is None:
        raise ValueError(
            f"solve={what} needs a card; add compute.card=H100, or compute.memory_gb=80"
        )
    if forecast.memory is None:
        raise ValueError(f"solve={what} needs the memory of this run, which cannot be predicted")


def _with(config: dict[str, Any], group: str, **values: Any) -> dict[str, Any]:
    return {**config, group: {**config[group], **values}}


def _rows(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    config = _with(config, "data", rows_per_device="auto")
    found = forecast_of(config)
    _needs_limit(found, "rows")
    assert found.memory is not None
    if not found.fits():
        raise ValueError(f"not even one row fits: {found.notes()[0] if found.notes() else ''}")
    config = _with(config, "compute", checkpointing=found.checkpointing)
    rows = found.memory.rows
    return (
        _with(config, "data", rows_per_device=rows),
        f"data.rows_per_device={rows} is the most that fits {found.device}, with "
        f"compute.checkpointing={found.checkpointing}",
    )


def _depth(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    budget, known = config["budget"], {}

    def of_depth(depth: int) -> dict[str, Any]:
        shape = dict.fromkeys(("n_layer", "n_head", "n_kv_head", "n_embd"))
        wanted = _with(config, "model", depth=depth, **shape)
        if wanted["compute"]["checkpointing"] == "none":
            wanted = _with(wanted, "compute", checkpointing="auto")
        return _with(wanted, "data", rows_per_device="auto")

    def allowed(depth: int) -> bool:
        found = known[depth] = forecast_of(of_depth(depth))
        if budget is None:
            _needs_limit(found, "depth")
        elif found.dollars is None:
            raise ValueError(f"the speed of {found.device} is not known; add compute.card=H100")
        paid = budget is None or (found.dollars or 0) <= budget
        return paid and (found.limit is None or found.fits())

    # at `low` the deepest that is known to be allowed, at `high` the first that is not; small ones
    # are tried first, which take less time
    low, high, step = -1, len(DEPTHS), 1
    while high - low > 1:
        middle = min(low + step, high - 1) if high == len(DEPTHS) else (low + high) // 2
        step *= 2
        low, high = (middle, high) if allowed(DEPTHS[middle]) else (low, middle)
    if low < 0:
        raise ValueError(f"not even depth {DEPTHS[0]} fits; raise budget or take another card")
    depth = DEPTHS[low]
    found = known[depth]
    rows = found.memory.rows if found.memory else None
    result = _with(of_depth(depth), "data", rows_per_device=rows)
    result = _with(result, "compute", checkpointing=found.checkpointing)
    size = f", {gb(found.peak or 0)} of {gb(found.limit)} GB" if found.limit else ""
    cost = ""
    if found.dollars is not None and found.seconds is not None:
        cost = f", {found.dollars:,.2f} in {found.seconds / 3600:,.2f} hours"
    return result, (
        f"model.depth={depth} is the largest: data.rows_per_device={rows}, "
        f"compute.checkpointing={found.checkpointing}{size}{cost}"
    )


def _hours(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    found = forecast_of(config)
    if found.tokens_per_second is None:
        raise ValueError(f"the speed of {found.device} is not known; add compute.card=H100")
    devices = config["trainer"]["devices"] * config["trainer"]["num_nodes"]
    hours = config["budget"] / (config["price_per_gpu_hour"] * devices)
    tokens = int(found.tokens_per_second * found.earlier.speed * hours * 3600)
    config = _with({**config, "max_steps": None}, "plan", tokens=tokens, flops=None)
    return config, (
        f"{hours:,.2f} hours on {devices} device{'s' if devices > 1 else ''}, in which this model "
        f"reads plan.tokens={tokens}"
    )
