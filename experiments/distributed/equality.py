"""Parameters and optimizer state after 20 steps: one process against 2, 3 and 4, DDP and FSDP2,
every phase.

    python experiments/distributed/equality.py FOLDER [phase …] [--scale 0.0003] [--fp64]

It appends rows to FOLDER/equality.csv. Rates are `--scale` of the phase's, and AdamW's eps is
`EPS`: with 1e-10 an element whose gradient is rounding noise moves as far as any other. In the row
`micro-batches` one process splits each batch otherwise: sums in another order and nothing else,
which is what a comparison of processes cannot be closer than. `--fp64` computes and stores
everything in fp64: a wrong sum or a wrong share stays as large as it is in fp32, and what was
rounding goes down with the rounding error.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.distributed.runs_of_ranks import end_of, gap, trained
from tests.processes import IMPORTED, SERVER
from tests.train.conftest import TINY, make_corpus

STEPS, EPS = 20, 1e-6
ROLES = ("head", "embedding", "value_embedding", "resid_scalar", "x0_scalar", "gate_scalar")
COMMON = [
    "trainer=cpu",
    "compute.precision=fp32",
    "compute.compile=false",
    "progress=none",
    "save_every=null",
    "eval_every=null",
    "evals={}",
    "checkpoints.best_metric=null",
    "sample.prompts=[]",
    "data.num_workers=0",
    f"max_steps={STEPS}",
    *(f"+optim.groups.{role}.eps={EPS}" for role in ROLES),
]
WORLDS = [("ddp", 2), ("ddp", 3), ("ddp", 4), ("fsdp", 2), ("fsdp", 3), ("fsdp", 4)]


def talks(base: Path) -> Path:
    file = base / "talks.jsonl"
    with file.open("w") as out:
        for i in range(300):
            turns = [("user", f"the river {i % 17}"), ("assistant", f"a stone house {i % 5}")]
            out.write(json.dumps([{"role": role, "content": text} for role, text in turns]) + "\n")
    return file


def words_of(phase: str, base: Path) -> list[str]:
    """A run of the phase on a batch of 24 rows of 64 tokens, or 12 questions, from the end of a
    short run of phase base."""
    start = f"init_from={base}/start"
    if phase == "base":
        data = [
            "data=local",
            f"data.path={make_corpus(base / 'corpus')}",
            "data.prepare_workers=0",
            "batch_tokens=1536",
            "data.rows_per_device=2",
        ]
        return [
            word
            for word in TINY
            if word.split("=")[0] not in {w.split("=")[0] for w in [*COMMON, *data]}
        ] + data
    if phase == "rl":
        return [
            "+phase=rl",
            "task=simple_spelling",
            "task.path=library",
            "task.size=40",
            "rollout.questions=12",
            "rollout.samples=4",
            "rollout.max_tokens=8",
            "rollout.tools=false",
            "data.micro_tokens=90",
            "rewards.answer._target_=rollouts.letters_e",
            "+rewards.answer._partial_=true",
            "~rewards.answer.grader",
            "preflight.run=false",
            "model.sequence_len=64",
            start,
        ]
    return [
        f"+phase={phase}",
        "data=jsonl",
        f"data.path={talks(base)}",
        "data.prepare_workers=0",
        "batch_tokens=1536",
        "data.rows_per_device=2",
        "model.sequence_len=64",
        start,
    ]


def compared(base: Path, phase: str, scale: float) -> Iterator[tuple[str, int, list[str]]]:
    """(strategy, processes, gaps) of each way to run a phase, against one process."""
    words = [*words_of(phase, base), *COMMON, f"optim.schedule.init_lr_frac={scale}"]
    if phase == "rl":
        none = ("compute.compile", "data.num_w", "evals", "eval_every")
        words = [w for w in words if not w.startswith(none)] + ["eval_every=null"]
    one = end_of(trained(base, *words, f"run_name={phase}-1", "trainer.devices=1"))
    other = "data.micro_tokens=180" if phase == "rl" else "data.rows_per_device=4"
    ways = [("micro-batches", 1, [other])] + [
        (kind, n, [f"trainer.strategy={kind}", f"trainer.devices={n}"]) for kind, n in WORLDS
    ]
    for kind, n, more in ways:
        run = end_of(trained(base, *words, f"run_name={phase}-{kind}-{n}", *more))
        yield kind, n, [f"{gap(a, b):.1e}" for a, b in zip(run, one, strict=True)]


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("folder", type=Path)
    read.add_argument("phases", nargs="*", default=["base", "mid", "sft", "rl"])
    read.add_argument("--scale", type=float, default=0.0003)
    read.add_argument("--fp64", action="store_true")
    given = read.parse_args()
    dtype = "fp64" if given.fp64 else "fp32"
    sys.path += [f"{sys.path[0]}/tests/rl", f"{sys.path[0]}/tests/inference"]  # the reward's
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the ranks
    if given.fp64:
        SERVER.set_forkserver_preload(["experiments.distributed.in_fp64", *IMPORTED])
    base = given.folder.absolute() / dtype
    base.mkdir(parents=True, exist_ok=True)
    with (base.parent / "equality.csv").open("a", buffering=1) as file:
        out = csv.writer(file)
        if file.tell() == 0:
            names = ["phase", "dtype", "scale", "strategy", "processes"]
            out.writerow([*names, "parameters", "optimizer state"])
        if given.phases != ["base"] and not (base / "start").exists():
            words = [*words_of("base", base), *COMMON, "run_name=start", "trainer.devices=1"]
            run = trained(base, *words)
            (base / "start").symlink_to(run / "checkpoints" / f"step_{STEPS:06d}")
        for phase in given.phases:
            for kind, n, gaps in compared(base, phase, given.scale):
                out.writerow([phase, dtype, given.scale, kind, n, *gaps])


if __name__ == "__main__":
    main()
