"""Settings that can work and look like a mistake: a line each for the plan, none where nothing is
wrong."""

import numpy as np

from nanochat.optim import Schedule

# from: Muennighoff et al. 2023, "Scaling data-constrained language models", arXiv:2305.16264: up to
# four epochs train almost as well as new text
EPOCHS = 4


def never_decays(schedule: Schedule, steps: int) -> list[str]:
    if schedule.warmdown_steps(steps) and schedule.final_lr_frac < 1:
        return []
    return [
        "the learning rate never goes down: optim.schedule.warmdown_frac="
        f"{schedule.warmdown_frac:g}, final_lr_frac={schedule.final_lr_frac:g}"
    ]


def short_context(lengths: np.ndarray, context: int) -> list[str]:
    """`lengths` (n,) of all conversations, in tokens."""
    longer = float((lengths > context + 1).mean()) if len(lengths) else 0.0
    if longer <= 0.5:
        return []
    return [
        f"{longer:.0%} of the conversations are longer than the context of {context:,} tokens; a "
        "checkpoint with a longer one would see them whole"
    ]


def repeated_text(epochs: float, instead: str) -> list[str]:
    """`epochs`: how often the run reads its text, about."""
    if epochs <= EPOCHS:
        return []
    return [f"the run reads its text about {epochs:,.1f} times; {instead}"]


def few_rows(eval_tokens: int | None, sequence_len: int, world_size: int) -> list[str]:
    rows = max((eval_tokens or 0) // sequence_len, 1)
    if eval_tokens is None or rows >= world_size:
        return []
    return [
        f"eval_tokens={eval_tokens} is {rows:,} row{'s' if rows > 1 else ''} for {world_size} "
        f"processes, and {world_size - rows} of them evaluate nothing; try "
        f"eval_tokens={world_size * sequence_len}"
    ]
