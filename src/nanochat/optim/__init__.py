"""Update rules, one file each, and the one optimizer object that applies them by parameter role."""

from nanochat.optim.groups import (
    GroupedOptimizer,
    build,
    configured,
    load_moments,
    shows_length,
    table,
    uses_planned_decay,
)
from nanochat.optim.schedules import Schedule, build_schedule

__all__ = [
    "GroupedOptimizer",
    "Schedule",
    "build",
    "build_schedule",
    "configured",
    "load_moments",
    "shows_length",
    "table",
    "uses_planned_decay",
]
