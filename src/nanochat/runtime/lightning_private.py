"""Every reach into parts of Lightning that are not its public interface, and the versions it was
tested on.

tests/runtime/test_lightning_private.py fails when one of these parts changes, or when another
version is installed.
"""

from typing import Any

import lightning as L

TESTED = ("2.6",)  # versions of Lightning, without the last number


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep Lightning from handling SIGTERM, which would end the run before the step is done and
    saved."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def count_micro_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Set the micro-batches counted in `checkpoint` to what its steps would have been with
    `accumulate` a step.

    Lightning makes an optimizer step when its count of micro-batches divides; where a device takes
    another share of a batch than before the count is another.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    now = int(checkpoint["global_step"]) * accumulate
    for counts in (progress["total"], progress["current"]):
        more = now - counts["ready"]
        for key, value in counts.items():
            counts[key] = value + more
