"""Learning rate, Muon momentum and Muon weight decay as functions of the step (facts sheet 2.3).

A schedule has no state: what a step uses follows from (step, total), so a resumed run needs nothing
but the step.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.runtime.settings import Beta, Fraction, Whole, check, check_fields

Scheduled = Literal["lr", "momentum", "weight_decay"]  # what of a rule's options can be scheduled


@dataclass(frozen=True)
class Schedule:
    """Multipliers for step `step` of `total`. Fractions are of the run; `*_steps` are optimizer
    steps.

    `warmup_steps: auto` is `warmup_auto_steps`, but at most a tenth of the run, so that a short run
    still reaches its full rate; a number holds.
    """

    warmup_steps: Whole | Literal["auto"] = "auto"  # up to the full rate
    warmup_auto_steps: Whole = 40  # what auto is, in runs of ten times as many steps and more
    warmdown_frac: Fraction = 0.65  # share of the run in which the rate goes down
    final_lr_frac: Fraction = 0.05  # of the rate, at the end
    init_lr_frac: Fraction = 1.0  # of every rate, over the whole run
    momentum_start: Beta = 0.85  # Muon's, at the first step
    momentum_peak: Beta = 0.97  # Muon's, after momentum_steps
    momentum_end: Beta | None = 0.90  # during the warmdown; null keeps the peak
    momentum_steps: Whole = 400  # from momentum_start to momentum_peak
    weight_decay: Literal["cosine", "constant"] = "cosine"  # cosine: to 0 over the run; constant

    def __post_init__(self) -> None:
        check_fields(self, "optim.schedule")

    def warmdown_steps(self, total: int) -> int:
        return round(self.warmdown_frac * total)

    def warmup(self, total: int) -> int:
        """Warmup steps of a run of `total` steps. A tenth is a guess: nanochat's 40 are 8 % or less
        of its runs, and it never cuts them."""
        if isinstance(self.warmup_steps, int):
            return self.warmup_steps
        return min(self.warmup_auto_steps, total // 10)

    def check_length(self, total: int) -> None:
        """ValueError for a warmup that a run of `total` steps does not come to the end of."""
        if self.warmup(total) > total:
            raise ValueError(
                f"optim.schedule.warmup_steps={self.warmup_steps} is longer than the run of "
                f"{total:,} steps, which would never reach its full rate; lower it, or type auto"
            )

    def describe(self, total: int) -> str:
        """Warmup and warmdown of a run of `total` steps, and what was shortened.

        >>> Schedule(warmup_steps=3).describe(10)
        'warm-up 3 steps, warm-down 6'
        >>> print(Schedule().describe(100).replace("; ", ";\\n"))
        warm-up 10 steps, a tenth of the run (auto: at most 40;
        optim.schedule.warmup_steps=40 takes all), warm-down 65
        """
        up, down, auto = self.warmup(total), self.warmdown_steps(total), self.warmup_auto_steps
        text = f"warm-up {up:,} steps"
        if self.warmup_steps == "auto" and up < auto:
            fits = f"; optim.schedule.warmup_steps={auto} takes all" if auto <= total else ""
            text += f", a tenth of the run (auto: at most {auto:,}{fits})"
        return f"{text}, warm-down {down:,}"

    def value(self, option: Scheduled, initial: float, step: int, total: int) -> float:
        """A scheduled option of a group that is configured as `initial`. The momentum is always the
        schedule's."""
        if option == "momentum":
            return self.momentum(step, total)
        return initial * (self.lr if option == "lr" else self.decay)(step, total)

    def lr(self, step: int, total: int) -> float:
        """Multiplier of every learning rate.

        >>> [round(Schedule().lr(s, 1000), 3) for s in (0, 39, 350, 675, 999)]
        [0.025, 1.0, 1.0, 0.525, 0.051]
        """
        down, up = self.warmdown_steps(total), self.warmup(total)
        if step < up:
            scale = (step + 1) / up
        elif step <= total - down:
            scale = 1.0
        else:
            p = (total - step) / down
            scale = p + (1 - p) * self.final_lr_frac
        return self.init_lr_frac * scale

    def momentum(self, step: int, total: int) -> float:
        """Muon's momentum: up over the first `momentum_steps`, which win where they overlap the way
        down of the warmdown."""
        if step < self.momentum_steps:
            f = step / self.momentum_steps
            return (1 - f) * self.momentum_start + f * self.momentum_peak
        down = self.warmdown_steps(total)
        if self.momentum_end is not None and down and step >= total - down:
            f = (step - (total - down)) / down
            return (1 - f) * self.momentum_peak + f * self.momentum_end
        return self.momentum_peak

    def decay(self, step: int, total: int) -> float:
        """Multiplier of Muon's weight decay; AdamW's follows the learning rate alone."""
        return (
            0.5 * (1 + math.cos(math.pi * step / total)) if self.weight_decay == "cosine" else 1.0
        )


def build_schedule(settings: dict[str, Any]) -> Schedule:
    """A `Schedule` from plain values; a setting that does not exist is an error, a missing one
    keeps its default."""
    return Schedule(**check(settings, Schedule, "optim.schedule."))
