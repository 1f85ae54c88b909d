"""What the processes (ranks) of a run compute together."""

from nanochat.distributed.collectives import active, agreed, close, gathered, maximum, summed

__all__ = ["active", "agreed", "close", "gathered", "maximum", "summed"]
