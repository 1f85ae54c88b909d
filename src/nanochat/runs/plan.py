"""From the one dial to a whole run: horizon, batch, rates and weight decay (facts sheet 2.3 and
2.4).

nanochat scales a run from a depth-12 reference of the same ratio of tokens to parameters. Here the
same laws take the *actual* horizon, also when it is set by tokens, steps or FLOPs, so a short run
gets a small batch; where the ratio sets it the numbers are nanochat's.
"""

import math
from dataclasses import dataclass, field

from nanochat.gpt import GPTConfig, counts

REF_BATCH = 2**19  # from: facts sheet 2.4, tokens per step of the d12 reference
# from: facts sheet 5.2, tokens per scaling parameter, where the run names no ratio
REF_RATIO = 12.0
BATCH_EXPONENT = 0.383  # from: Bergsma et al. 2025, arXiv:2505.13738
# guess: the batch law was fitted at 1,000 steps and more; nanochat's shortest planned run (d4) has
# 528
MIN_STEPS = 500
# measured: experiments/open_prose_10min/README.md; sqrt(B / REF_BATCH) makes the rates of batches
# of a few thousand tokens far too low
MIN_LR_FACTOR = 0.5
# guess: nanochat's d4 has 1.89; beyond the law's range decay would outrun the updates
MAX_WEIGHT_DECAY = 2.0


@dataclass(frozen=True)
class Plan:
    """What a run will do. Token counts are over all processes; one step is one optimizer step."""

    config: GPTConfig
    horizon_tokens: int
    batch_tokens: int
    steps: int
    lr_factor: float
    weight_decay: float
    horizon_source: str
    # where it is not what the law or the original gives
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> int:
        return self.tokens * counts.flops_per_token(self.config)


def reference_tokens(reference: GPTConfig, ratio: float | None) -> float:
    """Horizon of the depth-12 reference run with the same shape options, at the run's own ratio
    (facts sheet 2.4: D_ref = R * P12)."""
    return (ratio or REF_RATIO) * counts.parameters(reference)["scaling"]


def auto_batch_tokens(horizon: float, ref_horizon: float, min_steps: int = MIN_STEPS) -> int:
    """Tokens per step for a run of `horizon` tokens: a power of two near REF_BATCH * (horizon /
    ref_horizon)**0.383.

    Never so large that fewer than `min_steps` steps are left.

    >>> auto_batch_tokens(8_757_727_488, 1_321_210_944)
    1048576
    """
    law = 2 ** round(math.log2(REF_BATCH * (horizon / ref_horizon) ** BATCH_EXPONENT))
    return min(law, 2 ** math.floor(math.log2(max(1.0, horizon / min_steps)))) if min_steps else law


def scaled_rates(batch_tokens: int) -> tuple[float, list[str]]:
    """The factor on the rates for a batch of another size than the reference's, and a note where it
    is not the square root."""
    law = math.sqrt(batch_tokens / REF_BATCH)
    if law >= MIN_LR_FACTOR:
        return law, []
    return MIN_LR_FACTOR, [
        f"rates x {MIN_LR_FACTOR:g} for a batch of {batch_tokens:,} tokens, and not the {law:.4g} "
        "of the law, which is too low for small batches (measured); optim.groups.….lr sets a rate"
    ]


def check_scale(scale: str) -> None:
    if scale not in ("modern", "classic"):
        raise ValueError(f"plan.scale={scale!r} is not known; choose from modern, classic")


def _length_source(given: dict[str, float], ratio: float | None) -> str:
    """The setting that decides the length of a run, as typed. ValueError for several, or none."""
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(f'{k}={v:,.12g}' for k, v in given.items())} each set the length of "
            "the run; keep one of them"
        )
    for name, value in given.items():
        return f"{name}={value:,.4g}" if isinstance(value, float) else f"{name}={value:,}"
    if ratio is None:
        raise ValueError(
            "nothing sets the length of the run; give plan.ratio, plan.tokens, plan.flops or "
            "max_steps"
        )
    return f"plan.ratio={ratio:g}"


def _batch_of(steps: int, ref: float, row: int) -> int:
    """Tokens of a batch in whole rows, for a run of that many steps: batch and horizon follow from
    each other, B = REF_BATCH (steps * B / ref)**e."""
    law = (REF_BATCH * (steps / ref) ** BATCH_EXPONENT) ** (1 / (1 - BATCH_EXPONENT))
    return max(1, round(2 ** round(math.log2(law)) / row)) * row


def _length(
    config: GPTConfig,
    ref: float,
    row: int,
    given: dict[str, float],
    ratio: float | None,
    batch_tokens: int | None,
    scale: str,
) -> tuple[int, int, int]:
    """(tokens of the run, tokens of a batch, steps), by the setting in `given`, else by `ratio`.

    `row` is the tokens of one row on every process; a batch holds whole ones.
    """
    sizes = counts.parameters(config)

    def batch_for(horizon: float) -> int:
        if scale == "classic":
            return REF_BATCH
        return max(1, round(auto_batch_tokens(horizon, ref) / row)) * row

    if "max_steps" in given:
        steps = int(given["max_steps"])
        full = batch_for((ratio or REF_RATIO) * sizes["scaling"])
        if batch_tokens is None:
            batch_tokens = full if scale == "classic" else min(full, _batch_of(steps, ref, row))
        return steps * batch_tokens, batch_tokens, steps
    if "plan.flops" in given:
        flops, per_token = given["plan.flops"], counts.flops_per_token(config)
        horizon = int(flops / per_token)
        batch_tokens = batch_tokens or batch_for(horizon)
        return horizon, batch_tokens, round(flops / (per_token * batch_tokens))
    of = sizes["scaling" if scale == "modern" else "total"]
    horizon = int(given.get("plan.tokens", (ratio or 0) * of))
    batch_tokens = batch_tokens or batch_for(horizon)
    return horizon, batch_tokens, horizon // batch_tokens


def _zero_steps(source: str, horizon: int, batch_tokens: int, row: int) -> str:
    fits = 2 ** max(0, horizon.bit_length() - 4) // row * row
    instead = (
        f"try batch_tokens={fits}"
        if fits
        else f"a step is at least one row of {row:,} tokens; make the run longer"
    )
    return (
        f"{source} is {horizon:,} tokens, less than one step of batch_tokens={batch_tokens:,}: "
        f"zero steps; {instead}"
    )


def make_plan(
    config: GPTConfig,
    reference: GPTConfig,
    *,
    ratio: float | None = REF_RATIO,
    tokens: int | None = None,
    flops: float | None = None,
    max_steps: int | None = None,
    batch_tokens: int | None = None,
    weight_decay: float = 0.28,
    scale: str = "modern",
    world_size: int = 1,
) -> Plan:
    """The plan of a pretraining run. At most one of `tokens`, `flops`, `max_steps` may be given;
    else `ratio` decides.

    `ratio` is tokens per scaling parameter (matrices + head), of this run and of the reference that
    it is scaled from, so that batch and weight decay do not depend on it; with another length it is
    the ratio of the reference alone. `reference` is the depth-12 model with the same shape options.
    `scale` `modern` fits batch, rates and weight decay to the horizon; `classic` takes REF_BATCH,
    unscaled rates and all parameters for the ratio (facts sheet 2.4, [C]). Raises ValueError for a
    horizon of zero steps or contradictory settings.
    """
    lengths = {"max_steps": max_steps, "plan.flops": flops, "plan.tokens": tokens}
    given = {name: value for name, value in lengths.items() if value is not None}
    check_scale(scale)
    for name, value in {**given, "plan.ratio": ratio, "batch_tokens": batch_tokens}.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value:g} gives a run of zero steps; it must be above 0")
    source, typed = _length_source(given, ratio), batch_tokens
    ref, row = reference_tokens(reference, ratio), config.sequence_len * world_size
    horizon, batch_tokens, steps = _length(config, ref, row, given, ratio, batch_tokens, scale)
    if steps < 1:
        raise ValueError(_zero_steps(source, horizon, batch_tokens, row))
    if scale == "classic":
        return Plan(config, horizon, batch_tokens, steps, 1.0, 0.0, source)
    lr_factor, notes = scaled_rates(batch_tokens)
    # the original's, however long the run is
    scaling = counts.parameters(config)["scaling"]
    law = auto_batch_tokens((ratio or REF_RATIO) * scaling, ref, min_steps=0)
    if typed is None and batch_tokens < law and round(law / row) * row > batch_tokens:
        fits = max(1, round(law / row)) * row
        why = "fitted to the shorter run" if given else f"so that {MIN_STEPS} steps are left"
        notes.insert(
            0,
            f"{source} makes a step {batch_tokens:,} tokens, {why}; for the original's {law:,} "
            f"(that of plan.ratio={ratio or REF_RATIO:g}) type batch_tokens={fits}",
        )
    # nanochat's D_ref / D is that of the parameters: it takes D for ratio * P also when steps or
    # FLOPs make the run another length
    decay = weight_decay * math.sqrt(batch_tokens / REF_BATCH)
    decay = decay * counts.parameters(reference)["scaling"] / scaling
    if decay > MAX_WEIGHT_DECAY:
        notes.append(
            f"Muon weight decay {MAX_WEIGHT_DECAY:g}, and not the {decay:.4g} of the law, with "
            "which it would outrun the updates; optim.groups.matrix.weight_decay sets it"
        )
        decay = MAX_WEIGHT_DECAY
    return Plan(config, horizon, batch_tokens, steps, lr_factor, decay, source, tuple(notes))


def make_epochs_plan(
    config: GPTConfig,
    *,
    rows: int,
    epochs: int,
    batch_tokens: int,
    max_steps: int | None = None,
    scale: str = "modern",
) -> Plan:
    """The plan of a run over `rows` rows of conversations, `epochs` times all of them; `max_steps`
    makes it another length.

    Rates follow the batch as in pretraining, which nanochat's SFT forgets (facts sheet 5.5, 10.2).
    Muon decays nothing (5.7, 5.8).
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps={max_steps} gives a run of zero steps; it must be above 0")
    check_scale(scale)
    steps = max_steps or -(-rows // max(batch_tokens // config.sequence_len, 1))
    factor, notes = (1.0, []) if scale == "classic" else scaled_rates(batch_tokens)
    source = (
        f"max_steps={max_steps:,}"
        if max_steps
        else f"{epochs} epoch{'s' if epochs > 1 else ''} of {rows // epochs:,} rows"
    )
    return Plan(
        config, steps * batch_tokens, batch_tokens, steps, factor, 0.0, source, tuple(notes)
    )


def estimate_seconds(
    plan: Plan, peak_flops: float | None, devices: int, mfu: float
) -> float | None:
    """Expected training time at a model FLOPs utilisation of `mfu`; None if the peak is unknown."""
    return None if not peak_flops else plan.flops / (peak_flops * devices * mfu)
