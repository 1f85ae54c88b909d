"""What `auto` picks for which model on which card, as predicted; no card is needed:
`python experiments/preflight/cards.py [MODEL …]`.

A cell: rows of a micro-batch, what is recomputed, GB of the peak.
"""

import sys

from omegaconf import OmegaConf

from nanochat.commands.configs import compose_command
from nanochat.runs.forecast import SPARE, choose
from nanochat.runs.recipe import build_recipe

MODELS, CARDS = ("d12", "d20", "d26", "d34"), (24, 40, 80, 141)
WORDS = (
    "+phase=base trainer=1xgpu data.rows_per_device=auto compute.checkpointing=auto dry_run=true"
)


def cells(model: str) -> list[str]:
    config = OmegaConf.to_container(
        compose_command("train", [*WORDS.split(), f"model={model}"]), resolve=True
    )
    recipe, found = build_recipe(config), []  # type: ignore[arg-type]
    for card in CARDS:
        memory, kind = choose(recipe, recipe.plan, recipe.gpt_config, card * 10**9)
        fits = memory.peak <= card * 1e9 * (1 - SPARE)
        peak = f"{memory.peak / 1e9:.0f} GB"
        found.append(f"{memory.rows} rows, {kind}, {peak}" if fits else f"no, {peak}")
    return found


print(f"| | {' | '.join(f'{card} GB' for card in CARDS)} |")
print("|---" * (len(CARDS) + 1) + "|")
for model in sys.argv[1:] or MODELS:
    print(f"| {model} | {' | '.join(cells(model))} |", flush=True)
