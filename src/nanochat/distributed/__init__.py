"""What the processes (ranks) of a run compute together."""

from nanochat.distributed.collectives import (
    FailedElsewhere,
    active,
    agreed,
    close,
    everywhere,
    gathered,
    maximum,
    rank,
    summed,
)

__all__ = [
    "FailedElsewhere",
    "active",
    "agreed",
    "close",
    "everywhere",
    "gathered",
    "maximum",
    "rank",
    "summed",
]
