"""Update rules, one file each, and the one optimizer object that applies them by parameter role."""

from nanochat.optim.groups import GroupedOptimizer, build, table
from nanochat.optim.schedules import Schedule

__all__ = ["GroupedOptimizer", "Schedule", "build", "table"]
