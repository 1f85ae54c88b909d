"""SIGKILL to both ranks of a run, again and again, some of them while it saves; it then ends as the
run that was left alone.

    python experiments/distributed/kills.py FOLDER ddp|fsdp [kills]

It appends a row to FOLDER/kills.csv: strategy, kills, those within a save, largest difference of
weights and of optimizer state at the end.
"""

import csv
import random
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.distributed.equality import COMMON, words_of
from tests.distributed.runs_of_ranks import end_of, gap, killed, ranks_of, trained

from nanochat.checkpoint.atomic import TEMPORARY
from nanochat.checkpoint.runs import RunCheckpoints


def saves(root: Path) -> bool:
    return any(root.glob(f"{TEMPORARY}*"))


def went_on(root: Path, before: list[int]) -> bool:
    return RunCheckpoints(root).steps() != before


def main(base: Path, strategy: str, kills: int) -> None:
    base.mkdir(parents=True, exist_ok=True)
    steps = 3 * kills
    words = [
        w
        for w in COMMON
        if not w.startswith(("save_every", "max_steps", "optim.schedule", "+optim"))
    ]
    words += [*words_of("base", base), f"trainer.strategy={strategy}", "trainer.devices=2"]
    words += ["save_every=2", f"max_steps={steps}", "resume=auto"]
    whole = end_of(trained(base, *words, f"run_name=whole-{strategy}"))
    rng, done, within = random.Random(2), 0, 0
    while done < kills:
        run, ranks = ranks_of(base, *words, f"run_name=killed-{strategy}")
        root = run / "checkpoints"
        before = RunCheckpoints(root).steps()
        if done % 2:  # some steps later
            hit = killed(ranks, partial(went_on, root, before), 0.3 * rng.random())
        else:  # as soon as it saves
            hit = killed(ranks, partial(saves, root), 0.01 * rng.random())
        if not hit:
            raise SystemExit("it came to its end before the last kill")
        done, within = done + 1, within + saves(root)
    mine = end_of(trained(base, *words, f"run_name=killed-{strategy}"))
    gaps = [gap(a, b) for a, b in zip(mine, whole, strict=True)]
    with (base / "kills.csv").open("a") as file:
        csv.writer(file).writerow([strategy, done, within, *gaps])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 20)
