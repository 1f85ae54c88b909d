"""Process groups, collectives, the sharded optimizer and strategies of the ranks of a run."""

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
