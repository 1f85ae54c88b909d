"""Parameters and optimizer state after 20 fp32 steps: one process against 2, 3 and 4,
DDP and FSDP2, every phase.

    python experiments/distributed/equality.py FOLDER [phase …]

It writes FOLDER/equality.csv. Rates are `SCALE` of the phase's, and AdamW's eps is `EPS`: with
1e-10 an element whose gradient is rounding noise moves as far as any other. In the row
`micro-batches` one process splits each batch otherwise: sums in another order and nothing else,
which is what a comparison of processes cannot be closer than.
"""

import csv
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.distributed.runs_of_ranks import end_of, gap, trained
from tests.train.conftest import TINY, make_corpus

STEPS, SCALE, EPS = 20, 0.0003, 1e-6
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
    f"optim.schedule.init_lr_frac={SCALE}",
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


def main(base: Path, phases: list[str]) -> None:
    sys.path += [f"{sys.path[0]}/tests/rl", f"{sys.path[0]}/tests/inference"]  # the reward's
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the ranks
    base.mkdir(parents=True, exist_ok=True)
    file = (base / "equality.csv").open("a", buffering=1)
    out = csv.writer(file)
    out.writerow(["phase", "strategy", "processes", "parameters", "optimizer state"])
    if phases != ["base"] and not (base / "start").exists():
        words = [w for w in COMMON if "init_lr" not in w]
        run = trained(base, *words_of("base", base), *words, "run_name=start", "trainer.devices=1")
        (base / "start").symlink_to(run / "checkpoints" / f"step_{STEPS:06d}")
    for phase in phases:
        words = [*words_of(phase, base), *COMMON]
        words = [
            w
            for w in words
            if not (
                phase == "rl"
                and w.startswith(("compute.compile", "data.num_w", "evals", "eval_every"))
            )
        ]
        if phase == "rl":
            words.append("eval_every=null")
        one = end_of(trained(base, *words, f"run_name={phase}-1", "trainer.devices=1"))
        other = "data.micro_tokens=180" if phase == "rl" else "data.rows_per_device=4"
        rows = [("micro-batches", 1, [other])] + [
            (kind, n, [f"trainer.strategy={kind}", f"trainer.devices={n}"]) for kind, n in WORLDS
        ]
        for kind, n, more in rows:
            if (phase, kind) == ("rl", "fsdp"):  # refused
                continue
            run = end_of(trained(base, *words, f"run_name={phase}-{kind}-{n}", *more))
            out.writerow(
                [phase, kind, n, *(f"{gap(a, b):.1e}" for a, b in zip(run, one, strict=True))]
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["base", "mid", "sft", "rl"])
