"""Process groups, collectives, the sharded optimizer and strategies of the ranks of a run."""

from nanochat.distributed.collectives import (
    AnyRank,
    FailedElsewhere,
    active,
    agreed,
    by_group,
    close,
    everywhere,
    gathered,
    maximum,
    own_group,
    rank,
    summed,
)

__all__ = [
    "AnyRank",
    "FailedElsewhere",
    "active",
    "agreed",
    "by_group",
    "close",
    "everywhere",
    "gathered",
    "maximum",
    "own_group",
    "rank",
    "summed",
]
